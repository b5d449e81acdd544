//! What requests are decided by: fronts with everything that applies to them, immutable and swapped whole.
//!
//! ```text
//! configuration ──changes──▶ build (a task of its own) ──Snapshot──▶ View ──load, once per request──▶ requests
//! ```
//!
//! A front that did not change keeps its state from one snapshot to the next. What outlives snapshots, such as who
//! serves a backend and how loaded they are, hangs on handles that new ones take over.

pub mod build;
pub mod front;
mod making;
mod me;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tulle_model::waypoint::{FrontOf, Settings};
use tulle_model::{Authority, NamespacedHostname, NetworkAddress, Reason, Str, Workload};

pub use front::{FrontState, Fronted, PortState};

/// Fronts by what they are in front of.
pub(crate) type Fronts = HashMap<FrontOf, Arc<FrontState>, ahash::RandomState>;

/// One immutable state.
#[derive(Debug)]
pub struct Snapshot {
    /// The state of the mesh it was made from.
    pub mesh: Arc<tulle_model::Snapshot>,
    /// The waypoint's settings; defaults until they arrive.
    pub settings: Arc<Settings>,
    /// The waypoint as a workload: where it is.
    pub own: Arc<Workload>,
    pub(crate) fronts: Fronts,
}

impl Snapshot {
    /// The state of a front.
    #[must_use]
    pub fn front(&self, object: &FrontOf) -> Option<&Arc<FrontState>> {
        self.fronts.get(object)
    }

    /// Every front, in no order.
    pub fn fronts(&self) -> impl Iterator<Item = &Arc<FrontState>> {
        self.fronts.values()
    }

    /// What a caller of `namespace` asks for with an authority, if this waypoint is in front of it.
    ///
    /// # Errors
    /// `not_visible` for what callers of this namespace must not see, else `not_fronted`.
    pub fn resolve(&self, namespace: &str, authority: &Authority) -> Result<Arc<FrontState>, Reason> {
        let found = match authority {
            Authority::Host { hostname, .. } => self.by_host(namespace, hostname)?,
            Authority::Ip(address) => self.by_address(namespace, address.ip())?,
        };
        if found.port(authority.port()).is_none() {
            return Err(Reason::NotFronted);
        }
        if found.is_visible_to(namespace) {
            Ok(found)
        } else {
            Err(Reason::NotVisible)
        }
    }

    fn by_host(&self, namespace: &str, hostname: &Str) -> Result<Arc<FrontState>, Reason> {
        let seen = self.mesh.service_by_hostname(namespace, hostname);
        let front = seen.and_then(|service| self.service(&service.key()));
        front.ok_or_else(|| {
            let hidden = |front: &&Arc<FrontState>| {
                matches!(&front.front.object, FrontOf::Service(key) if key.hostname == *hostname)
            };
            reason(self.fronts().any(|front| hidden(&front)))
        })
    }

    fn by_address(&self, namespace: &str, ip: std::net::IpAddr) -> Result<Arc<FrontState>, Reason> {
        let address = NetworkAddress::new(self.own.network.clone(), ip);
        let seen = self.mesh.service_by_vip(namespace, &address);
        if let Some(front) = seen.and_then(|service| self.service(&service.key())) {
            return Ok(front);
        }
        let workload = self.mesh.workload_by_address(&address);
        let front = workload.and_then(|workload| {
            let object = FrontOf::Workload(workload.uid.clone());
            self.front(&object).map(Arc::clone)
        });
        front.ok_or_else(|| {
            let mut hidden = self.mesh.services_at(&address);
            reason(hidden.any(|service| self.service(&service.key()).is_some()))
        })
    }

    fn service(&self, key: &NamespacedHostname) -> Option<Arc<FrontState>> {
        self.front(&FrontOf::Service(key.clone())).map(Arc::clone)
    }
}

/// What is there and cannot be seen is not the same as what is not there: an operator has to find out why.
fn reason(hidden: bool) -> Reason {
    if hidden {
        Reason::NotVisible
    } else {
        Reason::NotFronted
    }
}

/// The newest snapshot. Clones see the same one.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
    moved: Arc<watch::Sender<u64>>,
}

impl View {
    fn new(first: Snapshot) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(first)),
            moved: Arc::new(watch::Sender::new(0)),
        }
    }

    /// The newest snapshot, for one request.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Sees a new number after every swap.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    fn store(&self, next: Snapshot) {
        self.current.store(Arc::new(next));
        self.moved.send_modify(|number| *number += 1);
    }
}
