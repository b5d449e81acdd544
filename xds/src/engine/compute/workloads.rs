//! The workloads of pods and workload entries.

use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::Key;
use tulle_k8s::api::Meta;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::translate::condition::{ADDRESS_CONFLICT, Condition};
use tulle_k8s::translate::waypoint::{self, Binding, Subject, Traffic};
use tulle_k8s::translate::workload::{self, Around, entry_addresses, entry_labels, node_of, pod_addresses};
use tulle_model::service::Visibility;
use tulle_model::waypoint::FrontOf;
use tulle_model::{Str, Workload};

use super::super::world::World;
use super::endpoints::{self, Services};
use super::{Emitted, Part, conflict, fronts, policies, required, services};

/// The workload of a pod.
pub(super) fn pod(key: &Key, world: &World) -> Vec<Part> {
    let Some(pod) = world.pod(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    };
    let mut services = endpoints::of_pod(pod, world);
    if !pod.spec.host_network && !workload::is_over(pod) {
        let network = workload::network(&"".into(), &pod.metadata.labels, &world.network());
        if let Err(condition) = settle(key, &pod_addresses(pod), &network, &mut services, world) {
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
    finish(part, workload::pod(pod, &around), &pod.metadata, world)
}

/// The workload of a workload entry.
pub(super) fn entry(key: &Key, world: &World) -> Vec<Part> {
    let Some(entry) = world.workload_entry(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    };
    let labels = entry_labels(entry);
    let mut services = endpoints::of_entry(entry, world);
    let network = workload::network(&entry.spec.network, &labels, &world.network());
    if let Err(condition) = settle(key, &entry_addresses(entry), &network, &mut services, world) {
        part.conditions.push(condition);
        return vec![part];
    }
    let node = node_of(&entry.metadata).and_then(|node| world.node(&node));
    let network = world.network();
    let around = Around {
        node,
        ..around(key, &labels, services, &network, world)
    };
    finish(
        part,
        workload::workload_entry(entry, &around),
        &entry.metadata,
        world,
    )
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
) -> Vec<Part> {
    let (found, conditions) = translated;
    part.conditions.extend(conditions);
    if let Some(mut found) = found {
        let binding = bind(meta, world);
        found.application_tunnel = waypoint::application_tunnel(meta, world);
        part.emitted.extend(wrap(&mut found, &binding, world));
        part.emitted
            .push(Emitted::Workload(Arc::new(found), waypoint::is_gateway(meta)));
        part.conditions.extend(binding.condition());
    }
    vec![part]
}

/// The waypoint in front of the addresses of a workload.
fn bind(meta: &Meta, world: &World) -> Binding {
    let subject = Subject {
        meta,
        traffic: Traffic::Workload,
        visibility: Visibility::Public,
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
) -> Result<(), Condition> {
    for address in addresses {
        let claims = conflict::claims(*address, network, world);
        if let Some(best) = claims.first().filter(|best| best.key != *key) {
            let message = format!(
                "{} has address {address} too and wins; correct one of the two",
                best.key
            );
            return Err(Condition::holds(ADDRESS_CONFLICT, "AddressConflict", message));
        }
        for other in claims.iter().filter(|claim| claim.key != *key) {
            for (service, ports) in endpoints::of_claim(&other.key, *address, world) {
                services.entry(service).or_insert(ports);
            }
        }
    }
    Ok(())
}
