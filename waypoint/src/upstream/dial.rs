//! How endpoints are reached: sockets, and tunnels over them under the waypoint's own certificate.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
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

/// A port to ask for routes by; nothing is sent there.
const DISCARD: u16 = 9;

/// Our end of what is in memory.
#[cfg(any(test, feature = "testing"))]
const MEMORY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), 40_000);

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
    /// Our end of it.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            #[cfg(any(test, feature = "testing"))]
            Self::Memory(_) => Some(MEMORY),
        }
    }

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

    /// Whether there is any way to an address: a host of one family has none to those of the other. Who cannot say
    /// lets it be tried.
    fn has_route(&self, _to: IpAddr) -> bool {
        true
    }
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

    /// Nothing is sent: that a datagram's socket is connected only asks the kernel for a route and an address of ours.
    fn has_route(&self, to: IpAddr) -> bool {
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let connected = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((to, DISCARD)));
        // Any other error, such as too many open files, says nothing of routes.
        !connected.is_err_and(|error| is_no_route(&error))
    }
}

/// Whether the kernel says that it has no way there: no route, no address, or not even the family.
fn is_no_route(error: &io::Error) -> bool {
    const FAMILY_NOT_SUPPORTED: i32 = 97;
    let kind = error.kind();
    kind == io::ErrorKind::NetworkUnreachable
        || kind == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(FAMILY_NOT_SUPPORTED)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_route_to_itself_and_knows_what_the_lack_of_one_looks_like() {
        assert!(OwnNetwork.has_route(Ipv4Addr::LOCALHOST.into()));
        for (raw, expect) in [(101, true), (99, true), (97, true), (24, false), (113, false)] {
            let error = io::Error::from_raw_os_error(raw);
            assert_eq!(is_no_route(&error), expect, "{error}");
        }
    }
}
