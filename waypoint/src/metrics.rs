//! What the process counts beside requests.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tulle_model::{Mesh, Reason};
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Exposition, Registry, Section};
use tulle_xds_client::MeshState;

use crate::buffers::Shown;
use crate::policy::metrics::PolicyMetrics;
use crate::telemetry::requests::Traffic;
use crate::telemetry::spans::Spans;
use crate::upstream::metrics::UpstreamMetrics;

pub(crate) const SECTION: Section = Section {
    title: "Waypoint",
    about: "",
};

/// Seconds that configuration takes.
const SECONDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Counters of the process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Tunnel connections that are open.
    pub tunnels: Gauge,
    /// Streams in them that are open.
    pub streams: Gauge,
    /// Connections to endpoints that were opened without mutual TLS.
    pub plaintext_upstream: Counter,
    mirror: Family<OfMirror, Counter>,
    retries: Family<OfRetry, Counter>,
    local_replies: Family<OfReason, Counter>,
    /// How long configuration took to decide requests.
    pub config_apply: Seconds,
    /// Backends and their endpoints.
    pub upstream: UpstreamMetrics,
    /// What policies decided.
    pub policies: PolicyMetrics,
    /// Requests and streams, with Istio's labels.
    pub traffic: Traffic,
    /// Spans that were lost.
    pub spans_dropped: Counter,
}

/// A histogram of seconds. Clones count together.
#[derive(Debug, Clone)]
pub struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new(SECONDS))
    }
}

impl Seconds {
    /// Counts one that took this long.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

label_set! {
    struct OfReason {
        /// token of [the reason](errors.md)
        reason: &'static str,
    }
}

label_set! {
    struct OfRetry {
        /// `made`; `over_budget`, where the retry budget of the service is spent; `overflow`, where its circuit breaker
        /// allows no more at once
        outcome: &'static str,
    }
}

label_set! {
    struct OfMirror {
        /// `sent`, `failed`, `timeout`, `dropped`, `denied`
        outcome: &'static str,
    }
}

impl Metrics {
    /// Metrics that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let section = registry.section(&SECTION);
        section.collect(Shown);
        let replies = "Answers of the waypoint itself, and streams it refused";
        let plaintext = "Connections to endpoints that were opened without mutual TLS";
        Self {
            tunnels: section.register(
                "tulle_waypoint_tunnels",
                "Tunnel connections that are open",
                Gauge::default(),
            ),
            streams: section.register(
                "tulle_waypoint_streams",
                "Streams in tunnels that are open",
                Gauge::default(),
            ),
            plaintext_upstream: section.register(
                "tulle_waypoint_plaintext_upstream",
                plaintext,
                Counter::default(),
            ),
            mirror: section.register(
                "tulle_waypoint_mirror",
                "Copies of requests that rules asked for, by what became of them",
                Family::default(),
            ),
            retries: section.register(
                "tulle_waypoint_retries",
                "Further tries that were wanted, by what became of them",
                Family::default(),
            ),
            local_replies: section.register("tulle_waypoint_local_replies", replies, Family::default()),
            config_apply: Seconds(section.register(
                "tulle_waypoint_config_apply_seconds",
                "Time from a change of the configuration to the snapshot that requests are decided by",
                Histogram::new(SECONDS),
            )),
            upstream: UpstreamMetrics::register(registry),
            policies: PolicyMetrics::register(registry),
            traffic: Traffic::register(registry),
            spans_dropped: Spans::counter(registry),
        }
    }

    /// Counts a copy of a request.
    pub fn mirrored(&self, outcome: &'static str) {
        self.mirror.get_or_create(&OfMirror { outcome }).inc();
    }

    /// Counts a further try that was wanted.
    pub fn retried(&self, outcome: &'static str) {
        self.retries.get_or_create(&OfRetry { outcome }).inc();
    }

    /// Counts an answer of our own.
    pub fn replied(&self, reason: Reason) {
        let label = OfReason {
            reason: reason.token(),
        };
        self.local_replies.get_or_create(&label).inc();
    }
}

/// All that a waypoint exports, registered in one place: what is served and what the reference lists are the same.
#[derive(Debug)]
pub(crate) struct Exported {
    /// Of requests, streams and backends.
    pub(crate) metrics: Metrics,
    /// Of certificates.
    pub(crate) certificates: tulle_identity::Metrics,
    /// Of configuration.
    pub(crate) configuration: tulle_xds_client::Metrics,
    /// Where they are read.
    pub(crate) exposition: Exposition,
}

impl Exported {
    /// Makes and registers everything.
    pub(crate) fn register(mesh: &MeshState) -> Self {
        let registry = Registry::for_process("waypoint");
        Self {
            configuration: tulle_xds_client::Metrics::register(&registry, mesh),
            certificates: tulle_identity::Metrics::register(&registry),
            metrics: Metrics::register(&registry),
            exposition: registry.seal(),
        }
    }
}

/// What is exported, while nothing runs: for the reference.
#[must_use]
pub fn reference() -> Exposition {
    Exported::register(&MeshState::new(Mesh::new())).exposition
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
