//! HTTP in pods: an application that remembers what it was asked, and clients that ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tulle_linux::NetNs;
use tulle_world::Pod;

use crate::mesh::PATIENCE;
use crate::traffic::{connect, spawn};

/// A request as an application saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub target: String,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What an application answers to the n-th request, counted from 0.
type Answering = dyn Fn(usize, &Seen) -> Response<Full<Bytes>> + Send + Sync;

/// An application; it ends with the value.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl App {
    /// Listens on a port of a pod and answers everything with the pod's name.
    pub async fn start(pod: &Pod, port: u16) -> Self {
        let name = Bytes::from(pod.name().to_owned());
        Self::answering(pod, port, move |_, _| Response::new(Full::new(name.clone()))).await
    }

    /// As [`Self::start`], with answers of its own.
    pub async fn answering(
        pod: &Pod,
        port: u16,
        answer: impl Fn(usize, &Seen) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let address = SocketAddr::from((pod.ipv4(), port));
        let bound = pod
            .namespace()
            .run_async(move || std::net::TcpListener::bind(address))
            .await;
        let listener = bound
            .unwrap()
            .unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = spawn(serve(listener, Arc::clone(&seen), Arc::new(answer)));
        Self { address, seen, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// How often it was asked.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, seen: Arc<Mutex<Vec<Seen>>>, answer: Arc<Answering>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
        let service = service_fn(move |request| note(request, Arc::clone(&seen), Arc::clone(&answer)));
        spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A caller that goes away is the caller's affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn note(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answering>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes);
    let one = Seen {
        method: parts.method,
        target: parts
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        headers: parts.headers,
        body: body.unwrap_or_default(),
    };
    let index = {
        let mut seen = seen.lock();
        seen.push(one.clone());
        seen.len() - 1
    };
    Ok(answer(index, &one))
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body, as text.
    pub body: String,
}

/// Asks once, on a connection of its own.
///
/// # Errors
/// What went wrong, as text.
pub async fn ask(from: &NetNs, to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let exchange = async { Asker::open(from, to).await?.ask(request).await };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

/// A GET of a path.
///
/// # Panics
/// If it is no path.
#[must_use]
pub fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().uri(path).header("host", "server");
    request.body(Full::default()).unwrap()
}

/// A lasting connection to ask on.
#[derive(Debug)]
pub struct Asker(http1::SendRequest<Full<Bytes>>);

impl Asker {
    /// Opens it.
    ///
    /// # Errors
    /// What went wrong, as text.
    pub async fn open(from: &NetNs, to: SocketAddr) -> Result<Self, String> {
        let stream = connect(from, to).await.map_err(|error| error.to_string())?;
        Self::over(stream).await
    }

    /// Over a stream that is open.
    ///
    /// # Errors
    /// What went wrong, as text.
    pub async fn over<S>(stream: S) -> Result<Self, String>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        spawn(connection);
        Ok(Self(sender))
    }

    /// Whether the server has not closed it, so far as one can know.
    pub async fn is_usable(&mut self) -> bool {
        self.0.ready().await.is_ok()
    }

    /// Asks.
    ///
    /// # Errors
    /// What went wrong, as text.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        self.0.ready().await.map_err(|error| error.to_string())?;
        let response = self
            .0
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        })
    }
}
