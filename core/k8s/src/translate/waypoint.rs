//! Which waypoint an object asks for. Gateways are not read yet, so that every named one is missing.

use std::collections::BTreeSet;

use tulle_model::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use tulle_model::gateway::{GatewayAddress, GatewayDestination, HBONE_PORT};
use tulle_model::{Identity, NamespacedHostname, NamespacedName, Str};

use super::condition::{Condition, WAYPOINT_BOUND};
use super::{MeshConfig, authorization};
use crate::Object;
use crate::api::security::PolicyTargetRef;
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

/// The waypoint an object asks for itself, or its namespace for it.
#[must_use]
pub fn named(meta: &Meta, namespace: Option<&Namespace>) -> Option<NamespacedName> {
    if is_gateway(meta) {
        return None;
    }
    let own = meta.label(USE_WAYPOINT).map(|name| (name, meta));
    let inherited = namespace.map(|namespace| &namespace.metadata);
    let inherited = inherited.and_then(|from| from.label(USE_WAYPOINT).map(|name| (name, from)));
    let (name, from) = own.or(inherited).filter(|(name, _)| *name != "none")?;
    let home = from.label(USE_WAYPOINT_NAMESPACE).unwrap_or(&meta.namespace);
    Some(NamespacedName::new(home, name))
}

/// What is to be said of the waypoint an object asks for.
#[must_use]
pub fn binding(meta: &Meta, namespace: Option<&Namespace>) -> Option<Condition> {
    let waypoint = named(meta, namespace)?;
    let message = format!(
        "waypoint {waypoint} does not exist; traffic goes directly until it does, or is refused where a policy needs it"
    );
    Some(Condition::fails(WAYPOINT_BOUND, "WaypointMissing", message))
}

/// The address that stands for a waypoint that is not there: callers find nobody at it, and refuse.
#[must_use]
pub fn address(waypoint: &NamespacedName, mesh: &MeshConfig) -> GatewayAddress {
    let hostname = format!("{}.{}.svc.{}", waypoint.name, waypoint.namespace, mesh.domain);
    GatewayAddress {
        destination: GatewayDestination::Hostname(NamespacedHostname::new(
            waypoint.namespace.clone(),
            hostname,
        )),
        hbone_mtls_port: HBONE_PORT,
    }
}

/// The principal that a waypoint's connections carry.
#[must_use]
pub fn principal(waypoint: &NamespacedName, mesh: &MeshConfig) -> Str {
    let identity = Identity::new(
        mesh.trust_domain.clone(),
        waypoint.namespace.clone(),
        waypoint.name.clone(),
    );
    identity.principal().into()
}

/// The objects that only a waypoint can protect as this object wants it; none for a dry run.
#[must_use]
pub fn targets(object: &Object) -> Vec<&PolicyTargetRef> {
    match object {
        Object::AuthorizationPolicy(policy)
            if authorization::has_only_targets(policy) && !authorization::is_dry_run(policy) =>
        {
            policy
                .spec
                .target_refs
                .iter()
                .chain(&policy.spec.target_ref)
                .collect()
        }
        Object::RequestAuthentication(policy) => policy
            .spec
            .target_refs
            .iter()
            .chain(&policy.spec.target_ref)
            .collect(),
        _ => Vec::new(),
    }
}

/// The policy that lets nobody but these waypoints reach these ports. Its name says its content.
#[must_use]
pub fn required(
    namespace: &Str,
    ports: &BTreeSet<u16>,
    principals: &BTreeSet<Str>,
    name: Str,
) -> Authorization {
    let mut clauses = Vec::new();
    if !principals.is_empty() {
        let not_principals = principals.iter().cloned().map(StringMatch::Exact).collect();
        clauses.push(Clause {
            matches: vec![Match {
                not_principals,
                ..Match::default()
            }],
        });
    }
    let destination_ports = ports.iter().copied().collect();
    clauses.push(Clause {
        matches: vec![Match {
            destination_ports,
            ..Match::default()
        }],
    });
    Authorization {
        name,
        namespace: namespace.clone(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses }],
        dry_run: false,
        untranslatable: false,
        match_peer: true,
    }
}
