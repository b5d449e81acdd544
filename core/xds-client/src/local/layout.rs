//! The YAML layout, and its translation into the model. Unknown fields are refused: they are misspelt.

mod names;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::{self, Authorization, Clause};
use tulle_model::gateway::{GatewayAddress, HBONE_PORT, WeightedWaypoint};
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_model::network::NetworkCidr;
use tulle_model::service::{AppProtocol, LoadBalancing, Service, ServicePort};
use tulle_model::workload::{ApplicationProtocol, ApplicationTunnel, Locality, Workload, WorkloadType};
use tulle_model::{Identity, Str, WorkloadUid};
use tulle_proto::convert::workload::{DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT};

use names::{Destination, Hostname, Name, Parsed, Vip};
use words::{
    LocalAction, LocalFamilies, LocalHealthPolicy, LocalMode, LocalNetworkMode, LocalPreference,
    LocalProtocol, LocalScope, LocalStatus, LocalVisibility,
};

/// A whole file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Document {
    pub(super) workloads: Vec<LocalWorkload>,
    pub(super) services: Vec<LocalService>,
    pub(super) policies: Vec<LocalPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LocalWorkload {
    /// Left out, the workload is known by its namespace and name.
    #[serde(default)]
    uid: Str,
    name: Str,
    namespace: Str,
    #[serde(default)]
    trust_domain: Str,
    #[serde(default)]
    service_account: Str,
    #[serde(default)]
    workload_ips: Vec<IpAddr>,
    #[serde(default)]
    network: Str,
    #[serde(default)]
    hostname: Str,
    #[serde(default)]
    protocol: LocalProtocol,
    #[serde(default)]
    network_mode: LocalNetworkMode,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    waypoint: Option<LocalGateway>,
    #[serde(default)]
    network_gateway: Option<LocalGateway>,
    #[serde(default)]
    application_tunnel: Option<LocalTunnel>,
    #[serde(default)]
    node: Str,
    #[serde(default)]
    cluster_id: Str,
    #[serde(default)]
    locality: Locality,
    #[serde(default)]
    authorization_policies: Vec<Parsed<Name>>,
    #[serde(default)]
    services: BTreeMap<Parsed<Hostname>, BTreeMap<u16, u16>>,
    #[serde(default)]
    status: LocalStatus,
    #[serde(default)]
    capacity: Option<u32>,
    #[serde(default)]
    workload_type: WorkloadType,
    #[serde(default)]
    workload_name: Str,
    #[serde(default)]
    canonical_name: Str,
    #[serde(default)]
    canonical_revision: Str,
    #[serde(default)]
    extensions: BTreeMap<Str, Str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LocalService {
    name: Str,
    namespace: Str,
    hostname: Str,
    #[serde(default)]
    vips: Vec<Parsed<Vip>>,
    #[serde(default)]
    cidr_vips: Vec<LocalCidr>,
    #[serde(default)]
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    subject_alt_names: Vec<Identity>,
    #[serde(default)]
    waypoint: Option<LocalGateway>,
    #[serde(default)]
    weighted_waypoints: Vec<LocalWeighted>,
    #[serde(default)]
    load_balancer: Option<LocalLoadBalancer>,
    #[serde(default)]
    ip_families: Option<LocalFamilies>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: LocalVisibility,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LocalPolicy {
    name: Str,
    namespace: Str,
    scope: LocalScope,
    action: LocalAction,
    #[serde(default)]
    rules: Vec<Vec<Vec<LocalMatch>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct LocalMatch {
    namespaces: Vec<LocalText>,
    not_namespaces: Vec<LocalText>,
    principals: Vec<LocalText>,
    not_principals: Vec<LocalText>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
    service_accounts: Vec<ServiceAccountMatch>,
    not_service_accounts: Vec<ServiceAccountMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LocalGateway {
    destination: Parsed<Destination>,
    #[serde(default = "hbone_port")]
    hbone_mtls_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalWeighted {
    destination: LocalGateway,
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalTunnel {
    protocol: ApplicationProtocol,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalCidr {
    #[serde(default)]
    network: Str,
    cidr: IpNet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LocalLoadBalancer {
    #[serde(default)]
    routing_preferences: Vec<LocalPreference>,
    #[serde(default)]
    mode: LocalMode,
    #[serde(default)]
    health_policy: LocalHealthPolicy,
}

fn hbone_port() -> u16 {
    HBONE_PORT
}

/// A text match, one key with its text; that of `Presence` is an empty list.
#[derive(Deserialize)]
enum LocalText {
    #[serde(alias = "exact")]
    Exact(Str),
    #[serde(alias = "prefix")]
    Prefix(Str),
    #[serde(alias = "suffix")]
    Suffix(Str),
    #[serde(alias = "presence")]
    Presence(),
}

fn or_default(text: Str, default: &str) -> Str {
    if text.is_empty() { default.into() } else { text }
}

impl From<LocalWorkload> for Workload {
    fn from(local: LocalWorkload) -> Self {
        let uid = if local.uid.is_empty() {
            format!("{}/{}", local.namespace, local.name).into()
        } else {
            local.uid
        };
        Self {
            uid: WorkloadUid(uid),
            name: local.name,
            namespace: local.namespace,
            trust_domain: or_default(local.trust_domain, DEFAULT_TRUST_DOMAIN),
            service_account: or_default(local.service_account, DEFAULT_SERVICE_ACCOUNT),
            addresses: local.workload_ips.iter().map(IpAddr::to_canonical).collect(),
            network: local.network,
            hostname: local.hostname,
            tunnel_protocol: local.protocol.into(),
            network_mode: local.network_mode.into(),
            native_tunnel: local.native_tunnel,
            waypoint: local.waypoint.map(Into::into),
            network_gateway: local.network_gateway.map(Into::into),
            application_tunnel: local.application_tunnel.map(Into::into),
            node: local.node,
            cluster_id: or_default(local.cluster_id, DEFAULT_CLUSTER),
            locality: local.locality,
            authorization_policies: local
                .authorization_policies
                .into_iter()
                .map(|Parsed(Name(name))| name)
                .collect(),
            services: local
                .services
                .into_iter()
                .map(|(Parsed(Hostname(name)), ports)| (name, ports))
                .collect(),
            status: local.status.into(),
            capacity: local.capacity.unwrap_or(DEFAULT_CAPACITY),
            workload_type: local.workload_type,
            workload_name: local.workload_name,
            canonical_name: local.canonical_name,
            canonical_revision: local.canonical_revision,
            extensions: local.extensions,
        }
    }
}

impl From<LocalService> for Service {
    fn from(local: LocalService) -> Self {
        let port = |(port, target): (u16, u16)| {
            let target_port = (target != 0).then_some(target);
            (
                port,
                ServicePort {
                    target_port,
                    app_protocol: AppProtocol::Unknown,
                },
            )
        };
        let range = |range: LocalCidr| NetworkCidr {
            network: range.network,
            cidr: range.cidr.trunc(),
        };
        Self {
            name: local.name,
            namespace: local.namespace,
            hostname: local.hostname,
            addresses: local
                .vips
                .into_iter()
                .map(|Parsed(Vip(address))| address)
                .collect(),
            cidrs: local.cidr_vips.into_iter().map(range).collect(),
            ports: local.ports.into_iter().map(port).collect(),
            subject_alt_names: local.subject_alt_names,
            waypoint: local.waypoint.map(Into::into),
            weighted_waypoints: local.weighted_waypoints.into_iter().map(Into::into).collect(),
            load_balancing: local.load_balancer.map(Into::into),
            ip_families: local.ip_families.map(Into::into).unwrap_or_default(),
            canonical: local.canonical,
            visibility: local.visibility.into(),
            // Ingress gateways only; a node proxy ignores it.
            ingress_use_waypoint: false,
        }
    }
}

impl From<LocalPolicy> for Authorization {
    fn from(local: LocalPolicy) -> Self {
        let clause = |matches: Vec<LocalMatch>| Clause {
            matches: matches.into_iter().map(Into::into).collect(),
        };
        let rule = |clauses: Vec<Vec<LocalMatch>>| policy::Rule {
            clauses: clauses.into_iter().map(clause).collect(),
        };
        Self {
            name: local.name,
            namespace: local.namespace,
            scope: local.scope.into(),
            action: local.action.into(),
            rules: local.rules.into_iter().map(rule).collect(),
            dry_run: local.dry_run,
            untranslatable: false,
            match_peer: false,
        }
    }
}

impl From<LocalMatch> for policy::Match {
    fn from(local: LocalMatch) -> Self {
        let texts = |texts: Vec<LocalText>| texts.into_iter().map(Into::into).collect();
        Self {
            namespaces: texts(local.namespaces),
            not_namespaces: texts(local.not_namespaces),
            principals: texts(local.principals),
            not_principals: texts(local.not_principals),
            source_ips: local.source_ips,
            not_source_ips: local.not_source_ips,
            destination_ips: local.destination_ips,
            not_destination_ips: local.not_destination_ips,
            destination_ports: local.destination_ports,
            not_destination_ports: local.not_destination_ports,
            service_accounts: local.service_accounts,
            not_service_accounts: local.not_service_accounts,
        }
    }
}

impl From<LocalText> for policy::StringMatch {
    fn from(local: LocalText) -> Self {
        match local {
            LocalText::Exact(text) => Self::Exact(text),
            LocalText::Prefix(text) => Self::Prefix(text),
            LocalText::Suffix(text) => Self::Suffix(text),
            LocalText::Presence() => Self::Presence,
        }
    }
}

impl From<LocalGateway> for GatewayAddress {
    fn from(local: LocalGateway) -> Self {
        let Parsed(Destination(destination)) = local.destination;
        let hbone_mtls_port = if local.hbone_mtls_port == 0 {
            HBONE_PORT
        } else {
            local.hbone_mtls_port
        };
        Self {
            destination,
            hbone_mtls_port,
        }
    }
}

impl From<LocalWeighted> for WeightedWaypoint {
    fn from(local: LocalWeighted) -> Self {
        Self {
            destination: local.destination.into(),
            weight: local.weight,
        }
    }
}

impl From<LocalTunnel> for ApplicationTunnel {
    fn from(local: LocalTunnel) -> Self {
        Self {
            protocol: local.protocol,
            port: local.port.filter(|port| *port != 0),
        }
    }
}

impl From<LocalLoadBalancer> for LoadBalancing {
    fn from(local: LocalLoadBalancer) -> Self {
        Self {
            routing_preference: local.routing_preferences.into_iter().map(Into::into).collect(),
            mode: local.mode.into(),
            health_policy: local.health_policy.into(),
        }
    }
}
