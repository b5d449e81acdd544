//! Where a captured connection goes next. Pure: the model decides, this names the ways a node proxy has.

use std::net::SocketAddr;

use tulle_model::mesh::Snapshot;
use tulle_model::upstream::{Endpoint, Upstream};
use tulle_model::workload::TunnelProtocol;
use tulle_model::{Workload, WorkloadUid};

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
}

impl Plan {
    /// The chosen workload, if one was chosen.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Passthrough(_) => None,
            Self::Plain(endpoint) | Self::Tunnel(endpoint) => Some(endpoint),
        }
    }

    /// Where TCP goes.
    #[must_use]
    pub fn next_hop(&self) -> SocketAddr {
        match self {
            Self::Passthrough(destination) => *destination,
            Self::Plain(endpoint) | Self::Tunnel(endpoint) => endpoint.dial,
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
    Ok(match upstream? {
        Upstream::Passthrough => Plan::Passthrough(destination),
        Upstream::Direct(endpoint) if endpoint.protocol == TunnelProtocol::None => Plan::Plain(endpoint),
        Upstream::Direct(endpoint) | Upstream::Waypoint(endpoint) => Plan::Tunnel(endpoint),
    })
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
