//! The way to another network: a tunnel to its gateway, and inside of that one to whoever answers there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Chosen, Purpose};
use super::{NoUpstream, Search, Upstream, address, expected};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::identity::Identity;
use crate::service::Service;
use crate::workload::Workload;

/// A way across networks. Both tunnels ask for the service by name; the gateway forwards the inner one unread.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossing {
    /// The gateway.
    pub gateway: Arc<Workload>,
    /// Where TCP goes.
    pub dial: SocketAddr,
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
        let (instance, address, found_through) = self.entry(gateway)?.ok_or_else(no_gateway)?;
        Ok(Upstream::Gateway(Box::new(Crossing {
            dial: SocketAddr::new(address, instance.target_port),
            gateway_identities: expected(&instance.workload, found_through.as_ref()),
            gateway: instance.workload,
            service: Arc::clone(service),
            port: self.destination.port(),
            expected: answers.subject_alt_names.clone(),
            workload,
        })))
    }

    /// One instance of a network gateway, its address, and the service it was found through. It is dialled
    /// directly, whatever network it is described in.
    #[expect(
        clippy::type_complexity,
        reason = "three parts of one answer, taken apart at once"
    )]
    fn entry(
        &mut self,
        gateway: &GatewayAddress,
    ) -> Result<Option<(Chosen, IpAddr, Option<Arc<Service>>)>, NoUpstream> {
        let port = gateway.hbone_mtls_port;
        let (service, requested) = match &gateway.destination {
            GatewayDestination::Hostname(key) => (self.snapshot.service(key).cloned(), self.destination.ip()),
            GatewayDestination::Address(at) => {
                let service = self.snapshot.service_by_vip(&self.source.namespace, at);
                (service, at.address)
            }
        };
        if let Some(service) = service {
            let chosen = self.draw(&service, port, Purpose::Gateway)?;
            let unresolved = || NoUpstream::NameNotResolved {
                workload: chosen.workload.uid.clone(),
                hostname: chosen.workload.hostname.clone(),
            };
            let address = address::choose(&chosen.workload, requested, service.ip_families);
            let address = address.ok_or_else(unresolved)?;
            return Ok(Some((chosen, address, Some(service))));
        }
        let GatewayDestination::Address(at) = &gateway.destination else {
            return Ok(None);
        };
        let found = self.snapshot.workload_by_address(at);
        Ok(found.map(|workload| {
            let chosen = Chosen {
                workload,
                target_port: port,
            };
            (chosen, at.address, None)
        }))
    }
}
