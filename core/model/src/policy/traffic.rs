//! Concerns of traffic: faults, limits, balancing. The nearest policy wins whole.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::name::Str;
use crate::route::Match;

/// Errors on purpose. Shares are counted in millionths.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Wait before going on.
    pub delay: Option<Duration>,
    /// Share of requests that wait.
    pub delay_ppm: u32,
    /// Answer instead of going on.
    pub abort: Option<Abort>,
    /// Share of requests that are answered.
    pub abort_ppm: u32,
    /// Requests it is for; none is every one.
    pub matches: Vec<Match>,
    /// Namespaces of the callers it is for; none is every one.
    pub source_namespaces: Vec<Str>,
}

/// The answer of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Abort {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC.
    Grpc(u32),
}

/// Requests counted by each replica.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalRateLimit {
    /// This many …
    pub requests: u32,
    /// … in this time.
    pub per: Duration,
    /// How many at once; `None` is what one second earns.
    pub burst: Option<u32>,
    /// What has a bucket of its own.
    pub keys: Vec<Key>,
    /// Requests it is for; none is every one.
    pub matches: Vec<Match>,
    /// The number is shared by the ready replicas.
    pub share: bool,
    /// Buckets; `None` is the default.
    pub keys_max: Option<u32>,
}

/// Requests counted by a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalRateLimit {
    /// The provider, by name.
    pub provider: Str,
    /// The domain that the service knows the counts by.
    pub domain: Str,
    /// What is counted.
    pub descriptors: Vec<Descriptor>,
    /// How long an answer may take; `None` is the default.
    pub timeout: Option<Duration>,
    /// Without an answer the request passes.
    pub fail_open: bool,
}

/// One thing that is counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// Its parts, in order.
    pub entries: Vec<Entry>,
}

/// A part of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Name.
    pub name: Str,
    /// Value.
    pub key: Key,
}

/// What requests are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Key {
    /// Who asks.
    SourceIdentity,
    /// The namespace of who asks.
    SourceNamespace,
    /// The address of who asks.
    SourceIp,
    /// A header.
    Header(Str),
    /// The route.
    Route,
    /// A parameter of the query.
    Query(Str),
    /// A cookie.
    Cookie(CookieKey),
    /// The method.
    Method,
    /// Always the same.
    Constant(Str),
}

/// A cookie that requests are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieKey {
    /// Name.
    pub name: Str,
    /// The path it is set for.
    pub path: Str,
    /// Its life, if it is set where missing; zero ends with the browser.
    pub ttl: Option<Duration>,
}

/// How much at once; `None` is no bound, or the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CircuitBreaker {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests.
    pub requests: Option<u32>,
    /// Retries.
    pub retries: Option<u32>,
    /// Requests of one connection.
    pub requests_per_connection: Option<u32>,
    /// Age of a connection.
    pub age_max: Option<Duration>,
    /// Time for a connection to come about.
    pub connect_timeout: Option<Duration>,
}

/// When an endpoint is left out; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outlier {
    /// Failures in a row.
    pub consecutive: Option<u32>,
    /// Only 502, 503 and 504 are failures.
    pub gateway_errors_only: bool,
    /// Statuses that are failures.
    pub codes: Vec<u16>,
    /// Time in which a calm endpoint is forgiven one ejection.
    pub interval: Option<Duration>,
    /// How long the first time.
    pub base: Option<Duration>,
    /// How long at most.
    pub max: Option<Duration>,
    /// Share of endpoints that may be out at once, in percent.
    pub percent_max: Option<u32>,
    /// By comparison with the others.
    pub success_rate: Option<SuccessRate>,
    /// By share of failures.
    pub failure_percent: Option<FailurePercent>,
}

/// Left out by comparison with the others; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SuccessRate {
    /// Endpoints to compare.
    pub endpoints_min: Option<u32>,
    /// Requests per endpoint and interval.
    pub requests_min: Option<u32>,
    /// Distance from the mean, in thousandths of the standard deviation.
    pub deviations_milli: Option<u32>,
}

/// Left out by share of failures; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailurePercent {
    /// Percent of requests.
    pub percent: Option<u32>,
    /// Endpoints to compare.
    pub endpoints_min: Option<u32>,
    /// Requests per endpoint and interval.
    pub requests_min: Option<u32>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// The way; `None` is the default of the protocol.
    pub algorithm: Option<Algorithm>,
    /// What decides, for the ways that hash.
    pub hash: Vec<Key>,
    /// Places on the ring; `None` is the default.
    pub ring_min: Option<u32>,
    /// Endpoints to choose from; `None` is two.
    pub choices: Option<u32>,
    /// How new endpoints come in.
    pub slow_start: Option<SlowStart>,
    /// Which places come first.
    pub locality: Option<Locality>,
}

/// A way to choose endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// By time to answer and requests in flight.
    PeakEwma,
    /// By requests in flight.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// By chance.
    Random,
    /// By a ring of hashes.
    RingHash,
    /// By a table of hashes.
    Maglev,
}

/// How new endpoints come in.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlowStart {
    /// How long they are new.
    pub window: Duration,
    /// How steep, in thousandths; `None` is even.
    pub aggression_milli: Option<u32>,
    /// Least share, in percent; `None` is the default.
    pub percent_min: Option<u32>,
}

/// Which places come first.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// Regions to go to next, by region.
    pub failover: BTreeMap<Str, Vec<Str>>,
    /// Shares of places, in percent, by place of the caller (`region/zone/subzone`, `*` at the end).
    pub distribute: BTreeMap<Str, BTreeMap<Str, u32>>,
}

/// How much may be tried again; `None` is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Percent of requests.
    pub percent: Option<u32>,
    /// Counted over this time.
    pub interval: Option<Duration>,
    /// Always allowed, per second.
    pub per_second_min: Option<u32>,
}

/// How a backend outside of the mesh is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTls {
    /// Name asked for, and checked unless there are others.
    pub hostname: Str,
    /// Names that are checked instead.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// Roots, as PEM; empty are those of the system.
    pub roots: Vec<Str>,
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectAltName {
    /// A host name.
    Hostname(Str),
    /// A URI.
    Uri(Str),
}
