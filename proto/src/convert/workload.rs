//! Workloads: `istio.workload.Workload` and back.

use std::collections::BTreeMap;

use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_model::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, PortMapping, TunnelProtocol,
    Workload, WorkloadType,
};
use tulle_model::{NamespacedHostname, Str, WorkloadUid};

use super::gateway::optional_gateway;
use super::{
    Cause, Flaw, Malformed, each, extension, ip, known, namespaced, octets, or_default, port, real_port,
    required, unless_default,
};
use crate::workload as wire;
use crate::workload::application_tunnel::Protocol;

/// The service account of a message that leaves it empty.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// The cluster of a message that leaves it empty.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";
/// The weight of a message that leaves it out.
pub const DEFAULT_CAPACITY: u32 = 1;

impl TryFrom<wire::Workload> for Workload {
    type Error = Malformed;

    fn try_from(workload: wire::Workload) -> Result<Self, Malformed> {
        let uid = workload.uid.clone();
        parse(workload).map_err(|flaw| flaw.of(&uid))
    }
}

pub(super) fn parse(workload: wire::Workload) -> Result<Workload, Flaw> {
    let workload_type = workload_type(workload.workload_type());
    Ok(Workload {
        uid: WorkloadUid(required("uid", workload.uid)?),
        name: workload.name.into(),
        namespace: workload.namespace.into(),
        trust_domain: or_default(&workload.trust_domain, DEFAULT_TRUST_DOMAIN),
        service_account: or_default(&workload.service_account, DEFAULT_SERVICE_ACCOUNT),
        addresses: each("addresses", &workload.addresses, |bytes| ip(bytes))?,
        network: workload.network.into(),
        hostname: workload.hostname.into(),
        tunnel_protocol: tunnel_protocol(workload.tunnel_protocol)?,
        network_mode: network_mode(workload.network_mode)?,
        native_tunnel: workload.native_tunnel,
        waypoint: optional_gateway("waypoint", workload.waypoint)?,
        network_gateway: optional_gateway("network_gateway", workload.network_gateway)?,
        application_tunnel: application_tunnel(workload.application_tunnel)?,
        node: workload.node.into(),
        cluster_id: or_default(&workload.cluster_id, DEFAULT_CLUSTER),
        locality: locality(workload.locality),
        authorization_policies: each(
            "authorization_policies",
            &workload.authorization_policies,
            |name| namespaced(name),
        )?,
        services: workload
            .services
            .into_iter()
            .map(endpoint)
            .collect::<Result<_, _>>()?,
        status: status(workload.status)?,
        capacity: workload.capacity.unwrap_or(DEFAULT_CAPACITY),
        workload_type,
        workload_name: workload.workload_name.into(),
        canonical_name: workload.canonical_name.into(),
        canonical_revision: workload.canonical_revision.into(),
        extensions: extensions(workload.extensions),
    })
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, Flaw> {
    match known("tunnel_protocol", value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(Flaw::new("tunnel_protocol", Cause::LegacyTunnel)),
    }
}

fn network_mode(value: i32) -> Result<NetworkMode, Flaw> {
    Ok(match known("network_mode", value)? {
        wire::NetworkMode::Standard => NetworkMode::Standard,
        wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
    })
}

fn status(value: i32) -> Result<HealthStatus, Flaw> {
    Ok(match known("status", value)? {
        wire::WorkloadStatus::Healthy => HealthStatus::Healthy,
        wire::WorkloadStatus::Unhealthy => HealthStatus::Unhealthy,
    })
}

/// Telemetry only, so an unknown kind is the default one.
fn workload_type(value: wire::WorkloadType) -> WorkloadType {
    match value {
        wire::WorkloadType::Deployment => WorkloadType::Deployment,
        wire::WorkloadType::Cronjob => WorkloadType::CronJob,
        wire::WorkloadType::Pod => WorkloadType::Pod,
        wire::WorkloadType::Job => WorkloadType::Job,
    }
}

fn application_tunnel(tunnel: Option<wire::ApplicationTunnel>) -> Result<Option<ApplicationTunnel>, Flaw> {
    let Some(tunnel) = tunnel else { return Ok(None) };
    let place = |flaw: Flaw| flaw.within("application_tunnel");
    let protocol = match known("protocol", tunnel.protocol).map_err(place)? {
        Protocol::None => ApplicationProtocol::None,
        Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    let number = port("port", tunnel.port).map_err(place)?;
    Ok(Some(ApplicationTunnel {
        protocol,
        port: (number != 0).then_some(number),
    }))
}

fn locality(locality: Option<wire::Locality>) -> Locality {
    let locality = locality.unwrap_or_default();
    Locality {
        region: locality.region.into(),
        zone: locality.zone.into(),
        subzone: locality.subzone.into(),
    }
}

fn endpoint((key, ports): (String, wire::PortList)) -> Result<(NamespacedHostname, PortMapping), Flaw> {
    let place = |flaw: Flaw| flaw.within(format_args!("services[{key}]"));
    let name = namespaced(&key).map_err(place)?;
    let mapping: Vec<(u16, u16)> = each("ports", ports.ports, pair).map_err(place)?;
    // A target of zero maps nothing: the service's own port decides.
    let mapping = mapping.into_iter().filter(|(_, target)| *target != 0).collect();
    Ok((
        NamespacedHostname {
            namespace: name.namespace,
            hostname: name.name,
        },
        mapping,
    ))
}

fn pair(ports: wire::Port) -> Result<(u16, u16), Flaw> {
    Ok((
        real_port("service_port", ports.service_port)?,
        port("target_port", ports.target_port)?,
    ))
}

/// Extensions with a text as value; any other is for someone else.
fn extensions(extensions: Vec<wire::Extension>) -> BTreeMap<Str, Str> {
    let text = |extension: wire::Extension| {
        let value = extension::text_of(extension.config.as_ref())?;
        Some((extension.name.into(), value.into()))
    };
    extensions.into_iter().filter_map(text).collect()
}

impl From<&Workload> for wire::Workload {
    fn from(workload: &Workload) -> Self {
        let text = |text: &Str| text.as_ref().to_owned();
        Self {
            name: text(&workload.name),
            namespace: text(&workload.namespace),
            addresses: workload.addresses.iter().copied().map(octets).collect(),
            network: text(&workload.network),
            tunnel_protocol: wire::TunnelProtocol::from(workload.tunnel_protocol).into(),
            trust_domain: unless_default(&workload.trust_domain, DEFAULT_TRUST_DOMAIN),
            service_account: unless_default(&workload.service_account, DEFAULT_SERVICE_ACCOUNT),
            waypoint: workload.waypoint.as_ref().map(Into::into),
            node: text(&workload.node),
            canonical_name: text(&workload.canonical_name),
            canonical_revision: text(&workload.canonical_revision),
            workload_type: wire::WorkloadType::from(workload.workload_type).into(),
            workload_name: text(&workload.workload_name),
            native_tunnel: workload.native_tunnel,
            authorization_policies: workload
                .authorization_policies
                .iter()
                .map(ToString::to_string)
                .collect(),
            status: wire::WorkloadStatus::from(workload.status).into(),
            cluster_id: unless_default(&workload.cluster_id, DEFAULT_CLUSTER),
            network_gateway: workload.network_gateway.as_ref().map(Into::into),
            uid: text(&workload.uid.0),
            hostname: text(&workload.hostname),
            services: workload
                .services
                .iter()
                .map(|(key, ports)| (key.to_string(), port_list(ports)))
                .collect(),
            application_tunnel: workload.application_tunnel.as_ref().map(Into::into),
            locality: (workload.locality != Locality::default()).then(|| (&workload.locality).into()),
            network_mode: wire::NetworkMode::from(workload.network_mode).into(),
            extensions: workload
                .extensions
                .iter()
                .map(|(name, value)| extension::text(name, value))
                .collect(),
            capacity: (workload.capacity != DEFAULT_CAPACITY).then_some(workload.capacity),
        }
    }
}

fn port_list(ports: &PortMapping) -> wire::PortList {
    let port = |(service, target): (&u16, &u16)| wire::Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList {
        ports: ports.iter().map(port).collect(),
    }
}

impl From<&ApplicationTunnel> for wire::ApplicationTunnel {
    fn from(tunnel: &ApplicationTunnel) -> Self {
        let protocol = match tunnel.protocol {
            ApplicationProtocol::None => Protocol::None,
            ApplicationProtocol::Proxy => Protocol::Proxy,
        };
        Self {
            protocol: protocol.into(),
            port: tunnel.port.unwrap_or_default().into(),
        }
    }
}

impl From<&Locality> for wire::Locality {
    fn from(locality: &Locality) -> Self {
        Self {
            region: locality.region.as_ref().into(),
            zone: locality.zone.as_ref().into(),
            subzone: locality.subzone.as_ref().into(),
        }
    }
}

impl From<TunnelProtocol> for wire::TunnelProtocol {
    fn from(protocol: TunnelProtocol) -> Self {
        match protocol {
            TunnelProtocol::None => Self::None,
            TunnelProtocol::Hbone => Self::Hbone,
        }
    }
}

impl From<NetworkMode> for wire::NetworkMode {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Standard => Self::Standard,
            NetworkMode::HostNetwork => Self::HostNetwork,
        }
    }
}

impl From<HealthStatus> for wire::WorkloadStatus {
    fn from(status: HealthStatus) -> Self {
        match status {
            HealthStatus::Healthy => Self::Healthy,
            HealthStatus::Unhealthy => Self::Unhealthy,
        }
    }
}

impl From<WorkloadType> for wire::WorkloadType {
    fn from(kind: WorkloadType) -> Self {
        match kind {
            WorkloadType::Deployment => Self::Deployment,
            WorkloadType::CronJob => Self::Cronjob,
            WorkloadType::Pod => Self::Pod,
            WorkloadType::Job => Self::Job,
        }
    }
}
