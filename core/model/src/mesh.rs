//! The read model: what a proxy knows of the mesh, as immutable snapshots that are swapped whole.
//!
//! A [`Snapshot`] is made of persistent maps. The next one shares everything with the last one except the paths
//! to what changed, so a batch costs its own size and not the size of the mesh, and readers never wait. Nor do they
//! clean up: what a batch replaced is freed by who writes, however long a reader looked at it.

mod changes;
mod cidrs;
#[cfg(test)]
mod oracle;
mod policies;
mod services;
#[cfg(test)]
mod tests;
pub(crate) mod trie;
mod waypoint;
mod workloads;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

pub use changes::Changes;
pub use policies::{Policy, PolicySet};

use crate::authz::policy::Authorization;
use crate::identity::Identity;
use crate::name::{NamespacedHostname, NamespacedName, Str, WorkloadUid};
use crate::network::NetworkAddress;
use crate::policy::{On, Policy as WaypointPolicy};
use crate::route::Route;
use crate::service::Service;
use crate::trust::Trust;
use crate::upstream::Tables;
use crate::waypoint::{Front, FrontOf, Settings, Waypoint};
use crate::workload::Workload;
use changes::Collector;
use policies::Policies;
use services::Services;
use waypoint::Waypoints;
use workloads::Workloads;

/// A persistent map: clones share everything, an insertion copies one path.
type Map<K, V> = rpds::HashTrieMapSync<K, V, ahash::RandomState>;
/// A persistent map in the order of its keys, for what is iterated and must not depend on chance.
type OrderedMap<K, V> = rpds::RedBlackTreeMapSync<K, V>;
/// A persistent set in order.
type OrderedSet<K> = rpds::RedBlackTreeSetSync<K>;

/// An empty [`Map`].
fn empty_map<K: Eq + std::hash::Hash, V>() -> Map<K, V> {
    Map::new_with_hasher_and_ptr_kind(ahash::RandomState::new())
}

/// A cheap handle on the newest snapshot; clones see the same mesh.
#[derive(Debug, Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
}

/// What all handles of one mesh share.
#[derive(Debug)]
struct Shared {
    current: ArcSwap<Snapshot>,
    /// Held while the next snapshot is made, so that no writer loses another's changes.
    writer: Mutex<Replaced>,
}

/// Snapshots that were replaced and that somebody read at that moment. The last one to let go of a snapshot frees what
/// only that one held: of a large mesh that takes as long as many connections.
#[derive(Debug, Default)]
struct Replaced(Vec<Arc<Snapshot>>);

impl Replaced {
    /// Frees those that nobody reads any more: they were replaced, so nobody can begin to.
    fn sweep(&mut self) {
        self.0.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

/// One change of the mesh.
#[derive(Debug, Clone, PartialEq)]
pub enum MeshUpdate {
    /// Adds or replaces a workload.
    Workload(Arc<Workload>),
    /// Adds or replaces a service.
    Service(Arc<Service>),
    /// Adds or replaces a policy.
    Policy(Arc<Authorization>),
    /// Adds or replaces what is known of a trust domain.
    Trust(Arc<Trust>),
    /// Adds or replaces the settings of a waypoint, or one of its fronts.
    Waypoint(Arc<Waypoint>),
    /// Adds or replaces a rule of a route.
    Route(Arc<Route>),
    /// Adds or replaces a policy that waypoints enforce.
    WaypointPolicy(Arc<WaypointPolicy>),
    /// Removes a workload.
    RemoveWorkload(WorkloadUid),
    /// Removes a service.
    RemoveService(NamespacedHostname),
    /// Removes a policy.
    RemovePolicy(NamespacedName),
    /// Forgets a trust domain.
    RemoveTrust(Str),
    /// Removes settings or a front, by resource name.
    RemoveWaypoint(Str),
    /// Removes a rule of a route, by resource name.
    RemoveRoute(Str),
    /// Removes a policy of waypoints, by resource name.
    RemoveWaypointPolicy(Str),
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Mesh {
    /// An empty mesh.
    #[must_use]
    pub fn new() -> Self {
        let current = ArcSwap::from_pointee(Snapshot::default());
        Self {
            shared: Arc::new(Shared {
                current,
                writer: Mutex::default(),
            }),
        }
    }

    /// The newest state. It never changes; ask again for a newer one.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// Applies a batch at once: readers see all of it or nothing. A batch that changes nothing swaps nothing.
    pub fn apply(&self, updates: Vec<MeshUpdate>) -> Changes {
        let mut replaced = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.shared.current.load());
        let mut collector = Collector::default();
        for update in updates {
            next.apply(update, &mut collector);
        }
        if collector.is_empty() {
            return Changes {
                generation: next.generation,
                ..Changes::default()
            };
        }
        next.generation += 1;
        let changes = collector.finish(&next);
        replaced.0.push(self.shared.current.swap(Arc::new(next)));
        replaced.sweep();
        changes
    }

    /// Frees what was read while it was replaced, and is not any more. To be called now and then, where time matters
    /// least; each batch does it, too.
    pub fn sweep(&self) {
        let mut replaced = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.sweep();
    }
}

/// One immutable state of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    generation: u64,
    workloads: Workloads,
    services: Services,
    policies: Policies,
    trust: OrderedMap<Str, Arc<Trust>>,
    waypoints: Waypoints,
}

impl Snapshot {
    /// Counts the batches that changed something.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns an address. One with HBONE wins a shared address; `HOST_NETWORK` ones own none.
    #[must_use]
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<Arc<Workload>> {
        self.workloads.by_address(address).cloned()
    }

    /// The workload a node agent announces by these three names.
    #[must_use]
    pub fn workload_by_name(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<Arc<Workload>> {
        self.workloads.by_name(namespace, name, service_account).cloned()
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service a caller of `client_namespace` means by an address: an exact address first (own namespace,
    /// then canonical, then the first by name), then a range (own namespace beats a longer prefix).
    #[must_use]
    pub fn service_by_vip(&self, client_namespace: &str, address: &NetworkAddress) -> Option<Arc<Service>> {
        self.services.by_vip(client_namespace, address).cloned()
    }

    /// The services with this host name that a caller of `client_namespace` may see, in the order of their namespaces.
    pub fn services_by_hostname<'a>(
        &'a self,
        client_namespace: &'a str,
        hostname: &str,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services.all_by_hostname(client_namespace, hostname)
    }

    /// The service that a caller of `client_namespace` means by a host name.
    #[must_use]
    pub fn service_by_hostname(&self, client_namespace: &str, hostname: &str) -> Option<Arc<Service>> {
        self.services.by_hostname(client_namespace, hostname).cloned()
    }

    /// Every service that owns an address, exactly or by a range, whoever may see it.
    pub fn services_at<'a>(
        &'a self,
        address: &NetworkAddress,
    ) -> impl Iterator<Item = &'a Arc<Service>> + use<'a> {
        self.services.at(address)
    }

    /// The workloads that list this service, in the order of their uids; also before the service arrives.
    pub fn endpoints<'a>(
        &'a self,
        key: &NamespacedHostname,
    ) -> impl Iterator<Item = Arc<Workload>> + use<'a> {
        self.workloads
            .endpoints(key)
            .map(|(_, workload)| Arc::clone(workload))
    }

    /// The policy with this key.
    #[must_use]
    pub fn policy(&self, key: &NamespacedName) -> Option<&Arc<Authorization>> {
        self.policies.get(key).map(|policy| policy.authorization())
    }

    /// The policies that apply to a workload: global ones, its namespace's, and those it names.
    #[must_use]
    pub fn policies_for(&self, workload: &Workload) -> PolicySet {
        self.policies.of(workload)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// Every policy, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Authorization>> {
        self.policies.iter().map(|policy| policy.authorization())
    }

    /// What is known of a trust domain: roots, aliases, deny-list.
    #[must_use]
    pub fn trust(&self, trust_domain: &str) -> Option<&Arc<Trust>> {
        self.trust.get(trust_domain)
    }

    /// What is known of every trust domain.
    pub fn trusts(&self) -> impl Iterator<Item = &Arc<Trust>> {
        self.trust.values()
    }

    /// The settings of waypoints; a waypoint knows its own only.
    pub fn waypoint_settings(&self) -> impl Iterator<Item = &Arc<Settings>> {
        self.waypoints.settings()
    }

    /// What waypoints stand in front of, by name.
    pub fn fronts(&self) -> impl Iterator<Item = &Arc<Front>> {
        self.waypoints.fronts()
    }

    /// The fronts of one service or workload.
    pub fn fronts_of<'a>(&'a self, object: &FrontOf) -> impl Iterator<Item = &'a Arc<Front>> + use<'a> {
        self.waypoints.fronts_of(object)
    }

    /// Every rule of a route, by name.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.waypoints.routes()
    }

    /// The rules of routes that a service accepted as its own.
    pub fn routes_of<'a>(
        &'a self,
        parent: &NamespacedHostname,
    ) -> impl Iterator<Item = &'a Arc<Route>> + use<'a> {
        self.waypoints.routes_of(parent)
    }

    /// The rule with this resource name.
    #[must_use]
    pub fn waypoint_route(&self, name: &str) -> Option<&Arc<Route>> {
        self.waypoints.route(name)
    }

    /// The policy of waypoints with this resource name.
    #[must_use]
    pub fn waypoint_policy(&self, name: &str) -> Option<&Arc<WaypointPolicy>> {
        self.waypoints.policy(name)
    }

    /// Every policy of waypoints, by name.
    pub fn waypoint_policies(&self) -> impl Iterator<Item = &Arc<WaypointPolicy>> {
        self.waypoints.policies()
    }

    /// The policies of waypoints that are attached to exactly this.
    pub fn waypoint_policies_on<'a>(
        &'a self,
        on: &On,
    ) -> impl Iterator<Item = &'a Arc<WaypointPolicy>> + use<'a> {
        self.waypoints.policies_on(on)
    }

    /// Whether a peer is a waypoint that may speak for others towards `local`: bound to it, or to a service it is
    /// an endpoint of, by identity and by address. `x-tulle-original-source` is believed from no one else.
    #[must_use]
    pub fn is_waypoint_of(&self, local: &Workload, peer: &Identity, peer_address: IpAddr) -> bool {
        let own = local.waypoint.iter();
        let of_services = local
            .services
            .keys()
            .filter_map(|key| self.service(key))
            .flat_map(|service| {
                service
                    .waypoint
                    .iter()
                    .chain(service.weighted_waypoints.iter().map(|one| &one.destination))
            });
        let address = NetworkAddress::new(local.network.clone(), peer_address);
        own.chain(of_services).any(|gateway| {
            self.gateway_instance_at(gateway, &address)
                .is_some_and(|waypoint| waypoint.identity() == *peer)
        })
    }

    /// Applies one change and notes what it may affect.
    fn apply(&mut self, update: MeshUpdate, changes: &mut Collector) {
        match update {
            MeshUpdate::Workload(workload) => {
                let uid = workload.uid.clone();
                changes.workload(self.workloads.insert(workload), uid);
            }
            MeshUpdate::RemoveWorkload(uid) => changes.workload(self.workloads.remove(&uid), uid),
            MeshUpdate::Service(service) => {
                let key = service.key();
                let changed = self.services.insert(service);
                self.note_service(changed, key, changes);
            }
            MeshUpdate::RemoveService(key) => {
                let changed = self.services.remove(&key);
                self.note_service(changed, key, changes);
            }
            MeshUpdate::Policy(policy) => {
                let (key, scope) = (policy.key(), policy.scope);
                if let Some(before) = self.policies.insert(policy) {
                    changes.policy(key, before.into_iter().chain([scope]));
                }
            }
            MeshUpdate::RemovePolicy(key) => {
                if let Some(scope) = self.policies.remove(&key) {
                    changes.policy(key, [scope]);
                }
            }
            MeshUpdate::Trust(trust) => {
                if self.trust.get(&trust.trust_domain) != Some(&trust) {
                    self.trust.insert_mut(trust.trust_domain.clone(), trust);
                    changes.trust();
                }
            }
            MeshUpdate::RemoveTrust(domain) => {
                if self.trust.remove_mut(&domain) {
                    changes.trust();
                }
            }
            MeshUpdate::Waypoint(waypoint) => self.waypoints.set_waypoint(waypoint, changes),
            MeshUpdate::Route(route) => self.waypoints.set_route(route, changes),
            MeshUpdate::WaypointPolicy(policy) => self.waypoints.set_policy(policy, changes),
            MeshUpdate::RemoveWaypoint(name) => self.waypoints.remove_waypoint(&name, changes),
            MeshUpdate::RemoveRoute(name) => self.waypoints.remove_route(&name, changes),
            MeshUpdate::RemoveWaypointPolicy(name) => self.waypoints.remove_policy(&name, changes),
        }
    }

    fn note_service(&mut self, changed: bool, key: NamespacedHostname, changes: &mut Collector) {
        if changed {
            self.workloads.forget_tables(&key);
            changes.service(key);
        }
    }

    /// The tables by which endpoints of a service are drawn; `None` if it has no endpoints.
    pub(crate) fn tables(&self, key: &NamespacedHostname) -> Option<&Tables> {
        self.workloads.tables(key)
    }

    /// The uids of the workloads of a namespace.
    fn members(&self, namespace: &Str) -> impl Iterator<Item = &WorkloadUid> {
        self.workloads.members(namespace)
    }

    /// The uids of the workloads that name a policy.
    fn naming(&self, policy: &NamespacedName) -> impl Iterator<Item = &WorkloadUid> {
        self.workloads.naming(policy)
    }
}
