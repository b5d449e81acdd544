//! Interim answers (1xx) of an endpoint: `100 Continue` lets the client's body go up, others go down, and there is a
//! bound to them.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tulle_model::request::reserved::is_own_of_answers;

use super::hygiene::strip_hop;
use super::wire::Aside;

/// Interim answers that one try may bring. With one more the endpoint breaks the protocol.
pub const INTERIM_MAX: u32 = 8;
/// RFC 9110, 10.1.1: who asked for `100 Continue` need not wait for ever. An endpoint that never says it gets the body
/// after this time.
const CONTINUE_MAX: Duration = Duration::from_secs(1);

/// Who is told of the interim answers to a request of HTTP/1.1.
#[derive(Debug, Default)]
pub struct Hears {
    /// Its client, unless it cannot be told.
    pub aside: Option<Arc<Aside>>,
    /// Its body, if that waits to be wanted.
    pub body: Option<Interims>,
}

impl Hears {
    /// Whether the fields of such an answer are told to anybody.
    #[must_use]
    pub fn wants_fields(&self, status: StatusCode) -> bool {
        self.aside.is_some() && status != StatusCode::CONTINUE
    }

    /// One has come, with these lines between its first and its last.
    pub fn hear(&self, status: StatusCode, lines: &[u8]) {
        if status == StatusCode::CONTINUE {
            if let Some(body) = &self.body {
                body.wanted();
            }
        } else if let Some(aside) = &self.aside {
            aside.say(written(status, &fields(lines)).as_bytes());
        }
    }
}

/// Whether the body of one try is wanted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interims(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// The endpoint has said that it wants the body.
    wanted: AtomicBool,
    /// The body has begun: its end is to be seen.
    begun: AtomicBool,
    /// The answer has ended.
    over: AtomicBool,
    body: AtomicWaker,
}

impl Interims {
    /// The endpoint wants the body.
    fn wanted(&self) {
        self.0.wanted.store(true, Ordering::Release);
        self.0.body.wake();
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

/// The fields of a head, by its lines. What is no field is left to the library, which refuses the head for it.
fn fields(lines: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            let _ = fields.try_append(name, value);
        }
    }
    fields
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
        let interims = Interims::default();
        let hears = Hears {
            aside: None,
            body: Some(interims.clone()),
        };
        hears.hear(StatusCode::CONTINUE, b"");
        let body = interims.gate(RequestBody::text("x".into()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let body = Interims::default().gate(RequestBody::text("x".into()));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
        assert!(begun.elapsed() >= CONTINUE_MAX);
        let interims = Interims::default();
        let body = interims.gate(RequestBody::text("x".into()));
        interims.over();
        assert!(body.collect().await.is_err(), "nobody will want it");
    }

    #[test]
    fn an_interim_answer_says_nothing_of_the_hop_or_the_mesh() {
        let lines = b"Link: </a>; rel=preload\r\nconnection: x-a\r\nx-a: 1\r\n\
            x-tulle-reason: T0412\r\ncontent-length:5\r\nno field\r\n\r\n";
        assert_eq!(
            written(StatusCode::EARLY_HINTS, &fields(lines)),
            "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
        );
    }
}
