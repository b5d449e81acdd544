//! Which port of this workload a tunnel leads to, and whether it may ask for it.

mod authority;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use authority::{AUTHORITY_LENGTH_MAX, Authority, InvalidAuthority};

use crate::gateway::GatewayAddress;
use crate::mesh::Snapshot;
use crate::network::{NetworkAddress, canonical};
use crate::reason::Reason;
use crate::service::Service;
use crate::workload::Workload;

impl Snapshot {
    /// The address to connect to for a CONNECT with this authority on a connection to `connection_dst`.
    ///
    /// The address is always the connection's own; only the port is resolved. An application tunnel's port
    /// replaces it. Whether the result is a port of the proxy itself is for the caller to refuse.
    pub fn inbound_target(
        &self,
        local: &Workload,
        connection_dst: SocketAddr,
        authority: &Authority,
    ) -> Result<SocketAddr, Reason> {
        let own = canonical(connection_dst).ip();
        let port = match authority {
            Authority::Ip(asked) => {
                let asked = canonical(*asked);
                let tunnelled = local.application_tunnel.is_some();
                if asked.ip() != own && !tunnelled && !self.stands_in_front(local, asked) {
                    return Err(Reason::WrongDestination);
                }
                asked.port()
            }
            Authority::Host { hostname, port } => {
                let service = self.named(local, hostname).ok_or(Reason::NameNotResolved)?;
                target_port(local, &service, *port).ok_or(Reason::UnknownPort)?
            }
        };
        let replaced = local.application_tunnel.as_ref().and_then(|tunnel| tunnel.port);
        Ok(SocketAddr::new(own, replaced.unwrap_or(port)))
    }

    /// Whether `local` is a waypoint of what owns this address.
    fn stands_in_front(&self, local: &Workload, asked: SocketAddr) -> bool {
        let address = NetworkAddress::new(local.network.clone(), asked.ip());
        let is_own = |gateway: &GatewayAddress| self.is_instance(local, gateway);
        let fronts_service = self.services_at(&address).any(|service| {
            service.waypoint.iter().any(is_own)
                || service
                    .weighted_waypoints
                    .iter()
                    .any(|one| is_own(&one.destination))
        });
        fronts_service
            || self
                .workload_by_address(&address)
                .is_some_and(|workload| workload.waypoint.as_ref().is_some_and(is_own))
    }

    /// The service a host name means here: one that this workload serves, before any other.
    fn named(&self, local: &Workload, hostname: &str) -> Option<std::sync::Arc<Service>> {
        let served = local.services.keys().filter(|key| *key.hostname == *hostname);
        let served = served.filter_map(|key| self.service(key));
        let own = served.min_by_key(|service| (service.namespace != local.namespace, !service.canonical));
        own.cloned()
            .or_else(|| self.service_by_hostname(&local.namespace, hostname))
    }
}

/// The endpoint's own mapping, else the service's numeric target port.
fn target_port(local: &Workload, service: &Service, port: u16) -> Option<u16> {
    let own = local
        .services
        .get(&service.key())
        .and_then(|ports| ports.get(&port))
        .copied();
    own.or_else(|| service.ports.get(&port).and_then(|found| found.target_port))
}
