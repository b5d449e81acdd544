//! What the process counts beside requests.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tulle_model::Reason;
use tulle_runtime::metrics::Registry;

use crate::policy::metrics::PolicyMetrics;
use crate::telemetry::requests::Traffic;
use crate::telemetry::spans::Spans;

/// Counters of the process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Tunnel connections that are open.
    pub tunnels: Gauge,
    /// Streams in them that are open.
    pub streams: Gauge,
    /// Connections to endpoints that were opened without mutual TLS.
    pub plaintext_upstream: Counter,
    mirror: Family<OfOutcome, Counter>,
    retries: Family<OfOutcome, Counter>,
    local_replies: Family<OfReason, Counter>,
    /// What policies decided.
    pub policies: PolicyMetrics,
    /// Requests and streams, with Istio's labels.
    pub traffic: Traffic,
    /// Spans that were lost.
    pub spans_dropped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

impl Metrics {
    /// Metrics that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let replies = "Answers of the waypoint itself, and streams it refused, by reason";
        let plaintext = "Connections to endpoints that were opened without mutual TLS";
        Self {
            tunnels: registry.register(
                "tulle_waypoint_tunnels",
                "Tunnel connections that are open",
                Gauge::default(),
            ),
            streams: registry.register(
                "tulle_waypoint_streams",
                "Streams in tunnels that are open",
                Gauge::default(),
            ),
            plaintext_upstream: registry.register(
                "tulle_waypoint_plaintext_upstream",
                plaintext,
                Counter::default(),
            ),
            mirror: registry.register(
                "tulle_waypoint_mirror",
                "Copies of requests, by what became of them",
                Family::default(),
            ),
            retries: registry.register(
                "tulle_waypoint_retries",
                "Further tries that were wanted, by what became of them: made, over_budget, overflow",
                Family::default(),
            ),
            local_replies: registry.register("tulle_waypoint_local_replies", replies, Family::default()),
            policies: PolicyMetrics::register(registry),
            traffic: Traffic::register(registry),
            spans_dropped: Spans::counter(registry),
        }
    }

    /// Counts a copy of a request.
    pub fn mirrored(&self, outcome: &'static str) {
        self.mirror.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// Counts a further try that was wanted.
    pub fn retried(&self, outcome: &'static str) {
        self.retries.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// Counts an answer of our own.
    pub fn replied(&self, reason: Reason) {
        let label = OfReason {
            reason: reason.token(),
        };
        self.local_replies.get_or_create(&label).inc();
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    #[must_use]
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
