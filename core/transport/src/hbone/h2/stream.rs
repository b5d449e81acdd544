//! Streams of the `h2` crate behind the seam.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::hbone::error::StreamError;
use crate::hbone::liveness::Slot;
use crate::hbone::load::Outgoing;
use crate::hbone::stream::{HboneStream, ReadChunks, ResetCode, WriteChunks};

/// Joins both halves. The slot is given back when the last of them is gone.
pub(super) fn join(send: SendStream<Outgoing>, receive: RecvStream, slot: Slot) -> HboneStream {
    let slot = Arc::new(slot);
    let reader = H2Reader {
        receive,
        ended: false,
        held: 0,
        slot: Arc::clone(&slot),
    };
    HboneStream::new(
        reader,
        H2Writer {
            send,
            state: Sending::Open,
            slot,
        },
    )
}

/// Says how a stream ended in terms of the seam.
pub(super) fn explain(slot: &Slot, error: &h2::Error) -> StreamError {
    match error.reason() {
        Some(reason) if error.is_reset() => slot.reset_or_lost(reason.into()),
        _ => slot
            .lost()
            .unwrap_or_else(|| StreamError::Lost(error.to_string().into())),
    }
}

struct H2Reader {
    receive: RecvStream,
    ended: bool,
    /// Bytes handed out and not released.
    held: usize,
    slot: Arc<Slot>,
}

impl H2Reader {
    fn stream(&self) -> u32 {
        self.receive.stream_id().into()
    }
}

impl ReadChunks for H2Reader {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        while !self.ended {
            match ready!(self.receive.poll_data(cx)) {
                // An empty frame carries nothing, not even a meaning.
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    self.held += chunk.len();
                    self.slot.window().hold(chunk.len());
                    self.slot.moved(chunk.len());
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(explain(&self.slot, &error))));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(None)
    }

    fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.slot.window().let_go(bytes);
        self.slot.vitals().held().taken(self.stream(), bytes);
        // Fails only if more is released than was received, or the stream is gone; then there is nothing to credit.
        let _ = self.receive.flow_control().release_capacity(bytes);
    }
}

impl Drop for H2Reader {
    /// h2 gives the connection back what a dropped stream held.
    fn drop(&mut self) {
        self.slot.window().let_go(self.held);
        self.slot.vitals().held().closed(self.stream());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    Finished,
    Reset,
}

struct H2Writer {
    send: SendStream<Outgoing>,
    state: Sending,
    slot: Arc<Slot>,
}

impl WriteChunks for H2Writer {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<usize, StreamError>> {
        if self.state != Sending::Open {
            return Poll::Ready(Err(StreamError::Closed));
        }
        self.send.reserve_capacity(chunk.len());
        // `poll_capacity` reports changes only, so what is already assigned is asked for first.
        let mut capacity = self.send.capacity();
        while capacity == 0 {
            capacity = match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(explain(&self.slot, &error))),
                None => return Poll::Ready(Err(self.closed_by_peer(cx))),
            };
        }
        let part = chunk.split_to(capacity.min(chunk.len()));
        let sent = part.len();
        match self
            .send
            .send_data(Outgoing::new(part, self.slot.vitals()), false)
        {
            Ok(()) => {
                self.slot.moved(sent);
                Poll::Ready(Ok(sent))
            }
            Err(_) => Poll::Ready(Err(self.closed_by_peer(cx))),
        }
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        if self.state == Sending::Open {
            self.state = Sending::Finished;
            // The only empty DATA frame there is: peers count others as an attack.
            return self
                .send
                .send_data(Outgoing::new(Bytes::new(), self.slot.vitals()), true)
                .map_err(|error| explain(&self.slot, &error));
        }
        Ok(())
    }

    fn reset(&mut self, code: ResetCode) {
        if self.state != Sending::Reset {
            self.state = Sending::Reset;
            self.send.send_reset(code.into());
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(self.slot.reset_or_lost(reason.into())),
            Err(error) => Poll::Ready(explain(&self.slot, &error)),
        }
    }
}

impl H2Writer {
    fn closed_by_peer(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_reset(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Closed,
        }
    }
}

impl Drop for H2Writer {
    /// A direction that did not end must not look as if it had.
    fn drop(&mut self) {
        if self.state == Sending::Open {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

impl From<Reason> for ResetCode {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR => Self::NoError,
            Reason::CONNECT_ERROR => Self::Connect,
            Reason::CANCEL => Self::Cancel,
            Reason::REFUSED_STREAM => Self::Refused,
            other => Self::Other(other.into()),
        }
    }
}

impl From<ResetCode> for Reason {
    fn from(code: ResetCode) -> Self {
        match code {
            ResetCode::NoError => Self::NO_ERROR,
            ResetCode::Connect => Self::CONNECT_ERROR,
            ResetCode::Cancel => Self::CANCEL,
            ResetCode::Refused => Self::REFUSED_STREAM,
            ResetCode::Other(code) => code.into(),
        }
    }
}
