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
