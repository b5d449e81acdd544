//! Just enough netlink, without `unsafe`: one request, or one transaction, at a time over a blocking socket.

mod attributes;

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use attributes::u16_at;
pub(crate) use attributes::{Attributes, NESTED, attribute, attributes};

const AF_NETLINK: i32 = 16;
/// Protocol of interfaces.
pub(crate) const NETLINK_ROUTE: i32 = 0;
/// Protocol of conntrack and nf_tables.
pub(crate) const NETLINK_NETFILTER: i32 = 12;
/// Protocol of socket listings.
pub(crate) const NETLINK_SOCK_DIAG: i32 = 4;

const HEADER_BYTES: usize = 16;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Refuse if it is there.
pub(crate) const NLM_F_EXCL: u16 = 0x200;
/// Make it if it is not there.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Put it behind what is there.
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The kernel's part of a dump is at most this long.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers from memory; a silence this long is a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    fixed: Vec<u8>,
    attributes: Attributes,
}

impl Message {
    /// A message of a kind, with the fixed part of its body.
    pub(crate) fn new(kind: u16, fixed: &[u8]) -> Self {
        Self {
            kind,
            flags: 0,
            fixed: fixed.to_vec(),
            attributes: Attributes::new(),
        }
    }

    /// The same with the attributes that follow its fixed part.
    pub(crate) fn with(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// The same with flags of its kind.
    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    fn encode(&self, flags: u16, sequence: u32) -> io::Result<Vec<u8>> {
        let body = self.attributes.as_bytes();
        let bytes_all = HEADER_BYTES + self.fixed.len() + body.len();
        let mut bytes = Vec::with_capacity(bytes_all);
        bytes.extend(u32::try_from(bytes_all).map_err(io::Error::other)?.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | self.flags | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&self.fixed);
        bytes.extend(body);
        Ok(bytes)
    }
}

/// What the kernel says to a transaction that it does not carry out.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Which message it refused, counted from 0; the first stands for the whole. None when nothing was sent or heard.
    pub(crate) message: Option<usize>,
    /// Why.
    pub(crate) source: io::Error,
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    /// Opens a socket of a netlink protocol.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::from(AF_NETLINK),
            Type::RAW,
            Some(Protocol::from(protocol)),
        )?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: &Message) -> io::Result<()> {
        self.ask(message, |_| ())
    }

    /// Sends a request, hands over the body of what answers it, and waits for its acknowledgement.
    pub(crate) fn ask(&mut self, message: &Message, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK, each)
    }

    /// Sends a request for a listing and hands over the body of each of its messages.
    pub(crate) fn dump(&mut self, message: &Message, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(message, NLM_F_DUMP, each)
    }

    fn exchange(&mut self, message: &Message, flags: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        self.socket.send(&message.encode(flags, self.sequence)?)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = (&self.socket).read(&mut buffer)?;
            for (kind, sequence, body) in messages(&buffer[..length]) {
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_ERROR => return outcome(body),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_NOOP => {}
                    _ => each(body),
                }
            }
        }
    }

    /// Sends messages that the kernel carries out together or not at all, between the two that begin and end them.
    ///
    /// The connection ends with it: after a refusal there may be more answers to come, which nobody waits for.
    pub(crate) fn transact(mut self, messages: &[Message]) -> Result<(), Refused> {
        let failed = |source| Refused {
            message: None,
            source,
        };
        let acknowledged = messages.len().saturating_sub(2);
        let first = self.sequence + 1;
        let mut packet = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            self.sequence += 1;
            // Older kernels acknowledge neither the beginning nor the end, so the last one between them it is.
            let flags = if index == acknowledged { NLM_F_ACK } else { 0 };
            packet.extend(message.encode(flags, self.sequence).map_err(failed)?);
        }
        self.socket.send(&packet).map_err(failed)?;
        self.await_outcome(first, acknowledged)
    }

    /// Errors come before the acknowledgement, which is sent for an undone message too if that one was good.
    fn await_outcome(&self, first: u32, acknowledged: usize) -> Result<(), Refused> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = (&self.socket).read(&mut buffer).map_err(|source| Refused {
                message: None,
                source,
            })?;
            for (kind, sequence, body) in messages(&buffer[..length]) {
                let message = usize::try_from(sequence.wrapping_sub(first)).ok();
                match outcome(body) {
                    _ if kind != NLMSG_ERROR => {}
                    Err(source) => return Err(Refused { message, source }),
                    Ok(()) if message == Some(acknowledged) => return Ok(()),
                    Ok(()) => {}
                }
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of one packet: kind, sequence, body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let (kind, sequence) = (u16_at(bytes, 4)?, u32_at(bytes, 8)?);
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// An acknowledgement is an error message with the code 0.
fn outcome(body: &[u8]) -> io::Result<()> {
    let code = u32_at(body, 0).map_or(0, u32::cast_signed);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_encoded_is_read_again() {
        let message = Message::new(7, &[1, 2, 3, 4]).with(Attributes::new().number(1, 5));
        let bytes = message.encode(NLM_F_ACK, 3).unwrap();
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read, [(7, 3, &[1, 2, 3, 4, 8, 0, 1, 0, 0, 0, 0, 5][..])]);
    }

    #[test]
    fn the_flags_of_a_message_join_those_of_its_sending() {
        let bytes = Message::new(7, &[]).flags(NLM_F_CREATE).encode(NLM_F_ACK, 3);
        assert_eq!(
            u16_at(&bytes.unwrap(), 6),
            Some(NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK)
        );
    }

    #[test]
    fn lying_lengths_end_the_reading() {
        assert_eq!(messages(&[255; 20]).count(), 0);
        assert_eq!(messages(&[0; 20]).count(), 0);
    }
}
