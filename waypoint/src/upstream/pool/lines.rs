//! The lines of the heads that an endpoint answers with over HTTP/1.1: each is to end with CR and LF. Who takes a bare LF
//! for an end, as the library does, may see another answer than who does not. Interim answers are heard here, too: the
//! library passes them over, and would have each request ask for them with four allocations.

use std::io;
use std::sync::Arc;

use http::StatusCode;
use memchr::memchr;
use parking_lot::Mutex;

use crate::buffers::Carried;
use crate::http::interim::{Hears, INTERIM_MAX};
use crate::watched::Look;

/// Bytes of the fields of an interim answer that are told on. The library takes no longer head.
const FIELDS_MAX: usize = 64 * 1024;

/// What is known of the answers on one connection. Shared by its bytes and its requests.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// A head is being read, or waited for.
    head: Option<Head>,
    /// Who is told of interim ones.
    hears: Hears,
    /// How many there were.
    interims: u32,
    /// Lines of the fields of the one that is being read, if somebody is told of them.
    fields: Vec<u8>,
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

/// What an endpoint does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Wrong {
    /// A line has ended without a carriage return.
    #[error("a line of the answer's head ends without a carriage return")]
    BareLineFeed,
    /// It does not come to the answer itself.
    #[error("there are more than {INTERIM_MAX} interim answers to one request")]
    Interims,
}

impl Answers {
    /// A request is sent: the next bytes are the head of its answer.
    pub(super) fn expect(&self, hears: Hears) {
        let mut state = self.0.lock();
        (state.head, state.hears, state.interims) = (Some(Head::default()), hears, 0);
    }

    /// Whether a head was not well-formed, or there were too many.
    pub(super) fn is_malformed(&self) -> bool {
        self.0.lock().malformed
    }

    fn see(&self, bytes: &[u8]) -> Result<(), Wrong> {
        let mut state = self.0.lock();
        let seen = state.see(bytes);
        state.malformed |= seen.is_err();
        seen
    }
}

impl State {
    fn see(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while let Some(head) = self.head.as_mut().filter(|_| !bytes.is_empty()) {
            let (from, is_field) = (bytes, head.lines > 0);
            let has_ended = head.see(&mut bytes)?;
            let interim = head.interim();
            if let Some(status) = interim.filter(|_| is_field) {
                self.keep(status, &from[..from.len() - bytes.len()]);
            }
            match interim {
                _ if !has_ended => {}
                Some(status) => self.interim(status)?,
                None => {
                    self.head = None;
                    self.hears = Hears::default();
                }
            }
        }
        Ok(())
    }

    /// A part of a line of an interim answer.
    fn keep(&mut self, status: StatusCode, part: &[u8]) {
        if self.hears.wants_fields(status) && self.fields.len() + part.len() <= FIELDS_MAX {
            self.fields.extend_from_slice(part);
        }
    }

    /// An interim answer has come: another head follows.
    fn interim(&mut self, status: StatusCode) -> Result<(), Wrong> {
        self.interims += 1;
        if self.interims > INTERIM_MAX {
            return Err(Wrong::Interims);
        }
        self.hears.hear(status, &std::mem::take(&mut self.fields));
        self.head = Some(Head::default());
        Ok(())
    }
}

impl Head {
    /// As much as there is of the next line, which is passed over; whether the head ends with it.
    fn see(&mut self, bytes: &mut &[u8]) -> Result<bool, Wrong> {
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
            return Err(Wrong::BareLineFeed);
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

    /// Its status, if it is an interim answer.
    fn interim(&self) -> Option<StatusCode> {
        let status = StatusCode::from_bytes(&self.first[STATUS_END - 3..]).ok()?;
        (status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS).then_some(status)
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
        seen.map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::Aside;

    /// What is said of bytes that arrive in pieces of this size, and whether a head is still expected.
    fn seen(sent: &str, piece: usize) -> (Result<(), Wrong>, bool) {
        let answers = Answers::default();
        answers.expect(Hears::default());
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
                assert_eq!(seen(sent, piece).0, Err(Wrong::BareLineFeed), "{sent:?}");
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

    #[test]
    fn eight_interim_answers_are_borne() {
        let many = |count| "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n".repeat(count);
        for piece in [1, 7, 1_000] {
            assert_eq!(seen(&many(8), piece), (Ok(()), true));
            assert_eq!(seen(&many(9), piece).0, Err(Wrong::Interims));
            let (seen, expected) = seen(&(many(8) + "HTTP/1.1 200 OK\r\n\r\n"), piece);
            assert_eq!((seen, expected), (Ok(()), false));
        }
    }

    #[test]
    fn the_fields_of_an_interim_answer_are_told_on_however_they_are_cut() {
        for piece in [1, 3, 1_000] {
            let aside = Aside::new();
            let _owed = aside.begin();
            let answers = Answers::default();
            answers.expect(Hears {
                aside: Some(Arc::clone(&aside)),
                body: None,
            });
            let sent = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
            sent.as_bytes()
                .chunks(piece)
                .for_each(|piece| answers.see(piece).unwrap());
            assert_eq!(aside.waiting(), "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n");
        }
    }
}
