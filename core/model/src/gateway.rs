//! How a waypoint or a network gateway is named by the objects that use it.

use crate::name::NamespacedHostname;
use crate::network::NetworkAddress;

/// The port HBONE is served on unless a gateway says otherwise.
pub const HBONE_PORT: u16 = 15008;

/// The address of a waypoint or network gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct GatewayAddress {
    /// By name (preferred: the caller's IP family is kept) or by address (used as it is).
    pub destination: GatewayDestination,
    /// HBONE port; zero on the wire has already become [`HBONE_PORT`].
    pub hbone_mtls_port: u16,
}

impl std::fmt::Display for GatewayAddress {
    /// `<namespace>/<hostname>:<port>` or `<network>/<ip>:<port>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.destination {
            GatewayDestination::Hostname(hostname) => write!(f, "{hostname}:{}", self.hbone_mtls_port),
            GatewayDestination::Address(address) => write!(f, "{address}:{}", self.hbone_mtls_port),
        }
    }
}

/// What a [`GatewayAddress`] names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GatewayDestination {
    /// A service.
    Hostname(NamespacedHostname),
    /// An address of a service or a workload.
    Address(NetworkAddress),
}

/// One of several waypoints a service is spread over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share; zero is listed and gets nothing.
    pub weight: u32,
}
