//! Sockets inside of pods: servers that echo, clients, and lasting connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tulle_linux::NetNs;

use crate::mesh::PATIENCE;

/// A server inside of a namespace that sends back what it gets, and remembers who called.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    peers: Arc<parking_lot::Mutex<Vec<SocketAddr>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Echo {
    /// Listens on an address of the namespace.
    pub async fn start(namespace: &NetNs, address: impl Into<IpAddr>, port: u16) -> Self {
        let address = SocketAddr::new(address.into(), port);
        let listener = namespace
            .run_async(move || std::net::TcpListener::bind(address))
            .await
            .unwrap();
        let listener = listener.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let peers = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let task = spawn(async move {
            while let Ok((mut stream, peer)) = listener.accept().await {
                seen.lock()
                    .push(SocketAddr::new(peer.ip().to_canonical(), peer.port()));
                spawn(async move {
                    let (mut read, mut write) = stream.split();
                    // A caller that resets its connection is the caller's affair.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        Self { address, peers, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The addresses of its callers, as it saw them.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Spawns a task of a test; it ends with the test's runtime.
pub fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    #[allow(
        clippy::disallowed_methods,
        reason = "a test's runtime is the scope of its tasks"
    )]
    tokio::spawn(task)
}

/// Connects from inside of a namespace.
///
/// # Errors
/// When the connection is refused, reset, or not made in time.
pub async fn connect(namespace: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let domain = socket2::Domain::for_address(to);
    let open = move || socket2::Socket::new(domain, socket2::Type::STREAM, None);
    let socket = namespace.run_async(open).await??;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(PATIENCE, socket.connect(to)).await?
}

/// Sends a text, half-closes, and reads the answer to its end.
///
/// # Errors
/// When the connection fails or breaks, or takes too long.
pub async fn call(namespace: &NetNs, to: SocketAddr, text: &[u8]) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = connect(namespace, to).await?;
        stream.write_all(text).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(PATIENCE, exchange).await?
}

/// Asserts that a call comes back whole.
pub async fn assert_echo(namespace: &NetNs, to: SocketAddr) {
    let answer = call(namespace, to, b"there and back").await;
    let answer = answer.unwrap_or_else(|error| panic!("calling {to} failed: {error}"));
    assert_eq!(answer, b"there and back", "calling {to}");
}

/// Whether a call gets through whole; a refusal shows as a reset or an empty answer.
pub async fn gets_through(namespace: &NetNs, to: SocketAddr) -> bool {
    call(namespace, to, b"may I?")
        .await
        .is_ok_and(|answer| answer == b"may I?")
}

/// How many calls each server answers. They are made one after the other, and each must come back whole.
pub async fn shares(namespace: &NetNs, to: SocketAddr, calls: usize, servers: &[Echo]) -> Vec<usize> {
    let before: Vec<_> = servers.iter().map(|server| server.peers().len()).collect();
    for _ in 0..calls {
        assert_echo(namespace, to).await;
    }
    let after = servers.iter().map(|server| server.peers().len());
    let shares: Vec<_> = after.zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(shares.iter().sum::<usize>(), calls, "{shares:?}");
    shares
}

/// Connections that stay open and exchange a byte now and then.
#[derive(Debug)]
pub struct Pinned {
    lost: Arc<AtomicU64>,
    echoes: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Pinned {
    /// Opens connections; each sends a byte every 20 ms and waits for it to come back.
    pub async fn open(namespace: &NetNs, to: SocketAddr, count: usize) -> Self {
        let (lost, echoes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..count {
            let stream = connect(namespace, to)
                .await
                .unwrap_or_else(|error| panic!("pinning {to}: {error}"));
            let (lost, echoes) = (Arc::clone(&lost), Arc::clone(&echoes));
            tasks.push(spawn(async move {
                beat(stream, &echoes).await;
                lost.fetch_add(1, Ordering::Relaxed);
            }));
        }
        Self { lost, echoes, tasks }
    }

    /// Connections that ended.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Bytes that came back.
    #[must_use]
    pub fn echoes(&self) -> u64 {
        self.echoes.load(Ordering::Relaxed)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Exchanges bytes until the connection ends.
async fn beat(mut stream: TcpStream, echoes: &AtomicU64) {
    let mut byte = [0];
    loop {
        let exchange = async {
            stream.write_all(b"x").await?;
            stream.read_exact(&mut byte).await
        };
        if exchange.await.is_err() {
            return;
        }
        echoes.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
