//! Tunnel connections shared by the streams of one pod: found by key, opened once, given back as streams end.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tulle_model::Identity;
use tulle_runtime::tasks;

use super::client::ClientConnection;
use super::connect::{ConnectRequest, ConnectResponse};
use super::error::{OpenError, Retry};
use super::liveness::Slot;
use super::stream::HboneStream;

mod policy;
#[cfg(test)]
mod tests;

use policy::{Choice, ConnectionLoad, Limits, Load, choose};

/// What a connection may be shared by. Never shared across keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Whose certificate is shown.
    pub source: Identity,
    /// Who the server may be.
    pub expected: BTreeSet<Identity>,
    /// Where the connection goes.
    pub destination: SocketAddr,
    /// Where it comes from.
    pub source_ip: IpAddr,
}

/// A future that can be stored.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = Result<ClientConnection, OpenError>> + Send + 'a>>;

/// Establishes the connection for a key: TCP in the right namespace, TLS with the right identities, HTTP/2.
pub trait Dial: Send + Sync + 'static {
    /// Connects. The pool bounds the time.
    fn dial<'a>(&'a self, key: &'a TunnelKey) -> DialFuture<'a>;
}

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Streams per connection, unless the peer allows fewer (100).
    pub streams_per_connection: u32,
    /// Connections per key that are opened by load alone; when all are full, more are opened regardless
    /// (2).
    pub connections_per_key: usize,
    /// How long one dial may take [5 s].
    pub dial_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_connection: 100,
            connections_per_key: 2,
            dial_timeout: Duration::from_secs(5),
        }
    }
}

/// The connections of one pod's proxy. Clones share them.
#[derive(Clone)]
pub struct HbonePool {
    inner: Arc<Inner>,
}

struct Inner {
    config: PoolConfig,
    dialer: Box<dyn Dial>,
    /// Connections without a stream are of no use: each closes with its last one.
    closes_idle: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Holds nothing for keys without a connection or a dial.
    peers: HashMap<TunnelKey, Peer>,
    dials_started: u64,
    draining: bool,
}

/// What is known of one key.
#[derive(Default)]
struct Peer {
    connections: Vec<ClientConnection>,
    dials: Vec<DialUnderWay>,
}

/// A dial, and who waits for it: no more than will find a place on the connection.
struct DialUnderWay {
    id: u64,
    waiters: Vec<oneshot::Sender<Result<(), OpenError>>>,
}

/// One key of a pool, for dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    /// The key.
    pub key: TunnelKey,
    /// Established connections.
    pub connections: usize,
    /// Open streams on all of them.
    pub streams: u32,
    /// Dials under way.
    pub dials: usize,
}

/// Where the next stream goes.
enum Place {
    Ready(ClientConnection, Slot),
    Waiting(oneshot::Receiver<Result<(), OpenError>>),
}

impl HbonePool {
    /// An empty pool that establishes connections through `dialer`.
    #[must_use]
    pub fn new(config: PoolConfig, dialer: impl Dial) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                dialer: Box::new(dialer),
                closes_idle: AtomicBool::new(false),
                state: Mutex::default(),
            }),
        }
    }

    /// Opens a tunnel over a connection for `key`, which is shared, or established first.
    ///
    /// A pooled connection that turns out to be dead or going away is replaced by a fresh one; all other errors are
    /// the caller's to retry or not. The caller bounds the time.
    pub async fn open(
        &self,
        key: &TunnelKey,
        request: &ConnectRequest,
    ) -> Result<(HboneStream, ConnectResponse), OpenError> {
        loop {
            let (connection, slot, pooled) = self.reserve(key).await?;
            let opened = connection.open_in(slot, request).await;
            let closes_idle = self.inner.closes_idle.load(Ordering::Relaxed);
            if closes_idle {
                connection.drain();
            }
            match opened {
                // Each round retires one connection, so the rounds end.
                Err(error) if (pooled || closes_idle) && error.retry() == Retry::FreshConnection => {
                    tracing::debug!(%error, destination = %key.destination, "pooled connection is of no use");
                    connection.drain();
                }
                result => return result,
            }
        }
    }

    /// A connection with a place on it, and whether it was there before.
    async fn reserve(&self, key: &TunnelKey) -> Result<(ClientConnection, Slot, bool), OpenError> {
        let mut pooled = true;
        loop {
            match self.place(key)? {
                Place::Ready(connection, slot) => return Ok((connection, slot, pooled)),
                Place::Waiting(dialed) => {
                    dialed.await.map_err(|_| OpenError::Draining)??;
                    pooled = false;
                }
            }
        }
    }

    fn place(&self, key: &TunnelKey) -> Result<Place, OpenError> {
        let mut guard = self.inner.state.lock();
        let state = &mut *guard;
        if state.draining {
            return Err(OpenError::Draining);
        }
        if !state.peers.contains_key(key) {
            state.peers.insert(key.clone(), Peer::default());
        }
        let peer = state.peers.get_mut(key).expect("present or just inserted");
        let started = &mut state.dials_started;
        loop {
            peer.connections.retain(|connection| !connection.is_retired());
            match choose(&peer.load(), self.limits(), &mut random_below) {
                Choice::Use { connection, grow } => {
                    if grow {
                        self.start_dial(key, peer, started);
                    }
                    let connection = &peer.connections[connection];
                    if let Some(slot) = connection.reserve() {
                        return Ok(Place::Ready(connection.clone(), slot));
                    }
                    // It retired, or its peer lowered the limit, since it was looked at.
                }
                Choice::Join { dial } => return Ok(Place::Waiting(peer.dials[dial].join())),
                Choice::Dial => {
                    let dial = self.start_dial(key, peer, started);
                    return Ok(Place::Waiting(peer.dials[dial].join()));
                }
                Choice::Overload => return Err(OpenError::Overload),
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            streams: self.inner.config.streams_per_connection.max(1),
            connections: self.inner.config.connections_per_key,
        }
    }

    /// Dials in a task of its own, so that a caller who gives up does not take the others with it.
    fn start_dial(&self, key: &TunnelKey, peer: &mut Peer, started: &mut u64) -> usize {
        *started += 1;
        let id = *started;
        peer.dials.push(DialUnderWay {
            id,
            waiters: Vec::new(),
        });
        tasks::spawn("hbone dial", dial(Arc::clone(&self.inner), key.clone(), id));
        peer.dials.len() - 1
    }

    /// Opens no further streams. Those that are open go on; each connection closes with its last one.
    pub fn drain(&self) {
        let peers = {
            let mut state = self.inner.state.lock();
            state.draining = true;
            std::mem::take(&mut state.peers)
        };
        for connection in peers.values().flat_map(|peer| &peer.connections) {
            connection.drain();
        }
    }

    /// Whether connections without a stream wait for the next one, as they do at first. Where they do not, each closes
    /// with its last stream, those that wait now at once; streams can be opened still.
    pub fn keep_idle(&self, keep: bool) {
        let retired: Vec<_> = {
            let mut state = self.inner.state.lock();
            self.inner.closes_idle.store(!keep, Ordering::Relaxed);
            let peers = state.peers.values_mut().filter(|_| !keep);
            peers
                .flat_map(|peer| std::mem::take(&mut peer.connections))
                .collect()
        };
        for connection in &retired {
            connection.drain();
        }
    }

    /// What the pool holds, for dumps.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerSummary> {
        let state = self.inner.state.lock();
        let summary = |(key, peer): (&TunnelKey, &Peer)| PeerSummary {
            key: key.clone(),
            connections: peer.connections.len(),
            streams: peer.connections.iter().map(ClientConnection::active).sum(),
            dials: peer.dials.len(),
        };
        state.peers.iter().map(summary).collect()
    }
}

/// Establishes a connection, tells those who wait, and drops it from the pool when it retires.
async fn dial(inner: Arc<Inner>, key: TunnelKey, id: u64) {
    let after = inner.config.dial_timeout;
    let dialed = timeout(after, inner.dialer.dial(&key)).await;
    let dialed = dialed.unwrap_or(Err(OpenError::ConnectTimeout {
        peer: key.destination,
        after,
    }));
    let answer = dialed.as_ref().map(|_| ()).map_err(Clone::clone);
    let retired = dialed.as_ref().ok().map(ClientConnection::retired);
    let waiters = inner.state.lock().dialed(&key, id, dialed.ok());
    for waiter in waiters {
        // Who gave up meanwhile needs no answer.
        let _ = waiter.send(answer.clone());
    }
    let Some(retired) = retired else { return };
    let inner = leave(inner);
    retired.await;
    if let Some(inner) = inner.upgrade() {
        inner.state.lock().sweep(&key);
    }
}

/// A task that only waits must not keep the pool, and so the connection it waits for, alive.
fn leave(inner: Arc<Inner>) -> Weak<Inner> {
    Arc::downgrade(&inner)
}

impl State {
    /// Takes in the result of a dial and returns who waited for it.
    fn dialed(
        &mut self,
        key: &TunnelKey,
        id: u64,
        connection: Option<ClientConnection>,
    ) -> Vec<oneshot::Sender<Result<(), OpenError>>> {
        let Some(peer) = self.peers.get_mut(key).filter(|_| !self.draining) else {
            connection.inspect(ClientConnection::drain);
            return Vec::new();
        };
        peer.connections.extend(connection);
        let at = peer.dials.iter().position(|dial| dial.id == id);
        let waiters = at
            .map(|at| peer.dials.swap_remove(at).waiters)
            .unwrap_or_default();
        self.sweep(key);
        waiters
    }

    /// Forgets retired connections, and the key if nothing is left.
    fn sweep(&mut self, key: &TunnelKey) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.connections.retain(|connection| !connection.is_retired());
            if peer.connections.is_empty() && peer.dials.is_empty() {
                self.peers.remove(key);
            }
        }
    }
}

impl Peer {
    fn load(&self) -> Load {
        let now = Instant::now();
        let load = |connection: &ClientConnection| ConnectionLoad {
            streams: connection.active(),
            limit: connection.limit(),
            unsent: connection.traffic().unsent(),
            bulk: connection.traffic().has_bulk(),
            blocked: connection.traffic().blocked(now),
        };
        Load {
            connections: self.connections.iter().map(load).collect(),
            dials: self.dials.iter().map(DialUnderWay::waiting).collect(),
        }
    }
}

impl DialUnderWay {
    fn join(&mut self) -> oneshot::Receiver<Result<(), OpenError>> {
        let (sender, receiver) = oneshot::channel();
        self.waiters.push(sender);
        receiver
    }

    fn waiting(&self) -> u32 {
        u32::try_from(self.waiters.len()).unwrap_or(u32::MAX)
    }
}

fn random_below(bound: usize) -> usize {
    rand::random_range(0..bound)
}

impl fmt::Debug for HbonePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HbonePool")
            .field("peers", &self.peers().len())
            .finish_non_exhaustive()
    }
}
