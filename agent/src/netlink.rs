//! Just enough netlink, without `unsafe`: messages, attributes, one request at a time over a blocking socket.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
/// Protocol of conntrack and nf_tables.
pub(crate) const NETLINK_NETFILTER: i32 = 12;
/// Protocol of socket listings.
pub(crate) const NETLINK_SOCK_DIAG: i32 = 4;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// Bits of an attribute's type that are flags.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The kernel's part of a dump is at most this long.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers from memory; a silence this long is a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request being written.
#[derive(Debug)]
pub(crate) struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message of a kind, with the fixed part of its body.
    pub(crate) fn new(kind: u16, body: &[u8]) -> Self {
        Self {
            kind,
            body: body.to_vec(),
        }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        push_attribute(&mut self.body, kind, payload);
        self
    }

    /// Adds an attribute whose payload is attributes.
    pub(crate) fn nested(self, kind: u16, payload: &[u8]) -> Self {
        self.attribute(kind | NESTED, payload)
    }

    fn encode(&self, flags: u16, sequence: u32) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.body.len());
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&self.body);
        Ok(bytes)
    }
}

fn push_attribute(bytes: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + payload.len()).expect("our attributes are short");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of a body, flags taken off their kinds. Ends at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !ATTRIBUTE_FLAGS;
        let payload = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, payload)| payload)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
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
        self.exchange(message, NLM_F_ACK, |_| ())
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
    fn attributes_are_padded_and_come_back() {
        let message = Message::new(7, &[])
            .attribute(1, &[9])
            .nested(2, &[1, 2, 3, 4, 5]);
        assert_eq!(message.body.len(), 8 + 12);
        let found: Vec<_> = attributes(&message.body).collect();
        assert_eq!(found, [(1, &[9][..]), (2, &[1, 2, 3, 4, 5][..])]);
        assert_eq!(attribute(&message.body, 2), Some(&[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn a_message_that_was_encoded_is_read_again() {
        let bytes = Message::new(7, &[1, 2, 3, 4]).encode(NLM_F_ACK, 3).unwrap();
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read, [(7, 3, &[1, 2, 3, 4][..])]);
    }

    #[test]
    fn cut_or_lying_lengths_end_the_reading() {
        let bytes = Message::new(7, &[]).attribute(1, &[1, 2, 3, 4]).body;
        assert_eq!(attributes(&bytes[..6]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[255; 20]).count(), 0);
        assert_eq!(messages(&[0; 20]).count(), 0);
    }
}
