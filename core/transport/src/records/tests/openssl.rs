//! The other end is the `openssl` program, which changes keys when it is told to.

use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tulle_identity::testing::{certificate, shared_ca};
use tulle_identity::tls;

use super::rustls_peers::{Ours, id};

/// The program at work, with a workload's certificate.
struct Program {
    _child: Child,
    stdin: ChildStdin,
    said: BufReader<tokio::process::ChildStdout>,
    noted: BufReader<tokio::process::ChildStderr>,
    _files: TempDir,
}

impl Program {
    /// Starts it; `None` on a machine without it.
    fn start(name: &str, arguments: &[&str]) -> Option<Self> {
        let files = TempDir::new().unwrap();
        let (chain, key) = shared_ca().workload(&id(name));
        let (chain_at, key_at) = (files.path().join("chain"), files.path().join("key"));
        std::fs::write(&chain_at, chain).unwrap();
        std::fs::write(&key_at, key).unwrap();
        let mut command = Command::new("openssl");
        command.args(arguments).args(["-tls1_3", "-alpn", "h2", "-cert"]);
        command.arg(chain_at).arg("-key").arg(key_at).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("not tested: there is no openssl here");
                return None;
            }
            Err(error) => panic!("openssl: {error}"),
        };
        Some(Self {
            stdin: child.stdin.take().unwrap(),
            said: BufReader::new(child.stdout.take().unwrap()),
            noted: BufReader::new(child.stderr.take().unwrap()),
            _child: child,
            _files: files,
        })
    }

    /// What it is told: data, or a command of one letter.
    async fn tell(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).await.unwrap();
    }

    /// Waits until it says this.
    async fn says(&mut self, text: &str) -> String {
        heard(&mut self.said, text).await
    }

    /// Waits until it notes this.
    async fn notes(&mut self, text: &str) {
        heard(&mut self.noted, text).await;
    }
}

async fn heard<R: AsyncReadExt + Unpin>(from: &mut BufReader<R>, text: &str) -> String {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = from.read_until(b'\n', &mut line).await.unwrap();
        assert!(read > 0, "it ended without saying {text}");
        let line = String::from_utf8_lossy(&line);
        if line.contains(text) {
            return line.into_owned();
        }
    }
}

#[tokio::test]
async fn an_openssl_client_and_we_change_keys_in_mid_stream() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let Some(mut client) = Program::start("web", &["s_client", "-noservername", "-connect", &address]) else {
        return;
    };
    let (socket, _) = listener.accept().await.unwrap();
    let handover = tls::accept_and_hand_over(certificate(&id("reviews")).server_config(), socket);
    let mut ours = Ours::new(handover.await.unwrap());
    client.says("Verification").await;
    client.tell("one\n").await;
    assert_eq!(ours.read(4).await, b"one\n");
    for command in ["k\n", "K\n", "K\n"] {
        client.tell(command).await;
        client.notes("KEYUPDATE").await;
        client.tell("two\n").await;
        assert_eq!(ours.read(4).await, b"two\n");
        assert_eq!(ours.session.owes(), command == "K\n", "it asks for ours");
        ours.write(b"answer\n").await;
        client.says("answer").await;
    }
    ours.session.change_key(true);
    ours.write(b"asked\n").await;
    client.says("asked").await;
    client.tell("three\n").await;
    assert_eq!(ours.read(6).await, b"three\n");
    client.tell("Q\n").await;
    assert_eq!(ours.read(1).await, b"");
    assert_eq!(ours.session.end(), Some(&Ok(())), "it says goodbye");
}

#[tokio::test]
async fn an_openssl_server_and_we_change_keys_in_mid_stream() {
    let Some(mut server) = Program::start("reviews", &["s_server", "-4", "-accept", "0", "-naccept", "1"])
    else {
        return;
    };
    let accepts = server.says("ACCEPT ").await;
    let port = accepts.trim().rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let config = certificate(&id("web")).client_config(&[id("reviews")]);
    let mut ours = Ours::new(tls::connect_and_hand_over(config, socket).await.unwrap());
    ours.write(b"hello\n").await;
    server.says("hello").await;
    for _ in 0..3 {
        server.tell("K\n").await;
        let mut found = Vec::new();
        while !ours.session.owes() {
            ours.step(&mut found).await;
        }
        assert!(found.is_empty());
        ours.write(b"answer\n").await;
        server.says("answer").await;
        server.tell("two\n").await;
        assert_eq!(ours.read(4).await, b"two\n");
    }
    ours.session.change_key(true);
    ours.write(b"asked\n").await;
    server.says("asked").await;
    server.tell("three\n").await;
    assert_eq!(ours.read(6).await, b"three\n");
    ours.session.close();
    ours.write(b"").await;
    server.says("CONNECTION CLOSED").await;
}
