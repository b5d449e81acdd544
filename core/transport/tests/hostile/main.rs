//! Peers that mean harm, over real sockets: what they cost is bounded, and others do not notice.
//!
//! Memory is measured as this process's, so one test runs at a time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crowds;
mod early;
mod floods;
mod handshakes;
mod heads;
mod resets;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::time::timeout;
use tulle_identity::testing::certificate;
use tulle_model::Identity;
use tulle_runtime::{tasks, usage};
use tulle_transport::hbone::raw;
use tulle_transport::hbone::{
    AcceptError, ClientConnection, ConnectRequest, ConnectResponse, Framing, HboneStream, Incoming,
    ServerConnection, Settings, client, server,
};
use tulle_transport::reason_header::ReasonHeader;

/// The tests stand in three programs, one for each framing.
const FRAMING: Framing = match module_path!().as_bytes() {
    b"hostile" => Framing::H2,
    b"hostile_own::hostile" => Framing::Own,
    _ => Framing::Records,
};

/// A socket, or TLS over one.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects to a target as its peers do: there are no records without TLS.
async fn dial(address: SocketAddr) -> Box<dyn Stream> {
    let socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    if FRAMING != Framing::Records {
        return Box::new(socket);
    }
    let config = certificate(&id("web")).client_config(&[id("reviews")]);
    Box::new(tulle_identity::tls::connect(config, socket).await.unwrap())
}

/// A good client on a socket.
async fn client_on(socket: TcpStream) -> ClientConnection {
    let connection = if FRAMING == Framing::Records {
        let config = certificate(&id("web")).client_config(&[id("reviews")]);
        client::connect(socket, config, &client_settings()).await
    } else {
        client::handshake(socket, &client_settings()).await
    };
    connection.unwrap()
}

/// The server's end of a socket.
async fn server_on(socket: TcpStream, settings: &Settings) -> Result<ServerConnection, AcceptError> {
    if FRAMING == Framing::Records {
        let config = certificate(&id("reviews")).server_config();
        Ok(server::accept(socket, config, settings).await?.connection)
    } else {
        server::handshake(socket, settings).await
    }
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

const fn client_settings() -> Settings {
    Settings {
        framing: FRAMING,
        ..Settings::client()
    }
}

const fn server_settings() -> Settings {
    Settings {
        framing: FRAMING,
        ..Settings::server()
    }
}

const MIB: usize = 1024 * 1024;

/// More than any of these tests takes; a hang fails.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a server does with each stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Neither answers nor reads.
    Hold,
    /// Accepts and reads nothing.
    AcceptAndHold,
    /// Sends back what it gets.
    Echo,
    /// Says no.
    Refuse,
}

static ALONE: Mutex<()> = Mutex::const_new(());

/// A server on loopback, and one who uses it while others attack.
struct Target {
    address: SocketAddr,
    /// One entry per connection of an attacker that has ended.
    ended: mpsc::UnboundedReceiver<()>,
    neighbour: ClientConnection,
    _alone: MutexGuard<'static, ()>,
}

impl Target {
    async fn new(manner: Manner) -> Self {
        Self::with(manner, server_settings()).await
    }

    async fn with(manner: Manner, settings: Settings) -> Self {
        let alone = ALONE.lock().await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, ended) = mpsc::unbounded_channel();
        let near = TcpStream::connect(address);
        let (near, far) = tokio::join!(near, listener.accept());
        tasks::spawn(
            "neighbour's server",
            serve(far.unwrap().0, Manner::Echo, settings),
        );
        let neighbour = client_on(near.unwrap()).await;
        tasks::spawn("target", async move {
            while let Ok((socket, _)) = listener.accept().await {
                let ended = sender.clone();
                tasks::spawn("target connection", async move {
                    serve(socket, manner, settings).await;
                    let _ = ended.send(());
                });
            }
        });
        let target = Self {
            address,
            ended,
            neighbour,
            _alone: alone,
        };
        target.neighbour_is_served().await;
        target
    }

    /// An attacker's connection.
    async fn attacker(&self) -> raw::Peer<Box<dyn Stream>> {
        raw::Peer::client(dial(self.address).await).await
    }

    /// Others get what they ask for.
    async fn neighbour_is_served(&self) {
        let served = async {
            let (mut stream, _) = self
                .neighbour
                .open(&ConnectRequest::new("10.0.0.1:80"))
                .await
                .unwrap();
            stream.write_all(b"still there?").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"still there?");
        };
        timeout(Duration::from_secs(5), served)
            .await
            .expect("the neighbour is served");
    }

    /// The server has ended an attacker's connection.
    async fn sent_away(&mut self) {
        timeout(PATIENCE, self.ended.recv())
            .await
            .expect("the server ends it")
            .expect("the server runs");
    }
}

/// Serves one connection to its end.
async fn serve(socket: TcpStream, manner: Manner, settings: Settings) {
    socket.set_nodelay(true).unwrap();
    let Ok(mut connection) = server_on(socket, &settings).await else {
        return;
    };
    let mut held = Vec::new();
    while let Some(incoming) = connection.accept().await {
        match manner {
            Manner::Hold => held.push(Held::Asked(Box::new(incoming))),
            Manner::AcceptAndHold => {
                held.extend(
                    incoming
                        .accept(&ConnectResponse::default())
                        .ok()
                        .map(Held::Accepted),
                );
            }
            Manner::Echo => drop(tasks::spawn("echo", echo(incoming))),
            Manner::Refuse => {
                incoming.reject(401, Some(ReasonHeader::new(tulle_model::Reason::PolicyDenied)));
            }
        }
    }
}

#[expect(dead_code, reason = "held, not used")]
enum Held {
    Asked(Box<Incoming>),
    Accepted(HboneStream),
}

async fn echo(incoming: Incoming) {
    let Ok(mut stream) = incoming.accept(&ConnectResponse::default()) else {
        return;
    };
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).await.is_ok() {
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
    }
}

/// Memory of this process.
fn resident() -> usize {
    let bytes = usage::memory(usage::Process::Own, usage::Memory::Resident).unwrap();
    usize::try_from(bytes).unwrap()
}

/// Fails if this process has grown by more than `most` since it was `before`.
#[track_caller]
fn grown_at_most(before: usize, most: usize) {
    let grown = resident().saturating_sub(before);
    assert!(
        grown <= most,
        "grown by {} KiB, allowed {} KiB",
        grown / 1024,
        most / 1024
    );
}

/// CPU time of this process, attacker included.
fn cpu() -> Duration {
    usage::cpu(usage::Process::Own).unwrap()
}

/// Sends `bytes` again and again until the other side has had enough, at most `times`; says how often.
async fn repeat(attacker: &mut raw::Peer<Box<dyn Stream>>, bytes: &[u8], times: usize) -> usize {
    let sending = async {
        for sent in 0..times {
            if attacker.try_send(bytes).await.is_err() {
                return sent;
            }
        }
        times
    };
    // A server that reads no more stops the sender as well.
    timeout(PATIENCE, sending)
        .await
        .expect("the server reads or ends it")
}
