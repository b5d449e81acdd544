//! Workloads with the indexes they are found by.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Map, OrderedMap, OrderedSet, empty_map};
use crate::name::{NamespacedHostname, NamespacedName, Str, WorkloadUid};
use crate::network::NetworkAddress;
use crate::upstream::Tables;
use crate::workload::{HealthStatus, NetworkMode, TunnelProtocol, Workload};

/// Workloads by uid, address, name, service, policy and namespace.
#[derive(Debug, Clone)]
pub(super) struct Workloads {
    by_uid: Map<WorkloadUid, Arc<Workload>>,
    by_address: Map<NetworkAddress, Owners>,
    /// By `<namespace>/<name>/<service account>`; none of the three may hold a slash.
    by_name: Map<String, Owners>,
    by_service: Map<NamespacedHostname, Endpoints>,
    by_policy: Map<NamespacedName, OrderedSet<WorkloadUid>>,
    by_namespace: Map<Str, OrderedSet<WorkloadUid>>,
}

/// The workloads of one service, and what draws among them are made from.
#[derive(Debug, Clone, Default)]
struct Endpoints {
    by_uid: OrderedMap<WorkloadUid, Arc<Workload>>,
    /// Shared by all snapshots in which neither the service nor an endpoint changed.
    tables: Arc<Tables>,
}

/// Workloads that share a key, the preferred one first; nearly always one.
type Owners = smallvec::SmallVec<[Arc<Workload>; 1]>;

impl Default for Workloads {
    fn default() -> Self {
        Self {
            by_uid: empty_map(),
            by_address: empty_map(),
            by_name: empty_map(),
            by_service: empty_map(),
            by_policy: empty_map(),
            by_namespace: empty_map(),
        }
    }
}

impl Workloads {
    /// Adds or replaces; whether anything changed.
    pub(super) fn insert(&mut self, workload: Arc<Workload>) -> bool {
        if let Some(before) = self.by_uid.get(&workload.uid) {
            if *before == workload {
                return false;
            }
            let before = Arc::clone(before);
            self.unindex(&before);
        }
        self.index(&workload);
        self.by_uid.insert_mut(workload.uid.clone(), workload);
        true
    }

    /// Removes; whether it was there.
    pub(super) fn remove(&mut self, uid: &WorkloadUid) -> bool {
        let Some(before) = self.by_uid.get(uid).cloned() else {
            return false;
        };
        self.unindex(&before);
        self.by_uid.remove_mut(uid);
        true
    }

    pub(super) fn get(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    pub(super) fn by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.by_address.get(address)?.first()
    }

    pub(super) fn by_name(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        self.by_name
            .get(&name_key(namespace, name, service_account))?
            .first()
    }

    pub(super) fn endpoints<'a>(
        &'a self,
        key: &NamespacedHostname,
    ) -> impl Iterator<Item = (&'a WorkloadUid, &'a Arc<Workload>)> + use<'a> {
        self.by_service
            .get(key)
            .into_iter()
            .flat_map(|endpoints| endpoints.by_uid.iter())
    }

    pub(super) fn tables(&self, key: &NamespacedHostname) -> Option<&Tables> {
        self.by_service.get(key).map(|endpoints| &*endpoints.tables)
    }

    /// To be called when a service changed: its tables were made from what it was.
    pub(super) fn forget_tables(&mut self, key: &NamespacedHostname) {
        if let Some(Endpoints { by_uid, .. }) = self.by_service.get(key).cloned() {
            self.by_service.insert_mut(
                key.clone(),
                Endpoints {
                    by_uid,
                    tables: Arc::default(),
                },
            );
        }
    }

    pub(super) fn members(&self, namespace: &Str) -> impl Iterator<Item = &WorkloadUid> {
        self.by_namespace
            .get(namespace)
            .into_iter()
            .flat_map(OrderedSet::iter)
    }

    pub(super) fn naming(&self, policy: &NamespacedName) -> impl Iterator<Item = &WorkloadUid> {
        self.by_policy.get(policy).into_iter().flat_map(OrderedSet::iter)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.values()
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.by_uid.size()
            + self.by_address.size()
            + self.by_name.size()
            + self.by_service.size()
            + self.by_policy.size()
            + self.by_namespace.size()
    }

    fn index(&mut self, workload: &Arc<Workload>) {
        let uid = &workload.uid;
        for address in addresses(workload) {
            add_owner(&mut self.by_address, address, workload);
        }
        add_owner(&mut self.by_name, own_name_key(workload), workload);
        for key in workload.services.keys() {
            let before = self.by_service.get(key).map(|endpoints| endpoints.by_uid.clone());
            let mut by_uid = before.unwrap_or_default();
            by_uid.insert_mut(uid.clone(), Arc::clone(workload));
            self.by_service.insert_mut(
                key.clone(),
                Endpoints {
                    by_uid,
                    tables: Arc::default(),
                },
            );
        }
        for policy in &workload.authorization_policies {
            add_member(&mut self.by_policy, policy, uid);
        }
        add_member(&mut self.by_namespace, &workload.namespace, uid);
    }

    fn unindex(&mut self, workload: &Workload) {
        let uid = &workload.uid;
        for address in addresses(workload) {
            remove_owner(&mut self.by_address, &address, uid);
        }
        remove_owner(&mut self.by_name, &own_name_key(workload), uid);
        for key in workload.services.keys() {
            let Some(endpoints) = self.by_service.get(key) else {
                continue;
            };
            let by_uid = endpoints.by_uid.remove(uid);
            if by_uid.is_empty() {
                self.by_service.remove_mut(key);
            } else {
                self.by_service.insert_mut(
                    key.clone(),
                    Endpoints {
                        by_uid,
                        tables: Arc::default(),
                    },
                );
            }
        }
        for policy in &workload.authorization_policies {
            remove_member(&mut self.by_policy, policy, uid);
        }
        remove_member(&mut self.by_namespace, &workload.namespace, uid);
    }
}

/// The addresses a workload may be looked up by.
fn addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> + '_ {
    let own = workload.network_mode == NetworkMode::Standard;
    workload
        .addresses
        .iter()
        .filter(move |_| own)
        .map(|address| NetworkAddress::new(workload.network.clone(), *address))
}

fn own_name_key(workload: &Workload) -> String {
    name_key(&workload.namespace, &workload.name, &workload.service_account)
}

fn name_key(namespace: &str, name: &str, service_account: &str) -> String {
    [namespace, name, service_account].join("/")
}

/// What makes a workload the better owner of a shared key: HBONE, then health, then its uid.
fn preference(workload: &Workload) -> (Reverse<bool>, Reverse<bool>, &WorkloadUid) {
    (
        Reverse(workload.tunnel_protocol == TunnelProtocol::Hbone),
        Reverse(workload.status == HealthStatus::Healthy),
        &workload.uid,
    )
}

fn add_owner<K: Eq + std::hash::Hash>(map: &mut Map<K, Owners>, key: K, workload: &Arc<Workload>) {
    let mut owners = map.get(&key).cloned().unwrap_or_default();
    // One workload may name an address twice, plain and IPv4-mapped.
    owners.retain(|owner| owner.uid != workload.uid);
    let at = owners.partition_point(|owner| preference(owner) < preference(workload));
    owners.insert(at, Arc::clone(workload));
    map.insert_mut(key, owners);
}

fn remove_owner<K: Eq + std::hash::Hash + Clone>(map: &mut Map<K, Owners>, key: &K, uid: &WorkloadUid) {
    let Some(owners) = map.get(key) else { return };
    let rest: Owners = owners.iter().filter(|owner| owner.uid != *uid).cloned().collect();
    if rest.is_empty() {
        map.remove_mut(key);
    } else {
        map.insert_mut(key.clone(), rest);
    }
}

fn add_member<K: Eq + std::hash::Hash + Clone>(
    map: &mut Map<K, OrderedSet<WorkloadUid>>,
    key: &K,
    uid: &WorkloadUid,
) {
    let mut members = map.get(key).cloned().unwrap_or_default();
    members.insert_mut(uid.clone());
    map.insert_mut(key.clone(), members);
}

fn remove_member<K: Eq + std::hash::Hash + Clone>(
    map: &mut Map<K, OrderedSet<WorkloadUid>>,
    key: &K,
    uid: &WorkloadUid,
) {
    let Some(members) = map.get(key) else { return };
    let rest = members.remove(uid);
    if rest.is_empty() {
        map.remove_mut(key);
    } else {
        map.insert_mut(key.clone(), rest);
    }
}
