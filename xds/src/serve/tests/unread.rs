//! D17: who shows no good credential is refused by its headers; what it wanted to say is not read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body::Frame;
use prost::Message as _;
use tonic::body::Body;
use tower::ServiceExt as _;

use super::*;

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Length of the request; the server lets come a twentieth of it before it reads any.
const LENGTH: usize = 20 << 20;
/// Length of the pieces it is sent in.
const PIECE: usize = 16 << 10;

/// A request that is sent as fast as it is taken, stays open, and counts what was taken of it.
struct Counted {
    pieces: VecDeque<Bytes>,
    taken: Arc<AtomicUsize>,
}

impl Counted {
    fn new(message: &DeltaDiscoveryRequest, taken: Arc<AtomicUsize>) -> Self {
        let body = message.encode_to_vec();
        let length = u32::try_from(body.len()).expect("a length of gRPC");
        let mut framed = vec![0];
        framed.extend(length.to_be_bytes());
        framed.extend(body);
        let mut rest = Bytes::from(framed);
        let mut pieces = VecDeque::new();
        while !rest.is_empty() {
            pieces.push_back(rest.split_to(PIECE.min(rest.len())));
        }
        Self { pieces, taken }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(piece) = self.pieces.pop_front() else {
            return Poll::Pending;
        };
        self.taken.fetch_add(piece.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[tokio::test]
async fn d17_what_a_stranger_asks_for_is_not_read() {
    let server = Server::start().await;
    let token = server.tokens.create("n1").unwrap();
    let mut long = first("n1", ResourceType::Address);
    let metadata = long.node.as_mut().and_then(|node| node.metadata.as_mut());
    let fields = &mut metadata.expect("a node with metadata").fields;
    fields.insert("LONG".to_owned(), text(&"x".repeat(LENGTH)));
    let answer = async |token: &str| {
        let taken = Arc::new(AtomicUsize::new(0));
        let request = http::Request::post(PATH)
            .header("content-type", "application/grpc")
            .body(Body::new(Counted::new(&long, taken.clone())))
            .unwrap();
        let answer = timeout(PATIENCE, server.channel(token).oneshot(request)).await;
        let answer = answer.expect("an answer in time").unwrap();
        let code = Status::from_header_map(answer.headers()).map(|status| status.code());
        (code, taken, answer)
    };
    for stranger in ["", "abc", &format!("tulle1.n1.{}", "0".repeat(64))] {
        let (code, taken, _) = answer(stranger).await;
        assert_eq!(code, Some(Code::Unauthenticated), "{stranger:?}");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < LENGTH / 4, "{taken} bytes were taken of {stranger:?}");
    }
    assert!(server.clients.list(std::time::Instant::now()).is_empty());
    // Who is known is read to the end.
    let (code, taken, _open) = answer(&token).await;
    assert_eq!(code, None);
    until(|| !server.clients.list(std::time::Instant::now()).is_empty()).await;
    assert!(taken.load(Ordering::Relaxed) > LENGTH);
}
