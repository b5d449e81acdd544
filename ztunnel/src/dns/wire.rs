//! DNS messages as bytes: what has to be known of a message to pass it on unchanged, or to cut it short.
//!
//! Nothing here makes sense of records. A message that is forwarded keeps whatever its ends put into it.

use std::time::Duration;

use hickory_proto::op::{Query as Question, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Bytes of a header.
const HEADER: usize = 12;

/// Longest datagram that is taken, or sent, however large the other end says its buffer is.
pub const DATAGRAM_BYTES_MAX: u16 = 4096;

/// Longest datagram for a client that does not say more (RFC 1035 section 4.2.1).
const DATAGRAM_BYTES_PLAIN: u16 = 512;

const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0b1111 << 11;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RCODE: u16 = 0b1111;
const TYPE_OPT: u16 = 41;
const DNSSEC_OK: u32 = 1 << 15;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram each.
    Udp,
    /// Prefixed by its length.
    Tcp,
}

/// What arrived from a client.
#[derive(Debug)]
pub enum Received<'a> {
    /// A question.
    Query(Query<'a>),
    /// Something that gets an error, with a header and nothing else.
    Refused(ResponseCode),
    /// Something that must not be answered, so that two servers never answer each other for ever.
    Ignored,
}

/// A question as it was asked.
#[derive(Debug)]
pub struct Query<'a> {
    /// The whole message.
    pub bytes: &'a [u8],
    /// What is asked.
    pub question: Question,
    /// What the client says of itself.
    pub edns: Option<Edns>,
}

/// The parts of an OPT record that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of the largest datagram the client takes.
    pub payload: u16,
    /// Version of EDNS.
    pub version: u8,
    /// Whether the client wants signatures.
    pub dnssec_ok: bool,
}

impl<'a> Received<'a> {
    /// Reads what a client sent.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Self {
        match Header::read(bytes) {
            None => Self::Ignored,
            Some(header) if header.flags & RESPONSE != 0 => Self::Ignored,
            Some(header) if header.flags & OPCODE != 0 => Self::Refused(ResponseCode::NotImp),
            Some(header) => match Query::read(bytes, &header) {
                Some(query) => Self::Query(query),
                None => Self::Refused(ResponseCode::FormErr),
            },
        }
    }
}

impl<'a> Query<'a> {
    fn read(bytes: &'a [u8], header: &Header) -> Option<Self> {
        if header.questions != 1 {
            return None;
        }
        let questions_end = question_end(bytes)?;
        let mut decoder = BinDecoder::new(bytes);
        decoder.read_slice(HEADER).ok()?;
        let question = Question::read(&mut decoder).ok()?;
        let mut at = questions_end;
        let mut edns = None;
        for _ in 0..header.records() {
            let record = Record::read(bytes, at)?;
            if record.kind == TYPE_OPT && edns.replace(record.edns()).is_some() {
                return None;
            }
            at = record.end;
        }
        Some(Self {
            bytes,
            question,
            edns,
        })
    }

    /// The id the client gave it.
    #[must_use]
    pub fn id(&self) -> u16 {
        id(self.bytes).unwrap_or_default()
    }

    /// Whether the client asks for more than what this server knows itself.
    #[must_use]
    pub fn recursion_desired(&self) -> bool {
        Header::read(self.bytes).is_some_and(|header| header.flags & RECURSION_DESIRED != 0)
    }

    /// The longest reply its client takes.
    #[must_use]
    pub fn reply_bytes_max(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => {
                let payload = self.edns.map_or(0, |edns| edns.payload);
                usize::from(payload.clamp(DATAGRAM_BYTES_PLAIN, DATAGRAM_BYTES_MAX))
            }
        }
    }
}

/// The id of a message.
#[must_use]
pub fn id(message: &[u8]) -> Option<u16> {
    word(message, 0)
}

/// What of a query decides about its reply, beside its transport: the question without case, the flags that ask for
/// something, and EDNS.
#[must_use]
pub fn asked(query: &Query<'_>) -> Option<(Vec<u8>, u16, Option<bool>)> {
    const ASKS: u16 = RECURSION_DESIRED | 0b11 << 4;
    let flags = Header::read(query.bytes)?.flags & ASKS;
    let question = question(query.bytes)?.to_ascii_lowercase();
    Some((question, flags, query.edns.map(|edns| edns.dnssec_ok)))
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// A reply of nothing but a header.
#[must_use]
pub fn bare_reply(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let asked = Header::read(query).map_or(0, |header| header.flags);
    let flags = RESPONSE | asked & (OPCODE | RECURSION_DESIRED) | u16::from(code.low());
    let mut reply = vec![0; HEADER];
    set_id(&mut reply, id(query).unwrap_or_default());
    reply[2..4].copy_from_slice(&flags.to_be_bytes());
    reply
}

/// Whether `reply` is an answer to `query`: its id, and its question. A server that could not read the question may
/// leave it out of an error.
#[must_use]
pub fn answers(reply: &[u8], query: &[u8]) -> bool {
    let (Some(got), Some(asked)) = (Header::read(reply), Header::read(query)) else {
        return false;
    };
    let same = id(reply) == id(query) && got.flags & OPCODE == asked.flags & OPCODE;
    if !same || got.flags & RESPONSE == 0 {
        return false;
    }
    match got.questions {
        0 => got.flags & RCODE != 0,
        1 => same_question(reply, query),
        _ => false,
    }
}

/// Names are compared without case, type and class to the bit.
fn same_question(reply: &[u8], query: &[u8]) -> bool {
    let (Some(got), Some(asked)) = (question(reply), question(query)) else {
        return false;
    };
    let ((got_name, got_kind), (name, kind)) = (got.split_at(got.len() - 4), asked.split_at(asked.len() - 4));
    got_name.eq_ignore_ascii_case(name) && got_kind == kind
}

fn question(message: &[u8]) -> Option<&[u8]> {
    message.get(HEADER..question_end(message)?)
}

/// How long the records that answer a question may be kept: the shortest of their times. `None` for what is not a whole,
/// successful reply with records.
#[must_use]
pub fn shortest_ttl(reply: &[u8]) -> Option<Duration> {
    let header = Header::read(reply)?;
    let whole = header.flags & (TRUNCATED | RCODE) == 0 && header.questions == 1;
    let mut at = question_end(reply).filter(|_| whole)?;
    let mut shortest = None;
    for position in 0..header.records() {
        let record = Record::read(reply, at)?;
        if position < usize::from(header.sections[0]) {
            // What has the highest bit set means zero (RFC 2181 section 8).
            let ttl = if record.ttl >> 31 == 0 { record.ttl } else { 0 };
            shortest = Some(shortest.map_or(ttl, |shortest: u32| shortest.min(ttl)));
        }
        at = record.end;
    }
    shortest.map(|seconds| Duration::from_secs(u64::from(seconds)))
}

/// Whether a reply says that there is nothing: no such name, or no record of the kind.
#[must_use]
pub fn says_nothing_is_there(reply: &[u8]) -> bool {
    const NO_SUCH_NAME: u16 = 3;
    Header::read(reply).is_some_and(|header| {
        let code = header.flags & RCODE;
        code == NO_SUCH_NAME || code == 0 && header.sections[0] == 0 && header.flags & TRUNCATED == 0
    })
}

/// Whether a reply says that its server failed: nothing of the name.
#[must_use]
pub fn says_it_failed(reply: &[u8]) -> bool {
    const SERVER_FAILED: u16 = 2;
    Header::read(reply).is_some_and(|header| header.flags & RCODE == SERVER_FAILED)
}

/// Lets no record of a message be kept for longer than this.
pub fn limit_ttls(message: &mut [u8], max: Duration) {
    let max = u32::try_from(max.as_secs()).unwrap_or(u32::MAX);
    let (Some(header), Some(mut at)) = (Header::read(message), question_end(message)) else {
        return;
    };
    for _ in 0..header.records() {
        let Some(record) = Record::read(message, at) else {
            return;
        };
        if record.kind != TYPE_OPT && record.ttl > max {
            message[record.ttl_at..record.ttl_at + 4].copy_from_slice(&max.to_be_bytes());
        }
        at = record.end;
    }
}

/// Writes the question of `query` into a reply to the same one, whose case may differ.
pub fn set_question(reply: &mut [u8], query: &[u8]) {
    if let Some(asked) = question(query)
        && let Some(place) = question_end(reply).and_then(|end| reply.get_mut(HEADER..end))
        && place.len() == asked.len()
    {
        place.copy_from_slice(asked);
    }
}

/// Shortens a message to at most `max` bytes: whole records are left out from the end, and TC says so. An OPT record
/// is kept, since it speaks of the message and not of the question.
#[must_use]
pub fn cut(message: Vec<u8>, max: usize) -> Vec<u8> {
    if message.len() <= max {
        return message;
    }
    Cut::of(&message, max).unwrap_or_else(|| {
        let mut bare = message.get(..HEADER).unwrap_or_default().to_vec();
        finish(&mut bare, 0, [0; 3]);
        bare
    })
}

/// Reads arbitrary bytes as a question and as a reply; for the fuzzer.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    match Received::read(bytes) {
        Received::Ignored => {}
        Received::Refused(code) => assert_eq!(bare_reply(bytes, code).len(), HEADER),
        Received::Query(query) => {
            assert_eq!(id(bytes), Some(query.id()));
            for transport in [Transport::Udp, Transport::Tcp] {
                assert!(query.reply_bytes_max(transport) >= usize::from(DATAGRAM_BYTES_PLAIN));
            }
            assert!(!answers(bytes, bytes), "a question is no reply");
        }
    }
    let mut limited = bytes.to_vec();
    limit_ttls(&mut limited, Duration::from_secs(30));
    assert!(shortest_ttl(&limited).is_none_or(|ttl| ttl <= Duration::from_secs(30)));
    set_question(&mut limited, bytes);
    assert_eq!(limited.len(), bytes.len());
    for max in [HEADER, usize::from(DATAGRAM_BYTES_PLAIN)] {
        assert!(cut(bytes.to_vec(), max).len() <= max.max(HEADER));
    }
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let _ = (answers(one, other), answers(bytes, one));
}

/// What of a message fits.
struct Cut {
    /// Where the records end that are kept.
    end: usize,
    /// How many of each section.
    counts: [u16; 3],
}

impl Cut {
    fn of(message: &[u8], max: usize) -> Option<Vec<u8>> {
        let header = Header::read(message)?;
        let questions_end = match header.questions {
            0 => HEADER,
            1 => question_end(message)?,
            _ => return None,
        };
        if questions_end > max {
            return None;
        }
        let opt = find_opt(message, questions_end, &header)
            .and_then(|record| message.get(record.start..record.end))
            .filter(|opt| questions_end + opt.len() <= max)
            .unwrap_or_default();
        let mut kept = Self {
            end: questions_end,
            counts: [0; 3],
        };
        kept.fill(message, max - opt.len(), &header);
        let mut short = message.get(..kept.end)?.to_vec();
        short.extend_from_slice(opt);
        kept.counts[2] += u16::from(!opt.is_empty());
        finish(&mut short, header.questions, kept.counts);
        Some(short)
    }

    /// Takes records until one does not fit, or is the OPT, behind which nothing is kept.
    fn fill(&mut self, message: &[u8], max: usize, header: &Header) {
        for (section, count) in header.sections.into_iter().enumerate() {
            for _ in 0..count {
                match Record::read(message, self.end) {
                    Some(record) if record.end <= max && record.kind != TYPE_OPT => {
                        self.end = record.end;
                        self.counts[section] += 1;
                    }
                    _ => return,
                }
            }
        }
    }
}

fn find_opt(message: &[u8], from: usize, header: &Header) -> Option<Record> {
    let mut at = from;
    for _ in 0..header.records() {
        let record = Record::read(message, at)?;
        if record.kind == TYPE_OPT {
            return Some(record);
        }
        at = record.end;
    }
    None
}

/// Writes TC and what the message holds now into its header.
fn finish(message: &mut [u8], questions: u16, counts: [u16; 3]) {
    let Some(header) = Header::read(message) else {
        return;
    };
    let words = [
        header.flags | TRUNCATED,
        questions,
        counts[0],
        counts[1],
        counts[2],
    ];
    for (place, word) in message[2..].chunks_exact_mut(2).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

/// A header without the id.
#[derive(Debug, Clone, Copy)]
struct Header {
    flags: u16,
    questions: u16,
    sections: [u16; 3],
}

impl Header {
    fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            flags: word(message, 2)?,
            questions: word(message, 4)?,
            sections: [word(message, 6)?, word(message, 8)?, word(message, 10)?],
        })
    }

    fn records(&self) -> usize {
        self.sections.iter().copied().map(usize::from).sum()
    }
}

/// Where a record lies.
#[derive(Debug, Clone, Copy)]
struct Record {
    start: usize,
    end: usize,
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
}

impl Record {
    fn read(message: &[u8], start: usize) -> Option<Self> {
        steps::count();
        let at = name_end(message, start)?;
        let ttl = u32::from(word(message, at + 4)?) << 16 | u32::from(word(message, at + 6)?);
        let end = at + 10 + usize::from(word(message, at + 8)?);
        (end <= message.len()).then_some(Self {
            start,
            end,
            kind: word(message, at)?,
            class: word(message, at + 2)?,
            ttl,
            ttl_at: at + 4,
        })
    }

    /// An OPT record has its values where others have class and TTL (RFC 6891 section 6.1.3).
    fn edns(&self) -> Edns {
        let [_, version, _, _] = self.ttl.to_be_bytes();
        Edns {
            payload: self.class,
            version,
            dnssec_ok: self.ttl & DNSSEC_OK != 0,
        }
    }
}

/// Where the only question ends. Its name stands in full: there is nothing before it to point to.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        steps::count();
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

/// Where a name ends that may end in a pointer.
fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        steps::count();
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            192..=255 => return Some(at + 2),
            _ => return None,
        }
    }
}

/// Counts what loops over a message do, so that tests can bound the work that a hostile one makes.
mod steps {
    #[cfg(test)]
    thread_local! {
        static TAKEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    /// One more.
    pub(super) fn count() {
        #[cfg(test)]
        TAKEN.set(TAKEN.get() + 1);
    }

    /// How many `work` takes.
    #[cfg(test)]
    pub(super) fn of(work: impl FnOnce()) -> usize {
        let before = TAKEN.get();
        work();
        TAKEN.get() - before
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests;
