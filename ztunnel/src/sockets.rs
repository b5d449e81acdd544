//! The listeners of a pod: taken over from the agent, or opened in the pod's namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tulle_linux::NetNs;

use crate::config::{DnsListen, Ports};
use crate::dns::sockets::{DnsListeners, DnsSockets, is_dns};

/// What a socket of a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Captured outbound TCP.
    Outbound,
    /// Captured inbound plaintext.
    InboundPlain,
    /// Tunnels.
    InboundHbone,
    /// Questions by UDP over IPv4.
    DnsUdp4,
    /// Questions by UDP over IPv6.
    DnsUdp6,
    /// Questions by TCP over IPv4.
    DnsTcp4,
    /// Questions by TCP over IPv6.
    DnsTcp6,
}

/// Connections that may wait to be accepted (capped by `net.core.somaxconn` of the namespace).
const BACKLOG: i32 = 4096;

/// Why a listener of the agent is refused.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A kind that is unknown, missing or there twice.
    #[error("the sockets of a pod are one of each kind: outbound, inbound plain, inbound hbone")]
    Kinds,
    /// Not a listening TCP socket of the port of its kind.
    #[error("the {kind} socket is not a listening TCP socket on port {port}")]
    Mismatch {
        /// What it was said to be.
        kind: &'static str,
        /// The port it must listen on.
        port: u16,
    },
    /// Not a socket for questions on loopback.
    #[error(
        "the DNS socket is not one of its type on loopback, port {}",
        crate::dns::sockets::PORT
    )]
    DnsMismatch,
    /// The kernel does not tell.
    #[error("the {kind} socket cannot be inspected: {source}")]
    Inspect {
        /// What it was said to be.
        kind: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The listening sockets of one pod. They stay open as long as any copy is.
#[derive(Debug)]
pub struct PodSockets {
    /// `None` where nothing is carried.
    traffic: Option<Traffic<OwnedFd>>,
    dns: DnsSockets,
}

/// One of each kind that carries.
#[derive(Debug)]
pub struct Traffic<T> {
    /// Captured outbound TCP.
    pub outbound: T,
    /// Captured inbound plaintext.
    pub inbound_plain: T,
    /// Tunnels.
    pub inbound_hbone: T,
}

impl<T> Traffic<T> {
    fn each(&self) -> [(Kind, &T); 3] {
        [
            (Kind::Outbound, &self.outbound),
            (Kind::InboundPlain, &self.inbound_plain),
            (Kind::InboundHbone, &self.inbound_hbone),
        ]
    }
}

/// The same, ready to be accepted from.
#[derive(Debug)]
pub struct Listeners {
    /// Connections; `None` where nothing is carried.
    pub traffic: Option<Traffic<TcpListener>>,
    /// Questions, where names are captured.
    pub dns: DnsListeners,
}

impl PodSockets {
    /// Takes over the agent's sockets after proving each of them. Those for DNS are there where names are captured.
    ///
    /// # Errors
    /// When one is not what it is said to be; all are closed then.
    pub fn take(handed: impl Iterator<Item = (Kind, OwnedFd)>) -> Result<Self, SocketError> {
        let (mut outbound, mut inbound_plain, mut inbound_hbone) = (None, None, None);
        let mut dns = DnsSockets::default();
        for (kind, fd) in handed {
            let place = match kind {
                Kind::Outbound => &mut outbound,
                Kind::InboundPlain => &mut inbound_plain,
                Kind::InboundHbone => &mut inbound_hbone,
                kind if is_dns(kind) => {
                    dns.add(kind, fd)?;
                    continue;
                }
                _ => return Err(SocketError::Kinds),
            };
            prove(kind, &fd)?;
            if place.replace(fd).is_some() {
                return Err(SocketError::Kinds);
            }
        }
        let traffic = Traffic {
            outbound: outbound.ok_or(SocketError::Kinds)?,
            inbound_plain: inbound_plain.ok_or(SocketError::Kinds)?,
            inbound_hbone: inbound_hbone.ok_or(SocketError::Kinds)?,
        };
        Ok(Self {
            traffic: Some(traffic),
            dns,
        })
    }

    /// Opens them here, or inside of a namespace.
    ///
    /// # Errors
    /// What the kernel says: a port that is taken, or a namespace that cannot be entered.
    pub async fn open(netns: Option<&NetNs>, options: OpenOptions) -> io::Result<Self> {
        match netns {
            Some(netns) => netns.run_async(move || options.open()).await?,
            None => options.open(),
        }
    }

    /// Copies of the descriptors, and what each is.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn copies(&self) -> io::Result<Vec<(Kind, OwnedFd)>> {
        let traffic = self.traffic.iter().flat_map(Traffic::each);
        let copies = traffic.map(|(kind, fd)| Ok((kind, fd.try_clone()?)));
        let mut copies = copies.collect::<io::Result<Vec<_>>>()?;
        copies.extend(self.dns.copies()?);
        Ok(copies)
    }

    /// Whether these are copies of the same sockets.
    #[must_use]
    pub fn are(&self, other: &Self) -> bool {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).ok();
        let same = |((_, one), (_, other)): ((Kind, &OwnedFd), (Kind, &OwnedFd))| {
            inode(one).is_some() && inode(one) == inode(other)
        };
        match (&self.traffic, &other.traffic) {
            (Some(one), Some(other)) => one.each().into_iter().zip(other.each()).all(same),
            // What the agent hands over always carries; what does not was opened here.
            _ => false,
        }
    }

    /// The ports they are bound to; `None` where nothing is carried.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ports(&self) -> io::Result<Option<Ports>> {
        let Some(traffic) = &self.traffic else {
            return Ok(None);
        };
        Ok(Some(Ports {
            outbound: port_of(&traffic.outbound)?,
            inbound_plain: port_of(&traffic.inbound_plain)?,
            inbound_hbone: port_of(&traffic.inbound_hbone)?,
            socks5: None,
        }))
    }

    /// The mark that accepted connections inherit; 0 if there is none.
    #[must_use]
    pub fn mark(&self) -> u32 {
        let any = self.traffic.as_ref().map(|traffic| &traffic.outbound);
        any.and_then(|socket| socket2::SockRef::from(socket).mark().ok())
            .unwrap_or(0)
    }

    /// Copies to accept from. Needs a tokio runtime.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn listeners(&self) -> io::Result<Listeners> {
        let accepting = |traffic: &Traffic<OwnedFd>| {
            Ok::<_, io::Error>(Traffic {
                outbound: listener(&traffic.outbound)?,
                inbound_plain: listener(&traffic.inbound_plain)?,
                inbound_hbone: listener(&traffic.inbound_hbone)?,
            })
        };
        Ok(Listeners {
            traffic: self.traffic.as_ref().map(accepting).transpose()?,
            dns: self.dns.listeners()?,
        })
    }
}

fn port_of(fd: &OwnedFd) -> io::Result<u16> {
    let address = SocketAddr::try_from(rustix::net::getsockname(fd)?)?;
    Ok(address.port())
}

fn listener(fd: &OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd.try_clone()?);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// The name and the port a kind stands for.
fn expected(kind: Kind) -> (&'static str, u16) {
    match kind {
        Kind::Outbound => ("outbound", Ports::DEFAULT.outbound),
        Kind::InboundPlain => ("inbound plain", Ports::DEFAULT.inbound_plain),
        _ => ("inbound hbone", Ports::DEFAULT.inbound_hbone),
    }
}

/// Checks type, family, port and that it listens.
fn prove(kind: Kind, fd: &OwnedFd) -> Result<(), SocketError> {
    let (name, port) = expected(kind);
    let inspect = |source: rustix::io::Errno| SocketError::Inspect {
        kind: name,
        source: source.into(),
    };
    let family = sockopt::socket_domain(fd).map_err(inspect)?;
    let stream = sockopt::socket_type(fd).map_err(inspect)? == SocketType::STREAM;
    let listening = sockopt::socket_acceptconn(fd).map_err(inspect)?;
    let address = rustix::net::getsockname(fd.as_fd()).map_err(inspect)?;
    let bound = SocketAddr::try_from(address).is_ok_and(|address| address.port() == port);
    let internet = family == AddressFamily::INET || family == AddressFamily::INET6;
    if internet && stream && listening && bound {
        return Ok(());
    }
    Err(SocketError::Mismatch { kind: name, port })
}

/// How listeners are opened where the agent hands none over.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// Whether connections are carried; without it there are only questions.
    pub traffic: bool,
    /// Which ports.
    pub ports: Ports,
    /// Dual-stack wildcard, or IPv4 alone.
    pub ipv6: bool,
    /// Where questions are listened for, if they are.
    pub dns: Option<DnsListen>,
    /// SO_REUSEPORT, for an upgrade without an agent that owns the sockets.
    pub reuse_port: bool,
    /// SO_MARK; accepted sockets inherit it.
    pub mark: Option<u32>,
}

impl OpenOptions {
    fn open(self) -> io::Result<PodSockets> {
        Ok(PodSockets {
            traffic: self.traffic.then(|| self.carrying()).transpose()?,
            dns: match self.dns {
                Some(listen) => DnsSockets::open(&self, listen)?,
                None => DnsSockets::default(),
            },
        })
    }

    /// A wildcard listener; without IPv6 in the namespace it is one for IPv4.
    fn carrying(self) -> io::Result<Traffic<OwnedFd>> {
        Ok(Traffic {
            outbound: self.listen(self.ports.outbound)?.into(),
            inbound_plain: self.listen(self.ports.inbound_plain)?.into(),
            inbound_hbone: self.listen(self.ports.inbound_hbone)?.into(),
        })
    }

    fn listen(self, port: u16) -> io::Result<Socket> {
        if self.ipv6 {
            match self.listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
                Err(error) if no_ipv6(&error) => {}
                outcome => return outcome,
            }
        }
        self.listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    }

    fn listen_on(self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }
}

/// Whether an error says that there is no IPv6 here.
pub(crate) fn no_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed(kind: Kind, socket: impl Into<OwnedFd>) -> impl Iterator<Item = (Kind, OwnedFd)> {
        std::iter::once((kind, socket.into()))
    }

    #[test]
    fn a_socket_of_another_port_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = PodSockets::take(handed(Kind::Outbound, listener)).unwrap_err();
        assert!(
            matches!(refused, SocketError::Mismatch { port: 15001, .. }),
            "{refused}"
        );
    }

    #[test]
    fn a_socket_that_does_not_listen_is_refused() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(PodSockets::take(handed(Kind::InboundHbone, socket)).is_err());
    }

    #[test]
    fn an_incomplete_set_is_refused() {
        assert!(matches!(
            PodSockets::take(std::iter::empty()),
            Err(SocketError::Kinds)
        ));
    }

    fn any_ports() -> OpenOptions {
        OpenOptions {
            traffic: true,
            ports: Ports {
                outbound: 0,
                inbound_plain: 0,
                inbound_hbone: 0,
                socks5: None,
            },
            ipv6: true,
            dns: None,
            reuse_port: false,
            mark: None,
        }
    }

    #[tokio::test]
    async fn a_proxy_that_carries_nothing_binds_no_socket_for_connections() {
        let listen = DnsListen {
            v4: true,
            v6: false,
            port: 0,
        };
        let options = OpenOptions {
            traffic: false,
            dns: Some(listen),
            ..any_ports()
        };
        let sockets = PodSockets::open(None, options).await.unwrap();
        let kinds: Vec<Kind> = sockets
            .copies()
            .unwrap()
            .into_iter()
            .map(|(kind, _)| kind)
            .collect();
        assert_eq!(kinds, [Kind::DnsUdp4, Kind::DnsTcp4]);
        assert!(sockets.listeners().unwrap().traffic.is_none());
        assert_eq!((sockets.ports().unwrap(), sockets.mark()), (None, 0));
    }

    #[tokio::test]
    async fn copies_accept_from_the_same_queue() {
        let sockets = PodSockets::open(None, any_ports()).await.unwrap();
        let first = sockets.listeners().unwrap().traffic.unwrap();
        let port = first.outbound.local_addr().unwrap().port();
        drop(first);
        let second = sockets.listeners().unwrap().traffic.unwrap();
        let client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (_, peer) = second.outbound.accept().await.unwrap();
        assert_eq!(peer.port(), client.local_addr().unwrap().port());
    }
}
