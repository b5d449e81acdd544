//! Connections of HTTP to endpoints, inside of tunnels. Requests of two sources never share one: the endpoint is told
//! for whom a tunnel's stream was opened, and judges by it.
//!
//! A connection counts for the backend that opened it, until it has ended. Where a backend has as many as it may have,
//! requests wait for one that becomes free; one of it that is idle under another key makes room.

mod data;
mod handshake;
mod lines;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use hyper::client::conn::{http1, http2};
use tokio::time::Instant;
use tulle_model::policy::BackendTls;
use tulle_model::{Identity, WorkloadUid};
use tulle_runtime::tasks;
use tulle_transport::OpenError;

use self::handshake::{Extended, http1_over, http2_over};
use self::lines::Answers;
use super::breaker::{Breaker, Guard, Limits, Overflow};
use super::connect::Opened;
use crate::buffers::{Carried, Http2};
use crate::http::body::RequestBody;
use crate::http::interim::Hears;

pub use self::handshake::Tasks;

/// How long a connection is kept that nobody uses.
pub const IDLE_MAX: Duration = Duration::from_secs(90);
/// Connections of HTTP/1.1 that are kept for one key; more are closed after their request.
const IDLE_PER_KEY_MAX: usize = 256;
/// Requests at once on one connection of HTTP/2; then another one is opened.
const REQUESTS_PER_CONNECTION_MAX: u32 = 100;

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
    /// How many waypoints it was told, if it is one itself and counts them. A stream is told once: what has passed more
    /// would be taken for what has passed fewer, and go around for as long as there are streams to take it.
    pub hops: u8,
    /// What is spoken.
    pub version: Version,
    /// TLS to who is outside of the mesh.
    pub tls: Option<Arc<BackendTls>>,
}

/// The connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct HttpPool(Arc<Connections>);

#[derive(Debug, Default)]
struct Connections {
    peers: DashMap<Key, Peer, ahash::RandomState>,
    /// What HTTP/2 says of itself.
    http2: Http2,
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
    usage: Arc<Usage>,
}

#[derive(Debug, Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    usage: Arc<Usage>,
}

/// What is remembered of a connection.
#[derive(Debug)]
struct Usage {
    /// Of the backend that opened it.
    breaker: Arc<Breaker>,
    opened: Instant,
    /// Requests so far.
    served: AtomicU32,
    running: AtomicU32,
    /// When the last request ended.
    ended: parking_lot::Mutex<Instant>,
    spoken: Spoken,
    /// What the library holds of its answers.
    carried: Arc<Carried>,
    /// Our end of it, where it has a socket of its own.
    local: Option<SocketAddr>,
    /// Its place among the connections of its backend: a connection that has become a stream of bytes is none to the
    /// library any more, and is one to the endpoint.
    _held: Arc<Guard>,
    /// Requests and age at which it is closed, as of its last request.
    bounds: parking_lot::Mutex<(Option<u32>, Option<Duration>)>,
}

/// A connection that was opened, and on which HTTP begins.
#[derive(Debug)]
struct Begun {
    carried: Arc<Carried>,
    local: Option<SocketAddr>,
    held: Arc<Guard>,
}

impl Begun {
    fn new(opened: &Opened, guard: Guard) -> Self {
        Self {
            carried: Arc::default(),
            local: opened.local(),
            held: Arc::new(guard),
        }
    }
}

/// What is known of a connection by what it speaks.
#[derive(Debug)]
enum Spoken {
    /// What was seen of its answers.
    Http1(Arc<Answers>),
    /// What the endpoint has said of extended CONNECT.
    Http2(Arc<Extended>),
}

impl Usage {
    fn new(breaker: &Arc<Breaker>, spoken: Spoken, begun: Begun) -> Arc<Self> {
        let Begun { carried, local, held } = begun;
        Arc::new(Self {
            breaker: Arc::clone(breaker),
            opened: Instant::now(),
            served: AtomicU32::new(0),
            running: AtomicU32::new(0),
            ended: parking_lot::Mutex::new(Instant::now()),
            bounds: parking_lot::Mutex::new((None, None)),
            spoken,
            carried,
            local,
            _held: held,
        })
    }

    /// Whether it takes no more requests.
    fn is_spent(&self, limits: Limits) -> bool {
        self.is_beyond((limits.per_connection, limits.age_max))
    }

    /// The same by what bounded its last request.
    fn has_served_all(&self) -> bool {
        self.is_beyond(*self.bounds.lock())
    }

    fn is_beyond(&self, (requests, age): (Option<u32>, Option<Duration>)) -> bool {
        requests.is_some_and(|most| self.served.load(Ordering::Relaxed) >= most)
            || age.is_some_and(|age| self.opened.elapsed() >= age)
    }

    /// One more request is on it.
    fn begin(self: &Arc<Self>, limits: Limits) -> Running {
        self.served.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::SeqCst);
        *self.bounds.lock() = (limits.per_connection, limits.age_max);
        Running(Arc::clone(self))
    }
}

/// A request that runs on a connection.
#[derive(Debug)]
struct Running(Arc<Usage>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.ended.lock() = Instant::now();
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.carried.clear();
        }
        self.0.breaker.release();
    }
}

/// What bounds the connections of a backend.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// What it counts in.
    pub breaker: &'a Arc<Breaker>,
    /// How much.
    pub limits: Limits,
}

/// Why there is no place on a connection.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// None could be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backend has as many as it may have, and as many requests wait.
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

/// What a request found.
enum Found<C> {
    /// A connection that takes it.
    Connection(C),
    /// Leave to open one.
    Leave(Guard),
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
        running: Running,
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
    /// No connections yet.
    #[must_use]
    pub fn new(http2: Http2) -> Self {
        let peers = DashMap::default();
        Self(Arc::new(Connections { peers, http2 }))
    }

    /// A place on a connection that is there, or on one that `open` makes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn lease<F, O>(&self, key: &Key, bounds: Bounds<'_>, open: F) -> Result<Lease, LeaseError>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Opened, OpenError>>,
    {
        match key.version {
            Version::Http1 => self.lease_own(key, bounds, open).await,
            Version::Http2 => self.lease_shared(key, bounds, open).await,
        }
    }

    async fn lease_own<F, O>(&self, key: &Key, bounds: Bounds<'_>, open: F) -> Result<Lease, LeaseError>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Opened, OpenError>>,
    {
        let Bounds { breaker, limits } = bounds;
        let look = || self.found(bounds, || self.take_idle(key, limits));
        match breaker.when_free(limits, look).await? {
            Found::Connection(Idle { sender, usage, .. }) => {
                Ok(self.lease_of(key, sender, usage.begin(limits), true))
            }
            Found::Leave(guard) => {
                let opened = open().await?;
                let begun = Begun::new(&opened, guard);
                let (sender, answers) = http1_over(opened, Arc::clone(&begun.held), &begun.carried).await?;
                let running = Usage::new(breaker, Spoken::Http1(answers), begun).begin(limits);
                Ok(self.lease_of(key, sender, running, false))
            }
        }
    }

    /// A connection that is there, else leave to open one. Where the backend has as many as it may have, one of them
    /// that is idle is closed, so that there is leave soon.
    fn found<C>(&self, bounds: Bounds<'_>, take: impl FnOnce() -> Option<C>) -> Option<Found<C>> {
        if let Some(connection) = take() {
            return Some(Found::Connection(connection));
        }
        let leave = bounds.breaker.try_connection(bounds.limits);
        if leave.is_none() {
            self.close_idle_of(bounds.breaker);
        }
        leave.map(Found::Leave)
    }

    fn lease_of(
        &self,
        key: &Key,
        sender: http1::SendRequest<RequestBody>,
        running: Running,
        reused: bool,
    ) -> Lease {
        Lease {
            kind: Kind::Http1 {
                sender,
                pool: self.clone(),
                key: key.clone(),
                running,
            },
            reused,
            spoilt: false,
        }
    }

    fn take_idle(&self, key: &Key, limits: Limits) -> Option<Idle> {
        let mut peer = self.0.peers.get_mut(key)?;
        peer.idle
            .retain(|idle| !idle.sender.is_closed() && !idle.usage.is_spent(limits));
        // One that is still busy with the end of its last request is left for later.
        let at = peer.idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(peer.idle.remove(at))
    }

    /// Closes one connection that a backend opened and that carries nothing. Only who waits for one comes here.
    fn close_idle_of(&self, breaker: &Arc<Breaker>) {
        for mut peer in self.0.peers.iter_mut() {
            let is_of = |usage: &Usage| Arc::ptr_eq(&usage.breaker, breaker);
            if let Some(at) = peer.idle.iter().position(|idle| is_of(&idle.usage)) {
                peer.idle.remove(at);
                return;
            }
            let carries_nothing =
                |shared: &Shared| is_of(&shared.usage) && shared.usage.running.load(Ordering::SeqCst) == 0;
            if let Some(at) = peer.shared.iter().position(carries_nothing) {
                peer.shared.remove(at);
                return;
            }
        }
    }

    async fn lease_shared<F, O>(&self, key: &Key, bounds: Bounds<'_>, open: F) -> Result<Lease, LeaseError>
    where
        F: FnOnce() -> O,
        O: Future<Output = Result<Opened, OpenError>>,
    {
        let Bounds { breaker, limits } = bounds;
        if let Some(lease) = self.take_shared(key, limits) {
            return Ok(lease);
        }
        let opening = Arc::clone(&self.0.peers.entry(key.clone()).or_default().opening);
        let _opening = match Arc::clone(&opening).try_lock_owned() {
            Ok(opening) => opening,
            Err(_) => {
                let _waiting = breaker.pending(limits)?;
                opening.lock_owned().await
            }
        };
        let look = || self.found(bounds, || self.take_shared(key, limits));
        let guard = match breaker.when_free(limits, look).await? {
            Found::Connection(lease) => return Ok(lease),
            Found::Leave(guard) => guard,
        };
        let opened = open().await?;
        let begun = Begun::new(&opened, guard);
        let (sender, extended) =
            http2_over(opened, Arc::clone(&begun.held), &begun.carried, self.0.http2).await?;
        let shared = Shared {
            sender,
            usage: Usage::new(breaker, Spoken::Http2(extended), begun),
        };
        let lease = Lease::shared(&shared, limits, false);
        self.0.peers.entry(key.clone()).or_default().shared.push(shared);
        Ok(lease)
    }

    /// A place on the connection that has the fewest requests, if it has room. It is taken while nobody else looks.
    fn take_shared(&self, key: &Key, limits: Limits) -> Option<Lease> {
        let mut peer = self.0.peers.get_mut(key)?;
        peer.shared
            .retain(|shared| !shared.sender.is_closed() && !shared.usage.is_spent(limits));
        let running = |shared: &&Shared| shared.usage.running.load(Ordering::SeqCst);
        let shared = peer.shared.iter().min_by_key(running)?;
        if running(&shared) >= REQUESTS_PER_CONNECTION_MAX {
            return None;
        }
        Some(Lease::shared(shared, limits, true))
    }

    fn give_back(&self, key: &Key, mut sender: http1::SendRequest<RequestBody>, usage: Arc<Usage>) {
        if sender.is_closed() {
            return;
        }
        if sender.is_ready() || !usage.breaker.is_waited_for() {
            return self.keep(key, sender, usage);
        }
        // Somebody waits for it, and it is not at the end of its last request yet.
        let (pool, key) = (self.clone(), key.clone());
        drop(tasks::spawn("upstream-ready", async move {
            if sender.ready().await.is_ok() {
                let breaker = Arc::clone(&usage.breaker);
                pool.keep(&key, sender, usage);
                breaker.release();
            }
        }));
    }

    fn keep(&self, key: &Key, sender: http1::SendRequest<RequestBody>, usage: Arc<Usage>) {
        let mut peer = self.0.peers.entry(key.clone()).or_default();
        if peer.idle.len() < IDLE_PER_KEY_MAX {
            let since = Instant::now();
            peer.idle.push(Idle { sender, since, usage });
        }
    }

    /// Closes what nobody has used for [`IDLE_MAX`], and forgets keys without connections.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.0.peers.retain(|_, peer| {
            peer.idle.retain(|idle| {
                let used = now.duration_since(idle.since) < IDLE_MAX;
                used && !idle.sender.is_closed() && !idle.usage.has_served_all()
            });
            peer.shared.retain(|shared| {
                let ended = *shared.usage.ended.lock();
                let busy = shared.usage.running.load(Ordering::Relaxed) > 0;
                let used = busy || now.duration_since(ended) < IDLE_MAX;
                used && !shared.sender.is_closed() && !shared.usage.has_served_all()
            });
            !peer.idle.is_empty() || !peer.shared.is_empty() || Arc::strong_count(&peer.opening) > 1
        });
    }

    /// Closes what carries nothing, and lets the rest close with its last request.
    pub fn clear(&self) {
        self.0.peers.clear();
    }

    /// Connections by key, for dumps: idle or shared ones.
    #[must_use]
    pub fn connections(&self) -> HashMap<Key, usize> {
        let count = |entry: dashmap::mapref::multiple::RefMulti<'_, Key, Peer>| {
            (entry.key().clone(), entry.idle.len() + entry.shared.len())
        };
        self.0.peers.iter().map(count).collect()
    }
}

impl Lease {
    fn shared(shared: &Shared, limits: Limits, reused: bool) -> Self {
        Self {
            kind: Kind::Http2 {
                sender: shared.sender.clone(),
                running: shared.usage.begin(limits),
            },
            reused,
            spoilt: false,
        }
    }

    /// Sends a request and waits for the head of its answer. Of interim ones `hears` is told, where HTTP/1.1 is spoken.
    ///
    /// # Errors
    /// What happened, and the request itself if none of it was sent.
    pub async fn send(
        &mut self,
        request: http::Request<RequestBody>,
        hears: Hears,
    ) -> Result<http::Response<hyper::body::Incoming>, SendFailed> {
        let failed = |mut error: hyper::client::conn::TrySendError<http::Request<RequestBody>>| SendFailed {
            unsent: error.take_message().map(Box::new),
            error: error.into_error(),
        };
        match &mut self.kind {
            Kind::Http1 { sender, running, .. } => {
                if let Spoken::Http1(answers) = &running.0.spoken {
                    answers.expect(hears);
                }
                sender.try_send_request(request).await.map_err(failed)
            }
            Kind::Http2 { sender, .. } => sender.try_send_request(request).await.map_err(failed),
        }
    }

    /// Whether a request on it may ask to go on as a stream of bytes. What speaks HTTP/2 has to have said so (RFC 8441).
    pub async fn takes_upgrades(&self) -> bool {
        match &self.usage().spoken {
            Spoken::Http1(_) => true,
            Spoken::Http2(extended) => extended.is_said().await,
        }
    }

    /// Whether the head of an answer on it was not well-formed.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        match &self.usage().spoken {
            Spoken::Http1(answers) => answers.is_malformed(),
            Spoken::Http2(_) => false,
        }
    }

    /// Our end of the connection, where it has a socket of its own.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        self.usage().local
    }

    /// So many bytes of its answer were handed on.
    pub fn handed_on(&self, bytes: usize) {
        self.usage().carried.handed_on(bytes);
    }

    fn usage(&self) -> &Usage {
        match &self.kind {
            Kind::Http1 { running, .. } | Kind::Http2 { running, .. } => &running.0,
        }
    }

    /// Where its answer ends is not certain: nobody may use the connection again.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// The answer is complete: others may use the connection, unless it is spoilt.
    pub fn finish(self) {
        if let Kind::Http1 {
            sender,
            pool,
            key,
            running,
        } = self.kind
            && !self.spoilt
            && !running.0.has_served_all()
        {
            pool.give_back(&key, sender, Arc::clone(&running.0));
        }
    }
}
