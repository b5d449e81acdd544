//! What a batch may have changed for those who hold on to earlier decisions.

use std::collections::{BTreeMap, BTreeSet};

use super::Snapshot;
use crate::authz::policy::Scope;
use crate::name::{NamespacedHostname, NamespacedName, WorkloadUid};
use crate::workload::Workload;

/// What one applied batch may have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workloads whose description or effective policy set may have changed, in order and without repetition.
    pub workloads: Vec<WorkloadUid>,
    /// Services that came, went or changed.
    pub services: Vec<NamespacedHostname>,
    /// Policies that came, went or changed.
    pub policies: Vec<NamespacedName>,
    /// A global policy moved: every workload's policy set may have changed.
    pub everything: bool,
    /// What is known of a trust domain moved: roots, aliases or the deny-list.
    pub trust: bool,
    /// The generation of the snapshot that holds the batch.
    pub generation: u64,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everything
            && !self.trust
            && self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
    }

    /// Whether what was decided for this workload has to be decided again.
    #[must_use]
    pub fn affects(&self, workload: &Workload) -> bool {
        self.everything || self.workloads.binary_search(&workload.uid).is_ok()
    }
}

/// Gathers what the updates of one batch touched.
#[derive(Debug, Default)]
pub(super) struct Collector {
    workloads: BTreeSet<WorkloadUid>,
    services: BTreeSet<NamespacedHostname>,
    /// With the scopes a policy had before or has now.
    policies: BTreeMap<NamespacedName, Vec<Scope>>,
    trust: bool,
}

impl Collector {
    pub(super) fn is_empty(&self) -> bool {
        !self.trust && self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }

    pub(super) fn workload(&mut self, changed: bool, uid: WorkloadUid) {
        if changed {
            self.workloads.insert(uid);
        }
    }

    pub(super) fn service(&mut self, key: NamespacedHostname) {
        self.services.insert(key);
    }

    pub(super) fn policy(&mut self, key: NamespacedName, scopes: impl IntoIterator<Item = Scope>) {
        self.policies.entry(key).or_default().extend(scopes);
    }

    pub(super) fn trust(&mut self) {
        self.trust = true;
    }

    /// Walks from the changed policies to the workloads they concern. Those that stopped naming one are
    /// themselves changed, so the final state is enough to ask.
    pub(super) fn finish(self, next: &Snapshot) -> Changes {
        let Self {
            mut workloads,
            services,
            policies,
            trust,
        } = self;
        let mut everything = false;
        for (key, scopes) in &policies {
            everything |= scopes.contains(&Scope::Global);
            if scopes.contains(&Scope::Namespace) {
                workloads.extend(next.members(&key.namespace).cloned());
            }
            // Whatever its scope: coming or going, it also opens or closes the barrier of those who name it.
            workloads.extend(next.naming(key).cloned());
        }
        Changes {
            workloads: workloads.into_iter().collect(),
            services: services.into_iter().collect(),
            policies: policies.into_keys().collect(),
            everything,
            trust,
            generation: next.generation,
        }
    }
}
