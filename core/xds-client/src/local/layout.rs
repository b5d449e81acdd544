//! The YAML layout, and its translation into the model. Unknown fields are refused: they are misspelt.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::{self, Authorization, Clause};
use tulle_model::gateway::{GatewayAddress, GatewayDestination, HBONE_PORT, WeightedWaypoint};
use tulle_model::identity::DEFAULT_TRUST_DOMAIN;
use tulle_model::network::NetworkCidr;
use tulle_model::service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, ServicePort,
    Visibility,
};
use tulle_model::workload::{
    ApplicationProtocol, ApplicationTunnel, HealthStatus, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType,
};
use tulle_model::{Identity, NamespacedHostname, NamespacedName, NetworkAddress, Str, WorkloadUid};
use tulle_proto::convert::workload::{DEFAULT_CAPACITY, DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT};

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

/// Declares an enum of the file with the spellings it may have, and what each stands for.
macro_rules! words {
    ($(#[$attribute:meta])* $local:ident => $model:ty { $($(#[$variant_attribute:meta])* $word:ident = $value:expr,)* }) => {
        $(#[$attribute])*
        #[derive(Deserialize, Clone, Copy)]
        enum $local { $($(#[$variant_attribute])* $word,)* }

        impl From<$local> for $model {
            fn from(word: $local) -> Self {
                match word { $($local::$word => $value,)* }
            }
        }
    };
}

words! { #[derive(Default)] LocalProtocol => TunnelProtocol {
    #[default] #[serde(rename = "TCP", alias = "NONE")] Tcp = TunnelProtocol::None,
    #[serde(rename = "HBONE")] Hbone = TunnelProtocol::Hbone,
}}
words! { #[derive(Default)] LocalNetworkMode => NetworkMode {
    #[default] Standard = NetworkMode::Standard,
    HostNetwork = NetworkMode::HostNetwork,
}}
words! { #[derive(Default)] LocalStatus => HealthStatus {
    #[default] Healthy = HealthStatus::Healthy,
    Unhealthy = HealthStatus::Unhealthy,
}}
words! { #[derive(Default)] LocalVisibility => Visibility {
    #[default] #[serde(alias = "PUBLIC")] Public = Visibility::Public,
    #[serde(alias = "NAMESPACE")] Namespace = Visibility::Namespace,
}}
words! { LocalScope => policy::Scope {
    Global = policy::Scope::Global,
    Namespace = policy::Scope::Namespace,
    WorkloadSelector = policy::Scope::WorkloadSelector,
}}
words! { LocalAction => policy::Action {
    Allow = policy::Action::Allow,
    Deny = policy::Action::Deny,
}}
words! { LocalPreference => Scope {
    Region = Scope::Region,
    Zone = Scope::Zone,
    Subzone = Scope::Subzone,
    Node = Scope::Node,
    Cluster = Scope::Cluster,
    Network = Scope::Network,
}}
words! { #[derive(Default)] LocalMode => LoadBalancingMode {
    #[default] Standard = LoadBalancingMode::Unspecified,
    Strict = LoadBalancingMode::Strict,
    Failover = LoadBalancingMode::Failover,
    Passthrough = LoadBalancingMode::Passthrough,
}}
words! { #[derive(Default)] LocalHealthPolicy => HealthPolicy {
    #[default] OnlyHealthy = HealthPolicy::OnlyHealthy,
    AllowAll = HealthPolicy::AllowAll,
}}
words! { LocalFamilies => IpFamilies {
    #[serde(rename = "IPv4", alias = "IPV4_ONLY")] Ipv4 = IpFamilies::Ipv4Only,
    #[serde(rename = "IPv6", alias = "IPV6_ONLY")] Ipv6 = IpFamilies::Ipv6Only,
    Dual = IpFamilies::Dual,
}}

/// A text match; `Presence` is a word, or a key whose value says nothing.
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

/// A value written as text, so that an error stands at its line.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// `<namespace>/<name>`.
struct Name(NamespacedName);

/// `<namespace>/<hostname>`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Hostname(NamespacedHostname);

/// `<network>/<ip>`.
struct Vip(NetworkAddress);

/// `<network>/<ip>` or `<namespace>/<hostname>`.
struct Destination(GatewayDestination);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = two_parts(text)?;
        Ok(Self(NamespacedName::new(namespace, name)))
    }
}

impl FromStr for Hostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, hostname) = two_parts(text)?;
        Ok(Self(NamespacedHostname::new(namespace, hostname)))
    }
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text
            .split_once('/')
            .and_then(|(network, ip)| Some((network, ip.parse().ok()?)));
        let (network, ip) = address.ok_or_else(|| format!("`{text}` is not <network>/<ip>"))?;
        Ok(Self(NetworkAddress::new(network, ip)))
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(Vip(address)) = text.parse() {
            return Ok(Self(GatewayDestination::Address(address)));
        }
        text.parse()
            .map(|Hostname(hostname)| Self(GatewayDestination::Hostname(hostname)))
    }
}

fn two_parts(text: &str) -> Result<(&str, &str), String> {
    match text.split_once('/') {
        Some((first, second)) if !first.is_empty() && !second.is_empty() && !second.contains('/') => {
            Ok((first, second))
        }
        _ => Err(format!("`{text}` is not <namespace>/<name>")),
    }
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
