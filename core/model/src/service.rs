//! Services: names and addresses that stand for a set of workloads.

use std::collections::{BTreeMap, BTreeSet};

use crate::gateway::{GatewayAddress, WeightedWaypoint};
use crate::identity::Identity;
use crate::name::{NamespacedHostname, Str};
use crate::network::{NetworkAddress, NetworkCidr};

/// One service, as the control plane describes it (`istio.workload.Service`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Short name.
    pub name: Str,
    /// Namespace that defines it.
    pub namespace: Str,
    /// Fully qualified host name; may start with `*.`.
    pub hostname: Str,
    /// Virtual addresses; empty for a headless service.
    pub addresses: Vec<NetworkAddress>,
    /// Virtual address ranges.
    pub cidrs: Vec<NetworkCidr>,
    /// Ports by service port.
    pub ports: BTreeMap<u16, ServicePort>,
    /// Further identities its endpoints may present.
    pub subject_alt_names: Vec<Identity>,
    /// The waypoint in front of it.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints it is spread over; one is sampled per connection.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How endpoints are chosen.
    pub load_balancing: Option<LoadBalancing>,
    /// Address families its endpoints may be reached by.
    pub ip_families: IpFamilies,
    /// Wins a tie between namespaces that define the same host name or address.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
    /// Gateways at the edge go through the waypoint, too.
    #[serde(default)]
    pub ingress_use_waypoint: bool,
}

impl Service {
    /// The key it is stored and referred to by.
    #[must_use]
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    /// Whether callers of a namespace may see it.
    #[must_use]
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility.reaches(&self.namespace, namespace)
    }
}

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Port at the endpoints; `None` where it is named and settled per endpoint.
    pub target_port: Option<u16>,
    /// Declared protocol.
    pub app_protocol: AppProtocol,
}

/// Declared protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 in clear.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// TLS.
    Tls,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// What must, or should, be shared with the caller, in order.
    pub routing_preference: Vec<Scope>,
    /// What the preference means.
    pub mode: LoadBalancingMode,
    /// Whether unhealthy endpoints take part.
    pub health_policy: HealthPolicy,
}

/// Something an endpoint can share with its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// What a routing preference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LoadBalancingMode {
    /// All endpoints.
    #[default]
    Unspecified,
    /// Only endpoints that share every scope.
    Strict,
    /// The endpoints that share most, in order.
    Failover,
    /// No endpoints: the original destination is used.
    Passthrough,
}

/// Whether unhealthy endpoints take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthPolicy {
    /// Healthy ones only.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IpFamilies {
    /// Whatever the endpoints have.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Visibility {
    /// Everyone.
    #[default]
    Public,
    /// Callers of its own namespace.
    Namespace,
    /// Callers of these namespaces; its own is one of them only if it is named.
    Namespaces(BTreeSet<Str>),
}

impl Visibility {
    /// Whether callers of a namespace see what another, or the same, defines.
    #[must_use]
    pub fn reaches(&self, own: &str, caller: &str) -> bool {
        match self {
            Self::Public => true,
            Self::Namespace => own == caller,
            Self::Namespaces(listed) => listed.contains(caller),
        }
    }
}
