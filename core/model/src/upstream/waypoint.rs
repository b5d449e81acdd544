//! The way through a waypoint: which one, by which endpoint, and never in a circle.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{Chosen, Purpose};
use super::{Endpoint, NoUpstream, Search, Upstream, expected};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::mesh::Snapshot;
use crate::network::NetworkAddress;
use crate::service::Service;
use crate::workload::{TunnelProtocol, Workload};

impl Search<'_> {
    /// The waypoint for this connection to a service, if the service has one and the source is none of them.
    pub(super) fn service_waypoint<'s>(&mut self, service: &'s Service) -> Option<&'s GatewayAddress> {
        let weighted = || service.weighted_waypoints.iter();
        if weighted()
            .map(|one| &one.destination)
            .chain(&service.waypoint)
            .any(|one| self.source_is(one))
        {
            return None;
        }
        let total: u64 = weighted().map(|one| u64::from(one.weight)).sum();
        if total == 0 {
            return service.waypoint.as_ref();
        }
        let mut drawn = (self.random)(total);
        let sampled = weighted().find(|one| {
            let share = u64::from(one.weight);
            let holds = drawn < share;
            drawn = drawn.saturating_sub(share);
            holds
        });
        sampled.map(|one| &one.destination)
    }

    /// Whether the source is an instance of this waypoint.
    pub(super) fn source_is(&self, gateway: &GatewayAddress) -> bool {
        self.snapshot.is_instance(self.source, gateway)
    }

    /// HBONE to the waypoint, which is asked for the original destination.
    pub(super) fn through(
        &mut self,
        gateway: &GatewayAddress,
        service: Option<&Arc<Service>>,
    ) -> Result<Upstream, NoUpstream> {
        let (chosen, waypoint_service) = self.instance(gateway)?;
        Ok(Upstream::Waypoint(Endpoint {
            dial: SocketAddr::new(chosen.address, chosen.target_port),
            authority: self.destination,
            protocol: TunnelProtocol::Hbone,
            expected: expected(&chosen.workload, waypoint_service.as_ref()),
            workload: chosen.workload,
            service: service.cloned(),
        }))
    }

    /// One instance of a waypoint, and the service it was found through.
    fn instance(&mut self, gateway: &GatewayAddress) -> Result<(Chosen, Option<Arc<Service>>), NoUpstream> {
        let port = gateway.hbone_mtls_port;
        let unavailable = || NoUpstream::WaypointUnavailable {
            waypoint: gateway.clone(),
            destination: self.destination,
        };
        let service = match &gateway.destination {
            GatewayDestination::Hostname(key) => {
                Some(Arc::clone(self.snapshot.service(key).ok_or_else(unavailable)?))
            }
            GatewayDestination::Address(address) => {
                self.snapshot.service_by_vip(&self.source.namespace, address)
            }
        };
        if let Some(service) = service {
            let chosen = self.choose(&service, port, Purpose::Waypoint)?;
            return Ok((chosen, Some(service)));
        }
        let GatewayDestination::Address(address) = &gateway.destination else {
            return Err(unavailable());
        };
        let workload = self
            .snapshot
            .workload_by_address(address)
            .ok_or_else(unavailable)?;
        if workload.network != self.source.network {
            let network = workload.network.clone();
            return Err(NoUpstream::NoGateway {
                workload: workload.uid.clone(),
                network,
            });
        }
        Ok((
            Chosen {
                workload,
                address: address.address,
                target_port: port,
            },
            None,
        ))
    }
}

impl Snapshot {
    /// Whether a workload is an instance of a gateway: an endpoint of its service, or the owner of its address.
    #[must_use]
    pub fn is_instance(&self, workload: &Workload, gateway: &GatewayAddress) -> bool {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => workload.services.contains_key(key),
            GatewayDestination::Address(address) => {
                owns(workload, address)
                    || self
                        .services_at(address)
                        .any(|service| workload.services.contains_key(&service.key()))
            }
        }
    }

    /// The instance of a gateway that owns an address.
    pub(crate) fn gateway_instance_at(
        &self,
        gateway: &GatewayAddress,
        address: &NetworkAddress,
    ) -> Option<Arc<Workload>> {
        let mut services = Vec::new();
        match &gateway.destination {
            GatewayDestination::Hostname(key) => services.push(key.clone()),
            GatewayDestination::Address(own) if own == address => return self.workload_by_address(address),
            GatewayDestination::Address(own) => services.extend(self.services_at(own).map(|one| one.key())),
        }
        services
            .iter()
            .find_map(|key| self.endpoints(key).find(|workload| owns(workload, address)))
    }
}

fn owns(workload: &Workload, address: &NetworkAddress) -> bool {
    workload.network == address.network
        && workload
            .addresses
            .iter()
            .any(|own| own.to_canonical() == address.address)
}
