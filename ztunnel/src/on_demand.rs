//! Learns what a connection or a question needs, where the control plane is asked for addresses one by one.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::join_all;
use hickory_proto::op::Query as Question;
use tokio::time::timeout;
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
use tulle_model::mesh::Snapshot;
use tulle_model::{Authority, Identity, NamespacedHostname, NetworkAddress, Service, Workload};
use tulle_xds_client::on_demand::{LOOKUP_MAX, address_key, service_key};

use crate::dns::answer::mesh_hosts;
use crate::pod::{Node, Pod};

/// Gateways of one destination that are asked for.
const GATEWAYS_MAX: usize = 16;

/// Services of one local workload that are asked for, in the order of their names.
const OWN_SERVICES_MAX: usize = 64;

/// Asks for the destination of a connection, and for the waypoints and gateways on the way to it. Each wait is
/// bounded; what is not known then is unknown, as in a mesh that is held whole.
pub async fn learn_destination(node: &Node, source: &Workload, destination: SocketAddr) {
    if !node.mesh.on_demand() {
        return;
    }
    let address = NetworkAddress::new(Arc::clone(&node.config.network), destination.ip());
    let found = look_for_address(node, &source.namespace, &address).await;
    look_for_gateways(node, &source.namespace, &found.unwrap_or_default()).await;
}

/// What a tunnel says, and is judged by what is known of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    /// Whom it asks for, and the address that it was connected to.
    pub authority: Option<(&'a Authority, SocketAddr)>,
    /// The peer and its address, where it speaks for somebody else.
    pub speaks_for_others: Option<(&'a Identity, IpAddr)>,
}

/// Asks for what a tunnel to a local workload is judged by: the services it belongs to, the waypoints of both, and whom
/// the tunnel asks for, if that is not this workload by its own address. The control plane tells of the workload by
/// itself, and of nothing that it names. A peer that speaks for somebody else is waited for until it is known as a
/// waypoint. All of it is bounded by [`LOOKUP_MAX`]; who is not known then is nobody.
pub async fn learn_own(node: &Node, local: &Workload, said: Said<'_>) {
    if !node.mesh.on_demand() {
        return;
    }
    let own = async {
        let services = local.services.keys().take(OWN_SERVICES_MAX);
        let waypoints = join_all(services.map(|key| {
            let search = move |snapshot: &Snapshot| Some(distinct(waypoints_of(snapshot.service(key)?)));
            node.mesh.look_up(move || service_key(key), search)
        }));
        let waypoints = waypoints.await.into_iter().flatten().flatten();
        let waypoints = distinct(local.waypoint.iter().cloned().chain(waypoints));
        look_for_gateways(node, &local.namespace, &waypoints).await;
        if let Some((peer, address)) = said.speaks_for_others {
            let known = |snapshot: &Snapshot| snapshot.is_waypoint_of(local, peer, address).then_some(());
            node.mesh.wait_for(LOOKUP_MAX, known).await;
        }
    };
    let asked_for = async {
        if let Some((authority, connected)) = said.authority {
            learn_authority(node, local, authority, connected).await;
        }
    };
    // What was not learned is judged as unknown.
    let _ = timeout(LOOKUP_MAX, async { tokio::join!(own, asked_for) }).await;
}

/// Asks for the owner of an authority, whose waypoint the local workload may be, or for the service that it names.
async fn learn_authority(node: &Node, local: &Workload, authority: &Authority, connected: SocketAddr) {
    match authority {
        Authority::Ip(asked) => {
            let (asked, own) = (asked.ip().to_canonical(), connected.ip().to_canonical());
            if asked == own || local.application_tunnel.is_some() {
                return;
            }
            let address = NetworkAddress::new(Arc::clone(&local.network), asked);
            let owner = |snapshot: &Snapshot| fronts_of(snapshot, &address);
            let fronts = node.mesh.look_up(|| address_key(&address), owner).await;
            look_for_gateways(node, &local.namespace, &fronts.unwrap_or_default()).await;
        }
        Authority::Host { hostname, .. } => {
            let is_named = |key: &NamespacedHostname| key.hostname == *hostname;
            if !local.services.keys().any(is_named) {
                let namespace = namespace_of(hostname, &node.config.dns.domain).unwrap_or(&local.namespace);
                let key = NamespacedHostname::new(namespace, &**hostname);
                look_for_service(node, &key).await;
            }
        }
    }
}

/// The waypoints in front of whoever owns an address, whoever may see it; nothing if that is nobody known.
fn fronts_of(snapshot: &Snapshot, address: &NetworkAddress) -> Option<Vec<GatewayAddress>> {
    let mut services = snapshot.services_at(address).peekable();
    if services.peek().is_some() {
        return Some(distinct(services.flat_map(|service| waypoints_of(service))));
    }
    let workload = snapshot.workload_by_address(address)?;
    Some(workload.waypoint.iter().cloned().collect())
}

/// The namespace that the name of a Kubernetes service says: `<name>.<namespace>.svc.<domain>`.
fn namespace_of<'a>(hostname: &'a str, domain: &str) -> Option<&'a str> {
    let rest = hostname.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = rest.rsplit_once('.')?;
    (!name.is_empty() && !namespace.is_empty()).then_some(namespace)
}

async fn look_for_gateways(node: &Node, namespace: &str, gateways: &[GatewayAddress]) {
    let looking = gateways.iter().map(|gateway| async move {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => drop(look_for_service(node, key).await),
            GatewayDestination::Address(address) => {
                drop(look_for_address(node, namespace, address).await);
            }
        }
    });
    join_all(looking).await;
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
        let endpoints = snapshot.endpoints(&service.key());
        let gateways = endpoints.filter_map(|endpoint| endpoint.network_gateway.clone());
        return Some(distinct(waypoints_of(&service).chain(gateways)));
    }
    let workload = snapshot.workload_by_address(address)?;
    Some(workload.waypoint.iter().cloned().collect())
}

/// The waypoints in front of a service.
fn waypoints_of(service: &Service) -> impl Iterator<Item = GatewayAddress> {
    let weighted = service.weighted_waypoints.iter();
    let weighted = weighted.map(|weighted| &weighted.destination);
    service.waypoint.iter().chain(weighted).cloned()
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
