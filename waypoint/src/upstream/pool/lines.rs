//! The lines of the heads that an endpoint answers with over HTTP/1.1: each is to end with CR and LF. Who takes a bare LF
//! for an end, as the library does, may see another answer than who does not.

use std::io;
use std::sync::Arc;

use memchr::memchr;
use parking_lot::Mutex;

use crate::buffers::Carried;
use crate::watched::Look;

/// What is known of the answers on one connection. Shared by its bytes and its requests.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// A head is being read, or waited for.
    head: Option<Head>,
    malformed: bool,
}

#[derive(Debug, Default)]
struct Head {
    /// Bytes of the line so far, and whether the last of them is CR.
    length: usize,
    returned: bool,
    /// The beginning of the first line, as far as its status.
    first: [u8; STATUS_END],
    /// Lines that have ended.
    lines: usize,
}

/// `HTTP/1.1 200`
const STATUS_END: usize = 12;

/// A line has ended without a carriage return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of the answer's head ends without a carriage return")]
struct BareLineFeed;

impl Answers {
    /// A request is sent: the next bytes are the head of its answer.
    pub(super) fn expect(&self) {
        self.0.lock().head = Some(Head::default());
    }

    /// Whether a head was not well-formed.
    pub(super) fn is_malformed(&self) -> bool {
        self.0.lock().malformed
    }

    fn see(&self, mut bytes: &[u8]) -> Result<(), BareLineFeed> {
        let mut state = self.0.lock();
        let state = &mut *state;
        let Some(head) = &mut state.head else {
            return Ok(());
        };
        while !bytes.is_empty() {
            match head.see(&mut bytes) {
                Ok(false) => {}
                // An interim answer: another head follows.
                Ok(true) if head.is_interim() => *head = Head::default(),
                Ok(true) => {
                    state.head = None;
                    return Ok(());
                }
                Err(bare) => {
                    state.malformed = true;
                    return Err(bare);
                }
            }
        }
        Ok(())
    }
}

impl Head {
    /// As much as there is of the next line, which is passed over; whether the head ends with it.
    fn see(&mut self, bytes: &mut &[u8]) -> Result<bool, BareLineFeed> {
        let end = memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        *bytes = end.map_or(&[], |end| &bytes[end + 1..]);
        if self.lines == 0 {
            let places = self.first.iter_mut().skip(self.length);
            places.zip(part).for_each(|(place, byte)| *place = *byte);
        }
        if let Some(last) = part.last() {
            self.returned = *last == b'\r';
        }
        self.length = self.length.saturating_add(part.len());
        if end.is_none() {
            return Ok(false);
        }
        if !self.returned {
            return Err(BareLineFeed);
        }
        // Empty lines before an answer are none of its own.
        let is_empty = self.length == 1;
        (self.length, self.returned, self.lines) = (0, false, self.lines + 1);
        if is_empty && self.lines == 1 {
            self.lines = 0;
            return Ok(false);
        }
        Ok(is_empty)
    }

    fn is_interim(&self) -> bool {
        matches!(&self.first[STATUS_END - 3..], [b'1', a, b] if [a, b] != [&b'0', &b'1'])
    }
}

/// Looks at the answers on a connection.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) answers: Arc<Answers>,
    pub(super) carried: Arc<Carried>,
}

impl Look for Lines {
    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The library reads no more than a head, or what a body has room for.
        let _ = self.carried.arrived(bytes.len());
        let seen = self.answers.see(bytes);
        seen.map_err(|bare| io::Error::new(io::ErrorKind::InvalidData, bare))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of bytes that arrive in pieces of this size, and whether a head is still expected.
    fn seen(sent: &str, piece: usize) -> (Result<(), BareLineFeed>, bool) {
        let answers = Answers::default();
        answers.expect();
        let seen = sent
            .as_bytes()
            .chunks(piece)
            .try_for_each(|piece| answers.see(piece));
        let expected = answers.0.lock().head.is_some();
        (seen, expected)
    }

    #[test]
    fn a_bare_line_feed_in_a_head_is_found_however_it_is_cut() {
        for sent in [
            "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\n\r\n",
            "\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            for piece in [1, 5, 1_000] {
                assert_eq!(seen(sent, piece).0, Err(BareLineFeed), "{sent:?}");
            }
        }
    }

    #[test]
    fn what_follows_a_head_is_not_looked_at() {
        for sent in [
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\n\n\n\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n\n",
            "\r\nHTTP/1.1 404 Not Found\r\nA: b\r\n\r\n\n",
        ] {
            for piece in [1, 5, 1_000] {
                assert_eq!(seen(sent, piece), (Ok(()), false), "{sent:?}");
            }
        }
    }
}
