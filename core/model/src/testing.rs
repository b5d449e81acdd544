//! Builders that keep what a test assumes to a line or two.
//!
//! ```
//! use tulle_model::testing::{mesh, service, workload};
//!
//! let snapshot = mesh()
//!     .with(service("reviews").vip("10.96.0.1").port(80, 8080))
//!     .with(workload("reviews-1").ip("10.0.0.7").hbone().serves("reviews"))
//!     .snapshot();
//! assert_eq!(snapshot.workloads().count(), 1);
//! ```
//!
//! Names without a slash are in the namespace `default`; services are called
//! `<name>.<namespace>.svc.cluster.local`.

mod policy;
mod route;
mod service;
mod workload;

use std::sync::Arc;

pub use policy::{PolicyBuilder, allow, any_of, deny};
pub use route::*;
pub use service::{ServiceBuilder, service};
pub use workload::{WorkloadBuilder, workload};

use crate::gateway::{GatewayAddress, GatewayDestination, HBONE_PORT};
use crate::mesh::{Mesh, MeshUpdate, Snapshot};
use crate::name::{NamespacedHostname, NamespacedName};
use crate::network::NetworkAddress;

/// The namespace of what is not put into another.
pub const NAMESPACE: &str = "default";

/// A mesh under construction.
#[derive(Debug, Default)]
pub struct MeshBuilder {
    updates: Vec<MeshUpdate>,
}

/// Starts an empty mesh.
#[must_use]
pub fn mesh() -> MeshBuilder {
    MeshBuilder::default()
}

impl MeshBuilder {
    /// Adds an object.
    #[must_use]
    pub fn with(mut self, object: impl Into<MeshUpdate>) -> Self {
        self.updates.push(object.into());
        self
    }

    /// The mesh, all objects applied in one batch.
    #[must_use]
    pub fn build(self) -> Mesh {
        let mesh = Mesh::new();
        mesh.apply(self.updates);
        mesh
    }

    /// Its snapshot.
    #[must_use]
    pub fn snapshot(self) -> Arc<Snapshot> {
        self.build().snapshot()
    }
}

/// `ns/name`, or `name` in the default namespace.
#[must_use]
pub fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap_or((NAMESPACE, text));
    NamespacedName::new(namespace, name)
}

/// The key of the service `ns/name`, or `name` in the default namespace.
#[must_use]
pub fn service_key(text: &str) -> NamespacedHostname {
    let NamespacedName { namespace, name } = name(text);
    let hostname = format!("{name}.{namespace}.svc.cluster.local");
    NamespacedHostname::new(namespace, hostname)
}

/// `network/ip`, or `ip` in the default network.
///
/// # Panics
/// If the text is no address.
#[must_use]
pub fn address(text: &str) -> NetworkAddress {
    let (network, ip) = text.split_once('/').unwrap_or(("", text));
    NetworkAddress::new(network, ip.parse().expect("an IP address"))
}

/// A gateway by the name of its service, or by its address if the text is one.
#[must_use]
pub fn gateway(text: &str) -> GatewayAddress {
    let ip = text.rsplit('/').next().unwrap_or_default();
    let destination = if ip.parse::<std::net::IpAddr>().is_ok() {
        GatewayDestination::Address(address(text))
    } else {
        GatewayDestination::Hostname(service_key(text))
    };
    GatewayAddress {
        destination,
        hbone_mtls_port: HBONE_PORT,
    }
}
