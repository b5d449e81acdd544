//! The words the file uses for the model's choices.

use serde::Deserialize;
use tulle_model::authz::policy;
use tulle_model::service::{HealthPolicy, IpFamilies, LoadBalancingMode, Scope, Visibility};
use tulle_model::workload::{HealthStatus, NetworkMode, TunnelProtocol};

/// Declares an enum of the file with the spellings it may have, and what each stands for.
macro_rules! words {
    ($(#[$attribute:meta])* $local:ident => $model:ty { $($(#[$variant_attribute:meta])* $word:ident = $value:expr,)* }) => {
        $(#[$attribute])*
        #[derive(Deserialize, Clone, Copy)]
        pub(super) enum $local { $($(#[$variant_attribute])* $word,)* }

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
