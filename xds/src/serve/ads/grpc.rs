//! The service as HTTP: requests are decoded as anywhere, responses are written from parts that streams share.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstDecoder;
use tulle_proto::discovery::DeltaDiscoveryRequest;
use tulle_proto::names::FEATURES_HEADER;
use tulle_proto::resume::{Layout, RESUME_HEADER};

use super::{Ads, FEATURES, REQUEST_BYTES_MAX, Sent};
use crate::serve::frame::Encoding;

/// The only method that is served.
const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Bytes kept per stream for the next request; answers are far shorter, and for a longer request it grows.
const READ_AHEAD: usize = 192;
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> tower::Service<http::Request<B>> for Ads
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ads = self.clone();
        Box::pin(async move {
            let answered = ads.answer(request).await;
            Ok(answered.unwrap_or_else(Status::into_http))
        })
    }
}

impl Ads {
    async fn answer<B>(&self, request: http::Request<B>) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.uri().path() != PATH {
            return Err(Status::unimplemented("only DeltaAggregatedResources is served"));
        }
        let plain = |encoding: &HeaderValue| encoding.as_bytes() == b"identity";
        if !request.headers().get(ENCODING).is_none_or(plain) {
            return Err(Status::unimplemented("requests are taken uncompressed"));
        }
        let best = best_of(request.headers());
        let (parts, body) = request.into_parts();
        let decoder = ProstDecoder::<DeltaDiscoveryRequest>::new(BufferSettings::new(READ_AHEAD, READ_AHEAD));
        let requests = Streaming::new_request(decoder, body, None, Some(REQUEST_BYTES_MAX));
        let responses = self
            .open(
                Request::from_http(http::Request::from_parts(parts, requests)),
                best,
            )
            .await?;
        let mut response = http::Response::new(Body::new(Responses::new(responses)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // The oldest first: its clients read that line alone.
        for layout in Layout::ALL.into_iter().rev() {
            headers.append(RESUME_HEADER, HeaderValue::from_static(layout.word()));
        }
        headers.insert(FEATURES_HEADER, HeaderValue::from_static(FEATURES));
        if best != Encoding::Raw {
            headers.insert(ENCODING, HeaderValue::from_static(best.as_str()));
        }
        Ok(response)
    }
}

/// The best that the client says it reads; one that says nothing gets everything as it is.
fn best_of(headers: &HeaderMap) -> Encoding {
    let lists = headers.get_all(ACCEPT_ENCODING).into_iter();
    let words = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    Encoding::best(words)
}

/// The body of a response: the parts of each message, then the status.
struct Responses {
    messages: mpsc::Receiver<Sent>,
    parts: VecDeque<Bytes>,
    ended: bool,
}

impl Responses {
    fn new(messages: mpsc::Receiver<Sent>) -> Self {
        Self {
            messages,
            parts: VecDeque::new(),
            ended: false,
        }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // A message that cannot be a header; the code alone says enough.
            let _ = Status::new(status.code(), "").add_header(&mut trailers);
        }
        Frame::trailers(trailers)
    }
}

impl HttpBody for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.messages.poll_recv(cx)) {
                Some(Ok(message)) => self.parts = message.parts,
                Some(Err(status)) => return Poll::Ready(Some(Ok(self.end(&status)))),
                None => return Poll::Ready(Some(Ok(self.end(&Status::ok(""))))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_compressed_as_the_client_says_it_reads_them() {
        let headers = |list: &'static str| {
            HeaderMap::from_iter([(
                HeaderName::from_static(ACCEPT_ENCODING),
                HeaderValue::from_static(list),
            )])
        };
        assert_eq!(best_of(&headers("identity, gzip")), Encoding::Gzip);
        for both in ["zstd,identity", "gzip, zstd", "zstd,gzip"] {
            assert_eq!(best_of(&headers(both)), Encoding::Zstd);
        }
        assert_eq!(best_of(&headers("deflate,br,identity")), Encoding::Raw);
        assert_eq!(best_of(&HeaderMap::new()), Encoding::Raw);
    }
}
