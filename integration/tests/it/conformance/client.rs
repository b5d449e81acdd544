//! Asks as an application would: over a connection of its own, out of its pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tulle_integration::mesh::PATIENCE;
use tulle_integration::traffic::{connect, spawn};
use tulle_world::Pod;

use super::table::Case;

/// What the application saw of a request, which it sends back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) backend: String,
    pub(super) path: String,
    /// Repeated fields joined with `,`.
    pub(super) headers: BTreeMap<String, String>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) grpc_status: Option<String>,
    pub(super) seen: Seen,
}

/// Asks once.
pub(super) async fn ask(from: &Pod, address: SocketAddr, case: &Case) -> Result<Answer, String> {
    tokio::time::timeout(PATIENCE, exchange(from, address, case))
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

async fn exchange(from: &Pod, address: SocketAddr, case: &Case) -> Result<Answer, String> {
    let text = |error: hyper::Error| error.to_string();
    let stream = connect(from.namespace(), address)
        .await
        .map_err(|error| error.to_string())?;
    let request = request(case, address);
    let response = if case.grpc {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(text)?;
        spawn(connection);
        sender.send_request(request).await.map_err(text)?
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(text)?;
        spawn(connection);
        sender.send_request(request).await.map_err(text)?
    };
    read(response, case.grpc).await
}

fn request(case: &Case, address: SocketAddr) -> Request<Full<Bytes>> {
    let named = case.headers.get("Host").or(case.to.as_ref());
    let host = named.map_or_else(
        || address.to_string(),
        |name| match case.port {
            80 => name.clone(),
            port => format!("{name}:{port}"),
        },
    );
    let mut request = if case.grpc {
        Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}/echo.Echo/Call"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    } else {
        Request::builder().uri(&case.path).header("host", host)
    };
    for (name, value) in case.headers.iter().filter(|(name, _)| *name != "Host") {
        request = request.header(name, value);
    }
    let body = if case.grpc {
        Bytes::from_static(&[0; 5])
    } else {
        Bytes::new()
    };
    request.body(Full::new(body)).unwrap()
}

async fn read(response: Response<Incoming>, grpc: bool) -> Result<Answer, String> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let status = |fields: &HeaderMap| Some(fields.get("grpc-status")?.to_str().ok()?.to_owned());
    let grpc_status = body
        .trailers()
        .and_then(status)
        .or_else(|| status(&parts.headers));
    let bytes = body.to_bytes();
    // A message of gRPC has five bytes before it.
    let message = if grpc {
        bytes.get(5..).unwrap_or_default()
    } else {
        &bytes[..]
    };
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        grpc_status,
        seen: serde_json::from_slice(message).unwrap_or_default(),
    })
}
