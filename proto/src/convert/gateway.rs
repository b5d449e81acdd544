//! Waypoints and network gateways, and the addresses they and services are reached at.

use tulle_model::gateway::{GatewayAddress, GatewayDestination, HBONE_PORT, WeightedWaypoint};
use tulle_model::network::NetworkCidr;
use tulle_model::{NamespacedHostname, NetworkAddress};

use super::{Cause, Flaw, ip, ip_net, octets, port, required};
use crate::workload as wire;
use crate::workload::gateway_address::Destination;

/// A host or a range: which one, the optional length says.
pub(crate) enum Vip {
    Host(NetworkAddress),
    Range(NetworkCidr),
}

pub(crate) fn vip(address: wire::NetworkAddress) -> Result<Vip, Flaw> {
    let host = ip(&address.address).map_err(|flaw| flaw.within("address"))?;
    let Some(length) = address.length else {
        return Ok(Vip::Host(NetworkAddress::new(address.network, host)));
    };
    let cidr = ip_net(&address.address, length)?;
    if cidr.prefix_len() == cidr.max_prefix_len() {
        return Ok(Vip::Host(NetworkAddress::new(address.network, host)));
    }
    Ok(Vip::Range(NetworkCidr {
        network: address.network.into(),
        cidr,
    }))
}

pub(crate) fn gateway(address: wire::GatewayAddress) -> Result<GatewayAddress, Flaw> {
    let destination = match address.destination {
        Some(Destination::Hostname(name)) => {
            GatewayDestination::Hostname(hostname(name).map_err(|flaw| flaw.within("hostname"))?)
        }
        Some(Destination::Address(address)) => {
            GatewayDestination::Address(one_address(address).map_err(|flaw| flaw.within("address"))?)
        }
        None => return Err(Flaw::new("destination", Cause::Unset)),
    };
    let hbone_mtls_port = match port("hbone_mtls_port", address.hbone_mtls_port)? {
        0 => HBONE_PORT,
        number => number,
    };
    Ok(GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}

/// An absent gateway is fine, a broken one is not.
pub(crate) fn optional_gateway(
    field: &str,
    address: Option<wire::GatewayAddress>,
) -> Result<Option<GatewayAddress>, Flaw> {
    address
        .map(gateway)
        .transpose()
        .map_err(|flaw| flaw.within(field))
}

pub(crate) fn weighted(waypoint: wire::WeightedWaypoint) -> Result<WeightedWaypoint, Flaw> {
    let destination = optional_gateway("destination", waypoint.destination)?
        .ok_or_else(|| Flaw::new("destination", Cause::Unset))?;
    Ok(WeightedWaypoint {
        destination,
        weight: waypoint.weight,
    })
}

fn hostname(name: wire::NamespacedHostname) -> Result<NamespacedHostname, Flaw> {
    let namespace = required("namespace", name.namespace)?;
    Ok(NamespacedHostname {
        namespace,
        hostname: required("hostname", name.hostname)?,
    })
}

fn one_address(address: wire::NetworkAddress) -> Result<NetworkAddress, Flaw> {
    match vip(address)? {
        Vip::Host(address) => Ok(address),
        Vip::Range(_) => Err(Flaw::new("length", Cause::NotOneAddress)),
    }
}

impl From<&GatewayAddress> for wire::GatewayAddress {
    fn from(gateway: &GatewayAddress) -> Self {
        let destination = match &gateway.destination {
            GatewayDestination::Hostname(name) => Destination::Hostname(name.into()),
            GatewayDestination::Address(address) => Destination::Address(address.into()),
        };
        Self {
            destination: Some(destination),
            hbone_mtls_port: gateway.hbone_mtls_port.into(),
        }
    }
}

impl From<&WeightedWaypoint> for wire::WeightedWaypoint {
    fn from(waypoint: &WeightedWaypoint) -> Self {
        Self {
            destination: Some((&waypoint.destination).into()),
            weight: waypoint.weight,
        }
    }
}

impl From<&NamespacedHostname> for wire::NamespacedHostname {
    fn from(name: &NamespacedHostname) -> Self {
        Self {
            namespace: name.namespace.as_ref().into(),
            hostname: name.hostname.as_ref().into(),
        }
    }
}

/// Without a length: older peers know no other form of a host.
impl From<&NetworkAddress> for wire::NetworkAddress {
    fn from(address: &NetworkAddress) -> Self {
        Self {
            network: address.network.as_ref().into(),
            address: octets(address.address),
            length: None,
        }
    }
}

impl From<&NetworkCidr> for wire::NetworkAddress {
    fn from(range: &NetworkCidr) -> Self {
        Self {
            network: range.network.as_ref().into(),
            address: octets(range.cidr.network()),
            length: Some(range.cidr.prefix_len().into()),
        }
    }
}
