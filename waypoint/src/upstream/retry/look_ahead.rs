//! The first frame of an answer, looked at before its head goes on: the status of a call stands in the trailers, and
//! where no message came first, another try is still possible.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

/// A body whose first frame was looked at.
#[derive(Debug)]
pub struct Seen<B: Body> {
    first: Option<Result<Frame<Bytes>, B::Error>>,
    rest: B,
}

/// Waits for the first frame that says something: empty data says nothing. The caller bounds the time.
pub async fn look<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Seen<B> {
    let first = loop {
        match body.frame().await {
            Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            first => break first,
        }
    };
    Seen { first, rest: body }
}

impl<B: Body<Data = Bytes>> Seen<B> {
    /// A body that nobody looked at.
    pub fn unseen(body: B) -> Self {
        Self {
            first: None,
            rest: body,
        }
    }

    /// The trailers, if no data came first.
    pub fn trailers(&self) -> Option<&http::HeaderMap> {
        self.first.as_ref()?.as_ref().ok()?.trailers_ref()
    }

    /// Whether the answer broke before any of its body came.
    pub fn is_broken(&self) -> bool {
        matches!(self.first, Some(Err(_)))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Seen<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut this.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let data = self
            .first
            .as_ref()
            .and_then(|first| first.as_ref().ok()?.data_ref());
        let seen = data.map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(seen));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(seen));
        }
        hint
    }
}

/// The status of gRPC that a head or trailers name.
#[must_use]
pub fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    let value = headers.get("grpc-status")?;
    // What is no number is no status; UNKNOWN stands for it.
    Some(
        value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(2),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    fn body(frames: Vec<Frame<Bytes>>) -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin {
        StreamBody::new(stream::iter(frames.into_iter().map(Ok)))
    }

    fn trailers(status: &str) -> http::HeaderMap {
        http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())])
    }

    #[tokio::test]
    async fn trailers_are_seen_if_no_message_came_first() {
        let seen = look(body(vec![
            Frame::data(Bytes::new()),
            Frame::trailers(trailers("14")),
        ]))
        .await;
        assert_eq!(seen.trailers().and_then(grpc_status), Some(14));
        let whole = seen.collect().await.unwrap();
        assert_eq!(
            whole.trailers().and_then(grpc_status),
            Some(14),
            "they are passed on"
        );
        let seen = look(body(vec![
            Frame::data("a".into()),
            Frame::trailers(trailers("14")),
        ]))
        .await;
        assert_eq!(seen.trailers(), None);
        assert_eq!(seen.collect().await.unwrap().to_bytes(), "a");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_at_once_is_told() {
        let frames: Vec<Result<Frame<Bytes>, _>> = vec![Err(std::io::Error::other("gone"))];
        let seen = look(StreamBody::new(stream::iter(frames))).await;
        assert!(seen.is_broken());
        assert!(seen.collect().await.is_err());
    }

    #[test]
    fn a_status_that_is_no_number_is_unknown() {
        assert_eq!(grpc_status(&trailers("x")), Some(2));
        assert_eq!(grpc_status(&http::HeaderMap::new()), None);
    }
}
