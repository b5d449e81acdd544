//! `Service` and `ServiceEntry` into services of the model.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use tulle_model::network::NetworkCidr;
use tulle_model::service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service as Model, ServicePort,
    Visibility,
};
use tulle_model::{Identity, NetworkAddress, Str};

use super::condition::{Condition, USABLE};
use super::{MeshConfig, ports, waypoint};
use crate::Object;
use crate::api::networking::Resolution;
use crate::api::{Meta, Namespace, Service, ServiceEntry};

mod visibility;

pub use visibility::{visibility_of_entry, visibility_of_service};

#[cfg(test)]
mod tests;

/// Annotation of services and namespaces that asks for near endpoints.
pub(super) const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// What stands around a service.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The mesh.
    pub mesh: &'a MeshConfig,
    /// Its namespace's object.
    pub namespace: Option<&'a Namespace>,
    /// The network of what names none.
    pub network: &'a Str,
}

/// The host name of a Kubernetes service.
#[must_use]
pub fn hostname(service: &Meta, mesh: &MeshConfig) -> Str {
    format!("{}.{}.svc.{}", service.name, service.namespace, mesh.domain).into()
}

/// The ports of a definition by name, as far as they have one.
#[must_use]
pub fn port_names(object: &Object) -> BTreeMap<Str, u16> {
    let named = |(name, number): (&Str, u16)| (!name.is_empty()).then(|| (name.clone(), number));
    match object {
        Object::Service(object) => {
            let ports = object.spec.ports.iter().map(|port| (&port.name, port.port));
            ports.filter_map(named).collect()
        }
        Object::ServiceEntry(object) => {
            let ports = object.spec.ports.iter().map(|port| (&port.name, port.number));
            ports.filter_map(named).collect()
        }
        _ => BTreeMap::new(),
    }
}

/// Whether a service stands for nothing inside of the mesh.
#[must_use]
pub fn is_external_name(service: &Service) -> bool {
    &*service.spec.kind == "ExternalName"
}

/// Translates a Kubernetes service.
#[must_use]
pub fn service(service: &Service, around: Around<'_>) -> (Option<Model>, Vec<Condition>) {
    if is_external_name(service) {
        let message = "an ExternalName is only a name in DNS; the mesh does not need it";
        return (None, vec![Condition::holds(USABLE, "Accepted", message)]);
    }
    let mut findings = Findings::default();
    let tcp = service
        .spec
        .ports
        .iter()
        .filter(|port| ports::is_tcp(&port.protocol) && port.port != 0);
    let model = Model {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        hostname: hostname(&service.metadata, around.mesh),
        addresses: cluster_ips(service, around.network, &mut findings),
        cidrs: Vec::new(),
        ports: tcp
            .map(|port| {
                let app_protocol = ports::app_protocol(&port.app_protocol, &port.name);
                (
                    port.port,
                    ServicePort {
                        target_port: ports::fixed_target(port),
                        app_protocol,
                    },
                )
            })
            .collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: load_balancing(service, around, &mut findings),
        ip_families: ip_families(&service.spec.ip_families),
        canonical: false,
        visibility: visibility::of_service(service, &mut findings),
        ingress_use_waypoint: waypoint::ingress_use_waypoint(&service.metadata, around.namespace),
    };
    (Some(model), findings.conditions())
}

/// What could not be used as written.
#[derive(Debug, Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, what: impl Into<String>) {
        self.0.push(what.into());
    }

    fn conditions(self) -> Vec<Condition> {
        let usable = if self.0.is_empty() {
            Condition::holds(USABLE, "Accepted", "all of it is used")
        } else {
            Condition::fails(USABLE, "PartiallyInvalid", self.0.join("; "))
        };
        vec![usable]
    }
}

/// A user's text for a message: bounded, without control characters.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn cluster_ips(service: &Service, network: &Str, findings: &mut Findings) -> Vec<NetworkAddress> {
    let all = &service.spec.cluster_ips;
    let texts = if all.is_empty() {
        std::slice::from_ref(&service.spec.cluster_ip)
    } else {
        all
    };
    let mut addresses = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty() && &***text != "None") {
        match text.parse() {
            Ok(address) => addresses.push(NetworkAddress::new(network.clone(), address)),
            Err(_) => findings.add(format!(
                "clusterIP `{}` is no address and is left out",
                shown(text)
            )),
        }
    }
    if texts.iter().all(|text| text.is_empty()) {
        findings.add("it has no clusterIPs, so that it cannot be reached by address; write `clusterIPs`, or `clusterIP: None`");
    }
    addresses
}

fn ip_families(families: &[Str]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|known| &**known == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(service: &Service, around: Around<'_>, findings: &mut Findings) -> Option<LoadBalancing> {
    let health_policy = if service.spec.publish_not_ready_addresses {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    if &*service.spec.internal_traffic_policy == "Local" {
        let (routing_preference, mode) = (vec![Scope::Node], LoadBalancingMode::Strict);
        return Some(LoadBalancing {
            routing_preference,
            mode,
            health_policy,
        });
    }
    let spec = Some(&*service.spec.traffic_distribution).filter(|text| !text.is_empty());
    let preference = distribution(spec, &service.metadata, around.namespace, findings);
    let mode = if preference.is_empty() {
        LoadBalancingMode::Unspecified
    } else {
        LoadBalancingMode::Failover
    };
    let balancing = LoadBalancing {
        routing_preference: preference,
        mode,
        health_policy,
    };
    (balancing != LoadBalancing::default()).then_some(balancing)
}

/// The first preference said by the spec, the object's annotation or the namespace's annotation.
fn distribution(
    spec: Option<&str>,
    meta: &Meta,
    namespace: Option<&Namespace>,
    findings: &mut Findings,
) -> Vec<Scope> {
    let annotation = || meta.annotation(TRAFFIC_DISTRIBUTION);
    let inherited = || namespace.and_then(|namespace| namespace.metadata.annotation(TRAFFIC_DISTRIBUTION));
    match spec.or_else(annotation).or_else(inherited) {
        None | Some("Any") => Vec::new(),
        Some("PreferClose" | "PreferSameZone") => vec![Scope::Network, Scope::Region, Scope::Zone],
        Some("PreferSameNode") => vec![
            Scope::Network,
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
        ],
        Some(other) => {
            findings.add(format!(
                "traffic distribution `{}` is not known and is ignored; use PreferClose or PreferSameNode",
                shown(other)
            ));
            Vec::new()
        }
    }
}

/// Translates a service entry: one service per host.
#[must_use]
pub fn service_entry(entry: &ServiceEntry, around: Around<'_>) -> (Vec<Model>, Vec<Condition>) {
    let mut findings = Findings::default();
    if entry.spec.hosts.is_empty() {
        findings.add("it has no host; add `hosts`");
    }
    let common = Common {
        ports: entry_ports(entry),
        subject_alt_names: subject_alt_names(entry, &mut findings),
        load_balancing: entry_balancing(entry, around, &mut findings),
        visibility: visibility::of_entry(entry, &mut findings),
        ingress_use_waypoint: waypoint::ingress_use_waypoint(&entry.metadata, around.namespace),
    };
    for host in entry.spec.hosts.iter().filter(|host| !is_host(host)) {
        findings.add(format!("`{}` is no host name and is left out", shown(host)));
    }
    let models = hosts(entry)
        .map(|host| one_host(entry, host, &common, around.network, &mut findings))
        .collect();
    (models, findings.conditions())
}

/// What the hosts of a service entry share.
struct Common {
    ports: BTreeMap<u16, ServicePort>,
    subject_alt_names: Vec<Identity>,
    load_balancing: Option<LoadBalancing>,
    visibility: Visibility,
    ingress_use_waypoint: bool,
}

fn one_host(
    entry: &ServiceEntry,
    host: &Str,
    common: &Common,
    network: &Str,
    findings: &mut Findings,
) -> Model {
    let (addresses, cidrs) = entry_addresses(entry, host, network, findings);
    Model {
        name: entry.metadata.name.clone(),
        namespace: entry.metadata.namespace.clone(),
        hostname: host.clone(),
        addresses,
        cidrs,
        ports: common.ports.clone(),
        subject_alt_names: common.subject_alt_names.clone(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: common.load_balancing.clone(),
        ip_families: IpFamilies::Automatic,
        canonical: false,
        visibility: common.visibility.clone(),
        ingress_use_waypoint: common.ingress_use_waypoint,
    }
}

/// The hosts of a service entry that can be served.
pub fn hosts(entry: &ServiceEntry) -> impl Iterator<Item = &Str> {
    entry.spec.hosts.iter().filter(|host| is_host(host))
}

/// Whether a text may be a host name: it becomes part of a resource name.
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn entry_ports(entry: &ServiceEntry) -> BTreeMap<u16, ServicePort> {
    let over_tcp = entry
        .spec
        .ports
        .iter()
        .filter(|port| ports::is_over_tcp(&port.protocol) && port.number != 0);
    over_tcp
        .map(|port| {
            let app_protocol = ports::app_protocol(&port.protocol, &port.name);
            (
                port.number,
                ServicePort {
                    target_port: Some(port.target_port.unwrap_or(port.number)),
                    app_protocol,
                },
            )
        })
        .collect()
}

fn subject_alt_names(entry: &ServiceEntry, findings: &mut Findings) -> Vec<Identity> {
    let mut identities = Vec::new();
    for text in &entry.spec.subject_alt_names {
        match text.parse() {
            Ok(identity) => identities.push(identity),
            Err(_) => findings.add(format!(
                "subjectAltName `{}` is no identity and is left out; write spiffe://<domain>/ns/<namespace>/sa/<name>",
                shown(text)
            )),
        }
    }
    identities
}

fn entry_balancing(
    entry: &ServiceEntry,
    around: Around<'_>,
    findings: &mut Findings,
) -> Option<LoadBalancing> {
    if entry.spec.resolution == Resolution::None {
        let (mode, health_policy) = (LoadBalancingMode::Passthrough, HealthPolicy::AllowAll);
        return Some(LoadBalancing {
            routing_preference: Vec::new(),
            mode,
            health_policy,
        });
    }
    let preference = distribution(None, &entry.metadata, around.namespace, findings);
    (!preference.is_empty()).then_some(LoadBalancing {
        routing_preference: preference,
        mode: LoadBalancingMode::Failover,
        health_policy: HealthPolicy::OnlyHealthy,
    })
}

/// The addresses written into the entry, else those given to it.
fn entry_addresses(
    entry: &ServiceEntry,
    host: &str,
    network: &Str,
    findings: &mut Findings,
) -> (Vec<NetworkAddress>, Vec<NetworkCidr>) {
    let given = entry
        .status
        .addresses
        .iter()
        .filter(|given| given.host.is_empty() || &*given.host == host);
    let given: Vec<&Str> = given.map(|given| &given.value).collect();
    let texts = if entry.spec.addresses.is_empty() {
        given
    } else {
        entry.spec.addresses.iter().collect()
    };
    let (mut addresses, mut cidrs) = (Vec::new(), Vec::new());
    for text in texts {
        if let Ok(address) = text.parse::<IpAddr>() {
            addresses.push(NetworkAddress::new(network.clone(), address));
        } else if let Ok(range) = text.parse::<IpNet>() {
            match range.prefix_len() == range.max_prefix_len() {
                true => addresses.push(NetworkAddress::new(network.clone(), range.addr())),
                false => cidrs.push(NetworkCidr {
                    network: network.clone(),
                    cidr: range.trunc(),
                }),
            }
        } else {
            findings.add(format!(
                "address `{}` is neither an address nor a range and is left out",
                shown(text)
            ));
        }
    }
    (addresses, cidrs)
}
