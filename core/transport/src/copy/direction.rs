//! One direction of a copy: read a chunk, hand it on, finish when the source has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use super::backlog::Backlog;
use super::wire::Wire;
use crate::hbone::StreamError;
use crate::socket::Closed;

/// What ended an end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// A socket was reset, timed out or failed.
    Socket(Closed),
    /// The tunnel was reset or lost.
    Tunnel(StreamError),
    /// The peer has finished and wants nothing more: RST_STREAM(NO_ERROR) after its END_STREAM.
    Finished,
}

/// Which end of a direction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that is read.
    Source,
    /// The one that is written.
    Sink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The source has finished; what is held is still to be written.
    ReadToEnd,
    /// FIN is passed on.
    Finished,
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Direction<'a> {
    state: State,
    backlog: Backlog,
    moved: &'a AtomicU64,
}

impl<'a> Direction<'a> {
    pub(super) fn new(moved: &'a AtomicU64) -> Self {
        Self {
            state: State::Reading,
            backlog: Backlog::default(),
            moved,
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    pub(super) fn is_read_to_end(&self) -> bool {
        self.state != State::Reading
    }

    /// The sink wants nothing more; what is held is dropped.
    pub(super) fn stop(&mut self) {
        self.state = State::Finished;
        self.backlog = Backlog::default();
    }

    /// Moves what can be moved now. Ready once FIN is passed on, or an end failed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut dyn Wire,
        sink: &mut dyn Wire,
    ) -> Poll<Result<(), (Side, Fault)>> {
        loop {
            if self.state == State::Finished {
                return Poll::Ready(Ok(()));
            }
            self.fill(cx, source).map_err(|fault| (Side::Source, fault))?;
            let step = if !self.backlog.is_empty() {
                sink.poll_push(cx, &mut self.backlog)
            } else if self.state == State::ReadToEnd {
                sink.poll_finish(cx).map_ok(|()| 0)
            } else {
                return Poll::Pending;
            };
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(Fault::Finished)) => self.stop(),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err((Side::Sink, fault))),
                Poll::Ready(Ok(0)) => self.state = State::Finished,
                Poll::Ready(Ok(bytes)) => {
                    self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    source.taken(bytes);
                }
            }
        }
    }

    /// Reads one chunk when nothing is held; a source whose peer is bounded by credit is emptied always.
    fn fill(&mut self, cx: &mut Context<'_>, source: &mut dyn Wire) -> Result<(), Fault> {
        while self.state == State::Reading && (source.reads_ahead() || self.backlog.is_empty()) {
            match source.poll_pull(cx) {
                Poll::Ready(Ok(Some(chunk))) => self.backlog.push(chunk),
                Poll::Ready(Ok(None)) => self.state = State::ReadToEnd,
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }
}
