//! How connections are carried: whose address they show, when they are given up, what a refused peer is told.

use std::time::Duration;

use serde::Serialize;
use tulle_runtime::config::{Collector, parse_bool, parse_duration};

use super::show::as_duration;

const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// Whether the application sees the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceAddress {
    /// If the kernel lets us.
    BestEffort,
    /// Or the connection fails.
    Required,
    /// It sees the proxy's.
    Off,
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Idle time before the first probe.
    #[serde(serialize_with = "as_duration")]
    pub time: Duration,
    /// Time between probes.
    #[serde(serialize_with = "as_duration")]
    pub interval: Duration,
    /// Probes.
    pub retries: u32,
    /// Also bound unacknowledged data.
    pub user_timeout: bool,
}

/// How a connection between two workloads of this process goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// Handed over without a tunnel.
    InProcess,
    /// By a tunnel, as everywhere else.
    Hbone,
}

/// How much of a reason a peer of our trust domain is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ReasonDetail {
    /// Code, token, policy.
    Full,
    /// Code and token.
    Code,
    /// Nothing.
    None,
}

/// CONNECTION_TERMINATION_DEADLINE; else what Kubernetes grants, less a margin for the end itself.
pub(super) fn read_drain_deadline(read: &mut Collector<'_>) -> Duration {
    let deadline = read.optional("CONNECTION_TERMINATION_DEADLINE", parse_duration);
    let grace = read.optional("TERMINATION_GRACE_PERIOD_SECONDS", parse_seconds);
    deadline
        .or_else(|| grace.map(drain_within))
        .unwrap_or(DEFAULT_DRAIN)
}

fn parse_seconds(text: &str) -> Result<Duration, tulle_runtime::config::InvalidDuration> {
    text.parse()
        .map(Duration::from_secs)
        .or_else(|_| parse_duration(text))
}

fn drain_within(grace: Duration) -> Duration {
    const SHORT: Duration = Duration::from_secs(10);
    let margin = Duration::from_secs(if grace <= SHORT { 1 } else { 5 });
    grace.saturating_sub(margin).max(Duration::from_secs(1))
}

pub(super) fn read_source_address(read: &mut Collector<'_>) -> SourceAddress {
    match read.optional("ENABLE_ORIG_SRC", parse_bool) {
        None => SourceAddress::BestEffort,
        Some(true) => SourceAddress::Required,
        Some(false) => SourceAddress::Off,
    }
}

pub(super) fn read_keepalive(read: &mut Collector<'_>) -> Option<Keepalive> {
    let enabled = read.bool("KEEPALIVE_ENABLED", true);
    let keepalive = Keepalive {
        time: read.duration("KEEPALIVE_TIME", Duration::from_secs(180)),
        interval: read.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
        retries: read.parsed("KEEPALIVE_RETRIES", 9),
        user_timeout: read.bool("USER_TIMEOUT_ENABLED", false),
    };
    enabled.then_some(keepalive)
}

pub(super) fn read_same_node(read: &mut Collector<'_>) -> SameNode {
    let way = |text: &str| match text {
        "inprocess" => Ok(SameNode::InProcess),
        "hbone" => Ok(SameNode::Hbone),
        _ => Err("must be inprocess or hbone"),
    };
    read.value("TULLE_SAME_NODE", SameNode::InProcess, way)
}

/// Zero is no bound.
pub(super) fn read_connections_max(read: &mut Collector<'_>) -> Option<usize> {
    Some(read.parsed("TULLE_MAX_CONNECTIONS_PER_WORKLOAD", 0)).filter(|max| *max > 0)
}

pub(super) fn read_reason_detail(read: &mut Collector<'_>) -> ReasonDetail {
    let detail = read.string("TULLE_REASON_DETAIL", "full");
    match detail.as_str() {
        "full" => ReasonDetail::Full,
        "code" => ReasonDetail::Code,
        "none" => ReasonDetail::None,
        other => {
            read.problem("TULLE_REASON_DETAIL", other, "must be full, code or none");
            ReasonDetail::Full
        }
    }
}
