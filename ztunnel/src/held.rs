//! What the next process needs to serve at once, even while control plane and authority are away: the keys and the
//! configuration, held as sealed memory files by whoever supervises us. Nothing of it touches a disk.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tulle_identity::ca::HeldCa;
use tulle_identity::{CaClient, Clock};
use tulle_linux::held;
use tulle_linux::notify::Notify;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_xds_client::{Client, Keeper, Kept};

use crate::config::held::{HELD_CONFIGURATION, HELD_KEYS, Supervision};

/// How long changes are gathered before they are written down.
const GATHER: Duration = Duration::from_millis(100);
/// How long at least passes between two writings of the same.
const REST: Duration = Duration::from_secs(1);
/// How long after this process became ready a key of an earlier one is kept for somebody who has not asked for it yet.
const CLAIM_MAX: Duration = Duration::from_secs(60);

/// What an earlier process left, and where this one leaves its own.
#[derive(Debug)]
pub struct Held {
    notify: Option<Notify>,
    keys: Option<Vec<u8>>,
    configuration: Kept,
    found_configuration: bool,
    keeper: Keeper,
    authority: std::sync::OnceLock<Arc<HeldCa>>,
}

impl Held {
    /// Looks at what was passed to this process. What cannot be read is as good as nothing.
    #[must_use]
    pub fn found(supervision: &Supervision) -> Self {
        let notify = supervision.notify.as_deref().and_then(|address| {
            let notify = Notify::new(address);
            notify
                .inspect_err(|error| tracing::warn!(%error, address, "cannot tell who supervises us"))
                .ok()
        });
        let read = |what: &'static str, number: Option<i32>| {
            let bytes = number.map(held::inherited)?;
            bytes
                .inspect_err(
                    |error| tracing::warn!(%error, what, "what an earlier process left cannot be read"),
                )
                .ok()
        };
        let configuration = read(HELD_CONFIGURATION, supervision.configuration);
        let configuration = configuration.and_then(|bytes| {
            let kept = Kept::decode(&bytes);
            kept.inspect_err(|error| tracing::warn!(%error, "the held configuration cannot be used"))
                .ok()
        });
        let found_configuration = configuration.is_some();
        let configuration = configuration.unwrap_or_default();
        Self {
            notify,
            keys: read(HELD_KEYS, supervision.keys),
            keeper: Keeper::new(configuration.clone()),
            configuration,
            found_configuration,
            authority: std::sync::OnceLock::new(),
        }
    }

    /// The authority, over what is held. Without a supervisor it is what it was.
    pub fn authority(&self, inner: Arc<dyn CaClient>) -> Arc<dyn CaClient> {
        if self.notify.is_none() {
            return inner;
        }
        let new = || Arc::new(HeldCa::new(inner, Clock::system()));
        let authority = Arc::clone(self.authority.get_or_init(new));
        match self.keys.as_deref().map(|bytes| authority.restore(bytes)) {
            Some(Ok(identities)) => tracing::info!(identities, "keys of an earlier process taken over"),
            Some(Err(error)) => tracing::warn!(%error, "keys of an earlier process"),
            None => {}
        }
        authority
    }

    /// The client, over what is held.
    pub fn client(&self, client: Client) -> Client {
        if self.notify.is_none() {
            return client;
        }
        let client = client.keeping(self.keeper.clone());
        if !self.found_configuration {
            return client;
        }
        tracing::info!("configuration of an earlier process taken over, until the control plane answers");
        client.restored(self.configuration.clone())
    }

    /// Tells that this process is ready once it is, and leaves what changes for the next, until the drain is over.
    pub fn keep(&self, ready: &Ready, drain: &DrainWatcher) {
        let Some(notify) = &self.notify else { return };
        let (readiness, telling) = (ready.clone(), notify.clone());
        tasks::spawn("tell-ready", async move {
            readiness.wait().await;
            if let Err(error) = telling.tell("READY=1", &[]) {
                tracing::warn!(%error, "cannot tell that we are ready");
            }
        });
        if let Some(authority) = self.authority.get() {
            tasks::spawn(
                "forget-keys",
                forget_unclaimed(Arc::clone(authority), ready.clone(), drain.clone()),
            );
            let (changes, authority) = (authority.changes(), Arc::clone(authority));
            let notify = notify.clone();
            let write = move || leave(&notify, HELD_KEYS, &authority.encode());
            tasks::spawn("hold-keys", write_down(changes, write, drain.clone()));
        }
        let (changes, keeper, notify) = (self.keeper.changes(), self.keeper.clone(), notify.clone());
        let write = move || leave(&notify, HELD_CONFIGURATION, &keeper.encode());
        tasks::spawn("hold-configuration", write_down(changes, write, drain.clone()));
    }
}

/// Forgets the keys of workloads that left while an earlier process served them: nobody here asks for those.
async fn forget_unclaimed(authority: Arc<HeldCa>, ready: Ready, drain: DrainWatcher) {
    let settled = async {
        ready.wait().await;
        tokio::time::sleep(CLAIM_MAX).await;
        let identities = authority.settle();
        if identities > 0 {
            tracing::info!(
                identities,
                "keys of an earlier process forgotten: no workload here has them"
            );
        }
    };
    tokio::select! {
        biased;
        _ = drain.signaled() => {}
        () = settled => {}
    }
}

/// Writes down after each change, not too often. A process that drains leaves it to the newer one.
async fn write_down(
    mut changes: watch::Receiver<()>,
    write: impl Fn() -> io::Result<()>,
    drain: DrainWatcher,
) {
    let writing = async {
        while changes.changed().await.is_ok() {
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            if let Err(error) = write() {
                tracing::warn!(%error, "nobody holds our state for the next process");
            }
            tokio::time::sleep(REST).await;
        }
    };
    tokio::select! {
        // First: what a drain forgets is not lost for the next process.
        biased;
        _ = drain.signaled() => {}
        () = writing => {}
    }
}

fn leave(notify: &Notify, name: &str, bytes: &[u8]) -> io::Result<()> {
    let file = held::seal(name, bytes)?;
    // sd_notify(3): what is stored under a name adds up, so the older one goes first.
    notify.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])?;
    notify.tell(&format!("FDSTORE=1\nFDNAME={name}"), &[file.as_fd()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_identity::testing::{FakeCa, TestCa};
    use tulle_model::Identity;

    fn authority() -> Arc<HeldCa> {
        let inner = FakeCa::new(Arc::new(TestCa::new()), Clock::system());
        Arc::new(HeldCa::new(Arc::new(inner), Clock::system()))
    }

    /// For how many identities the next process would find a key.
    fn left_by(held: &HeldCa) -> usize {
        authority().restore(&held.encode()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_no_workload_claims_are_forgotten_a_while_after_readiness() {
        let [gone, here] = ["gone", "here"].map(|name| Identity::new("cluster.local", "shop", name));
        let earlier = authority();
        earlier.fetch(&gone).await.unwrap();
        earlier.fetch(&here).await.unwrap();
        let authority = authority();
        authority.restore(&earlier.encode()).unwrap();
        let ready = Ready::new();
        let starting = ready.register("starting");
        let (_trigger, drain) = tulle_runtime::drain::new();
        let forgetting = tasks::spawn(
            "test",
            forget_unclaimed(Arc::clone(&authority), ready.clone(), drain),
        );
        tokio::time::sleep(10 * CLAIM_MAX).await;
        assert_eq!(left_by(&authority), 2, "who is not ready has not asked yet");
        authority.fetch(&here).await.unwrap();
        drop(starting);
        forgetting.await.unwrap();
        assert_eq!(left_by(&authority), 1);
    }
}
