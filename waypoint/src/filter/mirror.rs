//! Copies requests: who gets one, and the body, chunk by chunk, as fast as the main request goes and no slower.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tulle_model::Str;
use tulle_model::filter::Mirror as Wanted;

/// Bytes of the body that a copy may be behind.
pub const BEHIND_BYTES_MAX: usize = 256 << 10;
/// What a piece of a body counts at least: its place in the queue costs memory, also if it holds nothing.
const PIECE_BYTES_MIN: usize = 64;
/// Longest life of a copy.
pub const LIFE_MAX: Duration = Duration::from_secs(10);

/// The share of requests that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    numerator: u64,
    denominator: u64,
}

impl Share {
    /// The share of a filter.
    #[must_use]
    pub fn of(mirror: &Wanted) -> Self {
        Self {
            numerator: mirror.numerator.into(),
            denominator: mirror.denominator.max(1).into(),
        }
    }

    /// Whether the request that drew this uniform random number is copied.
    #[must_use]
    pub fn draws(self, random: u64) -> bool {
        let point = (u128::from(random) * u128::from(self.denominator)) >> 64;
        point < u128::from(self.numerator)
    }
}

/// The host of a copy: `-shadow` behind the name, before the port.
#[must_use]
pub fn shadow(authority: &str) -> Str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}-shadow:{port}")
        }
        _ => format!("{authority}-shadow"),
    }
    .into()
}

/// Why a copy's body ends before the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// It was more than [`BEHIND_BYTES_MAX`] bytes behind.
    #[error("the copy was too slow")]
    Behind,
    /// The request itself ended early.
    #[error("the request ended early")]
    Aborted,
}

/// What is handed to a copy.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// Splits a body: the first goes on as it came, the others are copies of it that can fall behind and be cut off.
pub fn tee<B: Body<Data = Bytes>>(body: B, copies: usize) -> (Tee<B>, Vec<Shadow>) {
    let pair = |_| {
        let behind = Arc::new(AtomicUsize::new(0));
        // Bounded by `behind`, in which every piece of data counts.
        let (pieces, waiting) = mpsc::unbounded_channel();
        let copy = Shadow {
            waiting,
            behind: Arc::clone(&behind),
            size: body.size_hint(),
            ended: body.is_end_stream(),
        };
        (Feed { pieces, behind }, copy)
    };
    let (feeds, copies): (Vec<_>, Vec<_>) = (0..copies).map(pair).unzip();
    let tee = Tee { body, feeds };
    (tee, copies)
}

/// One copy, as the request sees it.
#[derive(Debug)]
struct Feed {
    pieces: mpsc::UnboundedSender<Piece>,
    behind: Arc<AtomicUsize>,
}

/// What a piece adds to how far a copy is behind, in bytes.
fn weight(data: &Bytes) -> usize {
    data.len().max(PIECE_BYTES_MIN)
}

impl Feed {
    /// Hands a piece over. `false` when the copy is gone or too far behind, which cuts it off.
    fn give(&self, piece: Piece) -> bool {
        if let Piece::Data(data) = &piece {
            let weight = weight(data);
            let behind = self.behind.fetch_add(weight, Ordering::AcqRel) + weight;
            if behind > BEHIND_BYTES_MAX {
                return false;
            }
        }
        self.pieces.send(piece).is_ok()
    }
}

/// Tells the copies that the body is whole. Who is gone already does not care.
fn finish(feeds: &mut Vec<Feed>) {
    for feed in feeds.drain(..) {
        feed.give(Piece::End);
    }
}

pin_project_lite::pin_project! {
    /// The request's own body. It never waits for a copy.
    #[derive(Debug)]
    pub struct Tee<B> {
        #[pin]
        body: B,
        feeds: Vec<Feed>,
    }
}

impl<B: Body<Data = Bytes>> Body for Tee<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let polled = std::task::ready!(this.body.as_mut().poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => {
                this.feeds
                    .retain(|feed| match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => feed.give(Piece::Data(data.clone())),
                        (_, Some(trailers)) => feed.give(Piece::Trailers(trailers.clone())),
                        _ => true,
                    });
                if this.body.is_end_stream() {
                    finish(this.feeds);
                }
            }
            Some(Err(_)) => this.feeds.clear(),
            None => finish(this.feeds),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a copy.
#[derive(Debug)]
pub struct Shadow {
    waiting: mpsc::UnboundedReceiver<Piece>,
    behind: Arc<AtomicUsize>,
    size: SizeHint,
    ended: bool,
}

impl Body for Shadow {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = match std::task::ready!(self.waiting.poll_recv(cx)) {
            Some(Piece::Data(data)) => {
                self.behind.fetch_sub(weight(&data), Ordering::AcqRel);
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => None,
            // Nobody said that this is the end, so it must not look like one.
            None if self.behind.load(Ordering::Acquire) > 0 => Some(Err(Cut::Behind)),
            None => Some(Err(Cut::Aborted)),
        };
        self.ended |= !matches!(polled, Some(Ok(_)));
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        // A length that was promised upstream is kept, or the connection ends there.
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};

    type Part = Result<Frame<Bytes>, &'static str>;

    fn body(parts: Vec<Part>) -> impl Body<Data = Bytes, Error = &'static str> + Unpin {
        StreamBody::new(futures_util::stream::iter(parts))
    }

    fn data(text: &'static str) -> Part {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn share(numerator: u32, denominator: u32) -> Share {
        Share {
            numerator: numerator.into(),
            denominator: denominator.into(),
        }
    }

    #[test]
    fn shares_are_exact() {
        let drawn = |share: Share| {
            (0..1_000_u64)
                .filter(|n| share.draws((2 * n + 1) * (u64::MAX / 2_000)))
                .count()
        };
        assert_eq!(drawn(share(1, 4)), 250);
        assert_eq!(drawn(share(0, 100)), 0);
        assert_eq!(drawn(share(100, 100)), 1_000);
        assert_eq!(drawn(share(1, 1_000)), 1);
    }

    #[test]
    fn the_host_of_a_copy_is_a_shadow() {
        assert_eq!(&*shadow("web.shop"), "web.shop-shadow");
        assert_eq!(&*shadow("web.shop:8080"), "web.shop-shadow:8080");
    }

    #[tokio::test]
    async fn every_copy_gets_data_and_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        let parts = vec![data("ab"), data("cd"), Ok(Frame::trailers(trailers.clone()))];
        let (main, copies) = tee(body(parts), 2);
        let main = main.collect().await.unwrap();
        assert_eq!(main.trailers(), Some(&trailers));
        for copy in copies {
            let copy = copy.collect().await.unwrap();
            assert_eq!(copy.trailers(), Some(&trailers));
            assert_eq!(copy.to_bytes(), "abcd");
        }
    }

    #[tokio::test]
    async fn a_body_that_knows_its_length_tells_its_copies() {
        let (main, mut copies) = tee(Full::new(Bytes::from_static(b"abc")), 1);
        let copy = copies.remove(0);
        assert_eq!(copy.size_hint().exact(), Some(3));
        assert_eq!(main.collect().await.unwrap().to_bytes(), "abc");
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "abc");
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_is_cut_off_and_the_request_goes_on() {
        let chunk = Bytes::from(vec![7; 64 << 10]);
        let parts: Vec<Part> = (0..10).map(|_| Ok(Frame::data(chunk.clone()))).collect();
        let (main, mut copies) = tee(body(parts), 1);
        assert_eq!(main.collect().await.unwrap().to_bytes().len(), 10 * chunk.len());
        let mut copy = copies.remove(0);
        for _ in 0..BEHIND_BYTES_MAX / chunk.len() {
            assert!(copy.frame().await.unwrap().is_ok());
        }
        assert_eq!(copy.frame().await.unwrap().unwrap_err(), Cut::Behind);
    }

    #[tokio::test]
    async fn pieces_without_bytes_put_a_copy_behind_too() {
        let pieces = BEHIND_BYTES_MAX / PIECE_BYTES_MIN;
        let parts: Vec<Part> = (0..=pieces).map(|_| Ok(Frame::data(Bytes::new()))).collect();
        let (main, mut copies) = tee(body(parts), 1);
        assert!(main.collect().await.unwrap().to_bytes().is_empty());
        let mut copy = copies.remove(0);
        for _ in 0..pieces {
            assert!(copy.frame().await.unwrap().is_ok());
        }
        assert_eq!(copy.frame().await.unwrap().unwrap_err(), Cut::Behind);
    }

    #[tokio::test]
    async fn a_request_that_breaks_off_breaks_its_copies_off() {
        let (main, mut copies) = tee(body(vec![data("ab"), Err("reset")]), 1);
        assert!(main.collect().await.is_err());
        let mut copy = copies.remove(0);
        assert!(copy.frame().await.unwrap().is_ok());
        assert_eq!(copy.frame().await.unwrap().unwrap_err(), Cut::Aborted);
    }

    #[tokio::test]
    async fn a_copy_that_is_gone_costs_the_request_nothing() {
        let (main, copies) = tee(body(vec![data("ab"), data("cd")]), 1);
        drop(copies);
        assert_eq!(main.collect().await.unwrap().to_bytes(), "abcd");
    }
}
