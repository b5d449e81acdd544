//! A waypoint as it receives itself: its settings, and what it stands in front of.

use std::net::IpAddr;
use std::time::Duration;

use crate::filter::ExtAuthz;
use crate::gateway::GatewayAddress;
use crate::name::{NamespacedHostname, Str, WorkloadUid};

/// One resource of a waypoint's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Waypoint {
    /// What it is.
    Settings(Box<Settings>),
    /// What it stands in front of.
    Front(Front),
}

impl Waypoint {
    /// `<namespace>/<gateway>`, or below it the key of the front.
    #[must_use]
    pub fn name(&self) -> Str {
        match self {
            Self::Settings(settings) => settings.name(),
            Self::Front(front) => format!("{}/{}", front.waypoint, front.object.key()).into(),
        }
    }
}

/// The settings of one waypoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Namespace of its gateway.
    pub namespace: Str,
    /// Name of its gateway.
    pub gateway: Str,
    /// Class of its gateway: policies of the class apply.
    pub class: Str,
    /// Where it is reached.
    pub addresses: Vec<GatewayAddress>,
    /// What it accepts.
    pub scope: Scope,
    /// Whether destinations are told who asked.
    pub source_identity: SourceIdentity,
    /// The form of a path before it is matched.
    pub path_normalization: PathNormalization,
    /// Bounds that differ from the defaults.
    pub limits: Limits,
    /// What is recorded.
    pub telemetry: Telemetry,
    /// Who can be asked or told, by name.
    pub providers: Vec<Provider>,
    /// Identities of gateways whose `x-forwarded-for` is believed.
    pub gateway_identities: Vec<Str>,
    /// Whether `x-forwarded-client-cert` tells applications who asked.
    pub forward_client_cert: bool,
    /// Addresses of nodes, in order.
    pub node_addresses: Vec<IpAddr>,
}

impl Settings {
    /// Those of a gateway that says nothing: whatever can be left out is as usual.
    #[must_use]
    pub fn new(namespace: impl Into<Str>, gateway: impl Into<Str>) -> Self {
        Self {
            namespace: namespace.into(),
            gateway: gateway.into(),
            class: "".into(),
            addresses: Vec::new(),
            scope: Scope::default(),
            source_identity: SourceIdentity::default(),
            path_normalization: PathNormalization::default(),
            limits: Limits::default(),
            telemetry: Telemetry::default(),
            providers: Vec::new(),
            gateway_identities: Vec::new(),
            forward_client_cert: false,
            node_addresses: Vec::new(),
        }
    }

    /// Whether an address is that of a node.
    #[must_use]
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.node_addresses.binary_search(&address).is_ok()
    }

    /// `<namespace>/<gateway>`.
    #[must_use]
    pub fn name(&self) -> Str {
        format!("{}/{}", self.namespace, self.gateway).into()
    }
}

/// What a waypoint accepts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Requests to services.
    #[default]
    Service,
    /// Requests to addresses of workloads.
    Workload,
    /// Both.
    All,
    /// Neither.
    None,
}

/// Whether destinations are told who asked.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum SourceIdentity {
    /// They are.
    #[default]
    Forward,
    /// They see the waypoint only.
    Off,
}

/// The form of a path before it is matched.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum PathNormalization {
    /// Escapes of unreserved characters decoded, dot segments resolved, backslashes turned.
    #[default]
    Base,
    /// And several slashes become one.
    MergeSlashes,
    /// And escaped slashes become slashes.
    DecodeSlashes,
    /// As it came.
    None,
}

/// Bounds of a waypoint; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Tunnels at once.
    pub tunnels: Option<u32>,
    /// Streams in tunnels at once.
    pub streams: Option<u32>,
    /// Bytes of buffers of the whole process.
    pub buffer_bytes: Option<u64>,
    /// Bytes of the header fields of a request.
    pub header_bytes: Option<u32>,
    /// Time for a request's head.
    pub head_timeout: Option<Duration>,
    /// Time between parts of a request's body.
    pub body_idle: Option<Duration>,
    /// Time between bytes of a TCP stream or WebSocket.
    pub stream_idle: Option<Duration>,
    /// Time for what is running when the process ends.
    pub drain: Option<Duration>,
}

/// What is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// Which requests get a line.
    pub access_log: AccessLog,
    /// Lines are JSON.
    pub json: bool,
    /// The provider that spans are sent to.
    pub tracing: Option<Str>,
    /// Spans of this many requests of a million; `None` is the default.
    pub sampling_ppm: Option<u32>,
}

/// Which requests get a line.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum AccessLog {
    /// Those that failed.
    #[default]
    Errors,
    /// None.
    Off,
    /// All.
    All,
}

/// Somebody who can be asked or told, by name.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// Name.
    pub name: Str,
    /// What it does.
    pub kind: ProviderKind,
}

/// What a provider does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProviderKind {
    /// Decides about requests.
    ExtAuthz(Box<ExtAuthz>),
    /// Counts requests of every replica.
    RateLimit(Target),
    /// Takes spans.
    Tracing(Target),
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The service.
    pub service: NamespacedHostname,
    /// The port.
    pub port: u16,
}

/// What a waypoint stands in front of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Front {
    /// The waypoint, `<namespace>/<gateway>`.
    pub waypoint: Str,
    /// The service or workload.
    pub object: FrontOf,
    /// Names of the policies without which nothing passes.
    pub required_policies: Vec<Str>,
    /// Names of the rules without which nothing passes: somebody else decides about their requests.
    pub required_routes: Vec<Str>,
    /// Namespaces whose callers may see it; empty is all.
    pub client_namespaces: Vec<Str>,
    /// It is bound elsewhere or nowhere now, and served until everybody knows.
    pub draining: bool,
}

/// What is fronted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FrontOf {
    /// A service.
    Service(NamespacedHostname),
    /// A workload.
    Workload(WorkloadUid),
}

impl FrontOf {
    /// The last part of the front's name: the host name or the uid.
    #[must_use]
    pub fn key(&self) -> Str {
        match self {
            Self::Service(service) => service.to_string().into(),
            Self::Workload(uid) => uid.0.clone(),
        }
    }
}
