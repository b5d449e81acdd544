//! The application: an answer of 1 KiB to every request, by TLS or behind a tunnel. It speaks gRPC to who does, and has
//! a body as long as one asks for.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tulle_identity::WorkloadCertificate;
use tulle_identity::testing::TlsServer;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ConnectResponse, Settings, server};

use super::{ANSWER, BULK, GRPC, STREAM};

static TEXT: [u8; ANSWER] = [b'x'; ANSWER];
/// What long bodies are made of.
static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
/// A message of gRPC: no compression, and a length.
static MESSAGE: [u8; ANSWER + 5] = {
    let mut message = [b'x'; ANSWER + 5];
    let length = (ANSWER as u64).to_be_bytes();
    message[0] = 0;
    let mut at = 0;
    while at < 4 {
        message[at + 1] = length[at + 4];
        at += 1;
    }
    message
};

/// Who the server is in the mesh.
pub(super) fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "web")
}

/// What an endpoint does beside answering.
#[derive(Debug, Clone, Default)]
pub(super) struct Manner {
    /// How long it takes for an answer.
    pub(super) delay: Duration,
    /// Requests so far.
    pub(super) asked: Arc<AtomicU64>,
}

/// The body of an answer.
enum Answer {
    Plain(Full<Bytes>),
    /// Chunks, so many bytes of them.
    Bulk(u64),
    /// One message, then the status.
    Unary(Option<Bytes>, bool),
    /// What was asked, as it comes, then the status.
    Echo(Incoming, bool),
}

fn status() -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Frame::trailers(trailers)
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Plain(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Self::Bulk(0) => Poll::Ready(None),
            Self::Bulk(left) => {
                let size = CHUNK.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= size as u64;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..size])))))
            }
            Self::Unary(message, over) => Poll::Ready(match message.take() {
                Some(message) => Some(Ok(Frame::data(message))),
                None if *over => None,
                None => {
                    *over = true;
                    Some(Ok(status()))
                }
            }),
            Self::Echo(_, true) => Poll::Ready(None),
            Self::Echo(asked, over) => match std::task::ready!(Pin::new(asked).poll_frame(cx)) {
                Some(frame) => Poll::Ready(Some(frame)),
                None => {
                    *over = true;
                    Poll::Ready(Some(Ok(status())))
                }
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(full) => full.size_hint(),
            Self::Bulk(left) => SizeHint::with_exact(*left),
            Self::Unary(..) | Self::Echo(..) => SizeHint::default(),
        }
    }
}

async fn answer(request: Request<Incoming>, manner: Manner) -> Result<Response<Answer>, Infallible> {
    manner.asked.fetch_add(1, Ordering::Relaxed);
    if !manner.delay.is_zero() {
        tokio::time::sleep(manner.delay).await;
    }
    let path = request.uri().path();
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == GRPC);
    if let Some(bytes) = path.strip_prefix(BULK) {
        return Ok(Response::new(Answer::Bulk(bytes.parse().unwrap_or_default())));
    }
    if !is_grpc {
        let _ = request.into_body().collect().await;
        return Ok(Response::new(Answer::Plain(Full::new(Bytes::from_static(&TEXT)))));
    }
    let streams = path == STREAM;
    let body = request.into_body();
    let body = if streams {
        Answer::Echo(body, false)
    } else {
        let _ = body.collect().await;
        Answer::Unary(Some(Bytes::from_static(&MESSAGE)), false)
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    Ok(response)
}

async fn serve<S>(stream: S, manner: Manner)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(move |request| answer(request, manner.clone()));
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// Serves TLS to clients that show a certificate.
pub(super) async fn by_tls(listener: TcpListener, tls: TlsServer) {
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let tls = tls.clone();
        drop(tasks::spawn("bench-server", async move {
            if let Some(stream) = tls.accept(socket).await {
                serve(stream, Manner::default()).await;
            }
        }));
    }
}

/// Serves what comes in tunnels.
pub(super) async fn by_tunnel(listener: TcpListener, certificate: Arc<WorkloadCertificate>, manner: Manner) {
    while let Ok((socket, from)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (tls, manner) = (certificate.server_config(), manner.clone());
        drop(tasks::spawn("bench-server-tunnel", async move {
            let Ok(mut accepted) = server::accept_over(socket, from, tls, &Settings::server()).await else {
                return;
            };
            while let Some(incoming) = accepted.connection.accept().await {
                if let Ok(stream) = incoming.accept(&ConnectResponse::default()) {
                    drop(tasks::spawn("bench-server", serve(stream, manner.clone())));
                }
            }
        }));
    }
}
