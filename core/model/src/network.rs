//! Addresses that carry the network they are valid in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::name::Str;

/// An IP address within a network. Two clusters may use one address twice, in different networks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NetworkAddress {
    /// Network id; empty is the default network.
    pub network: Str,
    /// The address; never an IPv4-mapped IPv6 address.
    pub address: IpAddr,
}

impl NetworkAddress {
    /// Puts an address into a network; an IPv4-mapped IPv6 address becomes IPv4.
    pub fn new(network: impl Into<Str>, address: IpAddr) -> Self {
        Self {
            network: network.into(),
            address: address.to_canonical(),
        }
    }
}

/// Written as on the wire: `<network>/<ip>`, so the default network gives `/10.0.0.1`.
impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// An address range within a network: a service that owns a CIDR instead of single addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NetworkCidr {
    /// Network id; empty is the default network.
    pub network: Str,
    /// The range.
    pub cidr: IpNet,
}

/// Written as on the wire: `<network>/<ip>/<prefix>`.
impl fmt::Display for NetworkCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.cidr)
    }
}

/// IPv4-mapped IPv6 is treated as IPv4 everywhere (dual-stack sockets report it).
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
