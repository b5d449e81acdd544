//! Tokens that are bound to a pod: such a token is its bearer's only while that very pod is there. Whoever kept the token
//! of a pod that has gone, or of one whose name another pod has now, is nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::Unauthenticated;
use crate::ca::limit::Holds;
use crate::snapshot::{Bearer, Snapshot};

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

    /// Waits until the pod is there; who comes while too many wait is not waited for.
    ///
    /// # Errors
    /// It does not come.
    pub(super) async fn find(&self, bearer: &Bearer) -> Result<(), Unauthenticated> {
        let mut snapshots = self.snapshots.clone();
        if snapshots.borrow_and_update().bearers().has(bearer) {
            return Ok(());
        }
        let account = format!("{}/{}", bearer.namespace, bearer.account);
        if let Some(_held) = self.waiting.enter(&account.into()) {
            let came = snapshots.wait_for(|snapshot| snapshot.bearers().has(bearer));
            if let Ok(Ok(_)) = timeout(self.wait_max, came).await {
                return Ok(());
            }
        }
        match self.snapshots.borrow().synced() {
            true => Err(Unauthenticated::NoSuchPod(bearer.clone())),
            false => Err(Unauthenticated::NotSynced),
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
        pods.iter().for_each(|pod| moves.came(pod));
        snapshot.bearers.change(moves);
        snapshot.synced = synced;
        Arc::new(snapshot)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_there_is_found_at_once_and_no_other_ever() {
        let (_publish, snapshots) = watch::channel(cut(&[pod()], true));
        let pods = Pods::new(snapshots, POD_WAIT_MAX);
        let began = Instant::now();
        assert_eq!(pods.find(&pod()).await, Ok(()));
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
        assert_eq!(found, Ok(()));
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
        let account: tulle_model::Str = "istio-system/ztunnel".into();
        let held: Vec<_> = (0..HELD_PER_NODE_MAX)
            .map(|_| pods.waiting.enter(&account).expect("there is room"))
            .collect();
        let began = Instant::now();
        assert!(pods.find(&pod()).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(held);
    }
}
