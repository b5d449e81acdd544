//! What the control plane counts. Names without a `tulle_` prefix are Istio's, so that its dashboards keep working.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Inner;
use tulle_k8s::Kind;
use tulle_runtime::metrics::Registry;

use crate::engine::Batch;
use crate::serve::frame::Encoding;
use crate::snapshot::ResourceType;

mod observed;

#[cfg(test)]
pub(crate) use observed::Lag;
pub use observed::Observed;

/// Label of a resource type; bounded by [`ResourceType::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    r#type: &'static str,
}

impl From<ResourceType> for TypeLabel {
    fn from(ty: ResourceType) -> Self {
        let r#type = match ty {
            ResourceType::Address => "address",
            ResourceType::Workload => "workload",
            ResourceType::Authorization => "authorization",
            ResourceType::Trust => "trust",
            ResourceType::Waypoint => "waypoint",
            ResourceType::Route => "route",
            ResourceType::Policy => "policy",
        };
        Self { r#type }
    }
}

/// Label of how responses are written; bounded by [`Encoding`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EncodingLabel {
    encoding: &'static str,
}

impl From<Encoding> for EncodingLabel {
    fn from(encoding: Encoding) -> Self {
        Self {
            encoding: encoding.as_str(),
        }
    }
}

/// Label of a refusal; bounded by the tokens there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The token.
    pub reason: &'static str,
}

/// Times in which certificates are issued.
#[derive(Debug, Clone)]
pub struct Issuance(Histogram);

impl Default for Issuance {
    fn default() -> Self {
        Self(Histogram::new([
            0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
        ]))
    }
}

impl Issuance {
    /// Adds one.
    pub fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

/// Seconds, from a tenth of a millisecond to ten.
fn seconds() -> Histogram {
    Histogram::new([
        0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    ])
}

fn bytes() -> Histogram {
    Histogram::new([100.0, 1e3, 1e4, 1e5, 1e6, 2e6, 4e6, 1e7])
}

/// Label of a kind of object; bounded by the kinds there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    r#type: &'static str,
}

/// What the engine counts. Clones share it.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    /// Changes of objects taken.
    pub inbound: Family<KindLabel, Gauge>,
    /// Cuts that changed what is served.
    pub cuts: Gauge,
    /// Time from a batch of changes to the cut it means.
    pub turns: Histogram,
    /// Time from when an object was written to the cut it means, of the newest of each kind.
    pub source_lag: Family<SourceLabel, Gauge<f64, AtomicU64>>,
    /// Times a source was read as a whole.
    pub relists: Family<RelistLabel, Counter>,
}

/// Label of a kind of object, or of a source; bounded by those there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    kind: &'static str,
}

/// Label of a whole reading; bounded by the sources and reasons there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelistLabel {
    kind: &'static str,
    reason: &'static str,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            inbound: Family::default(),
            cuts: Gauge::default(),
            turns: seconds(),
            source_lag: Family::default(),
            relists: Family::default(),
        }
    }
}

impl EngineMetrics {
    /// Counts the changes of a batch.
    pub fn on_batch(&self, batch: &Batch) {
        for event in &batch.events {
            let kind = KindLabel {
                r#type: event.key.kind.as_str(),
            };
            self.inbound.get_or_create(&kind).inc();
        }
    }

    /// Notes how late a cut is for what was written at these times.
    pub fn on_turn(&self, written: &BTreeMap<Kind, SystemTime>, now: SystemTime) {
        for (kind, written) in written {
            let lag = now.duration_since(*written).unwrap_or_default();
            let kind = SourceLabel { kind: kind.as_str() };
            self.source_lag.get_or_create(&kind).set(lag.as_secs_f64());
        }
    }

    /// Counts a whole reading of a source.
    pub fn on_relist(&self, kind: &'static str, reason: &'static str) {
        self.relists.get_or_create(&RelistLabel { kind, reason }).inc();
    }
}

/// What streams measure. Clones share it.
#[derive(Debug, Clone)]
pub struct StreamMetrics {
    /// Time to make a response.
    pub push: Histogram,
    /// Time from a response to its place in the connection.
    pub send: Histogram,
    /// Bytes of a response as written.
    pub size: Histogram,
    /// Time from a cut to the client's answer to what it changed.
    pub convergence: Histogram,
    /// How clients began with a type.
    pub resume: Family<OutcomeLabel, Counter>,
    /// Times a stream was further behind than the log of changes reaches.
    pub overruns: Counter,
}

/// Label of how a client began; bounded by the words there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// The word.
    pub outcome: &'static str,
}

impl Default for StreamMetrics {
    fn default() -> Self {
        Self {
            push: seconds(),
            send: seconds(),
            size: bytes(),
            convergence: seconds(),
            resume: Family::default(),
            overruns: Counter::default(),
        }
    }
}

/// Counters and gauges of the servers. Clones share them.
///
/// Istio exports its counts without the suffix `_total`, which a counter here could not be named without; they are
/// gauges that only rise.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Of the engine.
    pub engine: EngineMetrics,
    /// Of the streams.
    pub stream: StreamMetrics,
    /// Streams connected.
    pub streams: Gauge,
    /// Responses sent.
    pub pushes: Family<TypeLabel, Gauge>,
    /// Bytes of responses, as they are written.
    pub response_bytes: Family<EncodingLabel, Counter>,
    /// Bytes of those that tell whole tables.
    pub snapshot_bytes: Family<EncodingLabel, Counter>,
    /// Responses rejected by clients.
    pub rejects: Family<TypeLabel, Gauge>,
    /// The same under our own name.
    pub nacks: Family<TypeLabel, Counter>,
    /// Answers to responses that were never sent on the stream, or answered before.
    pub expired_nonces: Gauge,
    /// Streams closed because the client did not read.
    pub write_timeouts: Gauge,
    /// Streams refused or ended by the server.
    pub refused: Family<ReasonLabel, Counter>,
    /// Certificate requests received.
    pub csr_count: Gauge,
    /// Requests without a credential that is known.
    pub csr_unauthenticated: Gauge,
    /// Requests that could not be parsed.
    pub csr_unparsable: Gauge,
    /// Requests of known callers that do not say readably whom the certificate is for.
    pub csr_without_identity: Gauge,
    /// Requests that could not be signed.
    pub csr_sign_errors: Gauge,
    /// Certificates issued.
    pub issued: Gauge,
    /// Requests refused.
    pub csr_refused: Family<ReasonLabel, Counter>,
    /// Time from an authorised request to its certificate.
    pub issuance: Issuance,
    /// Requests that wait for the placement of their workload.
    pub held: Gauge,
    /// Requests whose own names differ from the one issued.
    pub san_mismatches: Counter,
}

impl Metrics {
    /// Makes the metrics visible.
    pub fn register(&self, registry: &Registry) {
        registry.with_prefix("pilot", |inner| self.register_pilot(inner));
        registry.with_prefix("citadel_server", |inner| self.register_citadel(inner));
        registry.with_prefix("tulle_xds", |inner| {
            let help = "Time from a batch of changes to the cut it means";
            inner.register("turn_seconds", help, self.engine.turns.clone());
            let help = "Time from when the newest object of a kind was written to the cut it means";
            inner.register("source_lag_seconds", help, self.engine.source_lag.clone());
            let help = "Times a source was read as a whole";
            inner.register("relists", help, self.engine.relists.clone());
            let help = "How clients began with a type";
            inner.register("resume", help, self.stream.resume.clone());
            let help = "Times a stream was further behind than the log reaches";
            inner.register("log_overruns", help, self.stream.overruns.clone());
            inner.register("nacks", "Responses rejected by clients", self.nacks.clone());
            inner.register("refused", "Streams refused or ended", self.refused.clone());
            let help = "Bytes of responses that tell whole tables";
            inner.register("snapshot_bytes", help, self.snapshot_bytes.clone());
            let help = "Bytes of responses as they are written";
            inner.register("response_bytes", help, self.response_bytes.clone());
        });
        registry.with_prefix("tulle_ca", |inner| {
            inner.register(
                "refused",
                "Certificate requests refused",
                self.csr_refused.clone(),
            );
            let help = "Certificate requests that wait for a placement";
            inner.register("held_requests", help, self.held.clone());
            let help = "Time from an authorised request to its certificate";
            inner.register("issuance_seconds", help, self.issuance.0.clone());
            let help = "Certificate requests that claimed other names than were issued";
            inner.register("san_mismatch", help, self.san_mismatches.clone());
        });
    }

    fn register_pilot(&self, inner: &mut Inner) {
        inner.register("xds", "Streams connected", self.streams.clone());
        inner.register("xds_pushes", "Responses sent", self.pushes.clone());
        inner.register(
            "total_xds_rejects",
            "Responses rejected by clients",
            self.rejects.clone(),
        );
        inner.register(
            "xds_expired_nonce",
            "Answers with a stale nonce",
            self.expired_nonces.clone(),
        );
        let help = "Time to make a response, in seconds";
        inner.register("xds_push_time", help, self.stream.push.clone());
        let help = "Time from a response to its place in the connection, in seconds";
        inner.register("xds_send_time", help, self.stream.send.clone());
        inner.register(
            "xds_config_size_bytes",
            "Bytes of a response",
            self.stream.size.clone(),
        );
        let help = "Time from a cut to the client's answer, in seconds";
        inner.register("proxy_convergence_time", help, self.stream.convergence.clone());
        inner.register(
            "inbound_updates",
            "Changes of objects taken",
            self.engine.inbound.clone(),
        );
        let help = "Cuts that changed what is served";
        inner.register("push_triggers", help, self.engine.cuts.clone());
        let help = "Streams closed because the client did not read";
        inner.register("xds_write_timeout", help, self.write_timeouts.clone());
    }

    fn register_citadel(&self, inner: &mut Inner) {
        inner.register(
            "csr_count",
            "Certificate requests received",
            self.csr_count.clone(),
        );
        let help = "Certificate requests without a known credential";
        inner.register(
            "authentication_failure_count",
            help,
            self.csr_unauthenticated.clone(),
        );
        let help = "Certificate requests that could not be parsed";
        inner.register("csr_parsing_err_count", help, self.csr_unparsable.clone());
        let help = "Certificate requests that do not say readably whom they are for";
        inner.register("id_extraction_err_count", help, self.csr_without_identity.clone());
        let help = "Certificate requests that could not be signed";
        inner.register("csr_sign_err_count", help, self.csr_sign_errors.clone());
        inner.register(
            "success_cert_issuance_count",
            "Certificates issued",
            self.issued.clone(),
        );
    }
}
