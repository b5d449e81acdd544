//! Which sockets a namespace has: whether the proxy listens and whether it has left, told by its mark; and ending the
//! connections of others, where that is wanted.

use std::io;

use tulle_linux::NetNs;

use crate::netlink::{Connection, Message, NETLINK_SOCK_DIAG, attribute};
use crate::rules::plan::ProxyMark;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const FAMILIES: [u8; 2] = [2, 10];
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const STATE_CLOSE: u8 = 7;
const STATE_LISTEN: u8 = 10;
/// SYN sent, established, and both ends' close half done: what can still carry bytes.
const STATES_OPEN: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8;
/// Every state but TIME_WAIT, which has no socket and no mark any more.
const STATES: u32 = 0xfff & !(1 << 6);
/// Every state of a connection but TIME_WAIT.
const STATES_SENDING: u32 = STATES & !(1 << STATE_LISTEN) & !(1 << STATE_CLOSE);
/// `struct inet_diag_req_v2` after its first 8 bytes: an empty socket id.
const ANY_SOCKET: [u8; 48] = [0; 48];
/// `struct inet_diag_msg`: what stands before the attributes.
const FIXED_BYTES: usize = 72;
/// Offsets within it.
const STATE_AT: usize = 1;
const PORT_AT: usize = 4;
const WAITING_AT: usize = 56;
const INODE_AT: usize = 68;
const INET_DIAG_MARK: u16 = 15;

/// A socket with the proxy's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkedSocket {
    /// Its local port.
    pub port: u16,
    /// Whether it listens.
    pub listening: bool,
    /// Connections that wait to be accepted, of a listener; bytes that wait to be read, of a connection.
    pub waiting: u32,
}

/// TCP sockets with the proxy's mark in a namespace, whoever owns them.
///
/// # Errors
/// What the kernel answers.
pub async fn marked_sockets(netns: &NetNs, mark: ProxyMark) -> io::Result<Vec<MarkedSocket>> {
    netns.run_async(move || marked_sockets_here(mark)).await?
}

fn marked_sockets_here(mark: ProxyMark) -> io::Result<Vec<MarkedSocket>> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut sockets = Vec::new();
    for family in FAMILIES {
        let listing = listing(family, IPPROTO_TCP, STATES);
        connection.dump(&listing, |body| sockets.extend(parse(body, mark)))?;
    }
    Ok(sockets)
}

/// How many TCP connections of a namespace, whoever's, may still send: a last FIN included.
///
/// # Errors
/// What the kernel answers.
pub async fn open_connections(netns: &NetNs) -> io::Result<usize> {
    netns.run_async(open_connections_here).await?
}

fn open_connections_here() -> io::Result<usize> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut open = 0;
    for family in FAMILIES {
        connection.dump(&listing(family, IPPROTO_TCP, STATES_SENDING), |_| open += 1)?;
    }
    Ok(open)
}

/// Ends every open TCP connection of a namespace that is not the proxy's and leaves the namespace: both ends see a
/// reset. Returns how many there were.
///
/// # Errors
/// What the kernel answers; it refuses where it was built without `INET_DIAG_DESTROY`.
pub async fn reset_connections(netns: &NetNs, mark: ProxyMark) -> io::Result<usize> {
    netns.run_async(move || reset_connections_here(mark)).await?
}

fn reset_connections_here(mark: ProxyMark) -> io::Result<usize> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut orders = Vec::new();
    for family in FAMILIES {
        connection.dump(&listing(family, IPPROTO_TCP, STATES_OPEN), |body| {
            orders.extend(destruction(body, mark))
        })?;
    }
    let mut reset = 0;
    for order in &orders {
        match connection.request(order) {
            Ok(()) => reset += 1,
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reset)
}

/// Inodes of the sockets that are bound to a port in the calling thread's namespace: listeners of TCP, or any of UDP.
pub(crate) fn inodes_at_here(port: u16, udp: bool) -> io::Result<Vec<u32>> {
    let (protocol, states) = if udp {
        (IPPROTO_UDP, STATES)
    } else {
        (IPPROTO_TCP, 1 << STATE_LISTEN)
    };
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut inodes = Vec::new();
    for family in FAMILIES {
        connection.dump(&listing(family, protocol, states), |body| {
            inodes.extend(inode_at(body, port));
        })?;
    }
    Ok(inodes)
}

fn inode_at(body: &[u8], port: u16) -> Option<u32> {
    let own = u16::from_be_bytes(body.get(PORT_AT..PORT_AT + 2)?.try_into().ok()?);
    let inode = u32::from_ne_bytes(body.get(INODE_AT..INODE_AT + 4)?.try_into().ok()?);
    (own == port && inode != 0).then_some(inode)
}

fn listing(family: u8, protocol: u8, states: u32) -> Message {
    let mut request = vec![family, protocol, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(ANY_SOCKET);
    Message::new(SOCK_DIAG_BY_FAMILY, &request)
}

/// The order to end a listed connection; nothing for the proxy's and for those that stay within the namespace.
fn destruction(body: &[u8], mark: ProxyMark) -> Option<Message> {
    let family = *body.first()?;
    let id = body.get(PORT_AT..PORT_AT + ANY_SOCKET.len())?;
    if mark_of(body).is_some_and(|found| mark.is_on(found)) || stays_within(family, id)? {
        return None;
    }
    let mut request = vec![family, IPPROTO_TCP, 0, 0];
    request.extend(STATES_OPEN.to_ne_bytes());
    request.extend(id);
    Some(Message::new(SOCK_DESTROY, &request))
}

/// Both ends are in the namespace: loopback, or the same address on both.
fn stays_within(family: u8, id: &[u8]) -> Option<bool> {
    let (source, destination) = (id.get(4..20)?, id.get(20..36)?);
    if source == destination {
        return Some(true);
    }
    Some(if family == FAMILIES[0] {
        destination[0] == 127
    } else {
        let octets: [u8; 16] = destination.try_into().ok()?;
        std::net::Ipv6Addr::from(octets).to_canonical().is_loopback()
    })
}

fn mark_of(body: &[u8]) -> Option<u32> {
    let mark = attribute(body.get(FIXED_BYTES..)?, INET_DIAG_MARK)?;
    Some(u32::from_ne_bytes(mark.try_into().ok()?))
}

fn parse(body: &[u8], mark: ProxyMark) -> Option<MarkedSocket> {
    if !mark.is_on(mark_of(body)?) {
        return None;
    }
    Some(MarkedSocket {
        port: u16::from_be_bytes(body.get(PORT_AT..PORT_AT + 2)?.try_into().ok()?),
        listening: body.get(STATE_AT) == Some(&STATE_LISTEN),
        waiting: u32::from_ne_bytes(body.get(WAITING_AT..WAITING_AT + 4)?.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(family: u8, destination: [u8; 16]) -> Vec<u8> {
        let mut body = vec![0; FIXED_BYTES];
        body[0] = family;
        body[PORT_AT + 4] = 10;
        body[PORT_AT + 20..PORT_AT + 36].copy_from_slice(&destination);
        body
    }

    #[test]
    fn connections_within_the_namespace_are_left_alone() {
        let mut loopback = [0; 16];
        loopback[0] = 127;
        let mut elsewhere = [0; 16];
        elsewhere[0] = 192;
        let of = |family, destination| destruction(&listed(family, destination), ProxyMark::WellKnown);
        assert_eq!(of(2, loopback), None);
        assert!(of(2, elsewhere).is_some());
        assert_eq!(of(10, std::net::Ipv6Addr::LOCALHOST.octets()), None);
    }

    #[test]
    fn a_cut_listing_is_nothing() {
        let whole = listed(2, [192; 16]);
        for length in 0..PORT_AT + ANY_SOCKET.len() {
            assert_eq!(destruction(&whole[..length], ProxyMark::WellKnown), None);
        }
    }
}
