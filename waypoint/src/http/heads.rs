//! Where the heads of requests begin in what a client of HTTP/1.1 sends, and what they say that the library drops: the
//! fragment of a target, and a length beside a coding.
//!
//! ```text
//! line ─▶ fields ─┬─ length ──▶ body ──────────────────────────────┬─▶ line of the next request
//!                 ├─ coding ──▶ size ⇄ chunk … ─▶ trailers ────────┤
//!                 ├─ neither ──────────────────────────────────────┘
//!                 └─ may become a stream of bytes, or no sense ─▶ lost: nothing is looked at any more
//! ```
//!
//! Heads are counted as the library serves them, one after the other, so that what was seen is told with its own
//! request. Nothing is decided here about where a body ends: what this reads otherwise than the library is refused by it.

use memchr::memchr;
use tulle_model::Reason;

/// Bytes of a field's line that are kept. Those that say where a body ends are shorter.
const FIELD_MAX: usize = 256;

/// What a client has sent so far.
#[derive(Debug)]
pub struct Heads {
    at: At,
    head: Head,
    /// The line of a field that has arrived in part.
    line: Vec<u8>,
    /// Heads that were read to their end.
    read: u64,
    /// Heads that are served.
    served: u64,
    /// The first head that is refused, by its number.
    fault: Option<(u64, Reason)>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Line,
    Field,
    Body(u64),
    /// The size of a chunk, so far; whether its digits have ended.
    Size(u64, bool),
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Lost,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    /// Bytes of its first line.
    begun: bool,
    spaces: u8,
    fragment: bool,
    length: Option<u64>,
    coding: bool,
    upgrade: bool,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            at: At::Line,
            head: Head::default(),
            line: Vec::new(),
            read: 0,
            served: 0,
            fault: None,
        }
    }
}

impl Heads {
    /// The library serves the next request: why it is to be refused, if it is. Nothing after such a one is looked at.
    pub fn serve(&mut self) -> Option<Reason> {
        self.served += 1;
        let (number, reason) = self.fault?;
        (number == self.served).then_some(reason)
    }

    /// Whether all that arrived belongs to requests that were served, and nothing of it was odd.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.at == At::Line && !self.head.begun && self.fault.is_none() && self.read == self.served
    }

    /// Looks at what arrived.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.at {
                At::Lost => return,
                At::Body(left) => self.at = skip(&mut bytes, left).map_or(At::Line, At::Body),
                At::Chunk(left) => self.at = skip(&mut bytes, left).map_or(At::ChunkEnd, At::Chunk),
                At::Line => self.first_line(&mut bytes),
                At::Field | At::Trailer => self.line(&mut bytes),
                At::Size(size, ended) => self.at = sized(size, ended, next(&mut bytes)),
                At::ChunkEnd => {
                    if next(&mut bytes) == b'\n' {
                        self.at = At::Size(0, false);
                    }
                }
            }
        }
    }

    /// As much as there is of the first line.
    fn first_line(&mut self, bytes: &mut &[u8]) {
        let (part, has_ended) = up_to_line_feed(bytes);
        for byte in part {
            match byte {
                b'\r' if !self.head.begun => {}
                b' ' => self.head.spaces = self.head.spaces.saturating_add(1),
                b'#' if self.head.spaces == 1 => self.head.fragment = true,
                _ => self.head.begun = true,
            }
        }
        // RFC 9112, 2.2: empty lines before a request are ignored.
        if has_ended && self.head.begun {
            self.at = At::Field;
        }
    }

    /// As much as there is of the line of a field. One that is there whole is read where it lies.
    fn line(&mut self, bytes: &mut &[u8]) {
        let (part, has_ended) = up_to_line_feed(bytes);
        let room = (FIELD_MAX + 1).saturating_sub(self.line.len());
        let part = &part[..part.len().min(room)];
        if has_ended && self.line.is_empty() {
            return self.field(part);
        }
        self.line.extend_from_slice(part);
        if has_ended {
            let line = std::mem::take(&mut self.line);
            self.field(&line);
        }
    }

    fn field(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match (line.is_empty(), self.at) {
            (true, At::Field) => self.end_of_head(),
            (true, _) => self.at = At::Line,
            (false, At::Field) => self.said(line),
            (false, _) => {}
        }
    }

    /// One field of a head.
    fn said(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return self.at = At::Lost;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let framing = [is("content-length"), is("transfer-encoding"), is("upgrade")];
        if framing.contains(&true) && line.len() > FIELD_MAX {
            self.at = At::Lost;
        }
        match framing {
            [true, ..] => match std::str::from_utf8(value).map(str::parse) {
                Ok(Ok(length)) => self.head.length = Some(length),
                _ => self.at = At::Lost,
            },
            [_, true, _] => self.head.coding = true,
            [.., true] => self.head.upgrade = true,
            _ => {}
        }
    }

    fn end_of_head(&mut self) {
        self.read += 1;
        let head = std::mem::take(&mut self.head);
        let reason = match head {
            Head {
                coding: true,
                length: Some(_),
                ..
            } => Some(Reason::BadFraming),
            Head { fragment: true, .. } => Some(Reason::BadPath),
            _ => None,
        };
        self.fault = self.fault.or_else(|| reason.map(|reason| (self.read, reason)));
        self.at = match head {
            _ if self.fault.is_some() || head.upgrade => At::Lost,
            Head { coding: true, .. } => At::Size(0, false),
            Head {
                length: Some(length @ 1..),
                ..
            } => At::Body(length),
            _ => At::Line,
        };
    }
}

/// What comes before the next line feed, and whether that is there; both are passed over.
fn up_to_line_feed<'b>(bytes: &mut &'b [u8]) -> (&'b [u8], bool) {
    let all = *bytes;
    let Some(end) = memchr(b'\n', all) else {
        *bytes = &[];
        return (all, false);
    };
    *bytes = &all[end + 1..];
    (&all[..end], true)
}

/// The next byte, which is there.
fn next(bytes: &mut &[u8]) -> u8 {
    let byte = bytes[0];
    *bytes = &bytes[1..];
    byte
}

/// Passes over as much as there is of so many bytes, at least one; what is left of them then, if anything is.
fn skip(bytes: &mut &[u8], left: u64) -> Option<u64> {
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = &bytes[here..];
    Some(left - here as u64).filter(|left| *left > 0)
}

/// One byte of the line that tells the size of a chunk.
fn sized(size: u64, ended: bool, byte: u8) -> At {
    match char::from(byte).to_digit(16).filter(|_| !ended) {
        Some(digit) => match size.checked_mul(16) {
            Some(size) => At::Size(size + u64::from(digit), false),
            None => At::Lost,
        },
        None if byte != b'\n' => At::Size(size, true),
        None if size == 0 => At::Trailer,
        None => At::Chunk(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    const SIZED: &str = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\nGET /#x HTTP/1.1\r\n";
    const CHUNKED: &str = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        12;a=b\r\nGET /#x HTTP/1.1\r\n\r\n0\r\nX: #\r\n\r\n";
    const FRAGMENT: &str = "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Which of the requests are refused, when bytes come in pieces of this size.
    fn refused(sent: &str, piece: usize, count: usize) -> Vec<(usize, Reason)> {
        let mut heads = Heads::default();
        sent.as_bytes().chunks(piece).for_each(|piece| heads.see(piece));
        (0..count)
            .filter_map(|n| heads.serve().map(|reason| (n, reason)))
            .collect()
    }

    #[test]
    fn a_fragment_is_told_with_its_own_request() {
        for piece in [1, 7, 1_000] {
            assert_eq!(refused(FRAGMENT, piece, 1), [(0, Reason::BadPath)]);
            let many = format!("{PLAIN}\r\n{SIZED}{CHUNKED}{PLAIN}{FRAGMENT}{PLAIN}");
            assert_eq!(refused(&many, piece, 6), [(4, Reason::BadPath)], "{piece}");
        }
    }

    #[test]
    fn a_length_beside_a_coding_is_seen_in_either_order() {
        for (first, second) in [
            ("Content-Length: 3", "Transfer-Encoding: chunked"),
            ("TRANSFER-ENCODING:chunked", "content-length:3"),
        ] {
            let sent = format!("POST / HTTP/1.1\r\n{first}\r\n{second}\r\n\r\n");
            assert_eq!(refused(&sent, 5, 1), [(0, Reason::BadFraming)], "{sent}");
        }
    }

    #[test]
    fn what_is_no_target_is_no_fragment() {
        for sent in [PLAIN, SIZED, CHUNKED, "G#T /a HTTP/1.1\r\nX: #\r\n\r\n"] {
            assert_eq!(refused(sent, 3, 1), [], "{sent}");
        }
    }

    #[test]
    fn what_may_become_a_stream_of_bytes_is_left_alone() {
        let asked = "GET /a HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(refused(&format!("{asked}{FRAGMENT}"), 9, 2), []);
    }

    #[test]
    fn one_is_between_requests_only_when_all_of_them_were_served() {
        let after = |sent: &str, served: usize| {
            let mut heads = Heads::default();
            heads.see(sent.as_bytes());
            for _ in 0..served {
                let _ = heads.serve();
            }
            heads.is_between()
        };
        for whole in [PLAIN, SIZED, CHUNKED] {
            assert!(after(whole, 1), "{whole}");
            assert!(after(&format!("{whole}\r\n"), 1), "an empty line is none");
            assert!(!after(whole, 0), "{whole}");
            assert!(!after(&whole[..whole.len() - 1], 1), "{whole}");
            assert!(!after(&format!("{whole}G"), 1), "{whole}");
        }
        assert!(!after(FRAGMENT, 1) && !after("odd\r\nodd\r\n\r\n", 1));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            parts in proptest::collection::vec(proptest::sample::select(vec![PLAIN, SIZED, CHUNKED, FRAGMENT]), 0..6),
            piece in 1usize..60,
        ) {
            let sent = parts.concat();
            let first = parts.iter().position(|part| *part == FRAGMENT);
            let expect: Vec<_> = first.map(|at| (at, Reason::BadPath)).into_iter().collect();
            prop_assert_eq!(refused(&sent, piece, parts.len()), expect);
        }
    }
}
