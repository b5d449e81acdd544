//! Two applications with proxies between them, all in this process and over loopback: what benchmarks measure.
//!
//! ```text
//!   tunnel:  client ── copy ══ TLS, h2 ══ copy ── server        relay:  client ── copy ── server
//! ```
//!
//! All parts share the cores, so the ratio of two rows of one run is what to read, not either of them.

pub mod bound;
pub mod contestants;
pub mod control;
pub mod l7;
pub mod mesh;
pub mod pace;
pub mod rows;
pub mod simulation;
pub mod workers;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tulle_identity::WorkloadCertificate;
use tulle_identity::testing::certificate;
use tulle_identity::tls;
use tulle_model::Identity;
use tulle_runtime::{tasks, usage};
use tulle_transport::copy::{Endpoint, bidirectional};
use tulle_transport::hbone::server::Accepted;
use tulle_transport::hbone::{
    ClientConnection, ConnectRequest, ConnectResponse, Framing, Incoming, Settings, client, server,
};
use tulle_transport::{HboneStream, Transfer};

/// What each direction of the relay without HTTP/2 reads at once.
const TLS_BUFFER: usize = 64 * 1024;

/// A runtime as the node proxy has it.
#[must_use]
pub fn runtime() -> Runtime {
    Runtime::new().expect("threads and epoll are there")
}

/// Two connected sockets.
pub async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback has ports");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (
        near.expect("loopback connects"),
        far.expect("loopback connects").0,
    );
    near.set_nodelay(true).expect("a fresh socket");
    far.set_nodelay(true).expect("a fresh socket");
    (near, far)
}

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "bench", name)
}

/// Two workloads with a certificate each.
#[derive(Debug, Clone)]
pub struct Peers {
    framing: Framing,
    web: Arc<WorkloadCertificate>,
    reviews: Arc<WorkloadCertificate>,
}

impl Default for Peers {
    fn default() -> Self {
        Self::with(Settings::client().framing)
    }
}

impl Peers {
    /// Workloads whose proxies use this framing.
    #[must_use]
    pub fn with(framing: Framing) -> Self {
        Self {
            framing,
            web: certificate(&identity("web")),
            reviews: certificate(&identity("reviews")),
        }
    }

    /// Two applications with proxies between them that speak TLS and no HTTP/2.
    pub async fn tls_only(&self) -> Path {
        let ((client, mut captured), (mut delivered, server)) = (sockets().await, sockets().await);
        let (mut near, mut far) = self.tls_handshake().await;
        tasks::spawn("bench TLS client", async move {
            copy_bidirectional_with_sizes(&mut captured, &mut near, TLS_BUFFER, TLS_BUFFER).await
        });
        tasks::spawn("bench TLS server", async move {
            copy_bidirectional_with_sizes(&mut delivered, &mut far, TLS_BUFFER, TLS_BUFFER).await
        });
        Path { client, server }
    }

    /// TCP and mutual TLS, both ends.
    pub async fn tls_handshake(&self) -> (tls::ClientStream<TcpStream>, tls::AcceptedStream<TcpStream>) {
        let (near, far) = sockets().await;
        let (near, far) = tokio::join!(
            tls::connect(self.web.client_config(&[identity("reviews")]), near),
            tls::accept(self.reviews.server_config(), far),
        );
        (near.expect("trusted"), far.expect("trusted").0)
    }

    /// Bytes of the futures of a handshake: connecting, and accepting.
    pub async fn handshake_sizes(&self) -> [usize; 2] {
        let (near, far) = sockets().await;
        let (client_settings, server_settings) = (Settings::client(), Settings::server());
        let config = self.web.client_config(&[identity("reviews")]);
        let connecting = client::connect(near, config, &client_settings);
        let accepting = server::accept(far, self.reviews.server_config(), &server_settings);
        [size_of_val(&connecting), size_of_val(&accepting)]
    }

    /// TCP, mutual TLS and HTTP/2, both ends.
    pub async fn handshake(&self) -> (ClientConnection, Accepted) {
        let (near, far) = sockets().await;
        let framing = self.framing;
        let (client_settings, server_settings) = (
            Settings {
                framing,
                ..Settings::client()
            },
            Settings {
                framing,
                ..Settings::server()
            },
        );
        let (client, accepted) = tokio::join!(
            client::connect(
                near,
                self.web.client_config(&[identity("reviews")]),
                &client_settings
            ),
            server::accept(far, self.reviews.server_config(), &server_settings),
        );
        (client.expect("trusted"), accepted.expect("trusted"))
    }

    /// A tunnel connection, both ends.
    pub async fn tunnel(&self) -> Tunnel {
        Tunnel::over(self.handshake().await)
    }
}

impl Tunnel {
    /// Serves a connection that was made.
    #[must_use]
    pub fn over((client, accepted): (ClientConnection, Accepted)) -> Self {
        let mut connection = accepted.connection;
        let (sender, incoming) = mpsc::channel(256);
        tasks::spawn("bench server", async move {
            while let Some(stream) = connection.accept().await {
                let _ = sender.send(stream).await;
            }
        });
        Self { client, incoming }
    }
}

/// A tunnel connection that streams are opened on.
#[derive(Debug)]
pub struct Tunnel {
    client: ClientConnection,
    incoming: mpsc::Receiver<Incoming>,
}

impl Tunnel {
    /// A stream, both ends.
    pub async fn stream(&mut self) -> (HboneStream, HboneStream) {
        let request = ConnectRequest::new("10.0.0.1:80");
        let (opened, accepted) = tokio::join!(self.client.open(&request), async {
            let stream = self.incoming.recv().await.expect("the client opens one");
            stream
                .accept(&ConnectResponse::default())
                .expect("the client waits")
        });
        (opened.expect("accepted").0, accepted)
    }

    /// Bytes of the futures of a stream: opening it, and copying between it and a socket.
    pub async fn stream_sizes(&mut self) -> [usize; 2] {
        let opening = size_of_val(&self.client.open(&ConnectRequest::new("10.0.0.1:80")));
        let ((near, _far), (local, _application)) = (self.stream().await, sockets().await);
        let transfer = Transfer::new();
        [opening, size_of_val(&bidirectional(local, near, &transfer))]
    }

    /// Two applications with a stream of this tunnel between them.
    pub async fn path(&mut self) -> Path {
        let ((client, captured), (delivered, server)) = (sockets().await, sockets().await);
        let (near, far) = self.stream().await;
        copy(captured, near);
        copy(delivered, far);
        Path { client, server }
    }
}

/// Two applications, and whatever is between them.
#[derive(Debug)]
pub struct Path {
    /// The one that connected.
    pub client: TcpStream,
    /// The one that accepted.
    pub server: TcpStream,
}

/// Two applications with nothing between them.
pub async fn direct() -> Path {
    let (client, server) = sockets().await;
    Path { client, server }
}

/// Two applications with a plain relay between them.
pub async fn relayed() -> Path {
    let ((client, captured), (delivered, server)) = (sockets().await, sockets().await);
    copy(captured, delivered);
    Path { client, server }
}

fn copy(local: TcpStream, remote: impl Into<Endpoint>) {
    let (remote, transfer) = (remote.into(), Transfer::new());
    tasks::spawn("bench copy", async move {
        bidirectional(local, remote, &transfer).await;
    });
}

impl Path {
    /// Sends `length` bytes from client to server, `write` bytes at a time.
    pub async fn transfer(&mut self, length: usize, write: usize) {
        let chunk = vec![7; write];
        let (client, server) = (&mut self.client, &mut self.server);
        let sending = async {
            let mut left = length;
            while left > 0 {
                let part = left.min(chunk.len());
                client.write_all(&chunk[..part]).await.expect("the path is open");
                left -= part;
            }
        };
        let receiving = async {
            let mut buffer = vec![0; 256 * 1024];
            let mut left = length;
            while left > 0 {
                left -= server.read(&mut buffer).await.expect("the path is open");
            }
        };
        tokio::join!(sending, receiving);
    }

    /// Sends one small message there and back, `rounds` times.
    pub async fn ping(&mut self, rounds: u64) {
        let mut message = [0; 200];
        for _ in 0..rounds {
            self.client.write_all(&message).await.expect("the path is open");
            self.server
                .read_exact(&mut message)
                .await
                .expect("the path is open");
            self.server.write_all(&message).await.expect("the path is open");
            self.client
                .read_exact(&mut message)
                .await
                .expect("the path is open");
        }
    }
}

/// Memory of this process, in bytes.
#[must_use]
pub fn resident() -> u64 {
    usage::memory(usage::Process::Own, usage::Memory::Resident).expect("Linux tells")
}

/// CPU time of this process so far, to 10 ms.
#[must_use]
pub fn cpu() -> Duration {
    usage::cpu(usage::Process::Own).expect("Linux tells")
}

/// Sends `length` bytes in all, over all paths at once, `write` bytes at a time.
pub async fn transfer_all(paths: Vec<Path>, length: usize, write: usize) -> Vec<Path> {
    let share = length / paths.len().max(1);
    let spawn = |mut path: Path| {
        tasks::spawn("bench transfer", async move {
            path.transfer(share, write).await;
            path
        })
    };
    let running: Vec<_> = paths.into_iter().map(spawn).collect();
    let mut paths = Vec::new();
    for path in running {
        paths.push(path.await.expect("no transfer panics"));
    }
    paths
}
