//! A tunnel between two workloads of one process: the same seam as over the wire, with nothing under it.
//!
//! Chunks change hands without a copy. The reader gives credit as it does on the wire, so a slow application holds
//! its peer back at [`WINDOW`] bytes, and FIN and RST stay what they are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::error::StreamError;
use super::stream::{HboneStream, ReadChunks, ResetCode, WriteChunks};

/// Bytes of one direction that may be on their way: as much as one copy buffer of the largest step.
pub const WINDOW: usize = 256 * 1024;

/// Chunks of one direction that may wait, however small they are.
const CHUNKS_MAX: usize = 64;

/// Both ends of a new tunnel.
#[must_use]
pub fn pair() -> (HboneStream, HboneStream) {
    let link = Arc::new(Link::default());
    (end(&link, Side::First), end(&link, Side::Second))
}

fn end(link: &Arc<Link>, side: Side) -> HboneStream {
    let reader = Reader {
        link: Arc::clone(link),
        side,
    };
    let writer = Writer {
        link: Arc::clone(link),
        side,
    };
    HboneStream::new(reader, writer)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

#[derive(Debug, Default)]
struct Link {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the side that writes.
    lanes: [Lane; 2],
    /// Who ended the tunnel before its end, and how.
    reset: Option<(Side, ResetCode)>,
    /// By the side that wants to hear of a reset.
    listening: [Option<Waker>; 2],
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Bytes>,
    /// Bytes that were written and not released.
    held: usize,
    finished: bool,
    /// The reader has seen the end.
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn written_by(&mut self, side: Side) -> &mut Lane {
        &mut self.lanes[side as usize]
    }

    /// The error a side sees once the tunnel was reset.
    fn reset_seen_by(&self, side: Side) -> Option<StreamError> {
        let (by, code) = self.reset?;
        Some(if by == side {
            StreamError::Closed
        } else {
            StreamError::Reset(code)
        })
    }

    fn reset(&mut self, by: Side, code: ResetCode) {
        let over = self.lanes.iter().all(|lane| lane.ended);
        if self.reset.is_some() || over {
            return;
        }
        self.reset = Some((by, code));
        // What its sender takes back is not delivered any more.
        self.written_by(by.other()).waiting.clear();
        for lane in &mut self.lanes {
            wake(&mut lane.reader);
            wake(&mut lane.writer);
        }
        for listening in &mut self.listening {
            wake(listening);
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

struct Reader {
    link: Arc<Link>,
    side: Side,
}

impl ReadChunks for Reader {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        let mut state = self.link.state.lock();
        let reset = state.reset_seen_by(self.side);
        let lane = state.written_by(self.side.other());
        if let Some(chunk) = lane.waiting.pop_front() {
            wake(&mut lane.writer);
            return Poll::Ready(Some(Ok(chunk)));
        }
        if lane.finished {
            lane.ended = true;
            return Poll::Ready(None);
        }
        if let Some(error) = reset {
            return Poll::Ready(Some(Err(error)));
        }
        lane.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn release(&mut self, bytes: usize) {
        let mut state = self.link.state.lock();
        let lane = state.written_by(self.side.other());
        lane.held = lane.held.saturating_sub(bytes);
        wake(&mut lane.writer);
    }
}

impl Drop for Reader {
    /// Nobody reads what is still to come.
    fn drop(&mut self) {
        let mut state = self.link.state.lock();
        if !state.written_by(self.side.other()).ended {
            state.reset(self.side, ResetCode::Cancel);
        }
    }
}

struct Writer {
    link: Arc<Link>,
    side: Side,
}

impl WriteChunks for Writer {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<usize, StreamError>> {
        let mut state = self.link.state.lock();
        if let Some(error) = state.reset_seen_by(self.side) {
            return Poll::Ready(Err(error));
        }
        let lane = state.written_by(self.side);
        if lane.finished {
            return Poll::Ready(Err(StreamError::Closed));
        }
        let credit = WINDOW.saturating_sub(lane.held);
        if credit == 0 || lane.waiting.len() >= CHUNKS_MAX {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let part = chunk.split_to(credit.min(chunk.len()));
        let sent = part.len();
        lane.held += sent;
        lane.waiting.push_back(part);
        wake(&mut lane.reader);
        Poll::Ready(Ok(sent))
    }

    fn finish(&mut self) -> Result<(), StreamError> {
        let mut state = self.link.state.lock();
        if let Some(error) = state.reset_seen_by(self.side) {
            return Err(error);
        }
        let lane = state.written_by(self.side);
        lane.finished = true;
        wake(&mut lane.reader);
        Ok(())
    }

    fn reset(&mut self, code: ResetCode) {
        self.link.state.lock().reset(self.side, code);
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.link.state.lock();
        if let Some(error) = state.reset_seen_by(self.side) {
            return Poll::Ready(error);
        }
        state.listening[self.side as usize] = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Writer {
    /// A direction that did not end must not look as if it had.
    fn drop(&mut self) {
        let mut state = self.link.state.lock();
        if !state.written_by(self.side).finished {
            state.reset(self.side, ResetCode::Cancel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let (mut near, mut far) = pair();
        near.write_all(b"hello").await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        far.write_all(b"there").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        text.clear();
        near.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "there", "an end after the end is no reset");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_the_writer_back() {
        let (near, far) = pair();
        let (_near_reader, mut writer) = near.split();
        let (mut reader, _far_writer) = far.split();
        writer.write_chunk(Bytes::from(vec![0; WINDOW])).await.unwrap();
        assert!(
            writer
                .write_chunk(Bytes::from_static(b"x"))
                .now_or_never()
                .is_none()
        );
        let chunk = reader.read_chunk().await.unwrap().unwrap();
        assert!(
            writer
                .write_chunk(Bytes::from_static(b"x"))
                .now_or_never()
                .is_none(),
            "read is not taken"
        );
        reader.release(chunk.len());
        writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
    }

    #[tokio::test]
    async fn small_chunks_are_bounded_by_their_number() {
        let (near, far) = pair();
        let (_near_reader, mut writer) = near.split();
        let (mut reader, _far_writer) = far.split();
        for _ in 0..CHUNKS_MAX {
            writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
        }
        assert!(
            writer
                .write_chunk(Bytes::from_static(b"x"))
                .now_or_never()
                .is_none()
        );
        reader.read_chunk().await.unwrap().unwrap();
        writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_one_even_by_who_only_listens() {
        let (near, far) = pair();
        let (mut reader, mut writer) = far.split();
        near.reset(ResetCode::Connect);
        let heard = std::future::poll_fn(|cx| writer.poll_reset(cx)).await;
        assert_eq!(heard, StreamError::Reset(ResetCode::Connect));
        assert_eq!(
            reader.read_chunk().await,
            Some(Err(StreamError::Reset(ResetCode::Connect)))
        );
        let refused = writer.write_chunk(Bytes::from_static(b"x")).await;
        assert_eq!(refused, Err(StreamError::Reset(ResetCode::Connect)));
    }

    #[tokio::test]
    async fn what_is_dropped_before_its_end_is_reset() {
        let (near, far) = pair();
        let (mut reader, _writer) = far.split();
        drop(near);
        assert_eq!(
            reader.read_chunk().await,
            Some(Err(StreamError::Reset(ResetCode::Cancel)))
        );
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_again_and_counts_as_taken_only_then() {
        let (mut near, mut far) = pair();
        near.write_all(b"hel").await.unwrap();
        assert_eq!(far.peek(0).await.unwrap().as_ref(), b"hel");
        assert!(far.peek(3).now_or_never().is_none(), "there is no more yet");
        near.write_all(b"lo").await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(far.peek(3).await.unwrap().as_ref(), b"hello");
        assert_eq!(
            far.peek(5).await.unwrap().as_ref(),
            b"hello",
            "the end is no error"
        );
        let (mut reader, _writer) = far.split();
        assert_eq!(reader.read_chunk().await.unwrap().unwrap().as_ref(), b"hello");
        assert!(reader.read_chunk().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (near, mut far) = pair();
        let (_near_reader, mut writer) = near.split();
        let mut byte = [0];
        let (read, ()) = tokio::join!(far.read_exact(&mut byte), async {
            tokio::task::yield_now().await;
            writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
        });
        read.unwrap();
        assert_eq!(&byte, b"x");
    }
}
