//! HTTP/2 of other makes against ours, over TLS 1.3 with certificates of both sides: the `h2` package of Python as client and
//! as server, and nghttp2's proxy as either, with every framing. A machine without them says so and tests nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod nghttp2;
mod python;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tulle_identity::testing::{certificate, shared_ca};
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::{
    ClientConnection, ConnectResponse, Framing, HboneStream, Incoming, Settings, client, server,
};

const FRAMINGS: [Framing; 3] = [Framing::H2, Framing::Own, Framing::Records];

/// More than anything here takes; a hang fails.
const PATIENCE: Duration = Duration::from_secs(100);

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

/// Bytes that do not look alike at any two places near each other; the other side has the same.
fn pattern(length: usize) -> Vec<u8> {
    let byte = |at: usize| at.wrapping_mul(31).wrapping_add(at / 251).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

/// Chain, key and root of a workload, as files.
struct Files(TempDir);

impl Files {
    fn of(name: &str) -> Self {
        let files = TempDir::new().unwrap();
        let (chain, key) = shared_ca().workload(&id(name));
        let root = shared_ca().root_pem();
        for (name, text) in [("chain", chain), ("key", key), ("root", root)] {
            std::fs::write(files.path().join(name), text).unwrap();
        }
        Self(files)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

/// Whether a program or library is on this machine.
fn is_there(path: &str) -> bool {
    let there = Path::new(path).exists();
    if !there {
        eprintln!("not tested: there is no {path} here");
    }
    there
}

/// A program that says what it does, line by line. It ends with the value.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Its next line that begins so, without the beginning.
    async fn says(&mut self, beginning: &str) -> String {
        let saying = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return rest.trim().to_owned();
                }
            }
            panic!("it ended without saying {beginning}");
        };
        timeout(PATIENCE, saying).await.expect("it says so in time")
    }

    /// Everything it still says; it must end well.
    async fn rest(mut self) -> Vec<String> {
        let saying = async {
            let mut said = Vec::new();
            while let Some(line) = self.lines.next_line().await.unwrap() {
                said.push(line);
            }
            let status = self.child.wait().await.unwrap();
            assert!(status.success(), "{status}, after {said:?}");
            said
        };
        timeout(PATIENCE, saying).await.expect("it ends in time")
    }
}

/// A server of ours on loopback, for callers of the mesh.
async fn serve(framing: Framing) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks::spawn("server", async move {
        while let Ok((socket, _)) = listener.accept().await {
            tasks::spawn("connection", connection(socket, framing));
        }
    });
    address
}

async fn connection(socket: TcpStream, framing: Framing) {
    socket.set_nodelay(true).unwrap();
    let settings = Settings {
        framing,
        ..Settings::server()
    };
    let config = certificate(&id("reviews")).server_config();
    let Ok(mut accepted) = server::accept(socket, config, &settings).await else {
        return;
    };
    assert_eq!(accepted.identity, id("web"));
    while let Some(incoming) = accepted.connection.accept().await {
        tasks::spawn("stream", answer(incoming));
    }
}

/// What the second number of the authority asks for.
async fn answer(incoming: Incoming) {
    let Ok(request) = incoming.request() else {
        return incoming.reject(400, None);
    };
    let kind = request.authority.split('.').nth(1).unwrap_or_default().to_owned();
    if !["0", "2", "3"].contains(&kind.as_str()) {
        return incoming.reject(503, None);
    }
    let Ok(stream) = incoming.accept(&ConnectResponse::default()) else {
        return;
    };
    // A caller that resets its stream is the caller's affair.
    let _ = match kind.as_str() {
        "0" => echo(stream).await,
        "2" => count(stream).await,
        _ => feed(stream).await,
    };
}

async fn echo(stream: HboneStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn count(mut stream: HboneStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let length = if bytes == pattern(bytes.len()) {
        bytes.len()
    } else {
        0
    };
    stream.write_all(length.to_string().as_bytes()).await?;
    stream.shutdown().await
}

async fn feed(stream: HboneStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut asked = String::new();
    stream.read_line(&mut asked).await?;
    let bytes = pattern(asked.trim().parse().unwrap());
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

/// A client of ours, of a server of the mesh.
async fn connect(port: u16, framing: Framing) -> ClientConnection {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let settings = Settings {
        framing,
        ..Settings::client()
    };
    let config = certificate(&id("web")).client_config(&[id("reviews")]);
    client::connect(socket, config, &settings).await.unwrap()
}

/// Sends bytes, half-closes, and reads what comes back to its end.
async fn exchange(stream: HboneStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        writer.write_all(bytes).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let reading = async { reader.read_to_end(&mut answer).await.unwrap() };
    let both = async { tokio::join!(sending, reading) };
    timeout(PATIENCE, both).await.expect("it comes back in time");
    answer
}
