//! Interim answers (1xx) of an endpoint: `100 Continue` lets the client's body go up, others go down, and there is a
//! bound to them.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tulle_model::request::reserved::is_own_of_answers;

use super::hygiene::strip_hop;
use super::wire::Aside;

/// Interim answers that one try may bring. With one more the endpoint breaks the protocol.
pub const INTERIM_MAX: u32 = 8;
/// RFC 9110, 10.1.1: who asked for `100 Continue` need not wait for ever. An endpoint that never says it gets the body
/// after this time.
const CONTINUE_MAX: Duration = Duration::from_secs(1);

/// What one try hears before its answer. Clones share it.
#[derive(Debug, Clone)]
pub struct Interims(Arc<Heard>);

#[derive(Debug)]
struct Heard {
    count: AtomicU32,
    many: Notify,
    /// The endpoint has said that it wants the body.
    wanted: AtomicBool,
    /// The body has begun: its end is to be seen.
    begun: AtomicBool,
    /// The answer has ended.
    over: AtomicBool,
    body: AtomicWaker,
    /// Where others go on to; `None` for clients that cannot be told.
    aside: Option<Arc<Aside>>,
}

impl Interims {
    /// Nothing was heard.
    #[must_use]
    pub fn new(aside: Option<Arc<Aside>>) -> Self {
        Self(Arc::new(Heard {
            count: AtomicU32::new(0),
            many: Notify::new(),
            wanted: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            over: AtomicBool::new(false),
            body: AtomicWaker::new(),
            aside,
        }))
    }

    /// Listens for what comes before the answer to a request of HTTP/1.1.
    pub fn listen<B>(&self, request: &mut Request<B>) {
        let heard = Arc::clone(&self.0);
        hyper::ext::on_informational(request, move |interim| {
            heard.hear(interim.status(), interim.headers());
        });
    }

    /// Waits until there were too many, which may be never.
    pub async fn too_many(&self) {
        self.0.many.notified().await;
    }

    /// The answer has ended: a body that nobody wanted until now need not come any more.
    pub fn over(&self) {
        self.0.over.store(true, Ordering::Release);
        self.0.body.wake();
    }

    /// Holds a body back until the endpoint wants it.
    #[must_use]
    pub fn gate<B>(&self, body: B) -> Gated<B> {
        Gated {
            heard: Arc::clone(&self.0),
            is_impatient: false,
            patience: None,
            body,
        }
    }
}

impl Heard {
    fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
            return self.many.notify_one();
        }
        if status == StatusCode::CONTINUE {
            self.wanted.store(true, Ordering::Release);
            return self.body.wake();
        }
        if let Some(aside) = &self.aside {
            aside.say(written(status, headers).as_bytes());
        }
    }
}

/// The interim answer as it goes to a client of HTTP/1.1.
fn written(status: StatusCode, headers: &HeaderMap) -> String {
    let mut headers = headers.clone();
    strip_hop(&mut headers);
    let mut text = format!("HTTP/1.1 {}\r\n", status.as_str());
    if let Some(reason) = status.canonical_reason() {
        text = format!("HTTP/1.1 {} {reason}\r\n", status.as_str());
    }
    let passes = |name: &str| name != CONTENT_LENGTH.as_str() && !is_own_of_answers(name);
    for (name, value) in headers.iter().filter(|(name, _)| passes(name.as_str())) {
        // What is no text is no hint.
        if let Ok(value) = value.to_str() {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    text.push_str("\r\n");
    text
}

/// The answer ended without the body having been wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody wanted the body")]
pub struct Unwanted;

/// A body that waits until the endpoint wants it.
#[derive(Debug)]
pub struct Gated<B> {
    heard: Arc<Heard>,
    /// It was waited for long enough.
    is_impatient: bool,
    patience: Option<Pin<Box<Sleep>>>,
    body: B,
}

impl<B> Gated<B> {
    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwanted>> {
        let heard = &self.heard;
        if heard.begun.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        heard.body.register(cx.waker());
        if heard.wanted.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        if heard.over.load(Ordering::Acquire) {
            return Poll::Ready(Err(Unwanted));
        }
        if !self.is_impatient {
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(CONTINUE_MAX)));
            self.is_impatient = patience.as_mut().poll(cx).is_ready();
        }
        if self.is_impatient {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

impl<B> Body for Gated<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: From<Unwanted>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Err(unwanted) = ready!(self.poll_wanted(cx)) {
            return Poll::Ready(Some(Err(unwanted.into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.heard.begun.store(true, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::RequestBody;
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_until_it_is_wanted_and_not_for_ever() {
        let begun = Instant::now();
        let interims = Interims::new(None);
        interims.0.hear(StatusCode::CONTINUE, &HeaderMap::new());
        let body = interims.gate(RequestBody::text("x".into()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let body = Interims::new(None).gate(RequestBody::text("x".into()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
        assert!(begun.elapsed() >= CONTINUE_MAX);
        let interims = Interims::new(None);
        let body = interims.gate(RequestBody::text("x".into()));
        interims.over();
        assert!(body.collect().await.is_err(), "nobody will want it");
    }

    #[tokio::test(start_paused = true)]
    async fn eight_interim_answers_are_borne() {
        let interims = Interims::new(None);
        let soon = || tokio::time::timeout(Duration::from_secs(1), interims.too_many());
        for _ in 0..INTERIM_MAX {
            interims.0.hear(StatusCode::PROCESSING, &HeaderMap::new());
        }
        assert!(soon().await.is_err());
        interims.0.hear(StatusCode::PROCESSING, &HeaderMap::new());
        assert!(soon().await.is_ok());
    }

    #[test]
    fn an_interim_answer_says_nothing_of_the_hop_or_the_mesh() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("link", "</a>; rel=preload"), ("connection", "x-a"), ("x-a", "1")] {
            headers.insert(name, value.parse().unwrap());
        }
        headers.insert("x-tulle-reason", "T0412".parse().unwrap());
        headers.insert("content-length", "5".parse().unwrap());
        assert_eq!(
            written(StatusCode::EARLY_HINTS, &headers),
            "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
        );
    }
}
