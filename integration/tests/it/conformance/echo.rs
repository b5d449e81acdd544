//! An application that says who it is and what it was asked, over HTTP/1.1, HTTP/2 and gRPC.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tulle_integration::traffic::spawn;
use tulle_world::Pod;

use super::client::Seen;

/// The application; it ends with the value.
pub(super) struct Echo(Vec<tokio::task::JoinHandle<()>>);

impl Echo {
    /// Listens on 8080 and 7070 of a pod.
    pub(super) async fn start(pod: &Pod) -> Self {
        let mut tasks = Vec::new();
        for port in [8080, 7070] {
            let address = std::net::SocketAddr::from((pod.ipv4(), port));
            let bound = pod
                .namespace()
                .run_async(move || std::net::TcpListener::bind(address))
                .await;
            let listener = bound.unwrap().unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            tasks.push(spawn(serve(listener, pod.name().to_owned())));
        }
        Self(tasks)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn serve(listener: TcpListener, name: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let name = name.clone();
        spawn(async move {
            let service = service_fn(move |request| answer(name.clone(), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A caller that goes away is the caller's affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(name: String, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    body.collect().await?;
    let mut seen = Seen {
        backend: name,
        path: parts.uri.path().to_owned(),
        ..Seen::default()
    };
    for name in parts.headers.keys() {
        let values: Vec<_> = parts
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        seen.headers.insert(name.to_string(), values.join(","));
    }
    let json = serde_json::to_vec(&seen).unwrap();
    let is_grpc = parts
        .headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        return Ok(Response::new(Full::new(Bytes::from(json)).boxed()));
    }
    let mut message = vec![0];
    message.extend(u32::try_from(json.len()).unwrap().to_be_bytes());
    message.extend(json);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let trailers = std::future::ready(Some(Ok(trailers)));
    let body = Full::new(Bytes::from(message))
        .map_frame(|frame: Frame<Bytes>| frame)
        .with_trailers(trailers);
    let mut response = Response::new(body.boxed());
    response
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    Ok(response)
}
