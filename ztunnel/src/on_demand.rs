//! Learns what a connection or a question needs, where the control plane is asked for addresses one by one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::Query as Question;
use tokio::time::timeout;
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
use tulle_model::mesh::Snapshot;
use tulle_model::{NamespacedHostname, NetworkAddress, Workload};
use tulle_xds_client::on_demand::{LOOKUP_MAX, address_key, service_key};

use crate::dns::answer::mesh_hosts;
use crate::pod::{Node, Pod};

/// Gateways of one destination that are asked for.
const GATEWAYS_MAX: usize = 16;

/// Asks for the destination of a connection, and for the waypoints and gateways on the way to it. Each wait is
/// bounded; what is not known then is unknown, as in a mesh that is held whole.
pub async fn learn_destination(node: &Node, source: &Workload, destination: SocketAddr) {
    if !node.mesh.on_demand() {
        return;
    }
    let address = NetworkAddress::new(Arc::clone(&node.config.network), destination.ip());
    let found = look_for_address(node, &source.namespace, &address).await;
    for gateway in found.unwrap_or_default() {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => drop(look_for_service(node, key).await),
            GatewayDestination::Address(address) => {
                drop(look_for_address(node, &source.namespace, address).await);
            }
        }
    }
}

async fn look_for_address(
    node: &Node,
    namespace: &str,
    address: &NetworkAddress,
) -> Option<Vec<GatewayAddress>> {
    let search = |snapshot: &Snapshot| way_to(snapshot, namespace, address);
    node.mesh.look_up(|| address_key(address), search).await
}

async fn look_for_service(node: &Node, key: &NamespacedHostname) -> Option<()> {
    let search = |snapshot: &Snapshot| snapshot.service(key).map(|_| ());
    node.mesh.look_up(|| service_key(key), search).await
}

/// The waypoints and gateways on the way to an address; nothing if it is not known.
fn way_to(snapshot: &Snapshot, namespace: &str, address: &NetworkAddress) -> Option<Vec<GatewayAddress>> {
    if let Some(service) = snapshot.service_by_vip(namespace, address) {
        let weighted = service
            .weighted_waypoints
            .iter()
            .map(|weighted| &weighted.destination);
        let endpoints = snapshot.endpoints(&service.key());
        let gateways = endpoints.filter_map(|endpoint| endpoint.network_gateway.clone());
        let way = service.waypoint.iter().chain(weighted).cloned().chain(gateways);
        return Some(distinct(way));
    }
    let workload = snapshot.workload_by_address(address)?;
    Some(workload.waypoint.iter().cloned().collect())
}

fn distinct(way: impl Iterator<Item = GatewayAddress>) -> Vec<GatewayAddress> {
    let mut seen = BTreeSet::new();
    way.filter(|gateway| seen.insert(gateway.to_string()))
        .take(GATEWAYS_MAX)
        .collect()
}

/// Asks for the services that a question may mean, if it is one for a name of the mesh's domain. Says whether one is
/// known now.
pub async fn learn_name(pod: &Pod, question: &Question, source: &Workload) -> bool {
    let node = &pod.node;
    if !node.mesh.on_demand() {
        return false;
    }
    let asking = async {
        for key in mesh_hosts(question, source, &pod.dns.settings) {
            if look_for_service(node, &key).await.is_some() {
                return true;
            }
        }
        false
    };
    timeout(LOOKUP_MAX, asking).await.unwrap_or(false)
}
