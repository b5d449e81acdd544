//! Which sockets a namespace has, told by their mark: whether the proxy listens, and whether it has left.

use std::io;

use tulle_linux::NetNs;

use crate::netlink::{Connection, Message, NETLINK_SOCK_DIAG, attribute};
use crate::rules::plan::{MARK_MASK, PROXY_MARK};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const FAMILIES: [u8; 2] = [2, 10];
const IPPROTO_TCP: u8 = 6;
const STATE_LISTEN: u8 = 10;
/// Every state but TIME_WAIT, which has no socket and no mark any more.
const STATES: u32 = 0xfff & !(1 << 6);
/// `struct inet_diag_req_v2` after its first 8 bytes: an empty socket id.
const ANY_SOCKET: [u8; 48] = [0; 48];
/// `struct inet_diag_msg`: what stands before the attributes.
const FIXED_BYTES: usize = 72;
/// Offsets within it.
const STATE_AT: usize = 1;
const PORT_AT: usize = 4;
const WAITING_AT: usize = 56;
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
pub async fn marked_sockets(netns: &NetNs) -> io::Result<Vec<MarkedSocket>> {
    netns.run_async(marked_sockets_here).await?
}

fn marked_sockets_here() -> io::Result<Vec<MarkedSocket>> {
    let mut connection = Connection::open(NETLINK_SOCK_DIAG)?;
    let mut sockets = Vec::new();
    for family in FAMILIES {
        let mut request = vec![family, IPPROTO_TCP, 0, 0];
        request.extend(STATES.to_ne_bytes());
        request.extend(ANY_SOCKET);
        connection.dump(&Message::new(SOCK_DIAG_BY_FAMILY, &request), |body| {
            sockets.extend(parse(body))
        })?;
    }
    Ok(sockets)
}

fn parse(body: &[u8]) -> Option<MarkedSocket> {
    let mark = attribute(body.get(FIXED_BYTES..)?, INET_DIAG_MARK)?;
    let mark = u32::from_ne_bytes(mark.try_into().ok()?);
    if mark & MARK_MASK != PROXY_MARK {
        return None;
    }
    Some(MarkedSocket {
        port: u16::from_be_bytes(body.get(PORT_AT..PORT_AT + 2)?.try_into().ok()?),
        listening: body.get(STATE_AT) == Some(&STATE_LISTEN),
        waiting: u32::from_ne_bytes(body.get(WAITING_AT..WAITING_AT + 4)?.try_into().ok()?),
    })
}
