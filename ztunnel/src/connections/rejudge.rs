//! Judges open connections again when policy, or what they were judged by, has changed.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tulle_model::authz::DenyBecause;
use tulle_model::mesh::Snapshot;
use tulle_model::{Verdict, WorkloadUid};
use tulle_xds_client::{ChangeStream, MeshState};

use super::Connections;

/// What a walk does with a connection whose only obstacle is a policy that has not arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    /// Leave it: a policy removed a moment before its reference does no harm.
    Keep,
    /// The wait is over.
    Deny,
}

/// Workloads to walk once more, by when.
#[derive(Debug, Default)]
struct Later(VecDeque<(Instant, HashSet<WorkloadUid>)>);

impl Later {
    fn push(&mut self, at: Instant, workloads: HashSet<WorkloadUid>) {
        if !workloads.is_empty() {
            self.0.push_back((at, workloads));
        }
    }

    async fn due(&mut self) -> HashSet<WorkloadUid> {
        match self.0.front() {
            Some((at, _)) => tokio::time::sleep_until(*at).await,
            None => std::future::pending().await,
        }
        self.0
            .pop_front()
            .map(|(_, workloads)| workloads)
            .unwrap_or_default()
    }
}

/// Follows the changes of the mesh for as long as the process lives. `wait` is how long a missing policy may stay
/// missing.
pub fn run(
    connections: Connections,
    mesh: MeshState,
    wait: Duration,
) -> impl Future<Output = ()> + Send + 'static {
    // Here and not in the task: no change is missed from now on.
    let changes = mesh.changes();
    follow(connections, mesh, changes, wait)
}

async fn follow(connections: Connections, mesh: MeshState, mut changes: ChangeStream, wait: Duration) {
    let mut later = Later::default();
    loop {
        let touched = tokio::select! {
            change = changes.next() => match change {
                Some(change) if change.everything => connections.judged_workloads(),
                Some(change) => change.workloads.clone(),
                None => return,
            },
            workloads = connections.pending() => {
                later.push(Instant::now() + wait, workloads);
                continue;
            }
            workloads = later.due() => {
                connections.walk(&workloads, &mesh.snapshot(), Pending::Deny);
                continue;
            }
        };
        let pending = connections.walk(&touched, &mesh.snapshot(), Pending::Keep);
        later.push(Instant::now() + wait, pending);
    }
}

impl Connections {
    /// Judges the connections of these workloads; returns the workloads that wait for a policy.
    pub(super) fn walk<'a>(
        &self,
        workloads: impl IntoIterator<Item = &'a WorkloadUid>,
        snapshot: &Snapshot,
        pending: Pending,
    ) -> HashSet<WorkloadUid> {
        let mut waiting = HashSet::new();
        for uid in workloads {
            let open = self.of_workload(uid);
            if open.is_empty() {
                continue;
            }
            // Once for all of them: there may be thousands of either.
            let workload = snapshot.workload(uid);
            let policies = workload.map(|workload| snapshot.policies_for(workload));
            for live in open {
                match live.judge_by(snapshot, policies.as_ref()) {
                    Some(Verdict::Deny {
                        because: DenyBecause::PolicyPending { .. },
                    }) if pending == Pending::Keep => {
                        waiting.insert(uid.clone());
                    }
                    Some(Verdict::Deny { because }) => live.deny(because),
                    Some(Verdict::Allow { .. }) | None => {}
                }
            }
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use tokio::time::timeout;
    use tulle_model::authz::Connection;
    use tulle_model::mesh::MeshUpdate;
    use tulle_model::testing::{allow, deny, mesh, name, workload};
    use tulle_model::{Identity, Mesh, Reason};
    use tulle_runtime::tasks;

    use crate::connections::{Judged, Tracked};
    use crate::metrics::Metrics;
    use crate::metrics::labels::Direction;
    use crate::record::Story;

    const WAIT: Duration = Duration::from_secs(2);
    const A_MOMENT: Duration = Duration::from_millis(100);

    /// `shop/db` names the policy `shop/only-web`, and `shop/web` is connected to it.
    fn connected() -> (MeshState, Tracked) {
        let db = Arc::new(workload("shop/db").ip("10.0.0.2").policy("shop/only-web").build());
        let mesh: Mesh = mesh()
            .with(MeshUpdate::Workload(Arc::clone(&db)))
            .with(only_web())
            .build();
        let state = MeshState::new(mesh);
        let connections = Connections::new(Metrics::default());
        tasks::spawn("rejudge", run(connections.clone(), state.clone(), WAIT));
        let source = SocketAddr::from(([10, 0, 0, 1], 40000));
        let destination = SocketAddr::from(([10, 0, 0, 2], 80));
        let judged = Judged {
            workload: db,
            connection: Connection {
                peer: Some(Identity::new("cluster.local", "shop", "web")),
                original_source: None,
                source_ip: source.ip(),
                destination,
            },
            generation: state.snapshot().generation(),
        };
        let story = Story::begin(Direction::Inbound, source, destination);
        let tracked = connections.open(story, Some(judged), || state.snapshot());
        (state, tracked)
    }

    fn only_web() -> MeshUpdate {
        let policy = allow("shop/only-web")
            .selector()
            .from_principal("cluster.local/ns/shop/sa/web");
        MeshUpdate::Policy(Arc::new(policy.build()))
    }

    async fn aborted_within(tracked: &Tracked, wait: Duration) -> bool {
        let transfer = tracked.transfer();
        let aborted = timeout(wait, transfer.aborted()).await;
        aborted.is_ok_and(|reason| reason == Reason::PolicyChanged)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_denial_ends_the_connection_at_once() {
        let (state, tracked) = connected();
        let policy = deny("shop/no-web")
            .from_principal("cluster.local/ns/shop/sa/web")
            .build();
        state.apply(vec![MeshUpdate::Policy(Arc::new(policy))]);
        assert!(aborted_within(&tracked, A_MOMENT).await);
        assert!(tracked.denial().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_comes_back_in_time_does_no_harm() {
        let (state, tracked) = connected();
        state.apply(vec![MeshUpdate::RemovePolicy(name("shop/only-web"))]);
        assert!(!aborted_within(&tracked, WAIT / 2).await);
        state.apply(vec![only_web()]);
        assert!(!aborted_within(&tracked, WAIT * 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_stays_missing_ends_the_connection_after_the_wait() {
        let (state, tracked) = connected();
        state.apply(vec![MeshUpdate::RemovePolicy(name("shop/only-web"))]);
        assert!(!aborted_within(&tracked, WAIT / 2).await);
        assert!(aborted_within(&tracked, WAIT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_between_verdict_and_entry_is_not_missed() {
        let (state, tracked) = connected();
        let live = Arc::clone(&tracked.live);
        let policy = deny("shop/no-web")
            .from_principal("cluster.local/ns/shop/sa/web")
            .build();
        // Applied before the connection enters the index of another, unwatched table.
        state.apply(vec![MeshUpdate::Policy(Arc::new(policy))]);
        let connections = Connections::new(Metrics::default());
        let late = connections.open(live.story.clone(), live.judged.clone(), || state.snapshot());
        assert!(aborted_within(&late, A_MOMENT).await);
    }
}
