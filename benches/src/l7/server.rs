//! The application: an answer of 1 KiB to every request, by TLS or behind a tunnel.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
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

use super::ANSWER;

static TEXT: [u8; ANSWER] = [b'x'; ANSWER];

/// Who the server is in the mesh.
pub(super) fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "web")
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::new(Bytes::from_static(&TEXT))))
}

async fn serve<S>(stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await;
}

/// Serves TLS to clients that show a certificate.
pub(super) async fn by_tls(listener: TcpListener, tls: TlsServer) {
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let tls = tls.clone();
        drop(tasks::spawn("bench-server", async move {
            if let Some(stream) = tls.accept(socket).await {
                serve(stream).await;
            }
        }));
    }
}

/// Serves what comes in tunnels.
pub(super) async fn by_tunnel(listener: TcpListener, certificate: Arc<WorkloadCertificate>) {
    while let Ok((socket, from)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let tls = certificate.server_config();
        drop(tasks::spawn("bench-server-tunnel", async move {
            let Ok(mut accepted) = server::accept_over(socket, from, tls, &Settings::server()).await else {
                return;
            };
            while let Some(incoming) = accepted.connection.accept().await {
                if let Ok(stream) = incoming.accept(&ConnectResponse::default()) {
                    drop(tasks::spawn("bench-server", serve(stream)));
                }
            }
        }));
    }
}
