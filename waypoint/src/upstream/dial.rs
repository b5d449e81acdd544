//! How endpoints are reached: sockets, and tunnels over them under the waypoint's own certificate.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tulle_identity::{Clock, Priority, SecretManager, TrustStore};
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::OpenError;
use tulle_transport::hbone::pool::DialFuture;
use tulle_transport::hbone::{ClientConnection, Dial, Settings, TunnelKey, client};
use tulle_transport::socket::{self, SocketOptions};

use crate::buffers;

/// A connected socket, or what stands for one where there is no network.
#[derive(Debug)]
pub enum Socket {
    /// A real one.
    Tcp(TcpStream),
    /// In memory.
    #[cfg(any(test, feature = "testing"))]
    Memory(tokio::io::DuplexStream),
}

impl Socket {
    fn keep_queue_short(&self) {
        match self {
            // A socket that cannot take its options is already dead; the handshake will find out.
            Self::Tcp(stream) => drop(socket::keep_queue_short(stream)),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(_) => {}
        }
    }
}

/// A socket that is being connected.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send + 'a>>;

/// A name that is being looked up.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Opens sockets, and knows what names of hosts outside of the mesh stand for.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Connects. The caller bounds the time.
    fn connect(&self, to: SocketAddr) -> Connecting<'_>;

    /// The addresses of a host. The caller bounds the time, and judges them.
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a>;
}

/// The network this process is in.
#[derive(Debug, Default)]
pub struct OwnNetwork;

impl Network for OwnNetwork {
    fn connect(&self, to: SocketAddr) -> Connecting<'_> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            let options = SocketOptions {
                nodelay: true,
                ..SocketOptions::default()
            };
            // A socket that cannot take its options is already dead; its first use will find out.
            let _ = options.apply(&stream);
            Ok(Socket::Tcp(stream))
        })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Dials tunnels.
#[derive(Debug, Clone)]
pub struct Dialer {
    identity: Identity,
    secrets: SecretManager,
    trust: TrustStore,
    network: Arc<dyn Network>,
    stream_window: u32,
}

impl Dialer {
    /// A dialer that shows the certificate of `identity`; streams of its tunnels have this window towards us.
    #[must_use]
    pub fn new(
        identity: Identity,
        secrets: SecretManager,
        trust: TrustStore,
        network: Arc<dyn Network>,
        stream_window: u32,
    ) -> Self {
        Self {
            identity,
            secrets,
            trust,
            network,
            stream_window,
        }
    }

    async fn connect(&self, key: &TunnelKey) -> Result<ClientConnection, OpenError> {
        let certificate = self.secrets.fetch(&self.identity, Priority::Waiting).await;
        let certificate = certificate.map_err(|error| OpenError::Certificate {
            reason: error.reason(),
            detail: error.to_string().into(),
        })?;
        let socket = self.network.connect(key.destination).await;
        let socket = socket.map_err(|error| OpenError::connect(key.destination, error))?;
        socket.keep_queue_short();
        let expected: Vec<Identity> = key.expected.iter().cloned().collect();
        let tls = certificate.client_config(&expected);
        let connection =
            client::connect_over(socket, key.destination, tls, &settings(self.stream_window)).await?;
        let Some(peer) = connection.peer().cloned() else {
            return Err(OpenError::GoingAway);
        };
        let not_after = certificate.not_after().min(peer.not_after());
        let retired = connection.retire_after(not_after, Clock::system());
        drop(tasks::spawn("tunnel-lifetime", retired));
        let believed = self.trust.judge(&peer, None);
        believed.map_err(|why| OpenError::Certificate {
            reason: why.reason(),
            detail: why.to_string().into(),
        })?;
        let (over, cut, trust) = (connection.over(), connection.cutter(), self.trust.clone());
        drop(tasks::spawn("tunnel-revocation", async move {
            tokio::select! {
                () = over => {}
                why = trust.distrusted(&peer, None) => cut(why.reason()),
            }
        }));
        Ok(connection)
    }
}

impl Dial for Dialer {
    fn dial<'a>(&'a self, key: &'a TunnelKey) -> DialFuture<'a> {
        Box::pin(self.connect(key))
    }
}

/// HTTP/2 of tunnels to endpoints.
pub(super) fn settings(stream_window: u32) -> Settings {
    let usual = Settings {
        ping_after: std::time::Duration::from_secs(10),
        ping_timeout: std::time::Duration::from_secs(20),
        idle_timeout: super::pool::IDLE_MAX,
        ..Settings::client()
    };
    buffers::tunnel(usual, stream_window)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
