//! The workloads of pods and workload entries.

use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::Key;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::translate::condition::{ADDRESS_CONFLICT, Condition};
use tulle_k8s::translate::waypoint;
use tulle_k8s::translate::workload::{self, Around, entry_addresses, entry_labels, node_of, pod_addresses};
use tulle_model::{Str, Workload};

use super::super::world::World;
use super::endpoints::{self, Services};
use super::{Emitted, Part, conflict, policies, required};

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
    finish(
        part,
        workload::pod(pod, &around),
        waypoint::is_gateway(&pod.metadata),
        world,
    )
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
        waypoint::is_gateway(&entry.metadata),
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
    of_gateway: bool,
    world: &World,
) -> Vec<Part> {
    let (found, conditions) = translated;
    if let Some(mut found) = found {
        part.emitted
            .extend(required::require_waypoints(&mut found, world));
        part.emitted.push(Emitted::Workload(Arc::new(found), of_gateway));
    }
    part.conditions.extend(conditions);
    vec![part]
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
