//! Ports: what a service port means, and where it leads at one endpoint.

use tulle_model::service::AppProtocol;
use tulle_model::workload::PortMapping;

use crate::api::core::{Container, EndpointSlice, IntOrName, NamedPorts, Pod, Service, ServicePort};
use crate::api::networking::ServiceEntry;

/// Whether a port carries TCP, which is what an empty protocol means.
pub(super) fn is_tcp(protocol: &str) -> bool {
    protocol.is_empty() || protocol.eq_ignore_ascii_case("tcp")
}

/// Whether a protocol of a service entry runs over TCP; there the application's protocol stands in its place.
pub(super) fn is_over_tcp(protocol: &str) -> bool {
    !protocol.eq_ignore_ascii_case("udp")
}

/// The application's protocol: as declared, else by the first part of the port's name.
#[must_use]
pub fn app_protocol(declared: &str, name: &str) -> AppProtocol {
    let word = if declared.is_empty() {
        name.split('-').next().unwrap_or_default()
    } else {
        declared
    };
    match word.to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// The target port of a service port, if it has the same number at every endpoint.
#[must_use]
pub fn fixed_target(port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        None | Some(IntOrName::Number(0)) => Some(port.port),
        Some(IntOrName::Number(number)) => Some(*number),
        Some(IntOrName::Name(_)) => None,
    }
}

/// The TCP ports of a service.
fn tcp_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service
        .spec
        .ports
        .iter()
        .filter(|port| is_tcp(&port.protocol) && port.port != 0)
}

/// Where a service's ports lead at an endpoint that resolves names with `named`. What does not resolve is left out.
fn mapping(service: &Service, named: impl Fn(&str) -> Option<u16>) -> PortMapping {
    let target = |port: &ServicePort| match &port.target_port {
        Some(IntOrName::Name(name)) => named(name),
        _ => fixed_target(port),
    };
    tcp_ports(service)
        .filter_map(|port| target(port).map(|target| (port.port, target)))
        .collect()
}

/// Where a service's ports lead at a pod.
#[must_use]
pub fn at_pod(service: &Service, pod: &Pod) -> PortMapping {
    let sidecars = pod
        .spec
        .init_containers
        .iter()
        .filter(|container| &*container.restart_policy == "Always");
    let containers: Vec<&Container> = pod.spec.containers.iter().chain(sidecars).collect();
    mapping(service, |name| {
        let ports = containers.iter().flat_map(|container| &container.ports);
        let mut ports = ports.filter(|port| is_tcp(&port.protocol) && port.container_port != 0);
        ports
            .find(|port| &*port.name == name)
            .map(|port| port.container_port)
    })
}

/// Where a service's ports lead at a workload entry: names are looked up in its own ports.
#[must_use]
pub fn at_entry(service: &Service, ports: &NamedPorts) -> PortMapping {
    mapping(service, |name| ports.get(name).copied())
}

/// Where a service entry's ports lead at an endpoint: its own ports override by the port's name.
#[must_use]
pub fn of_service_entry(entry: &ServiceEntry, ports: &NamedPorts) -> PortMapping {
    let over_tcp = entry
        .spec
        .ports
        .iter()
        .filter(|port| is_over_tcp(&port.protocol) && port.number != 0);
    over_tcp
        .map(|port| {
            let own = ports.get(&port.name).copied();
            (port.number, own.or(port.target_port).unwrap_or(port.number))
        })
        .collect()
}

/// Where a service's ports lead at the endpoints of a slice: matched by the port's name.
#[must_use]
pub fn at_slice(service: &Service, slice: &EndpointSlice) -> PortMapping {
    tcp_ports(service)
        .filter_map(|port| {
            let target = slice
                .ports
                .iter()
                .find(|target| target.name == port.name && is_tcp(&target.protocol))?;
            Some((port.port, target.port?))
        })
        .collect()
}
