//! What a policy is attached to, and whether a waypoint that is ready stands there.

use std::collections::BTreeMap;

use tulle_model::policy::{On, Target};
use tulle_model::service::ServicePort;

use super::super::lookup::{Lookup, NoDefinition};
use super::super::{route, waypoint};
use super::{Ref, Translated};
use crate::Kind as ObjectKind;
use crate::api::{Gateway, Meta};

/// What a reference leads to, or a reason and a message.
pub(super) fn resolve(
    reference: &Ref,
    meta: &Meta,
    around: &impl Lookup,
) -> Result<Vec<Target>, (&'static str, String)> {
    let namespace = &meta.namespace;
    if !reference.namespace.is_empty() && reference.namespace != *namespace {
        let message = "a target must be in the policy's own namespace; move the policy there";
        return Err(("Invalid", message.to_owned()));
    }
    let not_found = || {
        let message = format!("there is no {} {namespace}/{}", reference.kind, reference.name);
        ("TargetNotFound", message)
    };
    let missing = |_: NoDefinition| not_found();
    let target = |on, port, section| Target { on, port, section };
    let kind = ObjectKind::target(&reference.kind, &reference.group);
    match kind {
        Some(ObjectKind::Service) => {
            let found = around.service_of(namespace, &reference.name).map_err(missing)?;
            let port = port(reference, &found.service.ports)?;
            Ok(vec![target(On::Service(found.service.key()), port, None)])
        }
        Some(ObjectKind::ServiceEntry) => {
            let found = around.entry_of(namespace, &reference.name).map_err(missing)?;
            let on = found
                .into_iter()
                .map(|found| target(On::Service(found.service.key()), reference.port, None));
            Ok(on.collect())
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
            Err(("Invalid", message))
        }
        Some(kind) if kind.is_route() => {
            let object = around.route(kind, namespace, &reference.name);
            let facts = object.and_then(route::facts).ok_or_else(not_found)?;
            let section = (!reference.section.is_empty()).then(|| reference.section.clone());
            let on = On::Route {
                kind: facts.kind,
                namespace: namespace.clone(),
                name: reference.name.clone(),
            };
            Ok(vec![target(on, None, section)])
        }
        _ => {
            let text = reference.kind.chars().filter(|c| !c.is_control());
            let shown: String = text.take(64).collect();
            Err(("UnsupportedValue", format!("{shown} is no target")))
        }
    }
}

/// The port that a reference to a service names, by number or by name.
fn port(reference: &Ref, ports: &BTreeMap<u16, ServicePort>) -> Result<Option<u16>, (&'static str, String)> {
    let by_name = reference.section.parse().ok();
    let port = reference.port.or(by_name);
    match port {
        None if reference.section.is_empty() => Ok(None),
        Some(port) if ports.contains_key(&port) => Ok(Some(port)),
        _ => Err((
            "TargetNotFound",
            "the service has no such port; write its number as `port`".to_owned(),
        )),
    }
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
