//! Opening streams and answering them, and the question whether the peer lives.

use std::task::{Context, Poll};

use super::super::wire;
use super::stream::{Answer, Stream, remember};
use super::{Asked, Core, Gone, PING_ALIVE};
use crate::hbone::connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};

impl Core {
    /// Opens a stream with the head `block`, as soon as the peer takes another one.
    pub(in super::super) fn open(&mut self, block: &[u8], cx: &Context<'_>) -> Poll<Result<u32, Gone>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(Gone::Connection(end.clone())));
        }
        if self.retired || self.taken_by_peer.is_some() || self.next > wire::LARGEST {
            return Poll::Ready(Err(Gone::Away));
        }
        if self.own_open >= self.peer.streams_max {
            self.opening.push(cx.waker().clone());
            return Poll::Pending;
        }
        let id = self.next;
        self.next += 2;
        let mut stream = Stream::new(self.settings.stream_window, self.peer.window, Answer::Awaited);
        stream.head_sent = true;
        self.streams.insert(id, stream);
        self.own_open += 1;
        wire::put_head(&mut self.control, id, 0, block, self.peer.frame_max);
        self.dirty = true;
        Poll::Ready(Ok(id))
    }

    /// The answer to a stream that we opened.
    pub(in super::super) fn poll_answer(
        &mut self,
        id: u32,
        cx: &Context<'_>,
    ) -> Poll<Result<Result<ConnectResponse, Refusal>, Gone>> {
        let ended = self.end.is_some();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(Gone::Closed));
        };
        if let Answer::Arrived(answer) = std::mem::replace(&mut stream.answer, Answer::Past) {
            return Poll::Ready(Ok(*answer));
        }
        stream.answer = Answer::Awaited;
        if stream.away {
            return Poll::Ready(Err(Gone::Away));
        }
        if stream.reset.is_some() || ended {
            return Poll::Ready(Err(self.gone(id)));
        }
        remember(&mut stream.wakers.read, cx);
        Poll::Pending
    }

    /// The next stream that the peer opened.
    pub(in super::super) fn accept(&mut self) -> Option<(u32, Result<ConnectRequest, MalformedConnect>)> {
        self.accepted.pop_front()
    }

    /// Answers a stream that the peer opened. With `last` nothing follows.
    pub(in super::super) fn respond(&mut self, id: u32, block: &[u8], last: bool) -> Result<(), Gone> {
        let ended = self.end.is_some();
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Gone::Closed);
        };
        if stream.reset.is_some() || ended {
            return Err(self.gone(id));
        }
        stream.head_sent = true;
        stream.finishing = last;
        stream.send_ended = last;
        let flags = if last { wire::END_STREAM } else { 0 };
        wire::put_head(&mut self.control, id, flags, block, self.peer.frame_max);
        self.dirty = true;
        self.settle(id);
        Ok(())
    }

    /// Asks whether the peer lives; false if the connection is ending.
    pub(in super::super) fn ask(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        self.asked = Asked::Yes;
        wire::put(&mut self.control, wire::PING, 0, 0, &PING_ALIVE);
        self.dirty = true;
        true
    }

    pub(in super::super) fn poll_alive(&mut self, cx: &Context<'_>) -> Poll<bool> {
        if self.asked == Asked::Answered {
            self.asked = Asked::No;
            return Poll::Ready(true);
        }
        if self.end.is_some() {
            return Poll::Ready(false);
        }
        remember(&mut self.ping_waker, cx);
        Poll::Pending
    }
}
