//! A request body that can be sent again: what was read of it is kept while it streams, up to a limit.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

/// Bytes of a body that are kept at most. A larger body goes on, and is not sent again.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Frames that are kept at most: tiny ones cost more than their bytes.
const FRAMES_MAX: usize = 4_096;

/// A body between its tries; `None` is one that is over before it begins, as those of most requests are.
#[derive(Debug)]
pub struct Replay<B: Body>(Option<Arc<Mutex<Shared<B>>>>);

#[derive(Debug)]
struct Shared<B: Body> {
    /// What was not read yet.
    rest: B,
    /// What was read, in order, trailers included; `None` when it is not kept any more.
    kept: Option<VecDeque<Kept>>,
    bytes: usize,
    ended: bool,
    /// The reader that may read on; those of earlier tries may not.
    current: u32,
    started: bool,
}

#[derive(Debug, Clone)]
enum Kept {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

impl Kept {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }
}

/// The body of one try.
#[derive(Debug)]
pub struct TryBody<B: Body> {
    shared: Option<Arc<Mutex<Shared<B>>>>,
    number: u32,
    position: usize,
}

/// Why the body of a try ends early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    /// The client's body broke.
    #[error(transparent)]
    Body(E),
    /// Another try has taken the body over.
    #[error("another try has taken the body over")]
    TakenOver,
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B> {
    /// Takes a body. `keep` says whether another try may come at all.
    #[must_use]
    pub fn new(body: B, keep: bool) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        Self(Some(Arc::new(Mutex::new(Shared {
            rest: body,
            kept: keep.then(VecDeque::new),
            bytes: 0,
            ended: false,
            current: 0,
            started: false,
        }))))
    }

    /// The body for the next try, from its first byte on. Earlier tries get no more of it.
    ///
    /// It is whole only if [`Self::is_replayable`], or if this is the first try.
    #[must_use]
    pub fn next_try(&self) -> TryBody<B> {
        let number = self.0.as_ref().map_or(0, |shared| {
            let mut shared = shared.lock();
            shared.current += 1;
            shared.current
        });
        TryBody {
            number,
            shared: self.0.clone(),
            position: 0,
        }
    }

    /// Whether all that was read is still there.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let shared = shared.lock();
            shared.kept.is_some() || !shared.started
        })
    }

    /// Whether any byte was read.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.lock().started)
    }

    /// Whether its end was read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let shared = shared.lock();
            shared.ended || shared.rest.is_end_stream()
        })
    }

    /// Nothing more is kept: no other try will come. What a try has not read yet of what is kept it still gets.
    pub fn commit(&self) {
        if let Some(shared) = &self.0 {
            shared.lock().bytes = REPLAY_BYTES_MAX + 1;
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Shared<B> {
    fn keep(&mut self, frame: Frame<Bytes>, position: &mut usize) -> Frame<Bytes> {
        self.started = true;
        let Some(kept) = &mut self.kept else {
            return frame;
        };
        self.bytes = self.bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if self.bytes > REPLAY_BYTES_MAX || kept.len() >= FRAMES_MAX {
            self.kept = None;
            return frame;
        }
        let one = match frame.into_data() {
            Ok(data) => Kept::Data(data),
            Err(frame) => Kept::Trailers(frame.into_trailers().unwrap_or_default()),
        };
        let frame = one.frame();
        kept.push_back(one);
        *position += 1;
        frame
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TryBody<B> {
    type Data = Bytes;
    type Error = ReplayError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(shared) = &this.shared else {
            return Poll::Ready(None);
        };
        let mut shared = shared.lock();
        if shared.current != this.number {
            return Poll::Ready(Some(Err(ReplayError::TakenOver)));
        }
        let kept = shared.kept.as_ref().and_then(|kept| kept.get(this.position));
        if let Some(frame) = kept.map(Kept::frame) {
            this.position += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        if shared.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut shared.rest).poll_frame(context));
        Poll::Ready(match frame {
            None => {
                shared.ended = true;
                None
            }
            Some(Ok(frame)) => Some(Ok(shared.keep(frame, &mut this.position))),
            Some(Err(error)) => {
                shared.kept = None;
                shared.started = true;
                shared.ended = true;
                Some(Err(ReplayError::Body(error)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        let shared = shared.lock();
        let replayed = shared
            .kept
            .as_ref()
            .is_none_or(|kept| this_is_past(kept, self.position));
        replayed && (shared.ended || shared.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else {
            return SizeHint::with_exact(0);
        };
        let shared = shared.lock();
        let unread: usize = match &shared.kept {
            Some(kept) => kept.iter().skip(self.position).map(Kept::len).sum(),
            None => 0,
        };
        let unread = unread as u64;
        let rest = if shared.ended {
            SizeHint::with_exact(0)
        } else {
            shared.rest.size_hint()
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(unread));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(unread));
        }
        hint
    }
}

fn this_is_past(kept: &VecDeque<Kept>, position: usize) -> bool {
    position >= kept.len()
}

impl Kept {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::{BodyExt, Empty, Full, StreamBody};

    type Parts = Vec<Result<Frame<Bytes>, std::io::Error>>;

    fn streamed(
        parts: &[&[u8]],
    ) -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin + std::fmt::Debug + use<> {
        let parts: Parts = parts
            .iter()
            .map(|part| Ok(Frame::data(Bytes::copy_from_slice(part))))
            .collect();
        StreamBody::new(stream::iter(parts))
    }

    async fn whole<B: Body<Data = Bytes> + Unpin>(body: TryBody<B>) -> Bytes
    where
        B::Error: std::fmt::Debug,
    {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_body_is_sent_again_from_its_first_byte() {
        let replay = Replay::new(streamed(&[b"one ", b"two ", b"three"]), true);
        let mut first = replay.next_try();
        first.frame().await.unwrap().unwrap();
        let second = replay.next_try();
        assert!(first.frame().await.unwrap().is_err(), "the second has it now");
        assert_eq!(whole(second).await, "one two three");
        assert!(replay.is_replayable());
        assert_eq!(whole(replay.next_try()).await, "one two three");
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_goes_on_and_is_not_kept() {
        let half = vec![b'x'; REPLAY_BYTES_MAX / 2 + 1];
        let replay = Replay::new(streamed(&[&half, &half, b"end"]), true);
        assert!(replay.is_replayable());
        let sent = whole(replay.next_try()).await;
        assert_eq!(sent.len(), 2 * half.len() + 3, "nothing is lost on the way");
        assert!(!replay.is_replayable());
    }

    #[tokio::test]
    async fn exactly_the_limit_is_kept() {
        let all = vec![b'x'; REPLAY_BYTES_MAX];
        let replay = Replay::new(streamed(&[&all]), true);
        whole(replay.next_try()).await;
        assert!(replay.is_replayable());
    }

    #[tokio::test]
    async fn without_another_try_nothing_is_kept() {
        let replay = Replay::new(streamed(&[b"one"]), false);
        assert!(replay.is_replayable(), "nothing was read yet");
        assert_eq!(whole(replay.next_try()).await, "one");
        assert!(replay.has_started() && !replay.is_replayable());
        let replay = Replay::new(streamed(&[b"one", b"two"]), true);
        let mut first = replay.next_try();
        first.frame().await.unwrap().unwrap();
        replay.commit();
        assert_eq!(whole(first).await, "two");
        assert!(!replay.is_replayable());
    }

    #[tokio::test]
    async fn an_empty_body_stays_empty_and_a_known_size_stays_known() {
        let empty = Replay::new(Empty::<Bytes>::new(), true);
        assert!(empty.next_try().is_end_stream());
        let full = Replay::new(Full::new(Bytes::from_static(b"12345")), true);
        assert_eq!(full.next_try().size_hint().exact(), Some(5));
        whole(full.next_try()).await;
        let again = full.next_try();
        assert_eq!(again.size_hint().exact(), Some(5));
        assert!(!again.is_end_stream());
    }

    #[tokio::test]
    async fn trailers_are_sent_again() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let parts: Parts = vec![Ok(Frame::data("a".into())), Ok(Frame::trailers(trailers.clone()))];
        let replay = Replay::new(StreamBody::new(stream::iter(parts)), true);
        for _ in 0..2 {
            let sent = replay.next_try().collect().await.unwrap();
            assert_eq!(sent.trailers(), Some(&trailers));
        }
    }
}
