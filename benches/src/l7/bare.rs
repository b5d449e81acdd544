//! A reverse proxy of hyper alone: what mutual TLS on both hops costs without any decision.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tulle_identity::testing::{TestCa, TlsClient};
use tulle_runtime::tasks;

use super::{SERVER, Version};

type Failed = io::Error;

/// Connections to the server.
struct Upstream {
    to: SocketAddr,
    tls: TlsClient,
    version: Version,
    idle: Mutex<Vec<http1::SendRequest<Incoming>>>,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Incoming>>>,
}

impl Upstream {
    async fn connect(
        &self,
    ) -> Result<TokioIo<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + use<>>, Failed>
    {
        let socket = TcpStream::connect(self.to).await?;
        socket.set_nodelay(true)?;
        Ok(TokioIo::new(self.tls.connect(SERVER, socket).await?))
    }

    async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Failed> {
        match self.version {
            Version::One => {
                let idle = self.idle.lock().pop();
                let mut sender = match idle {
                    Some(sender) => sender,
                    None => {
                        let (sender, connection) = http1::handshake(self.connect().await?)
                            .await
                            .map_err(io::Error::other)?;
                        drop(tasks::spawn(
                            "bench-bare-h1",
                            async move { drop(connection.await) },
                        ));
                        sender
                    }
                };
                sender.ready().await.map_err(io::Error::other)?;
                let response = sender.send_request(request).await.map_err(io::Error::other)?;
                // The next request waits in it until this answer has ended.
                self.idle.lock().push(sender);
                Ok(response)
            }
            Version::Two => {
                let mut shared = self.shared.lock().await;
                let mut sender = match shared.as_ref() {
                    Some(sender) => sender.clone(),
                    None => {
                        let io = self.connect().await?;
                        let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                            .await
                            .map_err(io::Error::other)?;
                        drop(tasks::spawn(
                            "bench-bare-h2",
                            async move { drop(connection.await) },
                        ));
                        shared.insert(sender).clone()
                    }
                };
                drop(shared);
                sender.send_request(request).await.map_err(io::Error::other)
            }
        }
    }
}

/// Serves clients that show a certificate.
pub(super) async fn serve(listener: TcpListener, ca: Arc<TestCa>, to: SocketAddr, version: Version) {
    let tls = ca.mutual_server(&[SERVER], &[version.alpn()]);
    let upstream = Arc::new(Upstream {
        to,
        tls: ca.tls_client(&[version.alpn()]),
        version,
        idle: Mutex::default(),
        shared: tokio::sync::Mutex::default(),
    });
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (tls, upstream) = (tls.clone(), Arc::clone(&upstream));
        drop(tasks::spawn("bench-bare", async move {
            let Some(stream) = tls.accept(socket).await else {
                return;
            };
            let service = service_fn(move |request: Request<Incoming>| {
                let upstream = Arc::clone(&upstream);
                async move { upstream.send(onward(request, version)).await }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }));
    }
}

/// As it goes to the server: a path in HTTP/1.1, a whole URI in HTTP/2.
fn onward(mut request: Request<Incoming>, version: Version) -> Request<Incoming> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = match version {
        Version::One => path.to_owned(),
        Version::Two => format!("http://{SERVER}{path}"),
    };
    if let Ok(uri) = uri.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}
