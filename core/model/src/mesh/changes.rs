//! What a batch may have changed for those who hold on to earlier decisions.

use std::collections::{BTreeMap, BTreeSet};

use super::Snapshot;
use crate::authz::policy::Scope;
use crate::name::{NamespacedHostname, NamespacedName, Str, WorkloadUid};
use crate::policy::On;
use crate::waypoint::FrontOf;
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
    /// The settings of a waypoint came, went or changed.
    pub settings: bool,
    /// What waypoints came to stand in front of, or no longer do, or in another way.
    pub fronts: Vec<FrontOf>,
    /// Rules of routes came, went or changed.
    pub routes: bool,
    /// Services whose routes changed: the parents that a changed rule had before or has now.
    pub routes_of: Vec<NamespacedHostname>,
    /// What policies of waypoints that changed were attached to before, or are now.
    pub policies_on: Vec<On>,
    /// Names of the policies of waypoints that came, went or changed.
    pub waypoint_policies: Vec<Str>,
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
            && !self.concerns_waypoints()
    }

    /// Whether settings, fronts, routes or policies of waypoints changed.
    #[must_use]
    pub fn concerns_waypoints(&self) -> bool {
        self.settings
            || self.routes
            || !self.fronts.is_empty()
            || !self.routes_of.is_empty()
            || !self.waypoint_policies.is_empty()
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
    settings: bool,
    routes: bool,
    fronts: BTreeSet<FrontOf>,
    routes_of: BTreeSet<NamespacedHostname>,
    policies_on: BTreeSet<On>,
    waypoint_policies: BTreeSet<Str>,
}

impl Collector {
    pub(super) fn is_empty(&self) -> bool {
        !self.trust
            && !self.settings
            && !self.routes
            && self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.fronts.is_empty()
            && self.waypoint_policies.is_empty()
    }

    pub(super) fn settings(&mut self) {
        self.settings = true;
    }

    pub(super) fn front(&mut self, object: FrontOf) {
        self.fronts.insert(object);
    }

    pub(super) fn route(&mut self) {
        self.routes = true;
    }

    pub(super) fn routes_of(&mut self, parent: NamespacedHostname) {
        self.routes_of.insert(parent);
    }

    pub(super) fn policies_on(&mut self, on: On) {
        self.policies_on.insert(on);
    }

    pub(super) fn waypoint_policy(&mut self, name: Str) {
        self.waypoint_policies.insert(name);
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
            settings,
            routes,
            fronts,
            routes_of,
            policies_on,
            waypoint_policies,
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
            settings,
            routes,
            fronts: fronts.into_iter().collect(),
            routes_of: routes_of.into_iter().collect(),
            policies_on: policies_on.into_iter().collect(),
            waypoint_policies: waypoint_policies.into_iter().collect(),
            generation: next.generation,
        }
    }
}
