//! The way through a waypoint: which one, by which endpoint, and never in a circle.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Chosen, Purpose};
use super::{Endpoint, Named, NoUpstream, Search, Upstream, address, expected, named};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::mesh::Snapshot;
use crate::network::NetworkAddress;
use crate::service::{IpFamilies, Service};
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
        let (chosen, requested, waypoint_service) = self.instance(gateway)?;
        if chosen.workload.network != self.source.network {
            let Some(service) = service else {
                return Err(NoUpstream::NoGateway {
                    network: chosen.workload.network.clone(),
                    workload: chosen.workload.uid.clone(),
                });
            };
            let answers = waypoint_service.as_ref().unwrap_or(service);
            return self.across(chosen.workload, service, answers);
        }
        let families = waypoint_service
            .as_ref()
            .map_or(IpFamilies::Automatic, |service| service.ip_families);
        let address = address::choose(&chosen.workload, requested, families);
        let endpoint = Endpoint {
            dial: SocketAddr::new(address.unwrap_or(named::UNKNOWN), chosen.target_port),
            authority: self.destination,
            protocol: TunnelProtocol::Hbone,
            expected: expected(&chosen.workload, waypoint_service.as_ref()),
            workload: chosen.workload,
            service: service.cloned(),
        };
        Ok(match address {
            Some(_) => Upstream::Waypoint(endpoint),
            None => Upstream::Named(Box::new(Named::new(endpoint, families, requested, true))),
        })
    }

    /// One instance of a waypoint, the address it is asked for by, and the service it was found through.
    fn instance(
        &mut self,
        gateway: &GatewayAddress,
    ) -> Result<(Chosen, IpAddr, Option<Arc<Service>>), NoUpstream> {
        let port = gateway.hbone_mtls_port;
        let unavailable = || NoUpstream::WaypointUnavailable {
            waypoint: gateway.clone(),
            destination: self.destination,
        };
        let (service, requested) = match &gateway.destination {
            GatewayDestination::Hostname(key) => {
                let service = self.snapshot.service(key).ok_or_else(unavailable)?;
                (Some(Arc::clone(service)), self.destination.ip())
            }
            GatewayDestination::Address(at) => {
                let service = self.snapshot.service_by_vip(&self.source.namespace, at);
                (service, at.address)
            }
        };
        if let Some(service) = service {
            let chosen = self.draw(&service, port, Purpose::Waypoint)?;
            return Ok((chosen, requested, Some(service)));
        }
        let GatewayDestination::Address(at) = &gateway.destination else {
            return Err(unavailable());
        };
        let workload = self.snapshot.workload_by_address(at).ok_or_else(unavailable)?;
        let chosen = Chosen {
            workload,
            target_port: port,
        };
        Ok((chosen, requested, None))
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
