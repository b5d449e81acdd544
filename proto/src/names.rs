//! How resources are called on the wire: type URLs, resource names and aliases.

use tulle_model::service::Service;
use tulle_model::workload::Workload;
use tulle_model::{NetworkAddress, Str};

use crate::convert::Resource;

/// Workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Roots and deny-list of a trust domain; served to those who announce the feature [`TRUST_FEATURE`].
pub const TRUST_TYPE: &str = "type.googleapis.com/tulle.mesh.v1.Trust";
/// Waypoints themselves, and what they stand in front of.
pub const WAYPOINT_TYPE: &str = "type.googleapis.com/tulle.waypoint.v1.Waypoint";
/// Rules of routes.
pub const ROUTE_TYPE: &str = "type.googleapis.com/tulle.waypoint.v1.Route";
/// Policies that waypoints enforce.
pub const POLICY_TYPE: &str = "type.googleapis.com/tulle.waypoint.v1.Policy";
/// Bare workloads, for older clients; Tulle's own client never asks for it.
pub const WORKLOAD_TYPE: &str = "type.googleapis.com/istio.workload.Workload";

/// Type URL of a [`prost_types::Any`] that carries a text, as Tulle's extensions do.
pub(crate) const STRING_VALUE_TYPE: &str = "type.googleapis.com/google.protobuf.StringValue";

/// Node metadata key of the features a client announces, comma-joined.
pub const FEATURES_KEY: &str = "TULLE_FEATURES";
/// Header by which a server announces its features on each stream, comma-joined. Others have none, and are asked for
/// nothing beyond what they know.
pub const FEATURES_HEADER: &str = "x-tulle-features";
/// Feature: the client takes [`TRUST_TYPE`].
pub const TRUST_FEATURE: &str = "trust";
/// Feature: the client knows policies that are only judged, not enforced.
pub const DRY_RUN_FEATURE: &str = "dry-run";

/// Extension of an Authorization: it is judged by the TLS peer, never by the original source of a waypoint.
pub const MATCH_PEER: &str = "tulle.dev/match-peer";

/// Extension of a Service with visibility NAMESPACE: the namespaces that see it, apart by spaces, instead of its own.
pub const EXPORT_TO: &str = "tulle.dev/export-to";

/// The name a resource is subscribed, sent and removed by.
#[must_use]
pub fn resource_name(resource: &Resource) -> Str {
    match resource {
        Resource::Workload(workload) => workload.uid.0.clone(),
        Resource::Service(service) => service.key().to_string().into(),
        Resource::Authorization(policy) => policy.key().to_string().into(),
        Resource::Trust(trust) => trust.trust_domain.clone(),
        Resource::Waypoint(waypoint) => waypoint.name(),
        Resource::Route(route) => route.name(),
        Resource::Policy(policy) => policy.name(),
    }
}

/// The other names a resource is found by: its addresses.
#[must_use]
pub fn aliases(resource: &Resource) -> Vec<Str> {
    match resource {
        Resource::Workload(workload) => workload_aliases(workload),
        Resource::Service(service) => service_aliases(service),
        _ => Vec::new(),
    }
}

/// `<network>/<ip>` per address.
#[must_use]
pub fn workload_aliases(workload: &Workload) -> Vec<Str> {
    let alias = |address| {
        NetworkAddress::new(workload.network.clone(), address)
            .to_string()
            .into()
    };
    workload.addresses.iter().copied().map(alias).collect()
}

/// `<network>/<ip>` per address, `<network>/<ip>/<prefix>` per range.
#[must_use]
pub fn service_aliases(service: &Service) -> Vec<Str> {
    let addresses = service.addresses.iter().map(|address| address.to_string().into());
    let ranges = service.cidrs.iter().map(|range| range.to_string().into());
    addresses.chain(ranges).collect()
}
