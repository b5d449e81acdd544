//! The read model: what a proxy knows of the mesh, as immutable snapshots that are swapped whole.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::authz::policy::Authorization;
use crate::name::{NamespacedHostname, NamespacedName, WorkloadUid};
use crate::service::Service;
use crate::workload::Workload;

/// A cheap handle on the newest snapshot; clones see the same mesh.
#[derive(Debug, Clone)]
pub struct Mesh {
    current: Arc<ArcSwap<Snapshot>>,
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
    /// Removes a workload.
    RemoveWorkload(WorkloadUid),
    /// Removes a service.
    RemoveService(NamespacedHostname),
    /// Removes a policy.
    RemovePolicy(NamespacedName),
}

/// One immutable state of the mesh.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {}
