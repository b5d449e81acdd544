//! The way to another network: a tunnel to its gateway, and inside of that one to whoever answers there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Chosen, Purpose};
use super::{Lookup, NoUpstream, Search, Upstream, address, expected, named};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::identity::Identity;
use crate::service::Service;
use crate::workload::Workload;

/// A way across networks. Both tunnels ask for the service by name; the gateway forwards the inner one unread.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossing {
    /// The gateway.
    pub gateway: Arc<Workload>,
    /// Where TCP goes; the address says nothing while there is a [`Self::lookup`].
    pub dial: SocketAddr,
    /// What has to be looked up first, where the gateway has a host name only.
    pub lookup: Option<Lookup>,
    /// The identities the gateway may present.
    pub gateway_identities: Vec<Identity>,
    /// The workload that was chosen on the other network: an endpoint, a waypoint, or what stands for all of them.
    pub workload: Arc<Workload>,
    /// The service that was addressed.
    pub service: Arc<Service>,
    /// The service port that was addressed.
    pub port: u16,
    /// The identities the far end may present: those its service names.
    pub expected: Vec<Identity>,
}

impl Crossing {
    /// What both tunnels ask for.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.service.hostname, self.port)
    }

    /// The same, now that an address of the gateway is known.
    #[must_use]
    pub fn at(self, address: IpAddr) -> Self {
        Self {
            dial: SocketAddr::new(address, self.dial.port()),
            lookup: None,
            ..self
        }
    }
}

/// One instance of a network gateway.
struct Entry {
    instance: Chosen,
    /// Where it is, or how to find out.
    address: Result<IpAddr, Lookup>,
    /// The service it was found through.
    service: Option<Arc<Service>>,
}

impl Search<'_> {
    /// The way to a workload on another network. `answers` is the service whose names the far end may present.
    pub(super) fn across(
        &mut self,
        workload: Arc<Workload>,
        service: &Arc<Service>,
        answers: &Service,
    ) -> Result<Upstream, NoUpstream> {
        let no_gateway = || NoUpstream::NoGateway {
            workload: workload.uid.clone(),
            network: workload.network.clone(),
        };
        let gateway = workload.network_gateway.as_ref().ok_or_else(no_gateway)?;
        let entry = self.entry(gateway)?.ok_or_else(no_gateway)?;
        let at = entry.address.as_ref().map_or(named::UNKNOWN, |address| *address);
        let gateway = entry.instance;
        Ok(Upstream::Gateway(Box::new(Crossing {
            dial: SocketAddr::new(at, gateway.target_port),
            lookup: entry.address.err(),
            gateway_identities: expected(&gateway.workload, entry.service.as_ref()),
            gateway: gateway.workload,
            service: Arc::clone(service),
            port: self.destination.port(),
            expected: answers.subject_alt_names.clone(),
            workload,
        })))
    }

    /// One instance of a gateway. It is dialled directly, whatever network it is described in.
    fn entry(&mut self, gateway: &GatewayAddress) -> Result<Option<Entry>, NoUpstream> {
        let port = gateway.hbone_mtls_port;
        let (service, requested) = match &gateway.destination {
            GatewayDestination::Hostname(key) => (self.snapshot.service(key).cloned(), self.destination.ip()),
            GatewayDestination::Address(at) => {
                let service = self.snapshot.service_by_vip(&self.source.namespace, at);
                (service, at.address)
            }
        };
        if let Some(service) = service {
            let instance = self.draw(&service, port, Purpose::Gateway)?;
            let address = address::choose(&instance.workload, requested, service.ip_families);
            let lookup = || Lookup::new(&instance.workload, service.ip_families, requested);
            return Ok(Some(Entry {
                address: address.ok_or_else(lookup),
                instance,
                service: Some(service),
            }));
        }
        let GatewayDestination::Address(at) = &gateway.destination else {
            return Ok(None);
        };
        let found = self.snapshot.workload_by_address(at);
        Ok(found.map(|workload| Entry {
            instance: Chosen {
                workload,
                target_port: port,
            },
            address: Ok(at.address),
            service: None,
        }))
    }
}
