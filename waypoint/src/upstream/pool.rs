//! Connections of HTTP to endpoints, inside of tunnels. Requests of two sources never share one: the endpoint is told
//! for whom a tunnel's stream was opened, and judges by it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tulle_model::{Identity, WorkloadUid};
use tulle_runtime::tasks;
use tulle_transport::OpenError;

use super::connect::Opened;
use crate::http::body::RequestBody;

/// How long a connection is kept that nobody uses.
pub const IDLE_MAX: Duration = Duration::from_secs(90);
/// Connections of HTTP/1.1 that are kept for one key; more are closed after their request.
const IDLE_PER_KEY_MAX: usize = 256;
/// Requests at once on one connection of HTTP/2; then another one is opened.
const REQUESTS_PER_CONNECTION_MAX: u32 = 100;
/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Header fields of an answer.
const HEAD_FIELDS_MAX: usize = 100;
/// Flow control of one request of HTTP/2.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow control of a connection of HTTP/2.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Largest frame of HTTP/2.
const FRAME_MAX: u32 = 16 * 1024;
/// Silence after which an endpoint is asked whether it lives.
const PING_AFTER: Duration = Duration::from_secs(30);
/// How long a new connection of HTTP/2 is waited for to say that it takes WebSockets.
const SETTINGS_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const SETTINGS_PAUSE: Duration = Duration::from_millis(2);
/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Which HTTP is spoken to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What a connection may be shared by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The workload.
    pub workload: WorkloadUid,
    /// Its address and port.
    pub address: SocketAddr,
    /// Whom it must have proven to be; `None` for an endpoint without tunnels. What was opened in clear, or to another
    /// identity, is of no use once that changes.
    pub expected: Option<Arc<BTreeSet<Identity>>>,
    /// Whom the stream was opened for; `None` where endpoints are not told.
    pub source: Option<Identity>,
    /// What is spoken.
    pub version: Version,
}

/// The connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct HttpPool {
    peers: Arc<DashMap<Key, Peer, ahash::RandomState>>,
}

/// What is open for one key.
#[derive(Debug, Default)]
struct Peer {
    /// Connections of HTTP/1.1 that carry nothing now, the one used last at the end.
    idle: Vec<Idle>,
    /// Connections of HTTP/2.
    shared: Vec<Shared>,
    /// Held while a connection of HTTP/2 is opened, so that one is enough for all who wait.
    opening: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    usage: Arc<Usage>,
}

#[derive(Debug)]
struct Usage {
    running: AtomicU32,
    /// When the last request ended.
    ended: parking_lot::Mutex<Instant>,
    extended: Arc<Extended>,
}

/// Whether an endpoint has said that it takes extended CONNECT. Only the task of the connection can look, and it is told
/// of nothing: it looks when it is asked.
#[derive(Debug, Default)]
struct Extended {
    ask: tokio::sync::Notify,
    said: AtomicBool,
}

impl Extended {
    fn answer(&self, said: bool) {
        self.said.store(said, Ordering::Relaxed);
    }

    /// Asks until it has been said.
    async fn wait(&self) {
        while !self.said.load(Ordering::Relaxed) {
            self.ask.notify_one();
            tokio::time::sleep(SETTINGS_PAUSE).await;
        }
    }
}

/// A request that runs on a connection of HTTP/2.
#[derive(Debug)]
struct Running(Arc<Usage>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.ended.lock() = Instant::now();
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place on a connection for one request.
#[derive(Debug)]
pub struct Lease {
    kind: Kind,
    /// Whether the connection carried requests before: then it may just have been closed by the endpoint.
    pub reused: bool,
    /// Where its answer ends is not certain: nobody may use it again.
    spoilt: bool,
}

#[derive(Debug)]
enum Kind {
    Http1 {
        sender: http1::SendRequest<RequestBody>,
        pool: HttpPool,
        key: Key,
    },
    Http2 {
        sender: http2::SendRequest<RequestBody>,
        /// Dropped with the lease.
        running: Running,
    },
}

/// A request that could not be sent, or was not answered.
#[derive(Debug)]
pub struct SendFailed {
    /// The request, if no byte of it was sent.
    pub unsent: Option<Box<http::Request<RequestBody>>>,
    /// What happened.
    pub error: hyper::Error,
}

impl HttpPool {
    /// A place on a connection that is there, or on one that `open` makes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn lease<F, O>(&self, key: &Key, open: F) -> Result<Lease, OpenError>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Opened, OpenError>>,
    {
        match key.version {
            Version::Http1 => match self.take_idle(key) {
                Some(sender) => Ok(self.lease_of(key, sender, true)),
                None => {
                    let sender = http1_over(open().await?).await?;
                    Ok(self.lease_of(key, sender, false))
                }
            },
            Version::Http2 => self.lease_shared(key, open).await,
        }
    }

    fn lease_of(&self, key: &Key, sender: http1::SendRequest<RequestBody>, reused: bool) -> Lease {
        Lease {
            kind: Kind::Http1 {
                sender,
                pool: self.clone(),
                key: key.clone(),
            },
            reused,
            spoilt: false,
        }
    }

    fn take_idle(&self, key: &Key) -> Option<http1::SendRequest<RequestBody>> {
        let mut peer = self.peers.get_mut(key)?;
        peer.idle.retain(|idle| !idle.sender.is_closed());
        // One that is still busy with the end of its last request is left for later.
        let at = peer.idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(peer.idle.remove(at).sender)
    }

    async fn lease_shared<F, O>(&self, key: &Key, open: F) -> Result<Lease, OpenError>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Opened, OpenError>>,
    {
        if let Some(shared) = self.take_shared(key) {
            return Ok(Lease::shared(shared, true));
        }
        let opening = Arc::clone(&self.peers.entry(key.clone()).or_default().opening);
        let _opening = opening.lock().await;
        if let Some(shared) = self.take_shared(key) {
            return Ok(Lease::shared(shared, true));
        }
        let (sender, extended) = http2_over(open().await?).await?;
        let usage = Usage {
            running: AtomicU32::new(0),
            ended: parking_lot::Mutex::new(Instant::now()),
            extended,
        };
        let shared = Shared {
            sender,
            usage: Arc::new(usage),
        };
        let mut peer = self.peers.entry(key.clone()).or_default();
        peer.shared.push(shared.clone());
        Ok(Lease::shared(shared, false))
    }

    /// The connection that has the fewest requests, if it has room.
    fn take_shared(&self, key: &Key) -> Option<Shared> {
        let mut peer = self.peers.get_mut(key)?;
        peer.shared.retain(|shared| !shared.sender.is_closed());
        let running = |shared: &&Shared| shared.usage.running.load(Ordering::Relaxed);
        let shared = peer.shared.iter().min_by_key(running)?;
        if running(&shared) >= REQUESTS_PER_CONNECTION_MAX {
            return None;
        }
        Some(shared.clone())
    }

    fn give_back(&self, key: &Key, sender: http1::SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        let mut peer = self.peers.entry(key.clone()).or_default();
        if peer.idle.len() < IDLE_PER_KEY_MAX {
            let since = Instant::now();
            peer.idle.push(Idle { sender, since });
        }
    }

    /// Closes what nobody has used for [`IDLE_MAX`], and forgets keys without connections.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.peers.retain(|_, peer| {
            peer.idle
                .retain(|idle| !idle.sender.is_closed() && now.duration_since(idle.since) < IDLE_MAX);
            peer.shared.retain(|shared| {
                let ended = *shared.usage.ended.lock();
                let busy = shared.usage.running.load(Ordering::Relaxed) > 0;
                !shared.sender.is_closed() && (busy || now.duration_since(ended) < IDLE_MAX)
            });
            !peer.idle.is_empty() || !peer.shared.is_empty() || Arc::strong_count(&peer.opening) > 1
        });
    }

    /// Closes what carries nothing, and lets the rest close with its last request.
    pub fn clear(&self) {
        self.peers.clear();
    }

    /// Connections by key, for dumps: idle or shared ones.
    #[must_use]
    pub fn connections(&self) -> HashMap<Key, usize> {
        let count = |entry: dashmap::mapref::multiple::RefMulti<'_, Key, Peer>| {
            (entry.key().clone(), entry.idle.len() + entry.shared.len())
        };
        self.peers.iter().map(count).collect()
    }
}

impl Lease {
    fn shared(shared: Shared, reused: bool) -> Self {
        shared.usage.running.fetch_add(1, Ordering::Relaxed);
        Self {
            kind: Kind::Http2 {
                sender: shared.sender,
                running: Running(shared.usage),
            },
            reused,
            spoilt: false,
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// What happened, and the request itself if none of it was sent.
    pub async fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, SendFailed> {
        let failed = |mut error: hyper::client::conn::TrySendError<http::Request<RequestBody>>| SendFailed {
            unsent: error.take_message().map(Box::new),
            error: error.into_error(),
        };
        match &mut self.kind {
            Kind::Http1 { sender, .. } => sender.try_send_request(request).await.map_err(failed),
            Kind::Http2 { sender, .. } => sender.try_send_request(request).await.map_err(failed),
        }
    }

    /// Whether a request on it may ask to go on as a stream of bytes. What speaks HTTP/2 has to have said so (RFC 8441).
    pub async fn takes_upgrades(&self) -> bool {
        let Kind::Http2 { running, .. } = &self.kind else {
            return true;
        };
        let said = running.0.extended.wait();
        tokio::time::timeout(SETTINGS_MAX, said).await.is_ok()
    }

    /// Where its answer ends is not certain: nobody may use the connection again.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// The answer is complete: others may use the connection, unless it is spoilt.
    pub fn finish(self) {
        if let Kind::Http1 { sender, pool, key } = self.kind
            && !self.spoilt
        {
            pool.give_back(&key, sender);
        }
    }
}

/// Runs tasks of hyper under supervision.
#[derive(Debug, Clone, Copy)]
pub struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(tasks::spawn("http2", future));
    }
}

async fn http1_over(opened: Opened) -> Result<http1::SendRequest<RequestBody>, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http1_on(stream).await,
        Opened::Plain(socket) => http1_on(socket).await,
    }
}

/// Where requests are sent, and whether extended CONNECT may be.
type Http2 = (http2::SendRequest<RequestBody>, Arc<Extended>);

async fn http2_over(opened: Opened) -> Result<Http2, OpenError> {
    match opened {
        Opened::Tunnel(stream) => http2_on(stream).await,
        Opened::Plain(socket) => http2_on(socket).await,
    }
}

async fn http1_on<S>(stream: S) -> Result<http1::SendRequest<RequestBody>, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(broken)?;
    drop(tasks::spawn("upstream-http1", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an endpoint ended");
        }
    }));
    Ok(sender)
}

async fn http2_on<S>(stream: S) -> Result<Http2, OpenError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, mut connection) = handshake.map_err(broken)?;
    let extended = Arc::new(Extended::default());
    let asked = Arc::clone(&extended);
    drop(tasks::spawn("upstream-http2", async move {
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection to an endpoint ended");
                    }
                    return;
                }
                () = asked.ask.notified() => asked.answer(connection.is_extended_connect_protocol_enabled()),
            }
        }
    }));
    Ok((sender, extended))
}

fn broken(error: hyper::Error) -> OpenError {
    OpenError::Http2 {
        detail: error.to_string().into(),
    }
}
