//! Whether a parent takes a route: which service, which of its ports, and against which other kinds.

use std::collections::BTreeSet;

use tulle_model::route::{Candidate, Kind, Parent, ParentTo, Standing, standing};
use tulle_model::service::{AppProtocol, Service};
use tulle_model::{NamespacedHostname, Str};

use super::super::lookup::{Definition, Lookup, NoDefinition};
use super::super::waypoint::is_waypoint;
use super::{Facts, facts, is_gateway, is_service, is_service_entry};
use crate::api::Meta;
use crate::api::route::ParentRef;
use crate::{Key, Kind as ObjectKind, Object};

/// Why a parent does not take a route.
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// How a parent takes a route.
pub(super) struct Accepted {
    pub(super) parents: Vec<Parent>,
    pub(super) waypoints: BTreeSet<Str>,
    pub(super) is_bound: bool,
}

fn refused(reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        reason,
        message: message.into(),
    }
}

/// What a parent is called in conditions; `None` for one that is somebody else's business.
pub(super) fn describe(parent: &ParentRef, meta: &Meta) -> Option<String> {
    let group = parent.group.as_deref();
    let ours = is_service(group, &parent.kind) || is_service_entry(group, &parent.kind);
    let namespace = namespace(parent, meta);
    let port = parent.port.map(|port| format!(":{port}")).unwrap_or_default();
    ours.then(|| format!("{} {namespace}/{}{port}", parent.kind, parent.name))
}

/// The object that defines a parent; `None` for one that is somebody else's business.
pub(super) fn key(parent: &ParentRef, meta: &Meta) -> Option<Key> {
    let group = parent.group.as_deref();
    let kind = if is_service(group, &parent.kind) {
        ObjectKind::Service
    } else if is_service_entry(group, &parent.kind) {
        ObjectKind::ServiceEntry
    } else {
        return None;
    };
    Some(Key::new(
        kind,
        namespace(parent, meta).clone(),
        parent.name.clone(),
    ))
}

/// A waypoint that is named as if it were an ingress gateway, as it is called in conditions.
pub(super) fn waypoint(parent: &ParentRef, meta: &Meta, around: &impl Lookup) -> Option<String> {
    if !is_gateway(parent) {
        return None;
    }
    let namespace = namespace(parent, meta);
    let gateway = around.gateway(namespace, &parent.name)?;
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    is_waypoint(gateway, class).then(|| format!("Gateway {namespace}/{}", parent.name))
}

fn namespace<'a>(parent: &'a ParentRef, meta: &'a Meta) -> &'a Str {
    if parent.namespace.is_empty() {
        &meta.namespace
    } else {
        &parent.namespace
    }
}

/// The services that a parent reference leads to.
fn resolve(parent: &ParentRef, meta: &Meta, around: &impl Lookup) -> Result<Vec<Service>, Refused> {
    let namespace = namespace(parent, meta);
    let missing = |cause| match cause {
        NoDefinition::NotInMesh => refused("InvalidKind", "an ExternalName is no parent; use a ServiceEntry"),
        NoDefinition::Missing => refused(
            "NoMatchingParent",
            format!("there is no {} of this name", parent.kind),
        ),
        NoDefinition::Conflicted => refused(
            "NoMatchingParent",
            "another object defines its host name, too, and wins",
        ),
    };
    let found: Vec<Definition> = if is_service(parent.group.as_deref(), &parent.kind) {
        vec![around.service_of(namespace, &parent.name).map_err(missing)?]
    } else {
        around.entry_of(namespace, &parent.name).map_err(missing)?
    };
    if found.iter().any(|definition| definition.is_headless) {
        return Err(refused(
            "InvalidKind",
            "a headless service is no parent: calls to it name no service",
        ));
    }
    let hidden = |definition: &Definition| {
        *namespace != meta.namespace && !definition.service.is_visible_to(&meta.namespace)
    };
    if found.iter().any(hidden) {
        return Err(refused(
            "NoMatchingParent",
            "it is not exported to this namespace",
        ));
    }
    Ok(found.into_iter().map(|definition| definition.service).collect())
}

/// Whether the services that a parent reference leads to are behind waypoints that are ready.
pub(super) fn is_bound(parent: &ParentRef, meta: &Meta, around: &impl Lookup) -> bool {
    let services = resolve(parent, meta, around).unwrap_or_default();
    !services.is_empty() && services.iter().all(|service| around.is_bound(&service.key()))
}

/// The ports of a service that a parent reference names, as far as the kind of route fits them.
fn ports(kind: Kind, parent: &ParentRef, service: &Service) -> Result<BTreeSet<u16>, Refused> {
    if let Some(port) = parent.port.filter(|port| !service.ports.contains_key(port)) {
        return Err(refused("NoMatchingParent", format!("it has no port {port}")));
    }
    let named = service
        .ports
        .iter()
        .filter(|(port, _)| parent.port.is_none_or(|wanted| wanted == **port));
    let fitting: BTreeSet<u16> = named
        .filter(|(_, port)| fits(kind, port.app_protocol))
        .map(|(port, _)| *port)
        .collect();
    if fitting.is_empty() {
        let message = "its port is declared as TCP or TLS, where there are no requests to route; correct appProtocol \
                       or the port's name";
        return Err(refused("UnsupportedProtocol", message));
    }
    Ok(fitting)
}

fn fits(kind: Kind, protocol: AppProtocol) -> bool {
    let opaque = matches!(protocol, AppProtocol::Tcp | AppProtocol::Tls);
    !(opaque && matches!(kind, Kind::Http | Kind::Grpc))
}

/// Decides whether a parent takes a route.
pub(super) fn accept(
    of: &Facts<'_>,
    parent: &ParentRef,
    rivals: &[&Object],
    around: &impl Lookup,
) -> Result<Accepted, Refused> {
    let mut accepted = Accepted {
        parents: Vec::new(),
        waypoints: BTreeSet::new(),
        is_bound: true,
    };
    let services = resolve(parent, of.meta, around)?;
    if services.is_empty() {
        return Err(refused("NoMatchingParent", "it has no host that can be served"));
    }
    for service in services {
        let fitting = ports(of.kind, parent, &service)?;
        let left = undisputed(of, &service, &fitting, rivals, around)?;
        let key = service.key();
        accepted.waypoints.extend(around.waypoints_of(&key));
        accepted.is_bound &= around.is_bound(&key);
        let consumer = (service.namespace != of.meta.namespace).then(|| of.meta.namespace.clone());
        let hostnames = if of.kind == Kind::Tls {
            of.hostnames.to_vec()
        } else {
            Vec::new()
        };
        let all = parent.port.is_none() && left.len() == service.ports.len();
        let numbers: Vec<Option<u16>> = if all {
            vec![None]
        } else {
            left.into_iter().map(Some).collect()
        };
        accepted.parents.extend(numbers.into_iter().map(|port| Parent {
            to: ParentTo::Service(key.clone()),
            port,
            consumer_namespace: consumer.clone(),
            hostnames: hostnames.clone(),
        }));
    }
    Ok(accepted)
}

/// The ports on which no higher kind of route stands for the same callers.
fn undisputed(
    of: &Facts<'_>,
    service: &Service,
    fitting: &BTreeSet<u16>,
    rivals: &[&Object],
    around: &impl Lookup,
) -> Result<BTreeSet<u16>, Refused> {
    let rivals: Vec<(Facts<'_>, BTreeSet<u16>)> = rivals
        .iter()
        .filter_map(|object| facts(object))
        .map(|rival| (rival, claimed(&rival, &service.key(), around)))
        .collect();
    let mut left = BTreeSet::new();
    let mut winner = of.kind;
    for port in fitting {
        let mut candidates = vec![candidate(of, service, true)];
        let here = rivals.iter().filter(|(_, ports)| ports.contains(port));
        candidates.extend(here.map(|(rival, _)| candidate(rival, service, false)));
        let own = standing(&candidates).find(|(own, _)| **own);
        match own {
            Some((_, Standing::Outranked { by })) => winner = by,
            _ => {
                left.insert(*port);
            }
        }
    }
    if left.is_empty() {
        let message = format!(
            "a {} stands on the same port for the same callers, and wins",
            winner.as_str()
        );
        return Err(refused("Conflicted", message));
    }
    Ok(left)
}

fn candidate<'a>(of: &Facts<'a>, service: &Service, own: bool) -> Candidate<'a, bool> {
    Candidate {
        kind: of.kind,
        consumer: (service.namespace != of.meta.namespace).then_some(&of.meta.namespace),
        of: own,
    }
}

/// The ports of a service that another route would take.
fn claimed(of: &Facts<'_>, service: &NamespacedHostname, around: &impl Lookup) -> BTreeSet<u16> {
    let mut claimed = BTreeSet::new();
    let ours = of
        .parents
        .iter()
        .filter(|parent| describe(parent, of.meta).is_some());
    for parent in ours {
        let services = resolve(parent, of.meta, around).unwrap_or_default();
        for found in services.iter().filter(|found| found.key() == *service) {
            claimed.extend(ports(of.kind, parent, found).unwrap_or_default());
        }
    }
    claimed
}
