//! Which waypoint is in front of an object: none, one that is not ready for it, or one that is.

use std::collections::BTreeSet;

use tulle_model::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use tulle_model::gateway::{GatewayAddress, GatewayDestination, HBONE_PORT, WeightedWaypoint};
use tulle_model::service::Visibility;
use tulle_model::workload::{ApplicationProtocol, ApplicationTunnel};
use tulle_model::{Identity, NamespacedHostname, NamespacedName, NetworkAddress, Str};

use super::condition::{Condition, WAYPOINT_BOUND};
use super::lookup::Lookup;
use super::{MeshConfig, authorization, route};
use crate::api::gateway::Listener;
use crate::api::security::PolicyTargetRef;
use crate::api::{Gateway, Meta, Namespace};
use crate::{Key, Object};

mod attach;
#[cfg(test)]
mod tests;

pub use attach::{Traffic, accepts, inbound_binding, is_waypoint, is_waypoint_class};
pub(super) use attach::{listener, purpose};

/// Label that asks for a waypoint; `none` asks for none.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label with the waypoint's namespace.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label that asks for a second waypoint, to try it out.
const CANARY: &str = "istio.io/use-waypoint-canary";
/// Label with the second waypoint's namespace.
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// Annotation with the second waypoint's share, in percent.
pub(super) const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// Label of services whose ingress gateways go through the waypoint, too.
const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// Labels that a namespace has for all of its objects.
pub(super) const INHERITED_LABELS: &[&str] = &[
    USE_WAYPOINT,
    USE_WAYPOINT_NAMESPACE,
    CANARY,
    CANARY_NAMESPACE,
    INGRESS_USE_WAYPOINT,
];
/// Label of objects that belong to a waypoint or gateway.
const MANAGED: &str = "gateway.istio.io/managed";
/// Label of the parts of a gateway, with its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Annotation with the account that a gateway runs under, if it is not called as the gateway.
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";

/// A second waypoint, its address and its share in percent.
type Share = (NamespacedName, GatewayAddress, u32);
/// A reason of the condition, and what happened.
type Problem = (&'static str, String);

/// Which waypoint is in front of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// None.
    None,
    /// One is named, and traffic does not pass it yet.
    Pending {
        /// The one that is named.
        waypoint: NamespacedName,
        /// Why it does not pass: a reason of the condition.
        reason: &'static str,
        /// What happened and what to do.
        message: String,
    },
    /// Traffic passes it.
    Bound {
        /// The waypoint.
        waypoint: NamespacedName,
        /// Where it is.
        address: GatewayAddress,
        /// A second one, with its address and share in percent.
        canary: Option<(NamespacedName, GatewayAddress, u32)>,
        /// Why a second one is not used.
        problem: Option<(&'static str, String)>,
    },
}

impl Binding {
    /// The waypoints that are named, the one that is tried out included.
    pub fn named(&self) -> impl Iterator<Item = &NamespacedName> {
        let (waypoint, canary) = match self {
            Self::None => (None, None),
            Self::Pending { waypoint, .. } => (Some(waypoint), None),
            Self::Bound { waypoint, canary, .. } => (Some(waypoint), canary.as_ref().map(|canary| &canary.0)),
        };
        waypoint.into_iter().chain(canary)
    }

    /// What is said of it.
    #[must_use]
    pub fn condition(&self) -> Option<Condition> {
        match self {
            Self::None => None,
            Self::Pending { reason, message, .. } => {
                Some(Condition::fails(WAYPOINT_BOUND, reason, message.clone()))
            }
            Self::Bound {
                problem: Some((reason, message)),
                ..
            } => Some(Condition::fails(WAYPOINT_BOUND, reason, message.clone())),
            Self::Bound { waypoint, canary, .. } => {
                let share = canary
                    .as_ref()
                    .map(|(canary, _, weight)| format!("; {weight} % goes through {canary}"));
                let message = format!(
                    "traffic goes through waypoint {waypoint}{}",
                    share.unwrap_or_default()
                );
                Some(Condition::holds(WAYPOINT_BOUND, "WaypointAccepted", message))
            }
        }
    }

    /// The waypoint as it is sent: a bound one; a pending one only where something asks for its protection, so
    /// that callers find nobody at it and refuse.
    #[must_use]
    pub fn address(&self, is_protected: bool, mesh: &MeshConfig) -> Option<GatewayAddress> {
        match self {
            Self::None => None,
            Self::Pending { waypoint, .. } => is_protected.then(|| name_address(waypoint, mesh)),
            Self::Bound { address, .. } => Some(address.clone()),
        }
    }

    /// The shares of the two waypoints, if there is a second one.
    #[must_use]
    pub fn weighted(&self) -> Vec<WeightedWaypoint> {
        let Self::Bound {
            address,
            canary: Some((_, canary, weight)),
            ..
        } = self
        else {
            return Vec::new();
        };
        let share = |destination: &GatewayAddress, weight| WeightedWaypoint {
            destination: destination.clone(),
            weight,
        };
        vec![share(address, 100 - weight), share(canary, *weight)]
    }

    /// Whether traffic passes a waypoint.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        matches!(self, Self::Bound { .. })
    }
}

/// Whether this is part of a waypoint or gateway.
#[must_use]
pub fn is_gateway(meta: &Meta) -> bool {
    meta.labels.contains_key(MANAGED)
}

/// Whether gateways at the edge go through the waypoint of this service.
#[must_use]
pub fn ingress_use_waypoint(meta: &Meta, namespace: Option<&Namespace>) -> bool {
    let inherited = || namespace.and_then(|namespace| namespace.metadata.label(INGRESS_USE_WAYPOINT));
    meta.label(INGRESS_USE_WAYPOINT).or_else(inherited) == Some("true")
}

/// Which object's labels name the waypoint, and whether that is the namespace.
fn source<'a>(meta: &'a Meta, namespace: Option<&'a Namespace>) -> Option<(&'a Meta, bool)> {
    if is_gateway(meta) {
        return None;
    }
    let inherited = namespace.map(|namespace| &namespace.metadata);
    let own = meta.label(USE_WAYPOINT).map(|_| (meta, false));
    own.or_else(|| {
        inherited
            .filter(|from| from.label(USE_WAYPOINT).is_some())
            .map(|from| (from, true))
    })
    .filter(|(from, _)| from.label(USE_WAYPOINT) != Some("none"))
}

/// The waypoint an object asks for itself, or its namespace for it.
#[must_use]
pub fn named(meta: &Meta, namespace: Option<&Namespace>) -> Option<NamespacedName> {
    let (from, _) = source(meta, namespace)?;
    let home = from.label(USE_WAYPOINT_NAMESPACE).unwrap_or(&meta.namespace);
    Some(NamespacedName::new(home, from.label(USE_WAYPOINT)?))
}

/// The waypoint to try out, if one is asked for.
#[must_use]
pub fn canary(meta: &Meta, namespace: Option<&Namespace>) -> Option<NamespacedName> {
    let (from, _) = source(meta, namespace)?;
    let home = from.label(CANARY_NAMESPACE).unwrap_or(&meta.namespace);
    Some(NamespacedName::new(home, from.label(CANARY)?))
}

/// What asks for a waypoint.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The object.
    pub meta: &'a Meta,
    /// What kind of traffic it has.
    pub traffic: Traffic,
    /// Who may see it.
    pub visibility: &'a Visibility,
}

/// Decides which waypoint is in front of an object.
#[must_use]
pub fn bind(subject: Subject<'_>, around: &impl Lookup) -> Binding {
    let meta = subject.meta;
    let namespace = around.namespace(&meta.namespace);
    let Some((from, is_inherited)) = source(meta, namespace) else {
        return Binding::None;
    };
    let Some(waypoint) = named(meta, namespace) else {
        return Binding::None;
    };
    let address = match ready(&waypoint, subject, around) {
        Ok(address) => address,
        // What a namespace asks for its services is not meant for its workloads.
        Err(("UnsupportedTrafficType", _)) if is_inherited && subject.traffic == Traffic::Workload => {
            return Binding::None;
        }
        Err((reason, message)) => {
            return Binding::Pending {
                waypoint,
                reason,
                message,
            };
        }
    };
    let (canary, problem) = match second(from, &waypoint, subject, around) {
        None => (None, None),
        Some(Ok(canary)) => (Some(canary), None),
        Some(Err(problem)) => (None, Some(problem)),
    };
    Binding::Bound {
        waypoint,
        address,
        canary,
        problem,
    }
}

/// The second waypoint with its share, or why the first is used alone.
fn second(
    from: &Meta,
    primary: &NamespacedName,
    subject: Subject<'_>,
    around: &impl Lookup,
) -> Option<Result<Share, Problem>> {
    let canary = canary(subject.meta, around.namespace(&subject.meta.namespace))?;
    if canary == *primary {
        let message = format!("the canary waypoint is {primary} itself; name another one with {CANARY}");
        return Some(Err(("CanarySameAsPrimary", message)));
    }
    let weight = from.annotation(CANARY_WEIGHT).unwrap_or("0");
    let Some(weight) = weight.parse::<u32>().ok().filter(|weight| *weight <= 100) else {
        let message =
            format!("the annotation {CANARY_WEIGHT} must be a number from 0 to 100; {primary} is used alone");
        return Some(Err(("CanaryInvalidWeight", message)));
    };
    Some(match ready(&canary, subject, around) {
        Ok(address) => Ok((canary, address, weight)),
        Err((reason, message)) => Err((reason, format!("canary: {message}; {primary} is used alone"))),
    })
}

/// Where a waypoint is, or why it is not in front of an object yet.
fn ready(
    waypoint: &NamespacedName,
    subject: Subject<'_>,
    around: &impl Lookup,
) -> Result<GatewayAddress, (&'static str, String)> {
    let meanwhile = "traffic goes directly until then, or is refused where a policy needs the waypoint";
    let Some(gateway) = around.gateway(&waypoint.namespace, &waypoint.name) else {
        let message = format!("waypoint {waypoint} does not exist; create it: {meanwhile}");
        return Err(("WaypointMissing", message));
    };
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    if !accepts(gateway, class, subject.traffic) {
        let message = format!(
            "waypoint {waypoint} does not take traffic to {}; change its label istio.io/waypoint-for",
            subject.traffic.as_str()
        );
        return Err(("UnsupportedTrafficType", message));
    }
    if !attach::allows(gateway, class, subject.meta, subject.visibility, around) {
        let message = format!(
            "waypoint {waypoint} takes nothing from namespace {}; allow it in allowedRoutes of its listener on port \
             {HBONE_PORT}",
            subject.meta.namespace
        );
        return Err(("AttachmentDenied", message));
    }
    address_of(gateway, around).ok_or_else(|| {
        let message = format!("waypoint {waypoint} was never ready; see its pods: {meanwhile}");
        ("WaypointIsNotReady", message)
    })
}

/// Where a gateway is, once it was ready: by name rather than by address.
#[must_use]
pub fn address_of(gateway: &Gateway, around: &impl Lookup) -> Option<GatewayAddress> {
    let meta = &gateway.metadata;
    let usable = |address: &&crate::api::gateway::GatewayStatusAddress| !address.value.is_empty();
    let addresses = || gateway.status.addresses.iter().filter(usable);
    let hostname = addresses()
        .find(|address| &*address.kind == "Hostname")
        .map(|address| {
            GatewayDestination::Hostname(NamespacedHostname::new(
                meta.namespace.clone(),
                address.value.clone(),
            ))
        });
    let by_address = || {
        addresses().find_map(|address| {
            let address = address.value.parse().ok()?;
            let network = around
                .mesh()
                .default_network(around.namespace(&around.mesh().root_namespace));
            let own = meta.labels.get(super::mesh::NETWORK_LABEL).unwrap_or(&network);
            Some(GatewayDestination::Address(NetworkAddress::new(
                own.clone(),
                address,
            )))
        })
    };
    let destination = hostname.or_else(by_address)?;
    Some(GatewayAddress {
        destination,
        hbone_mtls_port: HBONE_PORT,
    })
}

/// The name that stands for a waypoint that was never ready: callers find nobody at it, and refuse.
fn name_address(waypoint: &NamespacedName, mesh: &MeshConfig) -> GatewayAddress {
    let hostname = format!("{}.{}.svc.{}", waypoint.name, waypoint.namespace, mesh.domain);
    GatewayAddress {
        destination: GatewayDestination::Hostname(NamespacedHostname::new(
            waypoint.namespace.clone(),
            hostname,
        )),
        hbone_mtls_port: HBONE_PORT,
    }
}

/// The identity that a waypoint's connections carry.
#[must_use]
pub fn identity(waypoint: &NamespacedName, around: &impl Lookup) -> Identity {
    let gateway = around.gateway(&waypoint.namespace, &waypoint.name);
    let account = gateway.and_then(|gateway| gateway.metadata.annotation(SERVICE_ACCOUNT));
    Identity::new(
        around.mesh().trust_domain.clone(),
        waypoint.namespace.clone(),
        account.unwrap_or(&waypoint.name),
    )
}

/// How the application of a gateway's replica wants its bytes.
#[must_use]
pub fn application_tunnel(meta: &Meta, around: &impl Lookup) -> Option<ApplicationTunnel> {
    let gateway = around.gateway(&meta.namespace, meta.label(GATEWAY_NAME)?)?;
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    let (protocol, port) = inbound_binding(gateway, class)?;
    let protocol = match protocol {
        "PROXY" => ApplicationProtocol::Proxy,
        _ => ApplicationProtocol::None,
    };
    Some(ApplicationTunnel { protocol, port })
}

/// The objects that only a waypoint can protect as this object wants it; none for a dry run.
#[must_use]
pub fn targets(object: &Object) -> Vec<PolicyTargetRef> {
    match object {
        Object::AuthorizationPolicy(policy)
            if authorization::is_of_waypoints(policy) && !authorization::is_dry_run(policy) =>
        {
            let refs = policy.spec.target_refs.iter().chain(&policy.spec.target_ref);
            refs.cloned().collect()
        }
        Object::RequestAuthentication(policy) => {
            let refs = policy.spec.target_refs.iter().chain(&policy.spec.target_ref);
            refs.cloned().collect()
        }
        Object::TrafficPolicy(policy)
            if policy.unreadable.is_some() || policy.spec.external_auth.is_some() =>
        {
            let refs = policy.spec.target_refs.iter().map(|target| PolicyTargetRef {
                group: target.group.clone(),
                kind: target.kind.clone(),
                name: target.name.clone(),
                namespace: "".into(),
            });
            refs.collect()
        }
        Object::HttpRoute(_) | Object::GrpcRoute(_) if !route::asking(object).is_empty() => {
            // What a namespace has its own callers asked about must not close the pods of another to everybody else.
            let own = |parent: &Key| parent.namespace == object.meta().namespace;
            let parents = route::parents(object).filter(own).map(|parent| PolicyTargetRef {
                group: parent.kind.group().into(),
                kind: parent.kind.as_str().into(),
                name: parent.name.clone(),
                namespace: "".into(),
            });
            parents.collect()
        }
        _ => Vec::new(),
    }
}

/// Ports of a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// These.
    Only(BTreeSet<u16>),
    /// All but these.
    AllBut(BTreeSet<u16>),
}

/// The policy that lets nobody but these waypoints reach these ports. Its name says its content.
#[must_use]
pub fn required(namespace: &Str, ports: &Ports, principals: &BTreeSet<Str>, name: Str) -> Authorization {
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
    let on_ports = match ports {
        Ports::Only(ports) => Match {
            destination_ports: ports.iter().copied().collect(),
            ..Match::default()
        },
        Ports::AllBut(ports) => Match {
            not_destination_ports: ports.iter().copied().collect(),
            ..Match::default()
        },
    };
    if on_ports != Match::default() {
        clauses.push(Clause {
            matches: vec![on_ports],
        });
    }
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

/// The listener that a waypoint takes its traffic on.
pub(super) fn hbone(listener: &&Listener) -> bool {
    &*listener.protocol == "HBONE" && listener.port == HBONE_PORT
}
