//! All that the node proxy exports, registered in one place: what is served and what the reference lists are the same.

use tulle_model::Mesh;
use tulle_runtime::metrics::{Exposition, Registry};
use tulle_xds_client::MeshState;

use super::Metrics;
use crate::same_node::Locals;
use crate::shed::Shedder;

/// Everything that registers metrics, and where they are read.
#[derive(Debug)]
pub(crate) struct Exported {
    /// Of traffic and proxies.
    pub(crate) metrics: Metrics,
    /// Of certificates.
    pub(crate) certificates: tulle_identity::Metrics,
    /// Of configuration.
    pub(crate) configuration: tulle_xds_client::Metrics,
    /// Sheds load.
    pub(crate) shedder: Shedder,
    /// Knows the workloads of this node.
    pub(crate) locals: Locals,
    /// What is read.
    pub(crate) exposition: Exposition,
}

impl Exported {
    /// Makes and registers everything.
    pub(crate) fn register(mesh: &MeshState) -> Self {
        let registry = Registry::for_process("ztunnel");
        Self {
            configuration: tulle_xds_client::Metrics::register(&registry, mesh),
            certificates: tulle_identity::Metrics::register(&registry),
            metrics: Metrics::register(&registry),
            shedder: Shedder::register(&registry),
            locals: Locals::register(&registry),
            exposition: registry.seal(),
        }
    }
}

/// What is exported, while nothing runs: for the reference.
#[must_use]
pub fn reference() -> Exposition {
    Exported::register(&MeshState::new(Mesh::new())).exposition
}
