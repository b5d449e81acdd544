//! Where a captured connection goes next. Pure: the model decides, this names the ways a node proxy has.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tulle_model::mesh::Snapshot;
use tulle_model::upstream::{Crossing, Endpoint, Lookup, Named, Upstream};
use tulle_model::workload::TunnelProtocol;
use tulle_model::{Service, Workload, WorkloadUid};

use crate::config::Ports;
use crate::error::Error;

/// The way of one attempt.
#[derive(Debug, Clone)]
pub enum Plan {
    /// TCP to where the application wanted to go: nothing is known of it.
    Passthrough(SocketAddr),
    /// TCP to a workload that does not speak HBONE.
    Plain(Endpoint),
    /// A tunnel to a workload, or to the waypoint in front of it.
    Tunnel(Endpoint),
    /// A tunnel to the gateway of another network, and another one inside of it.
    Crossing(Box<Crossing>),
    /// A workload whose host name has to be looked up first.
    Named(Box<Named>),
}

impl Plan {
    /// The endpoint of this network that was chosen, if one was.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Passthrough(_) | Self::Crossing(_) => None,
            Self::Plain(endpoint) | Self::Tunnel(endpoint) => Some(endpoint),
            Self::Named(named) => Some(named.endpoint()),
        }
    }

    /// The workload that was chosen, on whatever network, if one was.
    #[must_use]
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Crossing(crossing) => Some(&crossing.workload),
            other => other.endpoint().map(|endpoint| &endpoint.workload),
        }
    }

    /// The service that was addressed, if one was.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Crossing(crossing) => Some(&crossing.service),
            other => other.endpoint()?.service.as_ref(),
        }
    }

    /// What a tunnel asks for, where there is one.
    #[must_use]
    pub fn authority(&self) -> Option<String> {
        match self {
            Self::Tunnel(endpoint) => Some(endpoint.authority.to_string()),
            Self::Crossing(crossing) => Some(crossing.authority()),
            Self::Passthrough(_) | Self::Plain(_) | Self::Named(_) => None,
        }
    }

    /// The plan for a next hop.
    fn of(upstream: Upstream, destination: SocketAddr) -> Self {
        match upstream {
            Upstream::Passthrough => Self::Passthrough(destination),
            Upstream::Direct(endpoint) if endpoint.protocol == TunnelProtocol::None => Self::Plain(endpoint),
            Upstream::Direct(endpoint) | Upstream::Waypoint(endpoint) => Self::Tunnel(endpoint),
            Upstream::Gateway(crossing) => Self::Crossing(crossing),
            Upstream::Named(named) => Self::Named(named),
        }
    }

    /// The plan, now that an address of its host name is known. Others have one already.
    #[must_use]
    pub fn at(self, address: IpAddr) -> Self {
        match self {
            Self::Named(named) => Self::of(named.at(address), SocketAddr::new(address, 0)),
            Self::Crossing(crossing) => Self::Crossing(Box::new(crossing.at(address))),
            other => other,
        }
    }

    /// The host name that has to be looked up before anything can be dialled.
    #[must_use]
    pub fn lookup(&self) -> Option<&Lookup> {
        match self {
            Self::Named(named) => Some(&named.lookup),
            Self::Crossing(crossing) => crossing.lookup.as_ref(),
            Self::Passthrough(_) | Self::Plain(_) | Self::Tunnel(_) => None,
        }
    }

    /// Where TCP goes.
    #[must_use]
    pub fn next_hop(&self) -> SocketAddr {
        match self {
            Self::Passthrough(destination) => *destination,
            Self::Plain(endpoint) | Self::Tunnel(endpoint) => endpoint.dial,
            Self::Crossing(crossing) => crossing.dial,
            Self::Named(named) => named.endpoint().dial,
        }
    }
}

/// Plans one attempt. `random` gives uniform numbers below its argument; workloads in `tried` come last.
///
/// # Errors
/// When the connection must be refused, with the reason.
pub fn plan(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    random: &mut dyn FnMut(u64) -> u64,
    tried: &[WorkloadUid],
) -> Result<Plan, Error> {
    let upstream = snapshot.upstream_for(source, destination, random, tried);
    Ok(Plan::of(upstream?, destination))
}

/// A call to a port of this proxy on loopback would come back to it for ever.
///
/// # Errors
/// `self_call`.
pub fn refuse_self_call(destination: SocketAddr, ports: &Ports) -> Result<(), Error> {
    if destination.ip().is_loopback() && ports.is_own(destination.port()) {
        return Err(Error::SelfCall(destination));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::Reason;
    use tulle_model::testing::{MeshBuilder, mesh, service, workload};

    /// What `web` does towards a destination.
    fn planned(mesh: MeshBuilder, destination: &str) -> Result<Plan, Error> {
        let web = workload("shop/web").ip("10.0.0.1").hbone().build();
        plan(
            &mesh.snapshot(),
            &web,
            destination.parse().unwrap(),
            &mut |_| 0,
            &[],
        )
    }

    #[test]
    fn what_is_not_known_is_passed_through() {
        let plan = planned(mesh(), "192.0.2.1:443").unwrap();
        assert!(matches!(plan, Plan::Passthrough(to) if to.to_string() == "192.0.2.1:443"));
    }

    #[test]
    fn a_captured_workload_is_reached_by_tunnel() {
        let mesh = mesh().with(workload("shop/db").ip("10.0.0.2").hbone());
        let plan = planned(mesh, "10.0.0.2:5432").unwrap();
        assert!(matches!(plan, Plan::Tunnel(_)), "{plan:?}");
        assert_eq!(plan.next_hop().to_string(), "10.0.0.2:15008");
        assert_eq!(plan.endpoint().unwrap().authority.to_string(), "10.0.0.2:5432");
    }

    #[test]
    fn a_workload_without_tunnel_is_reached_by_tcp() {
        let mesh = mesh().with(workload("shop/old").ip("10.0.0.3"));
        let plan = planned(mesh, "10.0.0.3:80").unwrap();
        assert!(matches!(plan, Plan::Plain(_)), "{plan:?}");
        assert_eq!(plan.next_hop().to_string(), "10.0.0.3:80");
    }

    #[test]
    fn a_service_leads_to_the_target_port_of_an_endpoint() {
        let mesh = mesh()
            .with(service("shop/db").vip("10.1.0.1").port(80, 5432))
            .with(workload("shop/db").ip("10.0.0.2").hbone().serves("shop/db"));
        let plan = planned(mesh, "10.1.0.1:80").unwrap();
        assert_eq!(plan.endpoint().unwrap().authority.to_string(), "10.0.0.2:5432");
    }

    #[test]
    fn a_service_without_endpoint_is_refused() {
        let mesh = mesh().with(service("shop/db").vip("10.1.0.1").port(80, 5432));
        let error = planned(mesh, "10.1.0.1:80").unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NoHealthyEndpoint));
    }

    #[test]
    fn only_own_ports_on_loopback_are_calls_to_oneself() {
        let refused = |to: &str| refuse_self_call(to.parse().unwrap(), &Ports::DEFAULT).is_err();
        assert!(refused("127.0.0.1:15001") && refused("[::1]:15008"));
        assert!(!refused("127.0.0.1:8080") && !refused("10.0.0.1:15001"));
    }
}
