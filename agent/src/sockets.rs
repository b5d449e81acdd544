//! The listening sockets of a pod, owned by the agent so that a proxy can be replaced while connections queue.
//!
//! Never `SO_REUSEPORT`: with it, any process of the same user in the pod could bind the same port and take a share of
//! the captured connections past every policy.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tulle_linux::NetNs;
use tulle_proto::convert::zds::Sockets;
use tulle_proto::zds::sockets::Kind;

use crate::error::CaptureError;
use crate::holder;
use crate::rules::plan::{DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, ProxyMark};
use crate::sysctl;

/// Connections that may wait to be accepted, per listener.
pub const BACKLOG: u16 = 4096;

const KINDS_TCP: [Kind; 3] = [Kind::Outbound, Kind::InboundPlain, Kind::InboundHbone];
const KINDS_DNS: [Kind; 4] = [Kind::DnsUdp4, Kind::DnsUdp6, Kind::DnsTcp4, Kind::DnsTcp6];

/// Listening sockets in one pod's namespace.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(Kind, Socket)>,
    mark: ProxyMark,
}

impl Listeners {
    /// Opens every listener in the namespace, in one visit.
    ///
    /// # Errors
    /// `PortTaken` when something listens already; else what the kernel answers. Nothing stays open then.
    pub async fn open(netns: &NetNs, dns: bool, mark: ProxyMark) -> Result<Self, CaptureError> {
        netns
            .run_async(move || open_here(dns, mark))
            .await
            .map_err(CaptureError::kernel("enter the pod's namespace"))?
    }

    /// Takes back the listeners that a proxy held while the agent restarted.
    ///
    /// # Errors
    /// When one is missing, or is not what it is called.
    pub fn adopt(returned: Vec<(Kind, OwnedFd)>, mark: ProxyMark) -> Result<Self, CaptureError> {
        let sockets: Vec<_> = returned
            .into_iter()
            .map(|(kind, fd)| (kind, Socket::from(fd)))
            .collect();
        let adopted = Self { sockets, mark };
        let refused = |kind: Kind| {
            let source = io::Error::other("what the proxy gave back is not this listener");
            CaptureError::Listen {
                port: port_of(kind),
                source,
            }
        };
        if let Some((kind, _)) = adopted.sockets.iter().find(|(kind, socket)| !fits(*kind, socket)) {
            return Err(refused(*kind));
        }
        match KINDS_TCP.into_iter().find(|kind| !adopted.kinds().contains(kind)) {
            Some(kind) => Err(refused(kind)),
            None => Ok(adopted),
        }
    }

    /// The same listeners with a new socket for each that no longer listens, and with those for names as wanted.
    ///
    /// # Errors
    /// `PortTaken` when something else listens there now; else what the kernel answers.
    pub async fn reopen(&self, netns: &NetNs, dns: bool) -> Result<Self, CaptureError> {
        let kept: io::Result<Vec<_>> = kinds(dns)
            .map(|kind| {
                let held = self.sockets.iter().find(|(held, _)| *held == kind);
                let held = held.filter(|(kind, socket)| fits(*kind, socket));
                let socket = held.map(|(_, socket)| socket.try_clone()).transpose()?;
                Ok((kind, socket))
            })
            .collect();
        let kept = kept.map_err(CaptureError::kernel("copy a listening socket"))?;
        let mark = self.mark;
        netns
            .run_async(move || reopen_here(kept, mark))
            .await
            .map_err(CaptureError::kernel("enter the pod's namespace"))?
    }

    /// What the sockets are, in order.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        self.sockets.iter().map(|(kind, _)| *kind).collect()
    }

    /// Whether names can be asked for here.
    #[must_use]
    pub fn serve_dns(&self) -> bool {
        self.sockets.iter().any(|(kind, _)| *kind == Kind::DnsUdp4)
    }

    /// How the sockets are announced.
    #[must_use]
    pub fn announcement(&self) -> Sockets {
        Sockets {
            kinds: self.kinds(),
            mark: self.mark.value(),
        }
    }

    /// The descriptors, in order.
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.as_fd()).collect()
    }

    /// Whether every socket still is what it was opened as.
    #[must_use]
    pub fn are_listening(&self) -> bool {
        self.sockets.iter().all(|(kind, socket)| fits(*kind, socket))
    }

    /// Accepts what waits and resets it, so that callers see an error and not a hang; returns how many there were.
    #[must_use]
    pub fn reset_waiting(&self) -> usize {
        let listening = self.sockets.iter().filter(|(kind, _)| !is_udp(*kind));
        listening
            .map(|(_, socket)| (0..BACKLOG).take_while(|_| reset_one(socket)).count())
            .sum()
    }
}

fn reset_one(listener: &Socket) -> bool {
    // The listener does not block: an empty queue is an error here, and the end.
    let Ok((waiting, _)) = listener.accept() else {
        return false;
    };
    // Without it the close would be a clean end of a connection that carried nothing.
    let _ = waiting.set_linger(Some(std::time::Duration::ZERO));
    true
}

fn open_here(dns: bool, mark: ProxyMark) -> Result<Listeners, CaptureError> {
    sysctl::raise_somaxconn_here(u32::from(BACKLOG)).map_err(CaptureError::kernel(
        "raise the accept queue of the pod's namespace",
    ))?;
    let mut sockets = Vec::new();
    for kind in kinds(dns) {
        sockets.extend(open_if_possible(kind, mark)?.map(|socket| (kind, socket)));
    }
    Ok(Listeners { sockets, mark })
}

/// What is listened for, in the order of announcement.
fn kinds(dns: bool) -> impl Iterator<Item = Kind> {
    KINDS_TCP
        .into_iter()
        .chain(dns.then_some(KINDS_DNS).into_iter().flatten())
}

fn reopen_here(kept: Vec<(Kind, Option<Socket>)>, mark: ProxyMark) -> Result<Listeners, CaptureError> {
    let mut sockets = Vec::new();
    for (kind, socket) in kept {
        let socket = match socket {
            Some(socket) => Some(socket),
            None => open_if_possible(kind, mark)?,
        };
        sockets.extend(socket.map(|socket| (kind, socket)));
    }
    Ok(Listeners { sockets, mark })
}

/// The socket of a kind; nothing where the pod has no IPv6 and nothing can ask there.
fn open_if_possible(kind: Kind, mark: ProxyMark) -> Result<Option<Socket>, CaptureError> {
    let port = port_of(kind);
    match open_one(kind, mark) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if is_loopback6(kind) && is_without_ipv6(&error) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = holder::of_port_here(port, is_udp(kind));
            Err(CaptureError::PortTaken { port, holder })
        }
        Err(source) => Err(CaptureError::Listen { port, source }),
    }
}

fn open_one(kind: Kind, mark: ProxyMark) -> io::Result<Socket> {
    match kind {
        Kind::DnsUdp4 | Kind::DnsTcp4 => open_at(kind, mark, (Ipv4Addr::LOCALHOST, DNS_PORT).into()),
        Kind::DnsUdp6 | Kind::DnsTcp6 => open_at(kind, mark, (Ipv6Addr::LOCALHOST, DNS_PORT).into()),
        kind => match open_at(kind, mark, (Ipv6Addr::UNSPECIFIED, port_of(kind)).into()) {
            Err(error) if is_without_ipv6(&error) => {
                open_at(kind, mark, (Ipv4Addr::UNSPECIFIED, port_of(kind)).into())
            }
            opened => opened,
        },
    }
}

fn open_at(kind: Kind, mark: ProxyMark, address: SocketAddr) -> io::Result<Socket> {
    let (socket_type, protocol) = if is_udp(kind) {
        (Type::DGRAM, Protocol::UDP)
    } else {
        (Type::STREAM, Protocol::TCP)
    };
    let socket = Socket::new(Domain::for_address(address), socket_type, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_mark(mark.value())?;
    socket.set_ip_transparent_v4(true)?;
    if address.is_ipv6() {
        socket.set_ip_transparent_v6(true)?;
        // The wildcard takes IPv4 too; loopback sockets come in pairs.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if !is_udp(kind) {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if !is_udp(kind) {
        socket.listen(i32::from(BACKLOG))?;
    }
    Ok(socket)
}

/// Whether a socket is what its kind says: port, protocol, listening.
fn fits(kind: Kind, socket: &Socket) -> bool {
    let socket = SockRef::from(socket);
    let port = socket
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
        .map(|address| address.port());
    let listens = socket.is_listener().unwrap_or(false);
    let expected = if is_udp(kind) { Type::DGRAM } else { Type::STREAM };
    port == Some(port_of(kind))
        && socket.r#type().is_ok_and(|found| found == expected)
        && listens != is_udp(kind)
}

fn port_of(kind: Kind) -> u16 {
    match kind {
        Kind::Outbound => OUTBOUND_PORT,
        Kind::InboundPlain => INBOUND_PORT,
        Kind::InboundHbone => HBONE_PORT,
        Kind::DnsUdp4 | Kind::DnsUdp6 | Kind::DnsTcp4 | Kind::DnsTcp6 => DNS_PORT,
        Kind::Unspecified => 0,
    }
}

fn is_udp(kind: Kind) -> bool {
    matches!(kind, Kind::DnsUdp4 | Kind::DnsUdp6)
}

fn is_loopback6(kind: Kind) -> bool {
    matches!(kind, Kind::DnsUdp6 | Kind::DnsTcp6)
}

/// EADDRNOTAVAIL without an address, EAFNOSUPPORT without the protocol.
fn is_without_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}
