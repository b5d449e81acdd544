//! Where waypoints are. No controller writes the status of a folder's Gateways, so their instances say it: WorkloadEntries
//! with the gateway's name in a label.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tulle_k8s::api::Gateway;
use tulle_k8s::api::gateway::GatewayStatusAddress;
use tulle_k8s::translate::workload::{entry_addresses, entry_labels};
use tulle_k8s::{Key, Object};
use tulle_model::Str;

use super::library::Entry;

/// Label of a gateway's instances, with its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Gives every Gateway whose file names no address those of its instances. One that had some keeps them when its
/// instances go: callers are then told that nobody answers, and never sent around it.
pub(super) fn place(entries: &mut BTreeMap<Key, Entry>) {
    let instances = instances(entries);
    for (key, entry) in entries.iter_mut() {
        let Object::Gateway(gateway) = entry.in_force.object.as_ref() else {
            continue;
        };
        let found = instances.get(&(key.namespace.clone(), key.name.clone()));
        let Some(found) = found.filter(|_| !names_addresses(&entry.written)) else {
            continue;
        };
        if let Some(placed) = placed(gateway, found) {
            entry.in_force.object = Arc::new(Object::Gateway(placed));
        }
    }
}

/// Addresses of the instances of each gateway, by namespace and name.
fn instances(entries: &BTreeMap<Key, Entry>) -> BTreeMap<(Str, Str), Vec<IpAddr>> {
    let mut instances: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for (key, entry) in entries {
        let Object::WorkloadEntry(workload) = entry.in_force.object.as_ref() else {
            continue;
        };
        if let Some(gateway) = entry_labels(workload).get(GATEWAY_NAME) {
            let of = instances.entry((key.namespace.clone(), gateway.clone()));
            of.or_default().extend(entry_addresses(workload));
        }
    }
    instances
}

/// The gateway with these addresses, if it does not have them already.
fn placed(gateway: &Gateway, addresses: &[IpAddr]) -> Option<Gateway> {
    let address = |address: &IpAddr| GatewayStatusAddress {
        kind: "IPAddress".into(),
        value: address.to_string().into(),
    };
    let addresses: Vec<_> = addresses.iter().map(address).collect();
    (gateway.status.addresses != addresses).then(|| {
        let mut gateway = gateway.clone();
        gateway.status.addresses = addresses;
        gateway
    })
}

/// Whether an object's own text says where it is.
fn names_addresses(written: &str) -> bool {
    let written: serde_json::Value = serde_json::from_str(written).unwrap_or_default();
    let addresses = written["status"]["addresses"].as_array();
    addresses.is_some_and(|addresses| !addresses.is_empty())
}
