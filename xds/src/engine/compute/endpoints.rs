//! Which services something is an endpoint of, and the endpoints that stand in service entries and slices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::api::core::{NamedPorts, Pod, Service, SliceEndpoint};
use tulle_k8s::api::meta::Labels;
use tulle_k8s::api::networking::{EndpointSpec, Resolution};
use tulle_k8s::api::{EndpointSlice, ServiceEntry, WorkloadEntry};
use tulle_k8s::translate::waypoint::Binding;
use tulle_k8s::translate::workload::{self, Around, entry_labels};
use tulle_k8s::translate::{ports, service};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::workload::PortMapping;
use tulle_model::{NamespacedHostname, Str};

use super::super::index::{self, IndexKey, SERVICE_NAME};
use super::super::world::World;
use super::{Emitted, Part, conflict, policies, required, services};

/// Services by key, each with the ports of one endpoint.
pub(super) type Services = BTreeMap<NamespacedHostname, PortMapping>;

/// The services a pod is an endpoint of.
pub(super) fn of_pod(pod: &Pod, world: &World) -> Services {
    let meta = &pod.metadata;
    let mut services = selecting(
        &meta.namespace,
        &meta.labels,
        world,
        |service| ports::at_pod(service, pod),
        &NamedPorts::new(),
    );
    for key in world.lookup(&IndexKey::SlicesWith(meta.namespace.clone(), meta.name.clone())) {
        let Some(slice) = world.endpoint_slice(&key.namespace, &key.name) else {
            continue;
        };
        let targets = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.target_ref.as_ref());
        let is_target = targets
            .into_iter()
            .any(|target| &*target.kind == "Pod" && target.name == meta.name && target.uid == meta.uid);
        if is_target {
            services.extend(of_slice(slice, world));
        }
    }
    services
}

/// The services a workload entry is an endpoint of.
pub(super) fn of_entry(entry: &WorkloadEntry, world: &World) -> Services {
    let own = &entry.spec.ports;
    let at_entry = |service: &Service| ports::at_entry(service, own);
    selecting(
        &entry.metadata.namespace,
        &entry_labels(entry),
        world,
        at_entry,
        own,
    )
}

/// The services that select these labels.
fn selecting(
    namespace: &str,
    labels: &Labels,
    world: &World,
    at: impl Fn(&Service) -> PortMapping,
    own: &NamedPorts,
) -> Services {
    let mut found = Services::new();
    for (key, object) in world.selecting(Kind::Service, namespace, labels) {
        let Object::Service(object) = object else { continue };
        let hostname = service::hostname(&object.metadata, world.mesh());
        if services::winner(&hostname, namespace, world) == Some(key) {
            found.insert(NamespacedHostname::new(namespace, hostname), at(object));
        }
    }
    for (key, object) in world.selecting(Kind::ServiceEntry, namespace, labels) {
        let Object::ServiceEntry(object) = object else {
            continue;
        };
        found.extend(of_service_entry(key, object, own, world));
    }
    found
}

/// The services of a service entry for an endpoint with these ports.
fn of_service_entry(key: &Key, entry: &ServiceEntry, own: &NamedPorts, world: &World) -> Services {
    let hosts =
        service::hosts(entry).filter(|host| services::winner(host, &key.namespace, world) == Some(key));
    hosts
        .map(|host| {
            let hostname = NamespacedHostname::new(key.namespace.clone(), host.clone());
            (hostname, ports::of_service_entry(entry, own))
        })
        .collect()
}

/// The service of a slice, if that service has no selector of its own.
fn of_slice(slice: &EndpointSlice, world: &World) -> Services {
    let namespace = &slice.metadata.namespace;
    let name = slice.metadata.labels.get(SERVICE_NAME);
    let Some(service) = name.and_then(|name| world.service(namespace, name)) else {
        return Services::new();
    };
    let hostname = service::hostname(&service.metadata, world.mesh());
    let key = Key::new(Kind::Service, namespace.clone(), service.metadata.name.clone());
    if !service.spec.selector.is_empty() || services::winner(&hostname, namespace, world) != Some(&key) {
        return Services::new();
    }
    Services::from([(
        NamespacedHostname::new(namespace.clone(), hostname),
        ports::at_slice(service, slice),
    )])
}

/// The services that come with another claim to an address.
pub(super) fn of_claim(key: &Key, address: IpAddr, world: &World) -> Services {
    match world.get(key) {
        Some(Object::Pod(pod)) => of_pod(pod, world),
        Some(Object::WorkloadEntry(entry)) => of_entry(entry, world),
        Some(Object::ServiceEntry(entry)) => {
            let here = |endpoint: &&EndpointSpec| index::address(&endpoint.address) == Some(address);
            let endpoint = entry.spec.endpoints.iter().find(here);
            endpoint
                .map(|endpoint| of_service_entry(key, entry, &endpoint.ports, world))
                .unwrap_or_default()
        }
        Some(Object::EndpointSlice(slice)) => of_slice(slice, world),
        _ => Services::new(),
    }
}

/// The workloads that are written into a service entry.
pub(super) fn inline(key: &Key, world: &World) -> Vec<Part> {
    let Some(entry) = world.service_entry(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    };
    let (mut seen, mut lost) = (BTreeSet::new(), Vec::new());
    for endpoint in entry
        .spec
        .endpoints
        .iter()
        .filter(|endpoint| seen.insert(&endpoint.address))
    {
        let network = workload::network(&endpoint.network, &endpoint.labels, &world.network());
        let address = index::address(&endpoint.address);
        let claims = address
            .map(|address| conflict::claims(address, &network, world))
            .unwrap_or_default();
        if let Some(best) = claims.first().filter(|best| best.key != *key) {
            lost.extend(address.map(|address| (address, best.key.clone())));
            continue;
        }
        let mut services = of_service_entry(key, entry, &endpoint.ports, world);
        for other in claims.iter().filter(|claim| claim.key != *key) {
            services.extend(
                address
                    .into_iter()
                    .flat_map(|address| of_claim(&other.key, address, world)),
            );
        }
        let policies = policies::selecting(&key.namespace, &endpoint.labels, world);
        let default = world.network();
        let around = around(key, world, &default, services, policies);
        let (found, conditions) = workload::inline_endpoint(entry, endpoint, &around);
        if let Some(mut found) = found {
            part.emitted
                .extend(required::require_waypoints(&mut found, &Binding::None, world));
            part.emitted.push(Emitted::Workload(Arc::new(found), false));
        }
        // Only what could not be used is said here; the services say the rest.
        part.conditions.extend(
            conditions
                .into_iter()
                .filter(|condition| condition.reason.contains("nvalid")),
        );
    }
    part.conditions.extend(conflict::lost(&lost));
    part.emitted.extend(dns(key, entry, world));
    vec![part]
}

/// Without endpoints, DNS finds them: one workload stands for each host.
fn dns(key: &Key, entry: &ServiceEntry, world: &World) -> Vec<Emitted> {
    let by_dns = matches!(entry.spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    if !by_dns || !entry.spec.endpoints.is_empty() || entry.spec.workload_selector.is_some() {
        return Vec::new();
    }
    let services = of_service_entry(key, entry, &NamedPorts::new(), world);
    let hosts = service::hosts(entry).filter(|host| !host.starts_with('*'));
    hosts
        .filter_map(|host| {
            let hostname = NamespacedHostname::new(key.namespace.clone(), host.clone());
            let ports = services.get(&hostname)?.clone();
            let default = world.network();
            let around = around(
                key,
                world,
                &default,
                Services::from([(hostname, ports)]),
                Vec::new(),
            );
            Some(Emitted::Workload(
                Arc::new(workload::dns_endpoint(entry, host, &around)),
                false,
            ))
        })
        .collect()
}

/// The workloads of a slice's endpoints that stand for no pod.
pub(super) fn slice(key: &Key, world: &World) -> Vec<Part> {
    let Some(slice) = world.endpoint_slice(&key.namespace, &key.name) else {
        return Vec::new();
    };
    let mut part = Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    };
    let services = of_slice(slice, world);
    if services.is_empty() || &*slice.address_type == "FQDN" {
        return vec![part];
    }
    let no_pod = |endpoint: &&SliceEndpoint| {
        endpoint
            .target_ref
            .as_ref()
            .is_none_or(|target| &*target.kind != "Pod")
    };
    let (mut seen, mut lost) = (BTreeSet::new(), Vec::new());
    for endpoint in slice.endpoints.iter().filter(no_pod) {
        for address in endpoint.addresses.iter().filter_map(|text| index::address(text)) {
            let default = world.network();
            let claims = conflict::claims(address, &default, world);
            if !seen.insert(address) {
                continue;
            }
            if let Some(best) = claims.first().filter(|best| best.key != *key) {
                lost.push((address, best.key.clone()));
                continue;
            }
            let mut services = services.clone();
            for other in claims.iter().filter(|claim| claim.key != *key) {
                services.extend(of_claim(&other.key, address, world));
            }
            let around = around(key, world, &default, services, Vec::new());
            let found = workload::slice_endpoint(slice, endpoint, address, &around);
            part.emitted.push(Emitted::Workload(Arc::new(found), false));
        }
    }
    part.conditions.extend(conflict::lost(&lost));
    vec![part]
}

fn around<'a>(
    key: &Key,
    world: &'a World,
    network: &'a Str,
    services: Services,
    policies: Vec<tulle_model::NamespacedName>,
) -> Around<'a> {
    let namespace = world.namespace(&key.namespace);
    Around {
        mesh: world.mesh(),
        namespace,
        node: None,
        network,
        services,
        policies,
    }
}
