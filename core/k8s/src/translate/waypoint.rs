//! Which waypoint an object asks for. Gateways are not read yet, so that every named one is missing.

use super::condition::{Condition, WAYPOINT_BOUND};
use crate::api::{Meta, Namespace};

/// Label that asks for a waypoint; `none` asks for none.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label with the waypoint's namespace.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label of objects that belong to a waypoint or gateway.
const MANAGED: &str = "gateway.istio.io/managed";

/// Whether this is part of a waypoint or gateway.
#[must_use]
pub fn is_gateway(meta: &Meta) -> bool {
    meta.labels.contains_key(MANAGED)
}

/// What is to be said of the waypoint an object asks for itself, or its namespace for it.
#[must_use]
pub fn binding(meta: &Meta, namespace: Option<&Namespace>) -> Option<Condition> {
    if is_gateway(meta) {
        return None;
    }
    let own = meta.label(USE_WAYPOINT).map(|name| (name, meta));
    let inherited = namespace.and_then(|namespace| {
        namespace
            .metadata
            .label(USE_WAYPOINT)
            .map(|name| (name, &namespace.metadata))
    });
    let (name, from) = own.or(inherited)?;
    if name == "none" {
        return None;
    }
    let home = from.label(USE_WAYPOINT_NAMESPACE).unwrap_or(&meta.namespace);
    let message = format!("waypoint {home}/{name} does not exist; traffic goes directly until it does");
    Some(Condition::fails(WAYPOINT_BOUND, "WaypointMissing", message))
}
