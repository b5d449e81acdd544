//! What the rest of a proxy sees of its configuration: the mesh, and a wake-up when it changed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};
use tulle_model::mesh::{Changes, Snapshot};
use tulle_model::{Mesh, MeshUpdate, NetworkAddress, Str};
use tulle_proto::stub::RefusedAddresses;

use crate::on_demand::Demand;
use crate::status::Status;

/// Batches a slow listener may fall behind; then it is told that everything changed.
const CHANGES_MAX: usize = 64;

/// A handle on configuration and its movement; clones share both.
#[derive(Debug, Clone)]
pub struct MeshState {
    /// The read model.
    pub mesh: Mesh,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Generation of the mesh; sent after every batch, and when anything else a waiter may look at moved.
    moved: watch::Sender<u64>,
    changes: broadcast::Sender<Arc<Changes>>,
    synced: AtomicBool,
    refused: ArcSwap<BTreeMap<Str, RefusedAddresses>>,
    /// Set where addresses are asked for one by one.
    demand: OnceLock<Demand>,
    status: RwLock<Status>,
}

impl MeshState {
    /// Puts a mesh under a new handle, with nothing received yet.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        let shared = Shared {
            moved: watch::Sender::new(mesh.snapshot().generation()),
            changes: broadcast::Sender::new(CHANGES_MAX),
            synced: AtomicBool::new(false),
            refused: ArcSwap::default(),
            demand: OnceLock::new(),
            status: RwLock::new(Status::default()),
        };
        Self {
            mesh,
            shared: Arc::new(shared),
        }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.mesh.snapshot()
    }

    /// Applies a batch, then tells listeners what changed, then wakes waiters.
    pub fn apply(&self, updates: Vec<MeshUpdate>) -> Arc<Changes> {
        let changes = Arc::new(self.mesh.apply(updates));
        if !changes.is_empty() {
            // Without a listener there is nobody to tell.
            let _ = self.shared.changes.send(Arc::clone(&changes));
            self.wake();
        }
        changes
    }

    /// Sees a new value after every change, its generation.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.moved.subscribe()
    }

    /// What every later batch changed.
    #[must_use]
    pub fn changes(&self) -> ChangeStream {
        ChangeStream {
            receiver: self.shared.changes.subscribe(),
            mesh: self.mesh.clone(),
        }
    }

    /// Waits until the search finds something in a snapshot, at most for the timeout.
    pub async fn wait_for<T>(
        &self,
        timeout: Duration,
        mut search: impl FnMut(&Snapshot) -> Option<T>,
    ) -> Option<T> {
        // Nearly always it is there; then nothing has to be watched, and no timer is set.
        if let Some(found) = search(&self.mesh.snapshot()) {
            return Some(found);
        }
        let mut moved = self.subscribe();
        let found = async {
            loop {
                moved.mark_unchanged();
                if let Some(found) = search(&self.mesh.snapshot()) {
                    return Some(found);
                }
                moved.changed().await.ok()?;
            }
        };
        tokio::time::timeout(timeout, found).await.ok().flatten()
    }

    /// Whether every type was accepted once: from now on an absent object is one that does not exist.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// The resource whose rejection makes traffic to this address refused (`resource_rejected`), if there is one.
    #[must_use]
    pub fn refused(&self, address: &NetworkAddress) -> Option<Str> {
        let refused = self.shared.refused.load();
        let (name, _) = refused
            .iter()
            .find(|(_, addresses)| addresses.contains(address))?;
        Some(Arc::clone(name))
    }

    /// How configuration arrives, for dumps.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.read().clone()
    }

    pub(crate) fn update_status(&self, update: impl FnOnce(&mut Status)) {
        update(&mut self.shared.status.write());
    }

    /// Adds to what is refused; nobody has to look again for less.
    pub(crate) fn add_refused(&self, more: &BTreeMap<Str, RefusedAddresses>) {
        let mut refused = self.shared.refused.load().as_ref().clone();
        for (name, addresses) in more {
            refused.insert(Arc::clone(name), addresses.clone());
        }
        self.shared.refused.store(Arc::new(refused));
    }

    pub(crate) fn set_refused(&self, refused: BTreeMap<Str, RefusedAddresses>) {
        self.shared.refused.store(Arc::new(refused));
        self.wake();
    }

    pub(crate) fn set_synced(&self) {
        if !self.shared.synced.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Addresses are asked for one by one from now on.
    pub(crate) fn ask_on_demand(&self) {
        let _ = self.shared.demand.set(Demand::default());
    }

    /// Addresses are asked for beside all that the server tells by itself.
    pub(crate) fn ask_beside(&self) {
        let _ = self.shared.demand.set(Demand::beside());
    }

    pub(crate) fn demand(&self) -> Option<&Demand> {
        self.shared.demand.get()
    }

    /// Something that waiters look at beside the mesh has moved.
    pub(crate) fn wake(&self) {
        self.shared.moved.send_replace(self.mesh.snapshot().generation());
    }
}

/// Every batch that changed something, in order.
#[derive(Debug)]
pub struct ChangeStream {
    receiver: broadcast::Receiver<Arc<Changes>>,
    mesh: Mesh,
}

impl ChangeStream {
    /// The next batch; `None` once every handle on the state is gone. A listener that fell behind is told that
    /// everything changed.
    pub async fn next(&mut self) -> Option<Arc<Changes>> {
        match self.receiver.recv().await {
            Ok(changes) => Some(changes),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let generation = self.mesh.snapshot().generation();
                Some(Arc::new(Changes {
                    everything: true,
                    generation,
                    ..Changes::default()
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalConfig;

    fn web(ip: &str) -> Vec<MeshUpdate> {
        let text = format!("workloads: [{{uid: web, name: web, namespace: shop, workloadIps: ['{ip}']}}]");
        LocalConfig::parse("test", &text).unwrap().updates()
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_sees_what_arrives_later() {
        let state = MeshState::new(Mesh::new());
        let waiting = state.wait_for(Duration::from_secs(5), |snapshot| {
            snapshot.workload(&"web".into()).cloned()
        });
        let (found, _) = tokio::join!(waiting, async { state.apply(web("10.0.0.1")) });
        assert_eq!(found.unwrap().name.as_ref(), "web");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_gives_up_at_its_timeout() {
        let state = MeshState::new(Mesh::new());
        let before = tokio::time::Instant::now();
        assert_eq!(state.wait_for(Duration::from_secs(2), |_| None::<()>).await, None);
        assert_eq!(before.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_listener_that_fell_behind_hears_that_everything_changed() {
        let state = MeshState::new(Mesh::new());
        let mut changes = state.changes();
        for last in 0..=CHANGES_MAX {
            state.apply(web(&format!("10.0.0.{last}")));
        }
        assert!(changes.next().await.unwrap().everything);
        assert!(
            !changes.next().await.unwrap().everything,
            "then it goes on where it can"
        );
    }

    #[tokio::test]
    async fn a_batch_without_change_wakes_nobody() {
        let state = MeshState::new(Mesh::new());
        state.apply(web("10.0.0.1"));
        let moved = state.subscribe();
        assert!(state.apply(web("10.0.0.1")).is_empty());
        assert!(!moved.has_changed().unwrap());
    }
}
