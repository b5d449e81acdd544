//! One immutable cut of everything the control plane serves: resources, placements and the state of its objects.
//!
//! The engine publishes snapshots, everything else reads them. Cloning one costs a few reference counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use tulle_model::{Identity, Str};

pub mod around;
mod bare;
pub mod bearers;
pub mod chunk;
pub mod fronted;
pub mod objects;
mod step;
pub mod version;

pub use around::Around;
pub use bearers::{Bearer, Bearers};
pub use chunk::Chunk;
pub use fronted::Fronted;
pub use fronted::Fronts;
pub use objects::{FileProblem, ObjectKey, ObjectStatus, Objects, Severity};
pub use step::Step;
pub use version::Version;

use bare::Bare;
use step::Steps;

use crate::engine::table::Table;

/// The types of resource that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `istio.workload.Address`: workloads and services.
    Address,
    /// `istio.workload.Workload`: the older type that carries a bare workload.
    Workload,
    /// `istio.security.Authorization`.
    Authorization,
    /// `tulle.mesh.v1.Trust`: roots and deny-list; only for clients that announce the feature.
    Trust,
    /// `tulle.waypoint.v1.Waypoint`: a waypoint's settings, and what it stands in front of.
    Waypoint,
    /// `tulle.waypoint.v1.Route`: one rule of a route object.
    Route,
    /// `tulle.waypoint.v1.Policy`: one concern of a policy object, enforced by waypoints.
    Policy,
}

impl ResourceType {
    /// Every type, in the order in which additions are sent.
    pub const ALL: [Self; 7] = [
        Self::Trust,
        Self::Authorization,
        Self::Policy,
        Self::Route,
        Self::Waypoint,
        Self::Address,
        Self::Workload,
    ];

    /// The type URL of the wire.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Workload => "type.googleapis.com/istio.workload.Workload",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Trust => tulle_proto::TRUST_TYPE,
            Self::Waypoint => "type.googleapis.com/tulle.waypoint.v1.Waypoint",
            Self::Route => "type.googleapis.com/tulle.waypoint.v1.Route",
            Self::Policy => "type.googleapis.com/tulle.waypoint.v1.Policy",
        }
    }

    /// The type with this URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.type_url() == url)
    }
}

/// One encoded resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Resource name.
    pub name: Str,
    /// Other names it can be asked for by.
    pub aliases: Box<[Str]>,
    /// Of [`Self::body`]; equal on every replica.
    pub version: Version,
    /// The encoded message, which is the value of the `Any` on the wire.
    pub body: Bytes,
    /// Sequence of the cut that last changed the body, the aliases or the scope.
    ///
    /// A change of scope alone keeps the version: a client that already holds that version needs nothing.
    pub sequence: u64,
    /// Place within one response.
    pub order: Order,
    /// Who may receive it.
    pub scope: Scope,
}

/// Place of a resource among the others of its type: additions go out in this order, removals in the reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    /// A policy.
    Policy,
    /// A workload of a waypoint.
    WaypointWorkload,
    /// A service of a waypoint.
    WaypointService,
    /// Any other workload.
    Workload,
    /// Any other service.
    Service,
}

/// Which nodes may receive a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every node: addresses, and policies of the whole mesh.
    Everyone,
    /// A policy of one namespace; the nodes are those that hold a workload of that namespace.
    Namespace(Arc<InNamespace>),
    /// A policy of selected workloads: for the nodes that hold one of them, and for proxies of one of them alone.
    Workloads {
        /// Nodes that hold such a workload, and the identities of such workloads as URIs, which no node is called.
        nodes: Arc<BTreeSet<Str>>,
    },
    /// Configuration of waypoints; no node proxy receives it.
    Waypoints {
        /// The waypoints, as `<namespace>/<gateway>`.
        waypoints: Arc<BTreeSet<Str>>,
    },
}

/// The nodes of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InNamespace {
    /// The namespace.
    pub namespace: Str,
    /// Nodes that hold one of its workloads.
    pub nodes: BTreeSet<Str>,
}

impl Scope {
    /// Whether the proxy of this node may receive the resource.
    #[must_use]
    pub fn reaches(&self, node: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespace(of) => of.nodes.contains(node),
            Self::Workloads { nodes } => nodes.contains(node),
            Self::Waypoints { .. } => false,
        }
    }

    /// Whether a proxy of this workload alone may receive the resource.
    #[must_use]
    pub fn reaches_workload(&self, identity: &Identity) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespace(of) => of.namespace == identity.namespace,
            Self::Workloads { nodes } => nodes.contains(identity.to_string().as_str()),
            Self::Waypoints { .. } => false,
        }
    }

    /// Whether this waypoint, called `<namespace>/<gateway>`, may receive the resource as one of its own.
    ///
    /// Addresses are everyone's here; which of them a waypoint is sent is [`Snapshot::waypoint_addresses`].
    #[must_use]
    pub fn reaches_waypoint(&self, waypoint: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespace(_) | Self::Workloads { .. } => false,
            Self::Waypoints { waypoints } => waypoints.contains(waypoint),
        }
    }
}

/// One entry of what changed between two cuts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The resource is new, or its body, aliases or scope changed.
    Set(Arc<Slot>),
    /// There is no resource of this name any more.
    Removed(Str),
}

impl Change {
    /// Name of the resource.
    #[must_use]
    pub fn name(&self) -> &Str {
        match self {
            Self::Set(slot) => &slot.name,
            Self::Removed(name) => name,
        }
    }
}

/// An identity on a node, and how many workloads carry it there.
pub(crate) type Carried = (Arc<Identity>, usize);

/// Which identities run on which node: what a node may ask certificates for.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// In order.
    nodes: RedBlackTreeMapSync<Str, Arc<[Carried]>>,
}

impl Placement {
    /// Whether a workload with this identity is placed on this node.
    #[must_use]
    pub fn holds(&self, node: &str, identity: &Identity) -> bool {
        let place = |carried: &[Carried]| carried.binary_search_by(|(known, _)| (**known).cmp(identity));
        self.nodes.get(node).is_some_and(|carried| place(carried).is_ok())
    }

    /// The identities placed on a node, in order.
    pub fn identities(&self, node: &str) -> impl Iterator<Item = &Identity> {
        self.carried(node).iter().map(|(identity, _)| &**identity)
    }

    /// The identities placed on a node, in order, with the number of workloads that carry each.
    pub(crate) fn carried(&self, node: &str) -> &[Carried] {
        self.nodes.get(node).map_or(&[], |carried| &**carried)
    }

    /// The nodes that hold any identity.
    pub fn nodes(&self) -> impl Iterator<Item = &Str> {
        self.nodes.keys()
    }

    /// Replaces the identities of a node, which come in order; without any, the node is forgotten.
    pub(crate) fn carry(&mut self, node: Str, carried: Vec<Carried>) {
        if carried.is_empty() {
            self.nodes.remove_mut(&node);
        } else {
            self.nodes.insert_mut(node, carried.into());
        }
    }

    /// Places these identities on a node, each carried by one workload.
    #[cfg(test)]
    pub(crate) fn place(&mut self, node: Str, identities: BTreeSet<Identity>) {
        let one = |identity| (Arc::new(identity), 1);
        self.carry(node, identities.into_iter().map(one).collect());
    }
}

/// One immutable cut.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(crate) sequence: u64,
    pub(crate) synced: bool,
    pub(crate) addresses: Table,
    pub(crate) workloads: Bare,
    pub(crate) authorizations: Table,
    pub(crate) trust: Table,
    pub(crate) waypoints: Table,
    pub(crate) routes: Table,
    pub(crate) policies: Table,
    pub(crate) fronted: Fronted,
    pub(crate) draining: Arc<BTreeMap<Str, u64>>,
    pub(crate) around: Around,
    pub(crate) placement: Placement,
    pub(crate) bearers: Bearers,
    pub(crate) objects: Objects,
    /// When it was published.
    pub(crate) published: Option<Instant>,
    pub(crate) steps: Steps,
}

impl Snapshot {
    /// Number of this cut; grows with every cut that changed anything.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the engine published it.
    #[must_use]
    pub fn published(&self) -> Option<Instant> {
        self.published
    }

    /// Whether the sources were read completely at least once. Before that nothing may be served.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The resource of this name.
    #[must_use]
    pub fn resource(&self, ty: ResourceType, name: &str) -> Option<&Arc<Slot>> {
        self.table(ty).get(name)
    }

    /// Number of resources of a type.
    #[must_use]
    pub fn count(&self, ty: ResourceType) -> usize {
        match ty {
            ResourceType::Workload => self.addresses.count(&[Order::WaypointWorkload, Order::Workload]),
            _ => self.table(ty).len(),
        }
    }

    /// The resources that have this name or this alias.
    #[must_use]
    pub fn resolve(&self, ty: ResourceType, name_or_alias: &str) -> Vec<&Arc<Slot>> {
        self.table(ty).resolve(name_or_alias)
    }

    /// Every resource of a type, in an order that means nothing.
    pub fn resources(&self, ty: ResourceType) -> impl Iterator<Item = &Arc<Slot>> {
        self.table(ty).iter()
    }

    /// Every resource of a type, by name.
    #[must_use]
    pub fn by_name(&self, ty: ResourceType) -> Vec<&Arc<Slot>> {
        let mut slots: Vec<_> = self.resources(ty).collect();
        slots.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        slots
    }

    /// What changed after the cut `sequence`, each name once at its newest state.
    ///
    /// `None` means that the log does not reach back that far: walk [`Self::resources`] and compare versions.
    #[must_use]
    pub fn changed_since(
        &self,
        ty: ResourceType,
        sequence: u64,
    ) -> Option<impl Iterator<Item = Change> + use<'_>> {
        if sequence > self.sequence {
            return None;
        }
        self.table(ty).changed_since(sequence)
    }

    /// Whether the log of any type has forgotten changes after the cut `sequence`.
    #[must_use]
    pub fn has_forgotten(&self, sequence: u64) -> bool {
        // Bare workloads change with their addresses.
        let own = ResourceType::ALL
            .into_iter()
            .filter(|ty| *ty != ResourceType::Workload);
        own.into_iter().any(|ty| self.table(ty).has_forgotten(sequence))
    }

    /// Which identities run on which node.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The pods that tokens can be bound to.
    #[must_use]
    pub fn bearers(&self) -> &Bearers {
        &self.bearers
    }

    /// Which waypoints there are, and what each stands in front of.
    #[must_use]
    pub fn fronted(&self) -> &Fronted {
        &self.fronted
    }

    /// The waypoints that keep for a while what was taken from them, and the cut that took something last.
    #[must_use]
    pub fn draining(&self) -> &Arc<BTreeMap<Str, u64>> {
        &self.draining
    }

    /// What goes with what, for clients that ask by name.
    #[must_use]
    pub fn around(&self) -> &Around {
        &self.around
    }

    /// Whether a waypoint is to be sent this Address resource without asking: what it fronts, the backends of its
    /// routes, and the endpoints of both.
    #[must_use]
    pub fn waypoint_addresses(&self, waypoint: &str, resource: &str) -> bool {
        self.fronted
            .of(waypoint)
            .is_some_and(|fronts| fronts.addresses.contains(resource))
    }

    /// The state of the source: generation, broken files, objects and their conditions.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(crate) fn table(&self, ty: ResourceType) -> &Table {
        match ty {
            ResourceType::Address => &self.addresses,
            ResourceType::Workload => self.workloads.table(&self.addresses, self.sequence),
            ResourceType::Authorization => &self.authorizations,
            ResourceType::Trust => &self.trust,
            ResourceType::Waypoint => &self.waypoints,
            ResourceType::Route => &self.routes,
            ResourceType::Policy => &self.policies,
        }
    }

    /// The table of a type, to be edited. Bare workloads are made of the addresses.
    pub(crate) fn table_mut(&mut self, ty: ResourceType) -> &mut Table {
        match ty {
            ResourceType::Address | ResourceType::Workload => &mut self.addresses,
            ResourceType::Authorization => &mut self.authorizations,
            ResourceType::Trust => &mut self.trust,
            ResourceType::Waypoint => &mut self.waypoints,
            ResourceType::Route => &mut self.routes,
            ResourceType::Policy => &mut self.policies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_takes_two_lines_of_a_cache_beside_its_texts() {
        // There are two counters before it.
        assert!(
            size_of::<Slot>() + 2 * size_of::<usize>() <= 128,
            "{}",
            size_of::<Slot>()
        );
    }
}
