//! Judges open connections again when policy, or what they were judged by, has changed.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tulle_model::authz::DenyBecause;
use tulle_model::mesh::Snapshot;
use tulle_model::{Verdict, WorkloadUid};
use tulle_xds_client::MeshState;

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
pub async fn run(connections: Connections, mesh: MeshState, wait: Duration) {
    let mut changes = mesh.changes();
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
            for live in self.of_workload(uid) {
                match live.judge(snapshot) {
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
