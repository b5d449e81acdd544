//! Tokens that are bound to a pod: such a token is its bearer's only while that very pod is there. Whoever kept the token
//! of a pod that has gone, or of one whose name another pod has now, is nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tulle_model::Str;

use super::Unauthenticated;
use crate::ca::limit::Holds;
use crate::snapshot::{Bearer, Snapshot};
use crate::token::is_node_id;

/// How long a token waits for its pod: a pod can use its token before the control plane has heard of it.
pub const POD_WAIT_MAX: Duration = Duration::from_secs(5);

/// The pods that are there now. Clones share the count of those who wait.
#[derive(Debug, Clone)]
pub struct Pods {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    waiting: Holds,
    wait_max: Duration,
}

impl Pods {
    /// The pods of the newest cut; a token waits up to `wait_max` for its own, usually [`POD_WAIT_MAX`].
    #[must_use]
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, wait_max: Duration) -> Self {
        Self {
            snapshots,
            waiting: Holds::default(),
            wait_max,
        }
    }

    /// Waits until the pod is there, and says on which node, if it has one. Who comes while too many wait is not waited for.
    ///
    /// # Errors
    /// It does not come.
    pub(super) async fn find(&self, bearer: &Bearer) -> Result<Option<Str>, Unauthenticated> {
        let node = self.wait(bearer, |_| true).await?;
        Ok(Some(node).filter(|node| is_node_id(node)))
    }

    /// Waits until the pod is there and has a node.
    ///
    /// # Errors
    /// It does not come, or gets no node.
    pub(super) async fn node_of(&self, bearer: &Bearer) -> Result<Str, Unauthenticated> {
        self.wait(bearer, is_node_id).await
    }

    async fn wait(&self, bearer: &Bearer, fits: fn(&str) -> bool) -> Result<Str, Unauthenticated> {
        let found = |snapshot: &Snapshot| {
            let node = snapshot.bearers().node_of(bearer);
            node.filter(|node| fits(node)).cloned()
        };
        let mut snapshots = self.snapshots.clone();
        if let Some(node) = found(&snapshots.borrow_and_update()) {
            return Ok(node);
        }
        let account = format!("{}/{}", bearer.namespace, bearer.account);
        if let Some(_held) = self.waiting.enter(&account.into()) {
            let came = snapshots.wait_for(|snapshot| found(snapshot).is_some());
            // Errors are told below, by what is known now.
            let _ = timeout(self.wait_max, came).await;
        }
        let snapshot = self.snapshots.borrow().clone();
        match found(&snapshot) {
            Some(node) => Ok(node),
            None if snapshot.bearers().has(bearer) => Err(Unauthenticated::NotBound),
            None if snapshot.synced() => Err(Unauthenticated::NoSuchPod(bearer.clone())),
            None => Err(Unauthenticated::NotSynced),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::ca::limit::HELD_PER_NODE_MAX;
    use crate::snapshot::bearers::Moves;
    use crate::token::jwt::tests::pod;

    /// A cut with these pods.
    fn cut(pods: &[Bearer], synced: bool) -> Arc<Snapshot> {
        let (mut snapshot, mut moves) = (Snapshot::default(), Moves::default());
        pods.iter().for_each(|pod| moves.came(pod, "n1".into()));
        snapshot.bearers.change(moves);
        snapshot.synced = synced;
        Arc::new(snapshot)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_there_is_found_at_once_and_no_other_ever() {
        let (_publish, snapshots) = watch::channel(cut(&[pod()], true));
        let pods = Pods::new(snapshots, POD_WAIT_MAX);
        let began = Instant::now();
        assert_eq!(pods.find(&pod()).await, Ok(Some("n1".into())));
        assert_eq!(began.elapsed(), Duration::ZERO);
        let before = Bearer {
            uid: "u-before".into(),
            ..pod()
        };
        let refused = pods.find(&before).await;
        assert_eq!(refused, Err(Unauthenticated::NoSuchPod(before)));
        assert!(began.elapsed() >= POD_WAIT_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_late_is_waited_for() {
        let (publish, snapshots) = watch::channel(cut(&[], true));
        let pods = Pods::new(snapshots, POD_WAIT_MAX);
        let other = Bearer {
            uid: "u-before".into(),
            ..pod()
        };
        let sought = pod();
        let coming = async {
            // Cuts come and go meanwhile, also with another pod of its name.
            publish.send_replace(cut(&[other], true));
            tokio::time::sleep(POD_WAIT_MAX / 2).await;
            publish.send_replace(cut(&[pod()], true));
        };
        let (found, ()) = tokio::join!(pods.find(&sought), coming);
        assert_eq!(found, Ok(Some("n1".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_waited_for_until_it_has_a_node_where_that_is_asked() {
        let bare = |node: &str| {
            let (mut snapshot, mut moves) = (Snapshot::default(), Moves::default());
            moves.came(&pod(), node.into());
            snapshot.bearers.change(moves);
            snapshot.synced = true;
            Arc::new(snapshot)
        };
        let (publish, snapshots) = watch::channel(bare(""));
        let pods = Pods::new(snapshots, POD_WAIT_MAX);
        assert_eq!(pods.find(&pod()).await, Ok(None));
        assert_eq!(pods.node_of(&pod()).await, Err(Unauthenticated::NotBound));
        let coming = async {
            tokio::time::sleep(POD_WAIT_MAX / 2).await;
            publish.send_replace(bare("n1"));
        };
        let sought = pod();
        let (found, ()) = tokio::join!(pods.node_of(&sought), coming);
        assert_eq!(found, Ok("n1".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn before_everything_is_read_nobody_is_called_unknown() {
        let (_publish, snapshots) = watch::channel(cut(&[], false));
        let refused = Pods::new(snapshots, POD_WAIT_MAX).find(&pod()).await;
        assert_eq!(refused, Err(Unauthenticated::NotSynced));
    }

    #[tokio::test(start_paused = true)]
    async fn not_more_wait_than_there_is_room_for() {
        let (_publish, snapshots) = watch::channel(cut(&[], true));
        let pods = Pods::new(snapshots, POD_WAIT_MAX);
        let account: Str = "istio-system/ztunnel".into();
        let held: Vec<_> = (0..HELD_PER_NODE_MAX)
            .map(|_| pods.waiting.enter(&account).expect("there is room"))
            .collect();
        let began = Instant::now();
        assert!(pods.find(&pod()).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(held);
    }
}
