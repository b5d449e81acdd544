//! What a policy is attached to, and whether a waypoint that is ready stands there.

use tulle_model::policy::{On, Target};

use super::super::authorization::values::shown;
use super::super::lookup::{Definition, Lookup, NoDefinition};
use super::super::{route, waypoint};
use super::{Ref, Translated};
use crate::api::{Gateway, Meta};
use crate::{Kind as ObjectKind, Object};

/// Ports of a service that a message lists.
const PORTS_SHOWN_MAX: usize = 16;

/// Why a reference leads nowhere.
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// What the reference names a part of that is not there: the part that is meant must not be left open.
    pub(super) whole: Vec<Target>,
}

fn refused(reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        reason,
        message: message.into(),
        whole: Vec::new(),
    }
}

/// What a reference leads to.
pub(super) fn resolve(reference: &Ref, meta: &Meta, around: &impl Lookup) -> Result<Vec<Target>, Refused> {
    let namespace = &meta.namespace;
    if !reference.namespace.is_empty() && reference.namespace != *namespace {
        let message = "a target must be in the policy's own namespace; move the policy there";
        return Err(refused("Invalid", message));
    }
    let not_found = || {
        let message = format!("there is no {} {namespace}/{}", reference.kind, reference.name);
        refused("TargetNotFound", message)
    };
    let missing = |_: NoDefinition| not_found();
    let target = |on, port, section| Target { on, port, section };
    let kind = ObjectKind::target(&reference.kind, &reference.group);
    match kind {
        Some(ObjectKind::Service) => {
            let found = around.service_of(namespace, &reference.name).map_err(missing)?;
            on_ports(reference, std::slice::from_ref(&found))
        }
        Some(ObjectKind::ServiceEntry) => {
            let found = around.entry_of(namespace, &reference.name).map_err(missing)?;
            on_ports(reference, &found)
        }
        Some(ObjectKind::Gateway) => {
            let on = On::Waypoint(format!("{namespace}/{}", reference.name).into());
            Ok(vec![target(on, None, None)])
        }
        Some(ObjectKind::GatewayClass) if *namespace == around.mesh().root_namespace => {
            Ok(vec![target(On::Class(reference.name.clone()), None, None)])
        }
        Some(ObjectKind::GatewayClass) => {
            let message = format!(
                "a class is a target only in namespace {}",
                around.mesh().root_namespace
            );
            Err(refused("Invalid", message))
        }
        Some(kind) if kind.is_route() => {
            let object = around.route(kind, namespace, &reference.name);
            let object = object.ok_or_else(not_found)?;
            on_rule(reference, object).ok_or_else(not_found)?
        }
        _ => {
            let text = reference.kind.chars().filter(|c| !c.is_control());
            let shown: String = text.take(64).collect();
            Err(refused("UnsupportedValue", format!("{shown} is no target")))
        }
    }
}

/// A service, or the port of it that a reference names, by number or by name.
fn on_ports(reference: &Ref, found: &[Definition]) -> Result<Vec<Target>, Refused> {
    let target = |of: &Definition, port| Target {
        on: On::Service(of.service.key()),
        port,
        section: None,
    };
    let whole = || found.iter().map(|of| target(of, None)).collect();
    let section = &reference.section;
    if reference.port.is_none() && section.is_empty() {
        return Ok(whole());
    }
    let port = |of: &Definition| {
        let named = || {
            of.port_names
                .get(section)
                .copied()
                .or_else(|| section.parse().ok())
        };
        let port = reference.port.or_else(named);
        port.filter(|port| of.service.ports.contains_key(port))
    };
    let ports: Option<Vec<Target>> = found.iter().map(|of| Some(target(of, Some(port(of)?)))).collect();
    ports.ok_or_else(|| {
        let asked = reference
            .port
            .map_or_else(|| shown(section), |port| port.to_string());
        let known: Vec<String> = found.first().map_or_else(Vec::new, ports_of);
        let (kind, name) = (&reference.kind, &reference.name);
        let message = format!("{kind} {name} has no port {asked}; it has {}", known.join(", "));
        Refused {
            whole: whole(),
            ..refused("TargetNotFound", message)
        }
    })
}

/// Ports as they may be named, for a message.
fn ports_of(of: &Definition) -> Vec<String> {
    let named = |port: &u16| {
        let mut names = of.port_names.iter();
        let name = names.find(|(_, number)| *number == port);
        name.map_or_else(
            || port.to_string(),
            |(name, _)| format!("{} ({port})", shown(name)),
        )
    };
    of.service.ports.keys().take(PORTS_SHOWN_MAX).map(named).collect()
}

/// A route, or the rule of it that a reference names.
fn on_rule(reference: &Ref, object: &Object) -> Option<Result<Vec<Target>, Refused>> {
    let facts = route::facts(object)?;
    let target = |section| Target {
        on: On::Route {
            kind: facts.kind,
            namespace: facts.meta.namespace.clone(),
            name: facts.meta.name.clone(),
        },
        port: None,
        section,
    };
    let section = &reference.section;
    if section.is_empty() {
        return Some(Ok(vec![target(None)]));
    }
    if route::rule_names(object).any(|name| name == section) {
        return Some(Ok(vec![target(Some(section.clone()))]));
    }
    let message = format!("the route has no rule called {}", shown(section));
    Some(Err(Refused {
        whole: vec![target(None)],
        ..refused("TargetNotFound", message)
    }))
}

/// Notes which waypoints enforce a policy on its targets; says whether there is one that is ready at each.
pub(super) fn attach(targets: &[Target], translated: &mut Translated, around: &impl Lookup) -> bool {
    let mut is_bound = true;
    for target in targets {
        is_bound &= match &target.on {
            On::Service(service) => {
                translated.waypoints.extend(around.waypoints_of(service));
                around.is_bound(service)
            }
            On::Waypoint(name) => {
                translated.waypoints.insert(name.clone());
                let named = name.split_once('/');
                let gateway = named.and_then(|(namespace, name)| around.gateway(namespace, name));
                gateway.is_some_and(|gateway| is_ready(gateway, around))
            }
            On::Class(class) => {
                translated.classes.insert(class.clone());
                let all = around.gateways();
                let mut all = all
                    .iter()
                    .filter(|gateway| gateway.spec.gateway_class_name == *class);
                all.any(|gateway| is_ready(gateway, around))
            }
            On::Route {
                kind,
                namespace,
                name,
            } => {
                // Every waypoint that follows the route, wherever that is.
                translated.everywhere = true;
                let kind = route::object_kind(*kind);
                let object = kind.and_then(|kind| around.route(kind, namespace, name));
                object.is_some_and(|object| route::is_bound(object, around))
            }
            On::Mesh => {
                translated.everywhere = true;
                around.gateways().iter().any(|gateway| is_ready(gateway, around))
            }
            // Users name services and routes; nothing leads here.
            On::Workload(_) => {
                translated.everywhere = true;
                false
            }
        };
    }
    is_bound
}

/// Whether a gateway is a waypoint that was ready once.
fn is_ready(gateway: &Gateway, around: &impl Lookup) -> bool {
    let class = around.gateway_class(&gateway.spec.gateway_class_name);
    waypoint::is_waypoint(gateway, class) && waypoint::address_of(gateway, around).is_some()
}
