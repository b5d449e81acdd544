//! Cuts plaintext that lies in slices into records.
//!
//! Bulk is sealed from where it lies, and what is short behind it (the head of the next frame, as a rule) goes along in
//! the same record. What is short in front is copied together: a record of its own would cost more than the copy.

use super::error::Fault;
use super::format::{APPLICATION_DATA, HEADER, OVERHEAD, PLAINTEXT_MAX};
use super::key::Key;

/// A slice of at least this length is sealed from where it lies; shorter ones are copied together.
const BULK: usize = 4096;

/// Bytes of short slices that go along behind bulk.
const TAIL_MAX: usize = 256;

/// Room for less than this is left for the next buffer, as nearly all of it would be overhead.
const WORTH_A_RECORD: usize = 64;

/// Slices that are sealed one after the other.
pub(super) struct Slices<'a, I> {
    front: &'a [u8],
    rest: I,
    pub(super) taken: usize,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Slices<'a, I> {
    pub(super) fn new(rest: I) -> Self {
        let mut slices = Self {
            front: &[],
            rest,
            taken: 0,
        };
        slices.settle();
        slices
    }

    pub(super) fn is_empty(&self) -> bool {
        self.front.is_empty()
    }

    /// Takes bytes off the front, at most `most`, all from one slice.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (part, rest) = self.front.split_at(most.min(self.front.len()));
        self.front = rest;
        self.taken += part.len();
        self.settle();
        part
    }

    fn settle(&mut self) {
        while self.front.is_empty() {
            let Some(next) = self.rest.next() else { return };
            self.front = next;
        }
    }
}

/// Seals one record to the front of `out`, and says how long it is; 0 if there is no room for a record.
pub(super) fn record<'a, I>(key: &mut Key, slices: &mut Slices<'a, I>, out: &mut [u8]) -> Result<usize, Fault>
where
    I: Iterator<Item = &'a [u8]>,
{
    let most = PLAINTEXT_MAX.min(out.len().saturating_sub(OVERHEAD));
    if most < WORTH_A_RECORD {
        return Ok(0);
    }
    if slices.front.len() >= BULK {
        from_where_it_lies(key, slices, most, out)
    } else {
        copied_together(key, slices, most, out)
    }
}

fn from_where_it_lies<'a, I>(
    key: &mut Key,
    slices: &mut Slices<'a, I>,
    most: usize,
    out: &mut [u8],
) -> Result<usize, Fault>
where
    I: Iterator<Item = &'a [u8]>,
{
    let whole = slices.front.len() <= most;
    let body = slices.take(most);
    let (mut tail, mut length) = ([0; TAIL_MAX + 1], 0);
    while whole && !slices.is_empty() && slices.front.len() <= TAIL_MAX.min(most - body.len()) - length {
        let part = slices.take(TAIL_MAX);
        tail[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    tail[length] = APPLICATION_DATA;
    key.seal(body, &tail[..=length], out)
}

fn copied_together<'a, I>(
    key: &mut Key,
    slices: &mut Slices<'a, I>,
    most: usize,
    out: &mut [u8],
) -> Result<usize, Fault>
where
    I: Iterator<Item = &'a [u8]>,
{
    let mut length = 0;
    while length < most && !slices.is_empty() && slices.front.len() < BULK {
        let part = slices.take(most - length);
        out[HEADER + length..HEADER + length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    key.seal_in_place(length, APPLICATION_DATA, out)
}
