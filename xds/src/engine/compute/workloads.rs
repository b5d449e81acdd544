//! The workloads of pods and workload entries.

use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::api::Meta;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::translate::condition::Condition;
use tulle_k8s::translate::waypoint::{self, Binding, Subject, Traffic};
use tulle_k8s::translate::workload::{self, Around, entry_addresses, entry_labels, node_of, pod_addresses};
use tulle_k8s::{Key, Kind};
use tulle_model::enrolment::DATAPLANE_MODE_LABEL;
use tulle_model::service::Visibility;
use tulle_model::waypoint::FrontOf;
use tulle_model::workload::TunnelProtocol;
use tulle_model::{NamespacedName, Str, Workload};

use super::super::trace::{Step, Trace};
use super::super::world::World;
use super::endpoints::{self, Services};
use super::{Emitted, Part, conflict, fronts, policies, required, services};

/// Label that names the waypoint of an object or a namespace.
const USE_WAYPOINT_LABEL: &str = "istio.io/use-waypoint";

/// The workload of a pod.
pub(super) fn pod(key: &Key, world: &World, trace: &mut impl Trace) -> Vec<Part> {
    let Some(pod) = world.pod(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = part(key);
    let mut services = endpoints::of_pod(pod, world);
    if workload::is_over(pod) {
        trace.step(|| {
            Step::of("pod", "status.phase", &*pod.status.phase).saying("it has ended and is not sent")
        });
    } else if pod_addresses(pod).is_empty() {
        trace
            .step(|| Step::of("pod", "status.podIP", "none").saying("it has no address yet and is not sent"));
    } else if !pod.spec.host_network {
        let network = workload::network(&"".into(), &pod.metadata.labels, &world.network());
        if let Err(condition) = settle(key, &pod_addresses(pod), &network, &mut services, world, trace) {
            part.conditions.push(condition);
            return vec![part];
        }
    }
    let node = world.node(&pod.spec.node_name);
    let network = world.network();
    let around = Around {
        node,
        ..around(key, &pod.metadata.labels, services, &network, world)
    };
    let mut translated = workload::pod(pod, &around);
    try_out(&mut translated.0, &pod.metadata.labels, world);
    tell(&translated, key, world, trace);
    finish(part, translated, &pod.metadata, world, trace)
}

/// The workload of a workload entry.
pub(super) fn entry(key: &Key, world: &World, trace: &mut impl Trace) -> Vec<Part> {
    let Some(entry) = world.workload_entry(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = part(key);
    let labels = entry_labels(entry);
    let mut services = endpoints::of_entry(entry, world);
    let network = workload::network(&entry.spec.network, &labels, &world.network());
    if let Err(condition) = settle(
        key,
        &entry_addresses(entry),
        &network,
        &mut services,
        world,
        trace,
    ) {
        part.conditions.push(condition);
        return vec![part];
    }
    let node = node_of(&entry.metadata).and_then(|node| world.node(&node));
    let network = world.network();
    let around = Around {
        node,
        ..around(key, &labels, services, &network, world)
    };
    let mut translated = workload::workload_entry(entry, &around);
    try_out(&mut translated.0, &labels, world);
    tell(&translated, key, world, trace);
    finish(part, translated, &entry.metadata, world, trace)
}

/// Names the policies that only judge.
fn try_out(found: &mut Option<Workload>, labels: &Labels, world: &World) {
    if let Some(found) = found {
        let policies = policies::on_trial(&found.namespace, labels, world);
        found.set_dry_runs(&policies);
    }
}

fn part(key: &Key) -> Part {
    Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    }
}

/// Tells what a workload belongs to, how it is reached, and which policies judge its callers.
fn tell((found, _): &(Option<Workload>, Vec<Condition>), key: &Key, world: &World, trace: &mut impl Trace) {
    let Some(found) = found else { return };
    for (service, ports) in &found.services {
        trace.step(|| {
            let ports: Vec<String> = ports
                .iter()
                .map(|(port, target)| format!("{port} -> {target}"))
                .collect();
            let text = match ports.is_empty() {
                true => "none of its ports is found at this workload".to_owned(),
                false => format!("ports {}", ports.join(", ")),
            };
            let step = Step::of("service", "spec.selector", service.to_string()).saying(text);
            match services::winner(&service.hostname, &service.namespace, world) {
                Some(by) => step.by(by),
                None => step,
            }
        });
    }
    trace.step(|| {
        let by = Key::new(Kind::Namespace, "", key.namespace.clone());
        let how = format!("{:?}", found.tunnel_protocol).to_uppercase();
        let step = Step::of("enrolment", DATAPLANE_MODE_LABEL, how);
        match found.tunnel_protocol {
            TunnelProtocol::Hbone => {
                step.saying("it is captured: callers in the mesh reach it over mutual TLS")
            }
            TunnelProtocol::None => step.saying(
                "it is not captured: by its own labels, its namespace or its node; callers reach it as it is",
            ),
        }
        .by(&by)
    });
    for policy in &found.authorization_policies {
        trace.step(|| {
            Step::of("policy", "spec.selector", policy.to_string()).saying("it judges who may connect to it")
        });
    }
    for policy in found.dry_runs() {
        trace.step(|| {
            let text = "it is tried out: it judges who connects to it, and refuses nobody";
            Step::of("policy", "spec.selector", policy.to_string()).saying(text)
        });
    }
}

fn around<'a>(
    key: &Key,
    labels: &Labels,
    services: Services,
    network: &'a Str,
    world: &'a World,
) -> Around<'a> {
    let namespace = world.namespace(&key.namespace);
    let policies = policies::selecting(&key.namespace, labels, world);
    Around {
        mesh: world.mesh(),
        namespace,
        node: None,
        network,
        services,
        policies,
    }
}

fn finish(
    mut part: Part,
    translated: (Option<Workload>, Vec<Condition>),
    meta: &Meta,
    world: &World,
    trace: &mut impl Trace,
) -> Vec<Part> {
    let (found, conditions) = translated;
    part.conditions.extend(conditions);
    if let Some(mut found) = found {
        let binding = bind(meta, world);
        trace.step(|| bound(&binding));
        found.application_tunnel = waypoint::application_tunnel(meta, world);
        part.emitted.extend(wrap(&mut found, &binding, world));
        part.emitted
            .push(Emitted::Workload(Arc::new(found), waypoint::is_gateway(meta)));
        part.conditions.extend(binding.condition());
    }
    vec![part]
}

/// The waypoint in front of something, as a step.
pub(super) fn bound(binding: &Binding) -> Step {
    let step = |outcome: String| Step::of("waypoint", USE_WAYPOINT_LABEL, outcome);
    let gateway = |name: &NamespacedName| Key::new(Kind::Gateway, name.namespace.clone(), name.name.clone());
    match binding {
        Binding::None => step("None".into()).saying("traffic goes straight to it"),
        Binding::Pending {
            waypoint,
            reason,
            message,
        } => step(format!("Pending: {reason}"))
            .by(&gateway(waypoint))
            .saying(message),
        Binding::Bound { waypoint, .. } => step("Bound".into())
            .by(&gateway(waypoint))
            .saying("traffic passes it"),
    }
}

/// The waypoint in front of the addresses of a workload.
fn bind(meta: &Meta, world: &World) -> Binding {
    let subject = Subject {
        meta,
        traffic: Traffic::Workload,
        visibility: &Visibility::Public,
    };
    waypoint::bind(subject, world)
}

/// Puts a workload behind its waypoint, and what only waypoints may reach behind theirs.
fn wrap(found: &mut Workload, binding: &Binding, world: &World) -> Vec<Emitted> {
    let is_protected = binding
        .named()
        .any(|waypoint| services::is_protecting(waypoint, world));
    found.waypoint = binding.address(is_protected, world.mesh());
    let mut emitted = required::require_waypoints(found, binding, world);
    for waypoint in binding.named() {
        let object = FrontOf::Workload(found.uid.clone());
        let front = fronts::front(waypoint, object, None, Vec::new(), world);
        emitted.push(Emitted::Waypoint(Arc::new(front)));
    }
    emitted
}

/// Decides who owns the addresses: the winner takes over the services of the others, a loser says who won.
fn settle(
    key: &Key,
    addresses: &[IpAddr],
    network: &Str,
    services: &mut Services,
    world: &World,
    trace: &mut impl Trace,
) -> Result<(), Condition> {
    for address in addresses {
        let claims = conflict::claims(*address, network, world);
        if let Some(best) = claims.first().filter(|best| best.key != *key) {
            return conflict::lost(&[(*address, best.key.clone())]).map_or(Ok(()), Err);
        }
        for other in claims.iter().filter(|claim| claim.key != *key) {
            trace.step(|| {
                let text = "it claims this address too and loses; its services come along";
                Step::of("address", "status.podIP", address.to_string())
                    .by(&other.key)
                    .saying(text)
            });
            for (service, ports) in endpoints::of_claim(&other.key, *address, world) {
                services.entry(service).or_insert(ports);
            }
        }
    }
    Ok(())
}
