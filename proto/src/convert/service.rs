//! Services: `istio.workload.Service` and back.

use std::collections::BTreeMap;

use tulle_model::identity::Identity;
use tulle_model::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, ServicePort,
    Visibility,
};

use super::gateway::{Vip, optional_gateway, vip, weighted};
use super::{Cause, Flaw, Malformed, each, extension, known, port, real_port, required};
use crate::names::EXPORT_TO;
use crate::workload as wire;
use crate::workload::load_balancing;
use crate::workload::service::Visibility as WireVisibility;

impl TryFrom<wire::Service> for Service {
    type Error = Malformed;

    fn try_from(service: wire::Service) -> Result<Self, Malformed> {
        let name = format!("{}/{}", service.namespace, service.hostname);
        parse(service).map_err(|flaw| flaw.of(&name))
    }
}

pub(super) fn parse(service: wire::Service) -> Result<Service, Flaw> {
    let vips: Vec<Vip> = each("addresses", service.addresses, vip)?;
    let (mut addresses, mut cidrs) = (Vec::with_capacity(vips.len()), Vec::new());
    for vip in vips {
        match vip {
            Vip::Host(address) => addresses.push(address),
            Vip::Range(range) => cidrs.push(range),
        }
    }
    let ports: BTreeMap<u16, ServicePort> = each("ports", service.ports, service_port)?;
    Ok(Service {
        name: service.name.into(),
        namespace: required("namespace", service.namespace)?,
        hostname: required("hostname", service.hostname)?,
        addresses,
        cidrs,
        ports,
        subject_alt_names: identities(&service.subject_alt_names),
        waypoint: optional_gateway("waypoint", service.waypoint)?,
        weighted_waypoints: each("weighted_waypoints", service.weighted_waypoints, weighted)?,
        load_balancing: service
            .load_balancing
            .map(load_balancing)
            .transpose()
            .map_err(|flaw| flaw.within("load_balancing"))?,
        ip_families: ip_families(service.ip_families)?,
        canonical: service.canonical,
        visibility: visibility(service.visibility, &service.extensions)?,
        ingress_use_waypoint: service.ingress_use_waypoint,
    })
}

fn service_port(ports: wire::Port) -> Result<(u16, ServicePort), Flaw> {
    let app_protocol = app_protocol(ports.app_protocol());
    let target = port("target_port", ports.target_port)?;
    let target_port = (target != 0).then_some(target);
    Ok((
        real_port("service_port", ports.service_port)?,
        ServicePort {
            target_port,
            app_protocol,
        },
    ))
}

/// Names of another kind can never be presented by a peer; without them fewer peers are accepted, not more.
fn identities(names: &[String]) -> Vec<Identity> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// A hint, so an unknown protocol is none.
fn app_protocol(protocol: wire::AppProtocol) -> AppProtocol {
    match protocol {
        wire::AppProtocol::Unknown => AppProtocol::Unknown,
        wire::AppProtocol::Http11 => AppProtocol::Http11,
        wire::AppProtocol::Http2 => AppProtocol::Http2,
        wire::AppProtocol::Grpc => AppProtocol::Grpc,
        wire::AppProtocol::Tcp => AppProtocol::Tcp,
        wire::AppProtocol::Tls => AppProtocol::Tls,
    }
}

fn load_balancing(balancing: wire::LoadBalancing) -> Result<LoadBalancing, Flaw> {
    let mode = match known("mode", balancing.mode)? {
        load_balancing::Mode::UnspecifiedMode => LoadBalancingMode::Unspecified,
        load_balancing::Mode::Strict => LoadBalancingMode::Strict,
        load_balancing::Mode::Failover => LoadBalancingMode::Failover,
        load_balancing::Mode::Passthrough => LoadBalancingMode::Passthrough,
    };
    let health_policy = match known("health_policy", balancing.health_policy)? {
        load_balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        load_balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    let routing_preference = each("routing_preference", balancing.routing_preference, scope)?;
    Ok(LoadBalancing {
        routing_preference,
        mode,
        health_policy,
    })
}

fn scope(value: i32) -> Result<Scope, Flaw> {
    match known("", value)? {
        load_balancing::Scope::UnspecifiedScope => Err(Flaw::new("", Cause::Unset)),
        load_balancing::Scope::Region => Ok(Scope::Region),
        load_balancing::Scope::Zone => Ok(Scope::Zone),
        load_balancing::Scope::Subzone => Ok(Scope::Subzone),
        load_balancing::Scope::Node => Ok(Scope::Node),
        load_balancing::Scope::Cluster => Ok(Scope::Cluster),
        load_balancing::Scope::Network => Ok(Scope::Network),
    }
}

fn ip_families(value: i32) -> Result<IpFamilies, Flaw> {
    Ok(match known("ip_families", value)? {
        wire::IpFamilies::Automatic => IpFamilies::Automatic,
        wire::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
        wire::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
        wire::IpFamilies::Dual => IpFamilies::Dual,
    })
}

/// The list of namespaces stands beside the word that others know. What cannot be read is refused, as is a list of what
/// everybody sees: one of the two is wrong.
fn visibility(value: i32, extensions: &[wire::Extension]) -> Result<Visibility, Flaw> {
    let word: WireVisibility = known("visibility", value)?;
    let mut lists = extensions
        .iter()
        .enumerate()
        .filter(|(_, one)| one.name == EXPORT_TO);
    match (word, lists.next()) {
        (WireVisibility::Public, None) => Ok(Visibility::Public),
        (WireVisibility::Namespace, None) => Ok(Visibility::Namespace),
        (word, Some((index, list))) => {
            let is_one = word == WireVisibility::Namespace && lists.next().is_none();
            let text = extension::text_of(list.config.as_ref()).filter(|_| is_one);
            let namespaces = text.ok_or_else(|| {
                Flaw::new("config", Cause::ExtensionValue(list.name.clone()))
                    .within(format!("extensions[{index}]"))
            })?;
            let listed = namespaces.split(' ').filter(|name| !name.is_empty());
            Ok(Visibility::Namespaces(listed.map(Into::into).collect()))
        }
    }
}

/// The list of namespaces, of what is exported to some.
fn exported(visibility: &Visibility) -> Option<wire::Extension> {
    let Visibility::Namespaces(listed) = visibility else {
        return None;
    };
    let names: Vec<&str> = listed.iter().map(AsRef::as_ref).collect();
    Some(extension::text(EXPORT_TO, &names.join(" ")))
}

impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        let hosts = service.addresses.iter().map(Into::into);
        let ranges = service.cidrs.iter().map(Into::into);
        let visibility = match service.visibility {
            Visibility::Public => WireVisibility::Public,
            // Who does not know the list keeps it to its own namespace.
            Visibility::Namespace | Visibility::Namespaces(_) => WireVisibility::Namespace,
        };
        Self {
            name: service.name.as_ref().into(),
            namespace: service.namespace.as_ref().into(),
            hostname: service.hostname.as_ref().into(),
            addresses: hosts.chain(ranges).collect(),
            ports: service.ports.iter().map(wire_port).collect(),
            subject_alt_names: service
                .subject_alt_names
                .iter()
                .map(ToString::to_string)
                .collect(),
            waypoint: service.waypoint.as_ref().map(Into::into),
            load_balancing: service.load_balancing.as_ref().map(Into::into),
            ip_families: wire::IpFamilies::from(service.ip_families).into(),
            extensions: exported(&service.visibility).into_iter().collect(),
            canonical: service.canonical,
            weighted_waypoints: service.weighted_waypoints.iter().map(Into::into).collect(),
            visibility: visibility.into(),
            ingress_use_waypoint: service.ingress_use_waypoint,
        }
    }
}

fn wire_port((number, settings): (&u16, &ServicePort)) -> wire::Port {
    wire::Port {
        service_port: (*number).into(),
        target_port: settings.target_port.unwrap_or_default().into(),
        app_protocol: wire::AppProtocol::from(settings.app_protocol).into(),
    }
}

impl From<&LoadBalancing> for wire::LoadBalancing {
    fn from(balancing: &LoadBalancing) -> Self {
        let mode = match balancing.mode {
            LoadBalancingMode::Unspecified => load_balancing::Mode::UnspecifiedMode,
            LoadBalancingMode::Strict => load_balancing::Mode::Strict,
            LoadBalancingMode::Failover => load_balancing::Mode::Failover,
            LoadBalancingMode::Passthrough => load_balancing::Mode::Passthrough,
        };
        let health_policy = match balancing.health_policy {
            HealthPolicy::OnlyHealthy => load_balancing::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => load_balancing::HealthPolicy::AllowAll,
        };
        let scope = |scope: &Scope| load_balancing::Scope::from(*scope).into();
        Self {
            routing_preference: balancing.routing_preference.iter().map(scope).collect(),
            mode: mode.into(),
            health_policy: health_policy.into(),
        }
    }
}

impl From<Scope> for load_balancing::Scope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Region => Self::Region,
            Scope::Zone => Self::Zone,
            Scope::Subzone => Self::Subzone,
            Scope::Node => Self::Node,
            Scope::Cluster => Self::Cluster,
            Scope::Network => Self::Network,
        }
    }
}

impl From<AppProtocol> for wire::AppProtocol {
    fn from(protocol: AppProtocol) -> Self {
        match protocol {
            AppProtocol::Unknown => Self::Unknown,
            AppProtocol::Http11 => Self::Http11,
            AppProtocol::Http2 => Self::Http2,
            AppProtocol::Grpc => Self::Grpc,
            AppProtocol::Tcp => Self::Tcp,
            AppProtocol::Tls => Self::Tls,
        }
    }
}

impl From<IpFamilies> for wire::IpFamilies {
    fn from(families: IpFamilies) -> Self {
        match families {
            IpFamilies::Automatic => Self::Automatic,
            IpFamilies::Ipv4Only => Self::Ipv4Only,
            IpFamilies::Ipv6Only => Self::Ipv6Only,
            IpFamilies::Dual => Self::Dual,
        }
    }
}
