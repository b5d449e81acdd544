//! What is sent next: answers first, then streams in turns, so that one that sends a lot does not starve the others.
//!
//! A stream that had nothing to send comes before those that always have something; but of these, one has a turn after
//! every few, so that nobody starves who is bulk.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::super::wire::{self, FrameHead};
use super::Core;
use super::calls::RESUME_AT;

/// Bytes of a stream's first turn while others wait: as much as one TLS record holds.
const TURN: usize = 16 * 1024 - wire::HEADER_LENGTH;

/// Bytes of any other turn, as far as the batch has room: of a stream alone, and of those that always have something to send
/// and wait for each other. At the other end each turn is a wake-up, a write to the application and packets of its own, so
/// that with turns of one record sixteen streams cost half as much again. Who comes afresh does not wait longer for that:
/// batches are as long as they would be, and fresh streams come first. The last of eight records has room for the head that
/// follows.
const TURN_BULK: usize = 128 * 1024 - wire::HEADER_LENGTH;

/// Fresh streams that come before the next one that is not.
const FRESH_RUN_MAX: u32 = 8;

/// Payload shorter than this is copied behind its frame's head; longer payload is a slice of its own.
const COPIED_BELOW: usize = 1024;

/// Slices that are handed to one write.
const SLICES_MAX: usize = 64;

/// Bytes on their way out, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Outbox {
    #[serde(with = "crate::plain::chunks")]
    parts: VecDeque<Bytes>,
    /// Comes after all of them.
    #[serde(with = "crate::plain::bytes")]
    small: BytesMut,
    length: usize,
}

impl Outbox {
    pub(in super::super) fn len(&self) -> usize {
        self.length
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.small.put_slice(bytes);
        self.length += bytes.len();
    }

    fn payload(&mut self, bytes: Bytes) {
        if bytes.len() < COPIED_BELOW {
            return self.copy(&bytes);
        }
        self.seal();
        self.length += bytes.len();
        self.parts.push_back(bytes);
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.parts.push_back(self.small.split().freeze());
        }
    }

    /// The slices of the next write.
    pub(in super::super) fn slices(&mut self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        self.seal();
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        (slices, count)
    }

    /// All of it, in order.
    pub(in super::super) fn parts(&mut self) -> impl Iterator<Item = &[u8]> {
        self.seal();
        self.parts.iter().map(|part| &part[..])
    }

    /// Puts payload behind all that is there.
    #[cfg(test)]
    pub(in super::super) fn push(&mut self, bytes: Bytes) {
        self.payload(bytes);
    }

    /// The first part, as a write that takes no more would have it.
    #[cfg(any(test, feature = "testing"))]
    pub(in super::super) fn take(&mut self) -> Bytes {
        self.seal();
        let part = self.parts.pop_front().unwrap_or_default();
        self.length -= part.len();
        part
    }

    /// Drops the first `bytes`, which were written.
    pub(in super::super) fn advance(&mut self, mut bytes: usize) {
        self.length -= bytes;
        while bytes > 0 {
            let Some(part) = self.parts.front_mut() else { break };
            let written = bytes.min(part.len());
            part.advance(written);
            bytes -= written;
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
        if self.length == 0 {
            // Who is idle keeps no buffer.
            *self = Self::default();
        }
    }
}

/// What a turn came to.
enum Turn {
    /// Nothing is left, or its own window is used up.
    Over,
    /// There is more.
    More,
    /// The connection's window is used up.
    Blocked,
}

impl Core {
    /// Puts a stream into the list of those that have something to send, if it has.
    pub(super) fn list(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.listed
            && stream.has_something_to_send()
        {
            stream.listed = true;
            self.fresh.push_back(id);
            self.dirty = true;
        }
    }

    /// Moves what is to be sent next into `out`, until that holds `most` bytes or a little more.
    pub(in super::super) fn gather(&mut self, out: &mut Outbox, most: usize) {
        if !self.control.is_empty() {
            out.copy(&std::mem::take(&mut self.control));
        }
        if self.end.is_some() {
            return;
        }
        let mut blocked = 0;
        while out.len() < most && blocked <= self.ready.len() {
            let Some((id, fresh)) = self.next_turn() else {
                return;
            };
            let room = most - out.len();
            match self.turn(id, fresh, room, out) {
                Turn::Over => {}
                Turn::More => self.ready.push_back(id),
                Turn::Blocked => {
                    blocked += 1;
                    self.ready.push_back(id);
                }
            }
        }
    }

    /// Whose turn it is, and whether it had nothing to send until now.
    fn next_turn(&mut self) -> Option<(u32, bool)> {
        if (self.fresh_run < FRESH_RUN_MAX || self.ready.is_empty())
            && let Some(id) = self.fresh.pop_front()
        {
            self.fresh_run += 1;
            return Some((id, true));
        }
        self.fresh_run = 0;
        self.ready.pop_front().map(|id| (id, false))
    }

    fn turn(&mut self, id: u32, fresh: bool, room: usize, out: &mut Outbox) -> Turn {
        let alone = self.fresh.is_empty() && self.ready.is_empty();
        let most = if fresh && !alone {
            TURN
        } else {
            TURN_BULK.min(room.max(TURN))
        };
        let Some(stream) = self.streams.get_mut(&id) else {
            return Turn::Over;
        };
        if !stream.has_something_to_send() {
            stream.listed = false;
            return Turn::Over;
        }
        let most = most.min(self.peer.frame_max);
        let window = usize::try_from(self.send_window.min(stream.send_window)).unwrap_or(0);
        let length = stream.sending.len().min(most).min(window);
        if length == 0 && !stream.sending.is_empty() {
            return Turn::Blocked;
        }
        let last = stream.finishing && length == stream.sending.len();
        if length > 0 || last && !stream.send_ended {
            let head = FrameHead {
                length,
                kind: wire::DATA,
                flags: if last { wire::END_STREAM } else { 0 },
                stream: id,
            };
            out.copy(&head.encode());
            let mut left = length;
            while left > 0 {
                let Some(part) = stream.sending.take(left) else {
                    break;
                };
                left -= part.len();
                out.payload(part);
            }
            let sent = i64::try_from(length).unwrap_or(i64::MAX);
            stream.send_window -= sent;
            self.send_window -= sent;
            self.queued -= length;
            stream.send_ended |= last;
        }
        if stream.sending.len() <= RESUME_AT {
            self.woken.extend(stream.wakers.write.take());
        }
        let cancel = if stream.sending.is_empty() {
            stream.cancel.take()
        } else {
            None
        };
        stream.listed = cancel.is_none() && stream.has_something_to_send();
        let listed = stream.listed;
        match cancel {
            Some(code) => self.reset_here(id, code),
            None => self.settle(id),
        }
        if listed { Turn::More } else { Turn::Over }
    }
}
