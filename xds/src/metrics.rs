//! What the control plane counts. Names without a `tulle_` prefix are Istio's, so that its dashboards keep working.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tulle_k8s::Kind;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Exposition, InSection, Registry, Section};

use crate::engine::Batch;
use crate::serve::frame::Encoding;
use crate::snapshot::ResourceType;

mod observed;

#[cfg(test)]
pub(crate) use observed::Lag;
pub use observed::Observed;

const SECTION: Section = Section {
    title: "Control plane",
    about: "\
The gauges here are counts that only rise, which Istio exports without `_total`; only `pilot_xds`,
`tulle_ca_held_requests` and `tulle_xds_source_lag_seconds` say what is now.",
};

const OBSERVED: Section = Section {
    title: "Control plane: configuration and issuer",
    about: "Read at each scrape.",
};

label_set! {
    /// Label of a resource type; bounded by [`ResourceType::ALL`].
    pub struct TypeLabel {
        /// `address`, `workload`, `authorization`, `trust`, `waypoint`, `route`, `policy`
        r#type: &'static str,
    }
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

label_set! {
    /// Label of how responses are written; bounded by [`Encoding`].
    pub struct EncodingLabel {
        /// `identity`, `gzip`, `zstd`
        encoding: &'static str,
    }
}

impl From<Encoding> for EncodingLabel {
    fn from(encoding: Encoding) -> Self {
        Self {
            encoding: encoding.as_str(),
        }
    }
}

label_set! {
    /// Label of a refusal; bounded by the tokens there are.
    pub struct ReasonLabel {
        /// token of the cause
        pub reason: &'static str,
    }
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

label_set! {
    /// Label of a kind of object; bounded by the kinds there are.
    pub struct KindLabel {
        /// kind of object
        r#type: &'static str,
    }
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

label_set! {
    /// Label of a kind of object, or of a source; bounded by those there are.
    pub struct SourceLabel {
        kind: &'static str,
    }
}

label_set! {
    /// Label of a whole reading; bounded by the sources and reasons there are.
    pub struct RelistLabel {
        /// kind of object, or `folder`
        kind: &'static str,
        /// of a folder: `start`, `event`, `periodic`, `new_directory`, `unfinished_file`
        reason: &'static str,
    }
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

    /// How late the newest object of each kind was that came while this process runs, in seconds.
    #[must_use]
    pub fn lags(&self) -> BTreeMap<Kind, f64> {
        let lag = |kind: &Kind| {
            let label = SourceLabel { kind: kind.as_str() };
            self.source_lag.get(&label).map(|lag| (*kind, lag.get()))
        };
        Kind::ALL.iter().filter_map(lag).collect()
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

label_set! {
    /// Label of how a client began; bounded by the words there are.
    pub struct OutcomeLabel {
        /// `fresh`, holding nothing; `versions`, with a list of versions; `equal`, with digests that were ours; `buckets`,
        /// with digests that differ
        pub outcome: &'static str,
    }
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
    /// Registers all that the control plane exports; what is observed is there once there is something to look at.
    #[must_use]
    pub fn export(&self, observed: Option<Observed>) -> Exposition {
        let registry = Registry::for_process("xds");
        let section = registry.section(&SECTION);
        self.register_pilot(section);
        self.register_xds(section);
        self.register_citadel(section);
        self.register_ca(section);
        registry.section(&OBSERVED).collect(observed);
        registry.seal()
    }

    fn register_pilot(&self, section: InSection<'_>) {
        let help = "Streams connected";
        section.register("pilot_xds", help, self.streams.clone());
        let help = "Responses sent";
        section.register("pilot_xds_pushes", help, self.pushes.clone());
        let help = "Responses rejected by clients";
        section.register("pilot_total_xds_rejects", help, self.rejects.clone());
        let help = "Answers with a stale nonce";
        section.register("pilot_xds_expired_nonce", help, self.expired_nonces.clone());
        let help = "Time to make a response, in seconds";
        section.register("pilot_xds_push_time", help, self.stream.push.clone());
        let help = "Time from a response to its place in the connection, in seconds";
        section.register("pilot_xds_send_time", help, self.stream.send.clone());
        let help = "Bytes of a response as it is written";
        section.register("pilot_xds_config_size_bytes", help, self.stream.size.clone());
        let help = "Time from a cut to the client's answer, in seconds; what a new stream is told first does not count";
        section.register(
            "pilot_proxy_convergence_time",
            help,
            self.stream.convergence.clone(),
        );
        let help = "Changes of objects taken";
        section.register("pilot_inbound_updates", help, self.engine.inbound.clone());
        let help = "Cuts that changed what is served";
        section.register("pilot_push_triggers", help, self.engine.cuts.clone());
        let help = "Streams closed because the client did not read";
        section.register("pilot_xds_write_timeout", help, self.write_timeouts.clone());
    }

    fn register_xds(&self, section: InSection<'_>) {
        let help = "Time from a batch of changes to the cut it means";
        section.register("tulle_xds_turn_seconds", help, self.engine.turns.clone());
        let help = "Time from when the newest object of this kind was written to the cut it means; nothing before the \
                    first change";
        section.register(
            "tulle_xds_source_lag_seconds",
            help,
            self.engine.source_lag.clone(),
        );
        let help = "Whole readings of the source";
        section.register("tulle_xds_relists", help, self.engine.relists.clone());
        let help = "How clients began with a type";
        section.register("tulle_xds_resume", help, self.stream.resume.clone());
        let help = "Times a stream was further behind than the log of changes reaches";
        section.register("tulle_xds_log_overruns", help, self.stream.overruns.clone());
        let help = "Responses rejected by clients";
        section.register("tulle_xds_nacks", help, self.nacks.clone());
        let help = "Streams refused or ended by the server";
        section.register("tulle_xds_refused", help, self.refused.clone());
        let help = "Bytes of responses as they are written";
        section.register("tulle_xds_response_bytes", help, self.response_bytes.clone());
        let help = "Bytes of responses that tell whole tables, to clients that hold nothing; part of `tulle_xds_response_bytes_total`";
        section.register("tulle_xds_snapshot_bytes", help, self.snapshot_bytes.clone());
    }

    fn register_citadel(&self, section: InSection<'_>) {
        let help = "Certificate requests received";
        section.register("citadel_server_csr_count", help, self.csr_count.clone());
        let help = "Certificate requests without a known credential";
        section.register(
            "citadel_server_authentication_failure_count",
            help,
            self.csr_unauthenticated.clone(),
        );
        let help = "Certificate requests that could not be parsed";
        section.register(
            "citadel_server_csr_parsing_err_count",
            help,
            self.csr_unparsable.clone(),
        );
        let help = "Certificate requests that do not say readably whom they are for";
        section.register(
            "citadel_server_id_extraction_err_count",
            help,
            self.csr_without_identity.clone(),
        );
        let help = "Certificate requests that could not be signed";
        section.register(
            "citadel_server_csr_sign_err_count",
            help,
            self.csr_sign_errors.clone(),
        );
        let help = "Certificates issued";
        section.register(
            "citadel_server_success_cert_issuance_count",
            help,
            self.issued.clone(),
        );
    }

    fn register_ca(&self, section: InSection<'_>) {
        let help = "Certificate requests refused";
        section.register("tulle_ca_refused", help, self.csr_refused.clone());
        let help = "Certificate requests that wait for the placement of their workload";
        section.register("tulle_ca_held_requests", help, self.held.clone());
        let help = "Time from an authorised request to its certificate";
        section.register("tulle_ca_issuance_seconds", help, self.issuance.0.clone());
        let help = "Certificate requests that claimed other names than were issued";
        section.register("tulle_ca_san_mismatch", help, self.san_mismatches.clone());
    }
}

/// What is exported, while nothing runs: for the reference.
#[must_use]
pub fn reference() -> Exposition {
    Metrics::default().export(None)
}
