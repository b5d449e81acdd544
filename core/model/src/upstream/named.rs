//! A next hop that is known by its host name only, until somebody looks it up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Endpoint, Upstream, address, direct_dial};
use crate::name::{Str, WorkloadUid};
use crate::service::IpFamilies;
use crate::workload::Workload;

/// The host name of a workload that has no address, and which of its addresses will do.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// Whose it is.
    pub workload: WorkloadUid,
    /// What is to be looked up.
    pub hostname: Str,
    /// Whether an IPv4 address is preferred: the caller's family is kept where possible.
    pub prefers_ipv4: bool,
    /// Which addresses may be used at all.
    families: IpFamilies,
}

impl Lookup {
    pub(super) fn new(workload: &Workload, families: IpFamilies, requested: IpAddr) -> Self {
        Self {
            workload: workload.uid.clone(),
            hostname: workload.hostname.clone(),
            prefers_ipv4: requested.is_ipv4(),
            families,
        }
    }

    /// Whether an address of the name may be used.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        address::allows(self.families, address)
    }
}

/// A next hop without an address.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// What is to be looked up.
    pub lookup: Lookup,
    /// All else; its addresses say nothing yet.
    endpoint: Endpoint,
    /// A waypoint is asked for the original destination, which is known.
    is_waypoint: bool,
}

/// Stands for the address that is not known.
pub(super) const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl Named {
    pub(super) fn new(
        endpoint: Endpoint,
        families: IpFamilies,
        requested: IpAddr,
        is_waypoint: bool,
    ) -> Self {
        Self {
            lookup: Lookup::new(&endpoint.workload, families, requested),
            endpoint,
            is_waypoint,
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The next hop, now that an address of the name is known.
    #[must_use]
    pub fn at(self, address: IpAddr) -> Upstream {
        let mut endpoint = self.endpoint;
        if self.is_waypoint {
            endpoint.dial = SocketAddr::new(address, endpoint.dial.port());
            return Upstream::Waypoint(endpoint);
        }
        endpoint.authority = SocketAddr::new(address, endpoint.authority.port());
        endpoint.dial = direct_dial(&endpoint.workload, endpoint.authority);
        Upstream::Direct(endpoint)
    }
}
