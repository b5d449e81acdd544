//! What the halves of a stream ask for.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::super::wire::{self, code};
use super::stream::remember;
use super::{Core, Gone, Role};

/// Bytes of one stream that wait inside the process to be sent; two of the largest copy buffers.
pub(super) const SEND_BUFFER_MAX: usize = 512 * 1024;

/// A writer that had to wait goes on when no more than this waits.
pub(super) const RESUME_AT: usize = SEND_BUFFER_MAX / 2;

/// Places for streams that a connection without any keeps.
const STREAMS_KEPT: usize = 8;

impl Core {
    pub(in super::super) fn read(&mut self, id: u32, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Gone>>> {
        let ended = self.end.is_some();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(None);
        };
        if let Some(chunk) = stream.received.pop() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        if stream.receive_ended {
            return Poll::Ready(None);
        }
        if stream.reset.is_some() || ended {
            return Poll::Ready(Some(Err(self.gone(id))));
        }
        remember(&mut stream.wakers.read, cx);
        Poll::Pending
    }

    /// What has arrived, if anything has; nobody is woken for more.
    pub(in super::super) fn take_received(&mut self, id: u32) -> Option<Bytes> {
        self.streams.get_mut(&id)?.received.pop()
    }

    /// Takes at least a byte off the front of `chunk`.
    pub(in super::super) fn write(
        &mut self,
        id: u32,
        chunk: &mut Bytes,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, Gone>> {
        let (ended, exhausted) = (self.end.is_some(), self.send_window <= 0);
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Gone::Closed));
        };
        if stream.reset.is_some() || ended {
            return Poll::Ready(Err(self.gone(id)));
        }
        if stream.finishing {
            return Poll::Ready(Err(Gone::Closed));
        }
        let room = stream.room(exhausted);
        if room == 0 {
            remember(&mut stream.wakers.write, cx);
            return Poll::Pending;
        }
        let part = chunk.split_to(room.min(chunk.len()));
        let taken = part.len();
        stream.sending.push(part);
        self.queued += taken;
        self.list(id);
        Poll::Ready(Ok(taken))
    }

    /// How many bytes a write would take; whoever has ended is told so by the write.
    pub(in super::super) fn room(&self, id: u32) -> usize {
        match self.streams.get(&id) {
            Some(stream) if stream.reset.is_none() && self.end.is_none() && !stream.finishing => {
                stream.room(self.send_window <= 0)
            }
            _ => usize::MAX,
        }
    }

    /// END_STREAM follows what was written.
    pub(in super::super) fn finish(&mut self, id: u32) -> Result<(), Gone> {
        let ended = self.end.is_some();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if stream.reset.is_some() || ended {
            return Err(self.gone(id));
        }
        stream.finishing = true;
        self.list(id);
        Ok(())
    }

    /// Ends both directions at once.
    pub(in super::super) fn reset_here(&mut self, id: u32, code: u32) {
        let open = self.streams.get(&id).is_some_and(|stream| !stream.over);
        if open && self.end.is_none() {
            wire::put(&mut self.control, wire::RST_STREAM, 0, id, &code.to_be_bytes());
            self.dirty = true;
            if self.drop_received(id) > 0
                && let Some(stream) = self.streams.get_mut(&id)
            {
                // Who has lost something must not read an orderly end behind it.
                stream.receive_ended = false;
            }
            self.mark_reset(id, code);
        }
    }

    /// A stream ended before its end. What has arrived can still be read.
    pub(super) fn mark_reset(&mut self, id: u32, code: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.reset.is_none()) else {
            return;
        };
        stream.reset = Some(code);
        self.queued -= stream.sending.len();
        stream.sending.clear();
        self.woken.extend(stream.wake_all());
        self.settle(id);
    }

    /// Ready once a stream was reset or its connection lost.
    pub(in super::super) fn poll_reset(&mut self, id: u32, cx: &Context<'_>) -> Poll<Gone> {
        let ended = self.end.is_some();
        match self.streams.get_mut(&id) {
            Some(stream) if stream.reset.is_none() && !ended => {
                remember(&mut stream.wakers.reset, cx);
                Poll::Pending
            }
            _ => Poll::Ready(self.gone(id)),
        }
    }

    /// Nobody holds the stream any more. A direction that did not end must not look as if it had.
    pub(in super::super) fn forget(&mut self, id: u32) {
        self.drop_received(id);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.handle = false;
        if self.end.is_some() {
            // Nobody is left to be told.
            self.mark_reset(id, code::CANCEL);
            return self.settle(id);
        }
        let (over, finishing, waits) = (stream.over, stream.finishing, !stream.send_ended);
        // RFC 9113, 8.1: a server that has said all of its own may ask the client to stop with NO_ERROR.
        let code = match self.role {
            Role::Server if finishing => code::NO_ERROR,
            _ => code::CANCEL,
        };
        match (over, finishing && waits) {
            (true, _) => self.settle(id),
            (false, true) if stream.receive_ended => {}
            (false, true) => stream.cancel = Some(code),
            (false, false) => self.reset_here(id, code),
        }
    }

    /// Counts a stream that is over, and forgets it when nobody holds it.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let over = stream.reset.is_some() || stream.receive_ended && stream.send_ended;
        if over && !std::mem::replace(&mut stream.over, true) {
            match self.role {
                Role::Client => self.own_open -= 1,
                Role::Server => self.their_open -= 1,
            }
            self.woken.append(&mut self.opening);
            self.dirty = true;
        }
        if stream.over && !stream.handle {
            self.drop_received(id);
            self.streams.remove(&id);
            if self.streams.is_empty() {
                // Who is idle keeps no table for the streams of a busy hour.
                self.streams.shrink_to(STREAMS_KEPT);
            }
        }
    }
}
