//! Who owns an address that several objects claim in one network.

use std::net::IpAddr;

use jiff::Timestamp;
use tulle_k8s::api::Pod;
use tulle_k8s::translate::condition::{ADDRESS_CONFLICT, Condition};
use tulle_k8s::translate::workload::{
    entry_addresses, entry_labels, is_over, network, pod_addresses, pod_tunnel,
};
use tulle_k8s::{Key, Object};
use tulle_model::Str;
use tulle_model::workload::TunnelProtocol;

use super::super::index::{self, IndexKey};
use super::super::world::World;

/// The better claim is the smaller one: kind of source, then age, then name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    rank: u8,
    created: Timestamp,
    pub(super) key: Key,
}

/// Every claim to an address in a network, the best one first.
pub(super) fn claims(address: IpAddr, in_network: &Str, world: &World) -> Vec<Claim> {
    let default = world.network();
    let keys = world.lookup(&IndexKey::Address(address));
    let mut claims: Vec<Claim> = keys
        .filter_map(|key| {
            let object = world.get(key)?;
            let rank = rank(object, address, in_network, &default, world)?;
            let created = object.meta().creation_timestamp.unwrap_or(Timestamp::MAX);
            Some(Claim {
                rank,
                created,
                key: key.clone(),
            })
        })
        .collect();
    claims.sort();
    claims
}

/// What is said of an object whose claims are worse than others: who has its first such address, and how many there are.
pub(super) fn lost(lost: &[(IpAddr, Key)]) -> Option<Condition> {
    let (address, winner) = lost.first()?;
    let further = match lost.len() - 1 {
        0 => String::new(),
        further => format!(", and {further} more of its addresses are taken"),
    };
    let message = format!("{winner} has address {address} too and wins{further}; correct one of the two");
    Some(Condition::holds(ADDRESS_CONFLICT, "AddressConflict", message))
}

/// How good the claim of an object is; `None` if it has none after all.
fn rank(object: &Object, address: IpAddr, in_network: &Str, default: &Str, world: &World) -> Option<u8> {
    let none: Str = "".into();
    match object {
        Object::Pod(pod) => {
            let claims = !is_over(pod) && !pod.spec.host_network && pod_addresses(pod).contains(&address);
            let here = network(&none, &pod.metadata.labels, default) == *in_network;
            (claims && here).then(|| if is_hbone(pod, world) { 0 } else { 1 })
        }
        Object::WorkloadEntry(entry) => {
            let here = network(&entry.spec.network, &entry_labels(entry), default) == *in_network;
            (here && entry_addresses(entry).contains(&address)).then_some(2)
        }
        Object::ServiceEntry(entry) => entry
            .spec
            .endpoints
            .iter()
            .any(|endpoint| {
                index::address(&endpoint.address) == Some(address)
                    && network(&endpoint.network, &endpoint.labels, default) == *in_network
            })
            .then_some(3),
        Object::EndpointSlice(slice) => slice
            .endpoints
            .iter()
            .any(|endpoint| {
                endpoint
                    .target_ref
                    .as_ref()
                    .is_none_or(|target| &*target.kind != "Pod")
                    && default == in_network
                    && endpoint
                        .addresses
                        .iter()
                        .any(|text| index::address(text) == Some(address))
            })
            .then_some(4),
        _ => None,
    }
}

/// Whether a pod is reached over HBONE.
fn is_hbone(pod: &Pod, world: &World) -> bool {
    let namespace = world.namespace(&pod.metadata.namespace);
    let node = world.node(&pod.spec.node_name);
    pod_tunnel(pod, namespace, node, world.mesh()).protocol == TunnelProtocol::Hbone
}
