//! Where a captured connection goes next, as a function of values.

mod address;
mod alias;
mod balance;
mod crossing;
mod locality;
mod named;
mod serving;
mod table;
#[cfg(test)]
mod tests;
mod waypoint;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::gateway::{GatewayAddress, HBONE_PORT};
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::name::{NamespacedHostname, Str, WorkloadUid};
use crate::network::{NetworkAddress, canonical};
use crate::reason::Reason;
use crate::service::{LoadBalancingMode, Service};
use crate::workload::{TunnelProtocol, Workload};
use balance::Purpose;
pub use crossing::Crossing;
pub use named::{Lookup, Named};
pub use serving::Serving;
pub(crate) use table::Tables;

/// The next hop of a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Upstream {
    /// Plain TCP to the original destination: nothing is known of it, or its service asks for that.
    Passthrough,
    /// An endpoint of the service, or the workload, that was addressed.
    Direct(Endpoint),
    /// A waypoint in front of what was addressed.
    Waypoint(Endpoint),
    /// An endpoint, or a waypoint, whose host name has to be looked up first.
    Named(Box<Named>),
    /// The gateway of another network, with a tunnel of its own inside of the one to it.
    Gateway(Box<Crossing>),
}

/// A workload to connect to, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The workload that answers: the destination, or the waypoint.
    pub workload: Arc<Workload>,
    /// The service that was addressed, if one was; also on the way to its waypoint.
    pub service: Option<Arc<Service>>,
    /// How to reach it.
    pub protocol: TunnelProtocol,
    /// Where TCP goes: the HBONE port, or for plain TCP the target port.
    pub dial: SocketAddr,
    /// What CONNECT asks for: pod address and target port; the original destination for a waypoint.
    pub authority: SocketAddr,
    /// The identities the peer may present.
    pub expected: Vec<Identity>,
}

/// Why there is no next hop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUpstream {
    /// No endpoint may be chosen: none there, none healthy, or none serves the port.
    #[error("{service} has no usable endpoint for port {port}")]
    NoHealthyEndpoint {
        /// The service, or the waypoint's service.
        service: NamespacedHostname,
        /// The service port.
        port: u16,
    },
    /// The service does not have the port.
    #[error("{service} has no port {port}")]
    UnknownPort {
        /// The service.
        service: NamespacedHostname,
        /// The port that was asked for.
        port: u16,
    },
    /// A waypoint is named that is not known; it is never passed by.
    #[error("the waypoint {waypoint} of {destination} is not known")]
    WaypointUnavailable {
        /// The waypoint.
        waypoint: GatewayAddress,
        /// What was addressed.
        destination: SocketAddr,
    },
    /// The chosen workload is on another network, and no way leads there.
    #[error("{workload} is on network `{network}` and no gateway leads there")]
    NoGateway {
        /// The workload.
        workload: WorkloadUid,
        /// Its network.
        network: Str,
    },
    /// The chosen workload has a host name only, and it does not resolve to an address that may be used.
    #[error("{workload} has no address, and its host name `{hostname}` is not resolved")]
    NameNotResolved {
        /// The workload.
        workload: WorkloadUid,
        /// The name.
        hostname: Str,
    },
}

impl NoUpstream {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoHealthyEndpoint { .. } | Self::UnknownPort { .. } => Reason::NoHealthyEndpoint,
            Self::WaypointUnavailable { .. } => Reason::WaypointUnavailable,
            Self::NoGateway { .. } => Reason::NoGateway,
            Self::NameNotResolved { .. } => Reason::NameNotResolved,
        }
    }
}

impl Snapshot {
    /// The next hop for a connection of `source` to `original_destination`.
    ///
    /// `random(n)` is uniform in `0..n` and is asked with `n > 0` only. Endpoints in `exclude` were tried before:
    /// they are taken only when nothing else is left.
    pub fn upstream_for(
        &self,
        source: &Workload,
        original_destination: SocketAddr,
        random: &mut dyn FnMut(u64) -> u64,
        exclude: &[WorkloadUid],
    ) -> Result<Upstream, NoUpstream> {
        let destination = canonical(original_destination);
        let address = NetworkAddress::new(source.network.clone(), destination.ip());
        let mut search = Search {
            snapshot: self,
            source,
            destination,
            random,
            exclude,
        };
        if let Some(service) = self.service_by_vip(&source.namespace, &address) {
            search.towards_service(&service)
        } else if let Some(workload) = self.workload_by_address(&address) {
            search.towards_workload(workload)
        } else {
            Ok(Upstream::Passthrough)
        }
    }
}

/// One search for a next hop.
struct Search<'a> {
    snapshot: &'a Snapshot,
    source: &'a Workload,
    /// The original destination, IPv4-mapped addresses made IPv4.
    destination: SocketAddr,
    random: &'a mut dyn FnMut(u64) -> u64,
    exclude: &'a [WorkloadUid],
}

impl Search<'_> {
    fn towards_service(&mut self, service: &Arc<Service>) -> Result<Upstream, NoUpstream> {
        if let Some(waypoint) = self.service_waypoint(service) {
            return self.through(waypoint, Some(service));
        }
        let mode = service.load_balancing.as_ref().map(|balancing| balancing.mode);
        if mode == Some(LoadBalancingMode::Passthrough) {
            return Ok(Upstream::Passthrough);
        }
        let port = self.destination.port();
        if !service.ports.contains_key(&port) {
            return Err(NoUpstream::UnknownPort {
                service: service.key(),
                port,
            });
        }
        let chosen = self.draw(service, port, Purpose::Destination)?;
        if chosen.workload.network != self.source.network {
            return self.across(chosen.workload, service, service);
        }
        let requested = self.destination.ip();
        let address = address::choose(&chosen.workload, requested, service.ip_families);
        let authority = SocketAddr::new(address.unwrap_or(named::UNKNOWN), chosen.target_port);
        let endpoint = Endpoint {
            dial: direct_dial(&chosen.workload, authority),
            protocol: chosen.workload.tunnel_protocol,
            expected: expected(&chosen.workload, Some(service)),
            workload: chosen.workload,
            service: Some(Arc::clone(service)),
            authority,
        };
        Ok(match address {
            Some(_) => Upstream::Direct(endpoint),
            None => Upstream::Named(Box::new(Named::new(
                endpoint,
                service.ip_families,
                requested,
                false,
            ))),
        })
    }

    fn towards_workload(&mut self, workload: Arc<Workload>) -> Result<Upstream, NoUpstream> {
        let waypoint = workload
            .waypoint
            .as_ref()
            .filter(|waypoint| !self.source_is(waypoint));
        if let Some(waypoint) = waypoint {
            return self.through(waypoint, None);
        }
        Ok(Upstream::Direct(Endpoint {
            dial: direct_dial(&workload, self.destination),
            authority: self.destination,
            protocol: workload.tunnel_protocol,
            expected: expected(&workload, None),
            workload,
            service: None,
        }))
    }
}

/// Where TCP goes on the way to this address of a workload.
fn direct_dial(workload: &Workload, authority: SocketAddr) -> SocketAddr {
    match workload.tunnel_protocol {
        TunnelProtocol::Hbone => SocketAddr::new(authority.ip(), HBONE_PORT),
        TunnelProtocol::None => authority,
    }
}

/// The identities a workload may present when it answers for a service.
fn expected(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<Identity> {
    let mut expected = vec![workload.identity()];
    for name in service.iter().flat_map(|service| &service.subject_alt_names) {
        if !expected.contains(name) {
            expected.push(name.clone());
        }
    }
    expected
}
