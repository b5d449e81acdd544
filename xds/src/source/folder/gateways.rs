//! Where waypoints are. No controller writes the status of a folder's Gateways, so their instances say it: WorkloadEntries
//! with the gateway's name in a label.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tulle_k8s::api::Gateway;
use tulle_k8s::api::gateway::GatewayStatusAddress;
use tulle_k8s::translate::workload::{entry_addresses, entry_labels};
use tulle_k8s::{Key, Object};
use tulle_model::Str;

use super::library::Entry;

/// Label of a gateway's instances, with its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Namespace and name of a gateway.
type Named = (Str, Str);

/// The instances of each gateway.
pub(super) type Instances = BTreeMap<Named, BTreeSet<Key>>;

/// The gateway that an object is an instance of.
pub(super) fn gateway_of(key: &Key, object: &Object) -> Option<Named> {
    let Object::WorkloadEntry(workload) = object else {
        return None;
    };
    let labels = entry_labels(workload);
    let gateway = labels.get(GATEWAY_NAME)?;
    Some((key.namespace.clone(), gateway.clone()))
}

/// Whether an object's own text says where it is.
pub(crate) fn says_where(object: &Object) -> bool {
    matches!(object, Object::Gateway(gateway) if !gateway.status.addresses.is_empty())
}

/// Gives a Gateway whose file names no address those of its instances; `None` if that changes nothing. One that had some
/// keeps them when its instances go: callers are then told that nobody answers, and never sent around it.
pub(super) fn place(key: &Key, entries: &BTreeMap<Key, Entry>, instances: &Instances) -> Option<Object> {
    let entry = entries.get(key).filter(|entry| !entry.says_where)?;
    let Object::Gateway(gateway) = entry.in_force.object.as_ref() else {
        return None;
    };
    let found = instances.get(&(key.namespace.clone(), key.name.clone()))?;
    let found = found
        .iter()
        .filter_map(|key| match entries.get(key)?.in_force.object.as_ref() {
            Object::WorkloadEntry(workload) => Some(entry_addresses(workload)),
            _ => None,
        });
    let found: Vec<IpAddr> = found.flatten().collect();
    placed(gateway, &found).map(Object::Gateway)
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
