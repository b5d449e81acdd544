//! Sockets: original destinations, options, source addresses, and how a connection ended.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

mod source;

pub use self::source::{Source, SourcePorts};

/// Connections the kernel queues for a listener.
pub const BACKLOG: i32 = 4096;

/// TCP keepalive: when an idle connection is probed, how often, and how many unanswered probes end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub retries: u32,
}

impl Keepalive {
    /// What an ordinary connection gets.
    pub const ORDINARY: Self = Self {
        idle: Duration::from_secs(180),
        interval: Duration::from_secs(180),
        retries: 9,
    };

    /// What a half-closed connection gets, so that a peer that is gone is found within a minute or two.
    pub const HALF_CLOSED: Self = Self {
        idle: Duration::from_secs(30),
        interval: Duration::from_secs(10),
        retries: 3,
    };

    /// The longest a silent, dead peer stays unnoticed.
    #[must_use]
    pub fn span(self) -> Duration {
        self.idle + self.interval * self.retries
    }
}

/// Options of every socket of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Send small segments at once [true].
    pub nodelay: bool,
    /// SO_MARK, which keeps the proxy's own packets from being captured again (none).
    pub mark: Option<u32>,
    /// Keepalive, or none for sockets that have another liveness check [180 s, 180 s, 9].
    pub keepalive: Option<Keepalive>,
    /// Whether unacknowledged data ends the connection after [`Keepalive::span`] [false].
    pub user_timeout: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            mark: None,
            keepalive: Some(Keepalive::ORDINARY),
            user_timeout: false,
        }
    }
}

impl SocketOptions {
    /// Sets the options on an open socket, such as one that was just accepted.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        self.apply_to(&SockRef::from(stream))
    }

    fn apply_to(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(keepalive) = self.keepalive {
            set_keepalive(socket, keepalive)?;
            if self.user_timeout {
                socket.set_tcp_user_timeout(Some(keepalive.span()))?;
            }
        }
        Ok(())
    }
}

/// Sets on a listener what every connection accepted from it is to have: Linux hands these on, so that no connection
/// pays for them. Closing an accepted connection sends RST until [`set_fin`], as after [`set_rst`].
pub fn prepare_accepted(listener: &TcpListener, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(listener);
    // The mark takes a capability to set; a listener that was handed over has it already.
    let mark = options.mark.filter(|mark| socket.mark().ok() != Some(*mark));
    SocketOptions { mark, ..*options }.apply_to(&socket)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// Where new sockets come from, none of which blocks. In shared mode they must be opened inside the pod's network
/// namespace.
pub trait SocketFactory: Send + Sync + std::fmt::Debug {
    /// A new IPv4 TCP socket.
    fn tcp_v4(&self) -> io::Result<Socket>;
    /// A new IPv6 TCP socket.
    fn tcp_v6(&self) -> io::Result<Socket>;
}

/// A TCP socket of the calling thread's namespace that does not block: told so when it is made, which saves two calls.
pub fn new_tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Sockets of the network namespace this process runs in.
#[derive(Debug, Clone, Copy, Default)]
pub struct CurrentNamespace;

impl SocketFactory for CurrentNamespace {
    fn tcp_v4(&self) -> io::Result<Socket> {
        new_tcp(Domain::IPV4)
    }

    fn tcp_v6(&self) -> io::Result<Socket> {
        new_tcp(Domain::IPV6)
    }
}

/// Takes an IPv4-mapped IPv6 address for the IPv4 address it is.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where a captured connection was going before the packet rules redirected it.
///
/// The kernel keeps the answer in conntrack, one table per family; a dual-stack listener sees IPv4 connections
/// as IPv4-mapped IPv6, so IPv4 is asked first for those.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr()?;
    let found = if local.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4().or_else(|_| socket.original_dst_v6())
    } else {
        socket.original_dst_v6().or_else(|_| socket.original_dst_v4())
    }?;
    found
        .as_socket()
        .map(canonical)
        .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Connects to `destination`, from `source` if one is given (which needs CAP_NET_ADMIN if it is not local).
pub async fn connect(
    factory: &dyn SocketFactory,
    destination: SocketAddr,
    source: Option<Source<'_>>,
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let destination = canonical(destination);
    let socket = match destination {
        SocketAddr::V4(_) => factory.tcp_v4()?,
        SocketAddr::V6(_) => factory.tcp_v6()?,
    };
    options.apply_to(&socket)?;
    if let Some(source) = source {
        source.bind(&socket, destination)?;
    }
    // Tokio takes any stream socket, connected or not, from the standard library's type.
    TcpSocket::from_std_stream(socket.into())
        .connect(destination)
        .await
}

/// Whether an error of [`connect`] says that no local port is free: none for the destination, or none at all for the
/// source, where the kernel chooses it before it knows the destination.
#[must_use]
pub fn no_port_left(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
    )
}

/// What a listener needs beyond its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListenOptions {
    /// Lets several processes listen on the same port (SO_REUSEPORT) [false].
    pub reuse_port: bool,
    /// Accepts connections to addresses that are not local (IP_TRANSPARENT) [false].
    pub transparent: bool,
    /// SO_MARK, inherited by the connections that are accepted (none).
    pub mark: Option<u32>,
}

/// Opens a listener through `factory`. `[::]` takes both families.
pub fn listen(
    factory: &dyn SocketFactory,
    address: SocketAddr,
    options: ListenOptions,
) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => factory.tcp_v4()?,
        SocketAddr::V6(_) => factory.tcp_v6()?,
    };
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if options.transparent {
        set_transparent(&socket, address)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    listener_from(socket.into())
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Takes over a listening socket that another process opened for us.
pub fn listener_from(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Bytes of a tunnel that may wait in the kernel unsent.
const TUNNEL_UNSENT_MAX: u32 = 256 * 1024;

/// Keeps the send queue of a tunnel's socket short, so that a PING is not stuck behind megabytes of bulk: a slow link
/// must not look like a dead peer, and other streams must not wait either.
pub fn keep_queue_short(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_notsent_lowat(TUNNEL_UNSENT_MAX)
}

/// Makes closing this socket send RST instead of FIN, whoever closes it: also the kernel, when this process dies.
pub fn set_rst(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Takes [`set_rst`] back: what was written still arrives, and FIN after it.
pub fn set_fin(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

/// Changes the keepalive of an open connection.
pub fn tighten_keepalive(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    set_keepalive(&SockRef::from(stream), keepalive)
}

fn set_keepalive(socket: &Socket, keepalive: Keepalive) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries),
    )
}

/// How the other end of a socket went away. A FIN is no error: it is the end of what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// It sent RST, or we wrote after it had closed for good.
    Reset,
    /// It stopped answering.
    TimedOut,
    /// The network or the kernel said something else.
    Failed,
}

/// Reads from an error how the other end went away.
#[must_use]
pub fn classify(error: &io::Error) -> Closed {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => Closed::Reset,
        io::ErrorKind::TimedOut => Closed::TimedOut,
        _ => Closed::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

    use super::*;
    use tokio::io::AsyncReadExt;

    const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

    async fn pair(listen_on: SocketAddr) -> (TcpStream, TcpStream) {
        let listener = listen(&CurrentNamespace, listen_on, ListenOptions::default()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let options = SocketOptions::default();
        let (near, far) = tokio::join!(
            connect(&CurrentNamespace, address, None, &options),
            listener.accept()
        );
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_connected_socket_has_the_options_of_the_proxy() {
        let (near, _far) = pair(ANY_PORT).await;
        let socket = SockRef::from(&near);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
    }

    #[tokio::test]
    async fn an_accepted_connection_has_what_its_listener_was_given() {
        let listener = listen(&CurrentNamespace, ANY_PORT, ListenOptions::default()).unwrap();
        prepare_accepted(&listener, &SocketOptions::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let (far, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut far, (near, _)) = (far.unwrap(), accepted.unwrap());
        let socket = SockRef::from(&near);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Keepalive::ORDINARY.idle);
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Keepalive::ORDINARY.interval
        );
        assert_eq!(
            socket.tcp_keepalive_retries().unwrap(),
            Keepalive::ORDINARY.retries
        );
        drop(near);
        assert_eq!(classify(&far.read(&mut [0]).await.unwrap_err()), Closed::Reset);
    }

    #[tokio::test]
    async fn user_timeout_is_the_span_of_the_keepalive() {
        let (near, _far) = pair(ANY_PORT).await;
        SocketOptions {
            user_timeout: true,
            ..SocketOptions::default()
        }
        .apply(&near)
        .unwrap();
        let timeout = SockRef::from(&near).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_secs(180 + 9 * 180)));
    }

    #[tokio::test]
    async fn an_ipv4_client_of_a_dual_stack_listener_is_an_ipv4_client() {
        let (near, far) = pair("[::]:0".parse().unwrap()).await;
        assert!(far.peer_addr().unwrap().is_ipv6());
        assert_eq!(canonical(far.peer_addr().unwrap()), near.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_source_address_is_kept() {
        let probe = CurrentNamespace.tcp_v4().unwrap();
        if probe.set_ip_transparent_v4(true).is_err() {
            eprintln!("skipped: transparent sources need CAP_NET_ADMIN");
            return;
        }
        let listener = listen(&CurrentNamespace, ANY_PORT, ListenOptions::default()).unwrap();
        let (address, source) = (listener.local_addr().unwrap(), IpAddr::from([127, 0, 0, 9]));
        let (options, ports) = (SocketOptions::default(), SourcePorts::default());
        let connecting = connect(&CurrentNamespace, address, Some(ports.of(source)), &options);
        let (near, far) = tokio::join!(connecting, listener.accept());
        assert_eq!(
            (near.unwrap().local_addr().unwrap().ip(), far.unwrap().1.ip()),
            (source, source)
        );
    }

    #[tokio::test]
    async fn families_are_not_mixed() {
        let ports = SourcePorts::default();
        let source = Some(ports.of(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
        let error = connect(&CurrentNamespace, ANY_PORT, source, &SocketOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn a_connection_that_was_not_captured_has_no_original_destination() {
        let (near, _far) = pair(ANY_PORT).await;
        // Without conntrack the kernel does not know the option at all; with it, it knows the plain destination.
        if let Ok(found) = original_destination(&near) {
            assert_eq!(found, near.peer_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn reset_and_finish_are_told_apart() {
        let (near, mut far) = pair(ANY_PORT).await;
        drop(near);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        let (near, mut far) = pair(ANY_PORT).await;
        set_rst(&near).unwrap();
        drop(near);
        assert_eq!(classify(&far.read(&mut [0]).await.unwrap_err()), Closed::Reset);
        let (near, mut far) = pair(ANY_PORT).await;
        set_rst(&near).unwrap();
        set_fin(&near).unwrap();
        drop(near);
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_preserved_source_has_a_port_that_its_own_connections_avoid() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let ports = SourcePorts::default();
        let source = Some(ports.of(IpAddr::from([127, 0, 0, 1])));
        let connected = connect(&CurrentNamespace, to, source, &SocketOptions::default()).await;
        if connected
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            eprintln!("SKIPPED: an address may only be preserved with CAP_NET_ADMIN");
            return;
        }
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        let preserved = connected.unwrap().local_addr().unwrap().port();
        let own = TcpStream::connect(to).await.unwrap().local_addr().unwrap().port();
        assert_eq!(own % 2, lowest % 2, "the parity of connect");
        assert_ne!(preserved % 2, lowest % 2, "the parity of bind");
    }
}
