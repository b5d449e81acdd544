//! Policies of traffic: our own `TrafficPolicy`, and `BackendTLSPolicy`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tulle_model::Str;

use super::duration::{Milli, Percent, Span};
use super::meta::Meta;
use super::route::{BackendRef, HttpMatch, SessionPersistence};
use super::security::{Provider, Unreadable};

/// How traffic to its targets is treated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state; apart, so that it does not make objects of every other kind as large as it is.
    pub spec: Box<TrafficPolicySpec>,
    /// Why the spec cannot be read, if so.
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

/// Wanted state of a [`TrafficPolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicySpec {
    /// What it is for; none, in the root namespace, is the whole mesh.
    pub target_refs: Vec<TrafficTargetRef>,
    /// Errors on purpose.
    pub fault: Option<Fault>,
    /// Bounds of requests.
    pub rate_limit: Option<RateLimit>,
    /// Bounds of what happens at once.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are chosen.
    pub load_balancing: Option<LoadBalancing>,
    /// How much may be tried again.
    pub retry_budget: Option<RetryBudget>,
    /// Whether clients stay with an endpoint.
    pub session_persistence: Option<SessionPersistence>,
    /// Who else decides.
    pub external_auth: Option<ExternalAuth>,
}

/// What a traffic policy is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficTargetRef {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Name.
    pub name: Str,
    /// A rule of a route, or a port of a service, by name.
    pub section_name: Str,
    /// A port of a service.
    pub port: Option<u16>,
}

/// Errors on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Requests that wait.
    pub delay: Option<FaultDelay>,
    /// Requests that are answered.
    pub abort: Option<FaultAbort>,
    /// Requests it is for.
    pub matches: Vec<HttpMatch>,
    /// Namespaces of the callers it is for.
    pub source_namespaces: Vec<Str>,
}

/// Requests that wait.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultDelay {
    /// How long.
    pub duration: Span,
    /// How many.
    pub percent: Percent,
}

/// Requests that are answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FaultAbort {
    /// With this status of HTTP.
    pub http_status: Option<u16>,
    /// With this status of gRPC.
    pub grpc_status: Option<u32>,
    /// How many.
    pub percent: Percent,
}

/// Bounds of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimit {
    /// Counted by each replica.
    pub local: Option<LocalRateLimit>,
    /// Counted by a service.
    pub global: Option<GlobalRateLimit>,
}

/// Requests counted by each replica.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalRateLimit {
    /// This many …
    pub requests: u32,
    /// … in this time; absent is a second.
    pub per: Option<Span>,
    /// How many at once.
    pub burst: Option<u32>,
    /// What has a count of its own.
    pub keys: Vec<RequestKey>,
    /// Requests it is for.
    pub matches: Vec<HttpMatch>,
    /// Shared by the ready replicas.
    pub share: bool,
    /// Most counts.
    pub max_keys: Option<u32>,
}

/// Requests counted by a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalRateLimit {
    /// The provider.
    pub provider: Provider,
    /// The domain.
    pub domain: Str,
    /// What is counted.
    pub descriptors: Vec<Descriptor>,
    /// How long an answer may take.
    pub timeout: Option<Span>,
    /// Without an answer, requests pass.
    pub fail_open: bool,
}

/// One thing that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// Its parts.
    pub entries: Vec<DescriptorEntry>,
}

/// A part of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DescriptorEntry {
    /// Name.
    pub name: Str,
    /// Value.
    pub key: RequestKey,
}

/// What requests are told apart by: exactly one is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestKey {
    /// `SourceIdentity`, `SourceNamespace`, `SourceIP`, `Route`, `Method`, `Header`, `Query`, `Cookie`, `Constant`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Name of the header, parameter or cookie; the constant.
    pub name: Str,
    /// About the cookie.
    pub path: Str,
    /// Life of the cookie.
    pub ttl: Option<Span>,
}

/// Bounds of what happens at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CircuitBreaker {
    /// Connections.
    pub max_connections: Option<u32>,
    /// Requests that wait.
    pub max_pending_requests: Option<u32>,
    /// Requests.
    pub max_requests: Option<u32>,
    /// Retries.
    pub max_retries: Option<u32>,
    /// Requests of one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Age of a connection.
    pub max_connection_age: Option<Span>,
    /// Time for a connection to come about.
    pub connect_timeout: Option<Span>,
}

/// When an endpoint is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Failures in a row.
    pub consecutive_failures: Option<u32>,
    /// Only 502, 503 and 504 are failures.
    pub gateway_errors_only: bool,
    /// Statuses that are failures.
    pub codes: Vec<u16>,
    /// Time in which a calm endpoint is forgiven.
    pub interval: Option<Span>,
    /// How long the first time.
    pub base_ejection_time: Option<Span>,
    /// How long at most.
    pub max_ejection_time: Option<Span>,
    /// Share that may be out, in percent.
    pub max_ejection_percent: Option<u32>,
    /// By comparison.
    pub success_rate: Option<SuccessRate>,
    /// By share of failures.
    pub failure_percentage: Option<FailurePercentage>,
}

/// Left out by comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SuccessRate {
    /// Endpoints to compare.
    pub minimum_endpoints: Option<u32>,
    /// Requests each.
    pub minimum_requests: Option<u32>,
    /// Distance from the mean, in standard deviations.
    pub deviations: Option<Milli>,
}

/// Left out by share of failures.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailurePercentage {
    /// Percent.
    pub threshold: Option<u32>,
    /// Endpoints to compare.
    pub minimum_endpoints: Option<u32>,
    /// Requests each.
    pub minimum_requests: Option<u32>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// `PeakEwma`, `LeastRequest`, `RoundRobin`, `Random`, `RingHash`, `Maglev`.
    pub algorithm: Str,
    /// What decides, for the ways that hash.
    pub hash: Vec<RequestKey>,
    /// Places on the ring.
    pub minimum_ring_size: Option<u32>,
    /// Endpoints to choose from.
    pub choices: Option<u32>,
    /// How new endpoints come in.
    pub slow_start: Option<SlowStart>,
    /// Which places come first.
    pub locality: Option<Locality>,
}

/// How new endpoints come in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlowStart {
    /// How long they are new.
    pub window: Span,
    /// How steep.
    pub aggression: Option<Milli>,
    /// Least share, in percent.
    pub minimum_percent: Option<u32>,
}

/// Which places come first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// Regions to go to next, by region.
    pub failover: BTreeMap<Str, Vec<Str>>,
    /// Shares of places, by place of the caller.
    pub distribute: BTreeMap<Str, BTreeMap<Str, u32>>,
}

/// How much may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Percent of requests.
    pub percent: Option<u32>,
    /// Counted over this time.
    pub interval: Option<Span>,
    /// Always allowed, per second.
    pub min_retries_per_second: Option<u32>,
}

/// Who else decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAuth {
    /// A provider of the mesh.
    pub provider: Option<Provider>,
    /// Or a service.
    pub backend_ref: Option<BackendRef>,
    /// `GRPC` if empty, or `HTTP`.
    pub protocol: Str,
    /// What the path is appended to.
    pub path: Str,
    /// Headers that are sent along.
    pub allowed_headers: Vec<Str>,
    /// Headers of the answer that go on.
    pub allowed_response_headers: Vec<Str>,
    /// Bytes of the body that are sent along.
    pub max_body_bytes: u32,
    /// A longer body is cut.
    pub allow_partial: bool,
    /// How long an answer may take.
    pub timeout: Option<Span>,
    /// Without an answer, requests pass.
    pub fail_open: bool,
    /// Status without an answer.
    pub status_on_error: Option<u16>,
}

/// How backends are spoken to over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicy {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    pub spec: BackendTlsPolicySpec,
}

/// Wanted state of a [`BackendTlsPolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services.
    pub target_refs: Vec<TrafficTargetRef>,
    /// How their certificates are checked.
    pub validation: BackendValidation,
}

/// How certificates of backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendValidation {
    /// Objects with roots.
    pub ca_certificate_refs: Vec<LocalRef>,
    /// `System` for the roots of the system.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Str,
    /// Name asked for.
    pub hostname: Str,
    /// Names that are checked instead.
    pub subject_alt_names: Vec<BackendName>,
}

/// An object of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalRef {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Name.
    pub name: Str,
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendName {
    /// `Hostname` or `URI`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Host name.
    pub hostname: Str,
    /// URI.
    pub uri: Str,
}
