//! The sockets of a workload that questions arrive on: taken over from the agent, or opened on loopback. Never
//! wildcards: those would reply from an address that the client did not ask.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::SocketType;
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::config::DnsListen;
use crate::sockets::{Kind, OpenOptions, SocketError, no_ipv6};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The port that packet rules redirect to.
pub const PORT: u16 = 15053;

/// Sockets for questions; none where names are not captured.
#[derive(Debug, Default)]
pub struct DnsSockets(Vec<(Kind, OwnedFd)>);

/// The same, ready to be used.
#[derive(Debug, Default)]
pub struct DnsListeners {
    /// For datagrams.
    pub datagrams: Vec<UdpSocket>,
    /// For connections.
    pub streams: Vec<TcpListener>,
}

/// Whether a kind of socket is for questions.
#[must_use]
pub fn is_dns(kind: Kind) -> bool {
    address_of(kind, 0).is_some()
}

fn address_of(kind: Kind, port: u16) -> Option<SocketAddr> {
    match kind {
        Kind::DnsUdp4 | Kind::DnsTcp4 => Some((Ipv4Addr::LOCALHOST, port).into()),
        Kind::DnsUdp6 | Kind::DnsTcp6 => Some((Ipv6Addr::LOCALHOST, port).into()),
        Kind::Outbound | Kind::InboundPlain | Kind::InboundHbone => None,
    }
}

fn is_datagram(kind: Kind) -> bool {
    matches!(kind, Kind::DnsUdp4 | Kind::DnsUdp6)
}

impl DnsSockets {
    /// Takes over one socket of the agent after proving it.
    ///
    /// # Errors
    /// When it is not what it is said to be, or is there already.
    pub fn add(&mut self, kind: Kind, fd: OwnedFd) -> Result<(), SocketError> {
        if self.0.iter().any(|(known, _)| *known == kind) {
            return Err(SocketError::Kinds);
        }
        prove(kind, &fd)?;
        self.0.push((kind, fd));
        Ok(())
    }

    /// Opens them on loopback, for each family that there is.
    ///
    /// # Errors
    /// What the kernel says, such as a port that is taken.
    pub fn open(options: &OpenOptions, listen: DnsListen) -> io::Result<Self> {
        const V4: [Kind; 2] = [Kind::DnsUdp4, Kind::DnsTcp4];
        const V6: [Kind; 2] = [Kind::DnsUdp6, Kind::DnsTcp6];
        let v4 = V4.into_iter().filter(|_| listen.v4);
        let v6 = V6.into_iter().filter(|_| listen.v6 && options.ipv6);
        let mut opened = Vec::new();
        for kind in v4.chain(v6) {
            match open_one(kind, options, listen.port) {
                Ok(socket) => opened.push((kind, socket.into())),
                Err(error) if V6.contains(&kind) && no_ipv6(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(opened))
    }

    /// Copies of the descriptors.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn copies(&self) -> io::Result<Vec<(Kind, OwnedFd)>> {
        let copies = self.0.iter().map(|(kind, fd)| Ok((*kind, fd.try_clone()?)));
        copies.collect()
    }

    /// Copies to be used. Needs a tokio runtime.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn listeners(&self) -> io::Result<DnsListeners> {
        let mut listeners = DnsListeners::default();
        for (kind, fd) in self.copies()? {
            if is_datagram(kind) {
                let socket = std::net::UdpSocket::from(fd);
                socket.set_nonblocking(true)?;
                listeners.datagrams.push(UdpSocket::from_std(socket)?);
            } else {
                listeners
                    .streams
                    .push(tulle_transport::socket::listener_from(fd)?);
            }
        }
        Ok(listeners)
    }
}

fn open_one(kind: Kind, options: &OpenOptions, port: u16) -> io::Result<Socket> {
    let address = address_of(kind, port).ok_or(io::ErrorKind::InvalidInput)?;
    let (how, protocol) = if is_datagram(kind) {
        (Type::DGRAM, Protocol::UDP)
    } else {
        (Type::STREAM, Protocol::TCP)
    };
    let socket = Socket::new(Domain::for_address(address), how, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    socket.set_nonblocking(true)?;
    if is_datagram(kind) {
        socket.bind(&address.into())?;
    } else {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// Checks type, that it listens if it is for connections, and address and port.
fn prove(kind: Kind, fd: &OwnedFd) -> Result<(), SocketError> {
    let inspect = |source: rustix::io::Errno| SocketError::Inspect {
        kind: "DNS",
        source: source.into(),
    };
    let expected = if is_datagram(kind) {
        SocketType::DGRAM
    } else {
        SocketType::STREAM
    };
    let fits = sockopt::socket_type(fd).map_err(inspect)? == expected;
    let listening = sockopt::socket_acceptconn(fd).map_err(inspect)?;
    let bound = rustix::net::getsockname(fd.as_fd()).map_err(inspect)?;
    let bound = SocketAddr::try_from(bound).ok();
    if fits && listening != is_datagram(kind) && bound.is_some() && bound == address_of(kind, PORT) {
        return Ok(());
    }
    Err(SocketError::DnsMismatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ports;

    fn options() -> OpenOptions {
        OpenOptions {
            traffic: true,
            ports: Ports::DEFAULT,
            ipv6: true,
            dns: None,
            reuse_port: false,
            mark: None,
        }
    }

    #[test]
    fn a_socket_that_is_not_on_loopback_and_its_port_is_refused() {
        let udp = |address: &str| OwnedFd::from(std::net::UdpSocket::bind(address).unwrap());
        let tcp = |address: &str| OwnedFd::from(std::net::TcpListener::bind(address).unwrap());
        for (kind, fd) in [
            (Kind::DnsUdp4, udp("127.0.0.1:0")),
            (Kind::DnsUdp4, udp("0.0.0.0:0")),
            (Kind::DnsUdp4, tcp("127.0.0.1:0")),
            (Kind::DnsTcp4, udp("127.0.0.1:0")),
            (Kind::Outbound, tcp("127.0.0.1:0")),
        ] {
            let refused = DnsSockets::default().add(kind, fd).unwrap_err();
            assert!(matches!(refused, SocketError::DnsMismatch), "{refused}");
        }
    }

    #[tokio::test]
    async fn only_the_loopback_addresses_that_are_wanted_are_opened() {
        let listen = |v4, v6| DnsListen { v4, v6, port: 0 };
        let counts = |listen| {
            let opened = DnsSockets::open(&options(), listen).unwrap().listeners().unwrap();
            let ours = |address: SocketAddr| assert!(address.ip().is_loopback());
            opened
                .datagrams
                .iter()
                .for_each(|socket| ours(socket.local_addr().unwrap()));
            opened
                .streams
                .iter()
                .for_each(|socket| ours(socket.local_addr().unwrap()));
            (opened.datagrams.len(), opened.streams.len())
        };
        assert_eq!(counts(listen(true, false)), (1, 1));
        assert_eq!(counts(listen(false, false)), (0, 0));
        let with_v6 = counts(listen(true, true));
        assert!(
            [(1, 1), (2, 2)].contains(&with_v6),
            "as the kernel has it: {with_v6:?}"
        );
    }

    #[test]
    fn ipv6_that_is_switched_off_is_not_opened() {
        let without = OpenOptions {
            ipv6: false,
            ..options()
        };
        let listen = DnsListen {
            v4: false,
            v6: true,
            port: 0,
        };
        assert!(DnsSockets::open(&without, listen).unwrap().0.is_empty());
    }
}
