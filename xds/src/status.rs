//! Who is connected and how far each client is; what `tulle status` reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use tulle_model::Str;

use crate::serve::admit::Kind;
use crate::serve::authenticate::{Caller, Principal};
use crate::serve::session::{Behind, Delivery, Session, Store, Subscription};
use crate::serve::viewer::Features;

pub mod acks;

/// Streams that one client may hold per kind: its own and that of its successor during an upgrade, each once more
/// while it dies.
pub const STREAMS_PER_CLIENT_MAX: usize = 4;

/// The connected clients. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    inner: Arc<Mutex<Inner>>,
    /// Counts what the list was told.
    changes: Arc<AtomicU64>,
    home: Arc<Home>,
}

/// Whose clients they are.
#[derive(Debug, Default)]
struct Home {
    replica: Str,
    trust_domain: Str,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    clients: BTreeMap<u64, Entry>,
}

/// A client with its state behind a lock of its own: thousands of streams note how far they are at once.
#[derive(Debug)]
struct Entry {
    node: Str,
    kind: Kind,
    status: Arc<Mutex<ClientStatus>>,
}

/// One connected client.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientStatus {
    /// Its node.
    pub node: Str,
    /// Whom its credential names.
    pub identity: Str,
    /// The control plane that serves it.
    pub replica: Str,
    /// What it is.
    pub kind: Kind,
    /// What it understands beyond Istio's messages.
    pub features: Features,
    /// The version it reports, if any.
    pub version: Str,
    /// Where it connects from.
    pub address: Option<SocketAddr>,
    /// Since when, RFC 3339.
    pub connected_since: String,
    /// Per type it asked for, by type URL.
    pub types: BTreeMap<&'static str, Box<TypeStatus>>,
    /// What it rejected and is still in force.
    pub rejections: Vec<RejectionStatus>,
    /// Types it asked for that are not served.
    pub unknown_types: usize,
}

impl ClientStatus {
    /// A client that has asked for nothing yet.
    #[must_use]
    pub fn new(node: Str, kind: Kind, features: Features) -> Self {
        Self {
            node,
            identity: "".into(),
            replica: "".into(),
            kind,
            features,
            version: "".into(),
            address: None,
            connected_since: jiff::Timestamp::now().to_string(),
            types: BTreeMap::new(),
            rejections: Vec::new(),
            unknown_types: 0,
        }
    }
}

/// How far a client is with one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Whether it asked for everything.
    pub wildcard: bool,
    /// Names it asked for.
    pub names: usize,
    /// Cut of the newest response sent.
    pub sent: Option<u64>,
    /// Cut of the newest response accepted.
    pub acked: Option<u64>,
    /// The newest cut.
    pub head: u64,
    /// Resources and removals it lacks: not sent yet, or not accepted.
    pub behind: usize,
    /// Responses left of what it is told that began with nothing, or with digests that differ.
    pub opening_left: usize,
    /// Responses that wait for its answer.
    pub unacked: usize,
    /// Age of the oldest change that it lacks: since its cut was published, or since it was asked for.
    pub lag_ms: u64,
    /// Responses accepted.
    pub acks: u64,
    /// Responses rejected.
    pub nacks: u64,
    /// Answers with a nonce that says nothing.
    pub stale_nonces: u64,
    /// What it asked for.
    #[serde(skip)]
    pub(crate) subscription: Subscription,
    /// Since when the oldest change that it lacks is owed; the lag is computed when asked for.
    #[serde(skip)]
    owed_since: Option<Instant>,
}

/// A resource that a client rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectionStatus {
    /// Type URL.
    pub type_url: &'static str,
    /// Resource.
    pub name: Str,
    /// The version rejected.
    pub version: Str,
    /// The client's words.
    pub text: Str,
}

/// The client has as many streams as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client may hold at most {STREAMS_PER_CLIENT_MAX} streams")]
pub struct TooManyStreams;

impl Clients {
    /// The clients of this control plane.
    #[must_use]
    pub fn of(replica: Str, trust_domain: Str) -> Self {
        Self {
            home: Arc::new(Home {
                replica,
                trust_domain,
            }),
            ..Self::default()
        }
    }

    /// Whom a credential names, in the form of its certificates.
    #[must_use]
    pub fn identity_of(&self, caller: &Caller) -> Str {
        match &caller.principal {
            Principal::Node(node) => format!("spiffe://{}/node/{node}", self.home.trust_domain).into(),
            Principal::Workload(identity) => identity.to_string().into(),
        }
    }

    /// Adds a client until the returned guard is dropped.
    ///
    /// # Errors
    /// The client has as many streams as it may.
    pub fn connect(&self, mut status: ClientStatus) -> Result<Connected, TooManyStreams> {
        status.replica = self.home.replica.clone();
        let mut inner = self.inner.lock();
        let same = inner.clients.values();
        let same = same.filter(|other| other.node == status.node && other.kind == status.kind);
        if same.count() >= STREAMS_PER_CLIENT_MAX {
            return Err(TooManyStreams);
        }
        inner.next += 1;
        let id = inner.next;
        let entry = Entry {
            node: status.node.clone(),
            kind: status.kind,
            status: Arc::new(Mutex::new(status)),
        };
        let status = entry.status.clone();
        inner.clients.insert(id, entry);
        drop(inner);
        self.changed();
        Ok(Connected {
            clients: self.clone(),
            id,
            status,
        })
    }

    /// Adds the proxy of a node.
    #[cfg(test)]
    pub(crate) fn connect_proxy(&self, node: &str) -> Connected {
        let status = ClientStatus::new(node.into(), Kind::Ztunnel, Features::default());
        self.connect(status).expect("it has no other streams")
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Every client, by node and kind.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<ClientStatus> {
        let entries: Vec<_> = {
            let inner = self.inner.lock();
            inner.clients.values().map(|entry| entry.status.clone()).collect()
        };
        let mut clients: Vec<ClientStatus> = entries.iter().map(|status| status.lock().clone()).collect();
        for ty in clients.iter_mut().flat_map(|client| client.types.values_mut()) {
            let lag = ty.owed_since.map(|since| now.saturating_duration_since(since));
            ty.lag_ms = lag.map_or(0, |lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX));
        }
        clients.sort_by(|one, other| (&one.node, one.kind).cmp(&(&other.node, other.kind)));
        clients
    }

    /// Grows whenever a client comes, goes or answers.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Number of streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().clients.len()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keeps a client in the list.
#[derive(Debug)]
pub struct Connected {
    clients: Clients,
    id: u64,
    status: Arc<Mutex<ClientStatus>>,
}

impl Connected {
    /// Notes where the client's session stands.
    pub fn update<S: Store>(&self, session: &Session<S>, head: &S) {
        let mut client = self.status.lock();
        for (ty, subscription, delivery) in session.deliveries() {
            let now = type_status(session.behind(ty, head), head.sequence(), subscription, delivery);
            // A session forgets no type that it was asked for.
            match client.types.get_mut(ty.type_url()) {
                Some(status) => **status = now,
                None => drop(client.types.insert(ty.type_url(), Box::new(now))),
            }
        }
        client.rejections.clear();
        client.rejections.extend(rejections_of(session));
        client.unknown_types = session.unknown_types();
        drop(client);
        self.clients.changed();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.clients.inner.lock().clients.remove(&self.id);
        self.clients.changed();
    }
}

fn type_status(behind: Behind, head: u64, subscription: &Subscription, delivery: &Delivery) -> TypeStatus {
    TypeStatus {
        head,
        behind: behind.changes,
        opening_left: behind.opening,
        wildcard: subscription.is_wildcard(),
        names: subscription.names().len(),
        subscription: subscription.clone(),
        sent: delivery.sent(),
        acked: delivery.acked(),
        unacked: delivery.unacked(),
        lag_ms: 0,
        acks: delivery.acks(),
        nacks: delivery.nacks(),
        stale_nonces: delivery.stale_nonces(),
        owed_since: behind.since,
    }
}

fn rejections_of<S: Store>(session: &Session<S>) -> impl Iterator<Item = RejectionStatus> {
    session.rejections().map(|(ty, name, rejection)| RejectionStatus {
        type_url: ty.type_url(),
        name: name.clone(),
        version: rejection.version.clone(),
        text: rejection.text.clone(),
    })
}
