//! The workloads that are waypoints: those that carry the identity of one, and the policies that judge who may connect
//! to them.

use std::collections::{BTreeMap, BTreeSet};

use tulle_model::{Identity, NamespacedName, Str, Workload};

use super::compute::OutKey;
use super::kept::Outputs;
use super::table::Table;
use super::world::World;

/// Namespace and service account.
type Account = (Str, Str);

/// The replicas of each waypoint, and the waypoints whose replicas have to be found anew.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    accounts: BTreeMap<Account, BTreeSet<Str>>,
    account_of: BTreeMap<Str, Account>,
    /// The policies that each replica names.
    named: BTreeMap<Str, BTreeMap<Str, Vec<NamespacedName>>>,
    stale: BTreeSet<Str>,
}

fn account(workload: &Workload) -> Account {
    (workload.namespace.clone(), workload.service_account.clone())
}

impl Replicas {
    /// A waypoint came, went or changed.
    pub(super) fn look_again(&mut self, waypoint: &Str) {
        self.stale.insert(waypoint.clone());
    }

    /// The waypoints to find anew, once.
    pub(super) fn stale(&mut self) -> BTreeSet<Str> {
        std::mem::take(&mut self.stale)
    }

    /// Counts a workload that is sent from now on, or is no more; gives the waypoints it is a replica of.
    pub(super) fn count(&mut self, workload: &Workload, add: bool) -> Vec<Str> {
        let Some(waypoints) = self.accounts.get(&account(workload)) else {
            return Vec::new();
        };
        for waypoint in waypoints {
            let replicas = self.named.entry(waypoint.clone()).or_default();
            if add {
                replicas.insert(workload.uid.0.clone(), workload.authorization_policies.clone());
            } else {
                replicas.remove(&workload.uid.0);
            }
        }
        waypoints.iter().cloned().collect()
    }

    /// Finds the replicas of a waypoint by its identity; without one there is no such waypoint.
    pub(super) fn find(
        &mut self,
        waypoint: &Str,
        identity: Option<&Identity>,
        world: &World,
        (outputs, addresses): (&Outputs, &Table),
    ) {
        if let Some(before) = self.account_of.remove(waypoint)
            && let Some(waypoints) = self.accounts.get_mut(&before)
        {
            waypoints.remove(waypoint);
            if waypoints.is_empty() {
                self.accounts.remove(&before);
            }
        }
        self.named.remove(waypoint);
        let Some(identity) = identity else { return };
        let wanted = (identity.namespace.clone(), identity.service_account.clone());
        let sources = world.workloads_in(&identity.namespace);
        let workloads = sources.flat_map(|key| outputs.workloads(&OutKey::Workloads(key.clone()), addresses));
        let replicas = workloads.filter(|workload| account(workload) == wanted);
        let replicas =
            replicas.map(|workload| (workload.uid.0.clone(), workload.authorization_policies.clone()));
        self.named.insert(waypoint.clone(), replicas.collect());
        self.accounts
            .entry(wanted.clone())
            .or_default()
            .insert(waypoint.clone());
        self.account_of.insert(waypoint.clone(), wanted);
    }

    /// Names of the replicas.
    pub(super) fn uids(&self, waypoint: &str) -> impl Iterator<Item = &Str> {
        self.named.get(waypoint).into_iter().flat_map(BTreeMap::keys)
    }

    /// Names of the policies that the replicas name.
    pub(super) fn policies(&self, waypoint: &str) -> impl Iterator<Item = Str> {
        let replicas = self.named.get(waypoint).into_iter().flat_map(BTreeMap::values);
        replicas.flatten().map(|policy| policy.to_string().into())
    }
}
