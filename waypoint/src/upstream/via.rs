//! Endpoints that are not asked for by their own address: instances of a backend's own waypoint, and workloads of other
//! networks, behind their gateways. Each is asked for the service, as any client of this waypoint's identity would.
//!
//! What cannot be reached in this way is no endpoint: nobody is reached past a waypoint or past a gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tulle_identity::Priority;
use tulle_model::gateway::{GatewayAddress, GatewayDestination};
use tulle_model::service::{LoadBalancingMode, Service};
use tulle_model::upstream::Serving;
use tulle_model::waypoint::FrontOf;
use tulle_model::workload::{HealthStatus, TunnelProtocol, Workload};
use tulle_model::{Identity, Snapshot, WorkloadUid};
use tulle_transport::hbone::{ConnectRequest, HboneStream, TunnelKey, client};
use tulle_transport::{Forwarded, OpenError, TraceParent};

use super::connect::Behalf;
use super::dial;
use crate::context::Waypoint;

/// How an endpoint is reached that is asked for the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// The service's own address and port: what connections to it are told apart by.
    pub asked: SocketAddr,
    /// Who may answer.
    pub expected: BTreeSet<Identity>,
    /// What a tunnel is asked for.
    authority: String,
    /// Where the tunnel goes.
    dial: SocketAddr,
    /// Who the gateway may be, where the way leads through one: then there is a second tunnel inside of the first.
    gateway: Option<BTreeSet<Identity>>,
}

/// Who serves a service, and how they are reached.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ways {
    /// Endpoints, each with how it is reached; `None` is at its own address.
    pub all: Vec<(Serving, Option<Arc<Via>>)>,
    /// How the waypoints in front of it share its requests, if there are several: how many of the endpoints are of each,
    /// and its weight.
    pub shares: Vec<(usize, u32)>,
    /// It hangs on more than the service and its own workloads.
    pub is_elsewhere: bool,
}

/// Who serves a port of a service, and how they are reached from here.
#[must_use]
pub fn ways(mesh: &Snapshot, own: &Workload, service: &Service, port: u16) -> Ways {
    let mut ways = Ways::default();
    let waypoints = waypoints(mesh, own, service);
    if !waypoints.is_empty() {
        for (waypoint, weight) in waypoints {
            let through = through_waypoint(mesh, own, service, port, waypoint);
            ways.shares.push((through.len(), weight));
            ways.all.extend(through);
        }
        ways.is_elsewhere = true;
        return ways;
    }
    for one in mesh.serving(own, service, port) {
        if one.workload.network != own.network {
            ways.is_elsewhere = true;
            let via = across(mesh, own, service, port, &one.workload);
            ways.all.extend(via.map(|via| (one, Some(Arc::new(via)))));
        } else if !one.workload.addresses.is_empty() || !one.workload.hostname.is_empty() {
            ways.all.push((one, None));
        }
    }
    if is_passthrough(service) {
        ways.all
            .extend(original(own, service, port).map(|original| (original, None)));
    } else if ways.all.is_empty() && service.hostname.starts_with("*.") {
        ways.all
            .extend(any_host(own, service, port).map(|any| (any, None)));
    }
    ways
}

pub(super) fn is_passthrough(service: &Service) -> bool {
    let balancing = service.load_balancing.as_ref();
    balancing.is_some_and(|balancing| balancing.mode == LoadBalancingMode::Passthrough)
}

/// Stands for every host that a wildcard takes and that nobody has written down: which one is meant, each request says.
fn any_host(own: &Workload, service: &Service, port: u16) -> Option<Serving> {
    let declared = service.ports.get(&port)?;
    let target_port = declared.target_port.unwrap_or(port);
    Some(stand_in(own, service, &service.hostname, target_port))
}

/// Stands for the addresses of a service that has its callers go where they meant to: which one, each of them says.
fn original(own: &Workload, service: &Service, port: u16) -> Option<Serving> {
    let has_any = !service.addresses.is_empty() || !service.cidrs.is_empty();
    let declared = service.ports.contains_key(&port);
    (has_any && declared).then(|| stand_in(own, service, "", port))
}

/// A workload without addresses in the place of what is outside of the mesh.
fn stand_in(own: &Workload, service: &Service, hostname: &str, target_port: u16) -> Serving {
    let workload = Workload {
        uid: WorkloadUid(format!("outside/{}", service.key()).into()),
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        service_account: "default".into(),
        addresses: Vec::new(),
        hostname: hostname.into(),
        tunnel_protocol: TunnelProtocol::None,
        native_tunnel: false,
        waypoint: None,
        authorization_policies: Vec::new(),
        services: BTreeMap::new(),
        workload_name: service.name.clone(),
        canonical_name: service.name.clone(),
        ..own.clone()
    };
    Serving {
        workload: Arc::new(workload),
        target_port,
        rank: 0,
        healthy: true,
    }
}

/// The waypoints in front of a service, with their weights; none if this is one of them, since all of them decide alike.
fn waypoints<'s>(mesh: &Snapshot, own: &Workload, service: &'s Service) -> Vec<(&'s GatewayAddress, u32)> {
    let weighted = || service.weighted_waypoints.iter().map(|one| &one.destination);
    let is_here = mesh.fronts_of(&FrontOf::Service(service.key())).next().is_some()
        || weighted()
            .chain(&service.waypoint)
            .any(|one| mesh.is_instance(own, one));
    if is_here {
        return Vec::new();
    }
    let sharing = service.weighted_waypoints.iter().filter(|one| one.weight > 0);
    let sharing: Vec<_> = sharing.map(|one| (&one.destination, one.weight)).collect();
    if !sharing.is_empty() {
        return sharing;
    }
    // Without weights, the primary.
    let one = service.waypoint.as_ref().or_else(|| weighted().next());
    one.map(|one| (one, 1)).into_iter().collect()
}

fn through_waypoint(
    mesh: &Snapshot,
    own: &Workload,
    service: &Service,
    port: u16,
    waypoint: &GatewayAddress,
) -> Vec<(Serving, Option<Arc<Via>>)> {
    let Some(asked) = address_of(service, own, port) else {
        return Vec::new();
    };
    let instances = instances(mesh, own, waypoint).into_iter();
    let ways = instances.filter_map(|(instance, sans)| {
        let workload = &instance.workload;
        // A waypoint of another network would need both ways at once.
        let ip = workload
            .addresses
            .first()
            .filter(|_| workload.network == own.network)?;
        let via = Via {
            asked,
            expected: std::iter::once(workload.identity()).chain(sans).collect(),
            authority: asked.to_string(),
            dial: SocketAddr::new(*ip, instance.target_port),
            gateway: None,
        };
        Some((instance, Some(Arc::new(via))))
    });
    ways.collect()
}

/// The way to a workload of another network. Who answers there has to be one whom the service names.
fn across(mesh: &Snapshot, own: &Workload, service: &Service, port: u16, to: &Workload) -> Option<Via> {
    let asked = address_of(service, own, port)?;
    let expected: BTreeSet<_> = service.subject_alt_names.iter().cloned().collect();
    if expected.is_empty() {
        return None;
    }
    let (gateway, sans) = instances(mesh, own, to.network_gateway.as_ref()?)
        .into_iter()
        .find(|(gateway, _)| gateway.healthy && !gateway.workload.addresses.is_empty())?;
    let identity = gateway.workload.identity();
    Some(Via {
        asked,
        expected,
        authority: format!("{}:{port}", service.hostname),
        dial: SocketAddr::new(*gateway.workload.addresses.first()?, gateway.target_port),
        gateway: Some(std::iter::once(identity).chain(sans).collect()),
    })
}

/// The instances of a gateway, each with the further identities its service allows.
fn instances(mesh: &Snapshot, own: &Workload, gateway: &GatewayAddress) -> Vec<(Serving, Vec<Identity>)> {
    let port = gateway.hbone_mtls_port;
    let service = match &gateway.destination {
        GatewayDestination::Hostname(key) => mesh.service(key).cloned(),
        GatewayDestination::Address(at) => mesh.service_by_vip(&own.namespace, at),
    };
    if let Some(service) = service {
        let serving = mesh.serving(own, &service, port).into_iter();
        return serving
            .map(|one| (one, service.subject_alt_names.to_vec()))
            .collect();
    }
    let GatewayDestination::Address(at) = &gateway.destination else {
        return Vec::new();
    };
    let found = mesh.workload_by_address(at).into_iter();
    let alone = |workload: Arc<Workload>| Serving {
        target_port: port,
        rank: 0,
        healthy: workload.status == HealthStatus::Healthy,
        workload,
    };
    found.map(|workload| (alone(workload), Vec::new())).collect()
}

fn address_of(service: &Service, own: &Workload, port: u16) -> Option<SocketAddr> {
    let near = service.addresses.iter().find(|vip| vip.network == own.network)?;
    Some(SocketAddr::new(near.address, port))
}

impl Via {
    /// Opens a stream. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, waypoint: &Waypoint, behalf: &Behalf) -> Result<HboneStream, OpenError> {
        let key = TunnelKey {
            source: waypoint.identity.clone(),
            expected: self.gateway.as_ref().unwrap_or(&self.expected).clone(),
            destination: self.dial,
            source_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let request = ConnectRequest {
            authority: self.authority.clone(),
            baggage: behalf.baggage.clone(),
            forwarded: Some(Forwarded {
                client: behalf.client,
                host: behalf.host.clone(),
            }),
            traceparent: Some(TraceParent::random()),
            forwarded_network: None,
            original_source: None,
            hops: behalf.hops,
        };
        let (tunnel, _) = waypoint.upstreams.tunnels.open(&key, &request).await?;
        if self.gateway.is_none() {
            return Ok(tunnel);
        }
        self.inside(waypoint, tunnel, behalf, request).await
    }

    /// The second tunnel, to whoever answers behind the gateway, which forwards it unread.
    async fn inside(
        &self,
        waypoint: &Waypoint,
        tunnel: HboneStream,
        behalf: &Behalf,
        request: ConnectRequest,
    ) -> Result<HboneStream, OpenError> {
        let certificate = waypoint
            .secrets
            .fetch(&waypoint.identity, Priority::Waiting)
            .await;
        let certificate = certificate.map_err(|error| OpenError::Certificate {
            reason: error.reason(),
            detail: error.to_string().into(),
        })?;
        let expected: Vec<Identity> = self.expected.iter().cloned().collect();
        let tls = certificate.client_config(&expected);
        let window = waypoint.config.stream_window;
        let session = client::connect_over(tunnel, self.dial, tls, &dial::settings(window)).await?;
        let peer = session.peer().ok_or(OpenError::GoingAway)?;
        let believed = waypoint.trust.judge(peer, None);
        believed.map_err(|why| OpenError::Certificate {
            reason: why.reason(),
            detail: why.to_string().into(),
        })?;
        let inner = ConnectRequest {
            forwarded_network: Some(waypoint.config.network.to_string()),
            original_source: behalf.source.clone(),
            ..request
        };
        let (stream, _) = session.open(&inner).await?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::testing::{mesh, service, service_key, workload};

    const PORT: u16 = 80;

    fn found(mesh: &Snapshot) -> Vec<(String, Option<(String, String)>)> {
        let own = workload("shop/way").ip("10.0.0.9").build();
        let service = mesh.service(&service_key("shop/db")).unwrap();
        let ways = ways(mesh, &own, service, PORT).all;
        let told = |via: Option<Arc<Via>>| via.map(|via| (via.authority.clone(), via.dial.to_string()));
        ways.into_iter()
            .map(|(one, via)| (one.workload.name.to_string(), told(via)))
            .collect()
    }

    #[test]
    fn a_backend_behind_a_waypoint_is_asked_for_there() {
        let behind = service("shop/db")
            .vip("10.96.0.3")
            .port(PORT, 5432)
            .waypoint("shop/way2");
        let db = workload("shop/db-1").ip("10.0.0.3").hbone().serves("shop/db");
        let waypoint = service("shop/way2").vip("10.96.0.4").port(15008, 15008);
        let instance = workload("shop/way2-1").ip("10.0.0.4").hbone().serves("shop/way2");
        let missing = mesh().with(behind.clone()).with(db.clone()).snapshot();
        assert_eq!(found(&missing), [], "nobody is reached past it");
        let whole = mesh()
            .with(behind)
            .with(db)
            .with(waypoint)
            .with(instance)
            .snapshot();
        let via = ("10.96.0.3:80".to_owned(), "10.0.0.4:15008".to_owned());
        assert_eq!(found(&whole), [("way2-1".to_owned(), Some(via))]);
    }

    #[test]
    fn several_waypoints_share_a_backend_by_their_weights() {
        let behind = |weights: [u32; 2]| {
            let behind = service("shop/db")
                .vip("10.96.0.3")
                .port(PORT, 5432)
                .waypoint("shop/way2");
            behind
                .weighted_waypoint("shop/way2", weights[0])
                .weighted_waypoint("shop/way3", weights[1])
        };
        let shares = |weights| {
            let mut mesh = mesh().with(behind(weights));
            for (name, vip, instances) in [("way2", "10.96.0.4", 2), ("way3", "10.96.0.5", 1)] {
                let service_name = format!("shop/{name}");
                mesh = mesh.with(service(&service_name).vip(vip).port(15008, 15008));
                for n in 0..instances {
                    let ip = format!("10.0.{n}.{}", &vip[8..]);
                    let instance = workload(&format!("{service_name}-{n}")).ip(&ip).hbone();
                    mesh = mesh.with(instance.serves(&service_name));
                }
            }
            let mesh = mesh.snapshot();
            let own = workload("shop/way").ip("10.0.0.9").build();
            let service = mesh.service(&service_key("shop/db")).unwrap();
            let ways = ways(&mesh, &own, service, PORT);
            (ways.all.len(), ways.shares)
        };
        assert_eq!(shares([90, 10]), (3, vec![(2, 90), (1, 10)]));
        assert_eq!(shares([0, 1]), (1, vec![(1, 1)]));
        assert_eq!(shares([0, 0]), (2, vec![(2, 1)]), "the primary");
    }

    #[test]
    fn a_backend_without_a_waypoint_is_reached_itself() {
        let mesh = mesh()
            .with(service("shop/db").vip("10.96.0.3").port(PORT, 5432))
            .with(workload("shop/db-1").ip("10.0.0.3").hbone().serves("shop/db"))
            .snapshot();
        assert_eq!(found(&mesh), [("db-1".to_owned(), None)]);
    }
}
