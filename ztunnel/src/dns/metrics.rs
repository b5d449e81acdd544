//! What DNS counts.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tulle_model::Reason;
use tulle_model::workload::Workload;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Registry, Section};

use super::wire::Transport;
use crate::metrics::series::{Overflow, SeriesTable};

const DURATION_BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

const UNKNOWN: &str = "unknown";

const SECTION: Section = Section {
    title: "Node proxy: names",
    about: "",
};

/// The families of DNS. Clones share them.
#[derive(Debug, Clone)]
pub struct DnsMetrics {
    /// `istio_dns_requests_total`
    requests: Family<DnsLabels, Counter>,
    /// `istio_dns_upstream_requests_total`
    forwarded: Family<DnsLabels, Counter>,
    /// `istio_dns_upstream_failures_total`
    failures: Family<DnsLabels, Counter>,
    /// `istio_dns_upstream_request_duration_seconds`
    durations: Family<DnsLabels, Histogram, fn() -> Histogram>,
    /// Which series of those exist.
    series: SeriesTable<DnsLabels>,
    /// `tulle_dns_stale_answers_total`
    pub stale: Counter,
    /// `tulle_dns_unanswered_total`
    unanswered: Family<UnansweredLabels, Counter>,
}

label_set! {
    /// Why nobody answered.
    struct UnansweredLabels {
        /// [the stable code](errors.md)
        code: &'static str,
        /// its token
        reason: &'static str,
    }
}

label_set! {
    /// The labels of a question.
    pub struct DnsLabels of "questions" {
        /// lower case; `unknown` for types without a name
        request_query_type: String,
        /// `udp`, `tcp`
        request_protocol: &'static str,
        source_canonical_service: String,
        source_canonical_revision: String,
    }
}

impl DnsLabels {
    /// The labels of a question of `source`. Types without a name share one series: there are 65,536 of them, and the
    /// client picks.
    #[must_use]
    pub fn new(kind: RecordType, transport: Transport, source: Option<&Workload>) -> Self {
        let text = |text: Option<&str>| {
            let known = text.filter(|text| !text.is_empty());
            known.unwrap_or(UNKNOWN).to_owned()
        };
        Self {
            request_query_type: match kind {
                RecordType::Unknown(_) => UNKNOWN.to_owned(),
                known => known.to_string().to_ascii_lowercase(),
            },
            request_protocol: match transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            },
            source_canonical_service: text(source.map(|source| &*source.canonical_name)),
            source_canonical_revision: text(source.map(|source| &*source.canonical_revision)),
        }
    }
}

impl Overflow for DnsLabels {
    fn overflow(&self) -> Self {
        let overflow = || "overflow".to_owned();
        Self {
            request_query_type: overflow(),
            request_protocol: "overflow",
            source_canonical_service: overflow(),
            source_canonical_revision: overflow(),
        }
    }
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            series: SeriesTable::default(),
            forwarded: Family::default(),
            failures: Family::default(),
            stale: Counter::default(),
            unanswered: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
        }
    }
}

impl DnsMetrics {
    /// Registers them under their full names.
    pub fn register(&self, registry: &Registry) {
        let section = registry.section(&SECTION);
        section.register(
            "istio_dns_requests",
            "DNS requests of local workloads",
            self.requests.clone(),
        );
        section.register(
            "istio_dns_upstream_requests",
            "DNS requests that were forwarded to a name server",
            self.forwarded.clone(),
        );
        section.register(
            "istio_dns_upstream_failures",
            "DNS requests that no name server answered",
            self.failures.clone(),
        );
        section.register(
            "istio_dns_upstream_request_duration_seconds",
            "Time until a name server answered, or none did",
            self.durations.clone(),
        );
        section.register(
            "tulle_dns_stale_answers",
            "DNS requests that no name server answered and that were answered as before: at most 10 minutes after the time \
             of that answer was over",
            self.stale.clone(),
        );
        section.register(
            "tulle_dns_unanswered",
            "DNS requests that were answered with SERVFAIL because no name server answered, by reason",
            self.unanswered.clone(),
        );
    }

    /// Counts one request; the labels that come back are those of its series, for what follows of it.
    #[must_use]
    pub fn count_request(&self, labels: DnsLabels) -> Arc<DnsLabels> {
        let labels = self.series.touch(labels);
        self.requests.get_or_create(&labels).inc();
        labels
    }

    /// Removes series that nobody touched for `ttl`; how many.
    #[must_use]
    pub fn expire(&self, ttl: Duration) -> u64 {
        let mut expired = 0;
        for labels in self.series.expire(ttl) {
            for family in [&self.requests, &self.forwarded, &self.failures] {
                family.remove(&labels);
            }
            self.durations.remove(&labels);
            expired += 1;
        }
        expired
    }

    /// Counts one forwarded request, under the labels it was counted with.
    pub fn count_forwarded(&self, labels: &DnsLabels, took: Duration, failed: bool) {
        self.forwarded.get_or_create(labels).inc();
        if failed {
            self.failures.get_or_create(labels).inc();
        }
        self.durations.get_or_create(labels).observe(took.as_secs_f64());
    }

    /// Counts one forwarded request that nobody answered, nor could be answered as before.
    pub fn count_unanswered(&self, reason: Reason) {
        let (code, reason) = (reason.code(), reason.token());
        self.unanswered
            .get_or_create(&UnansweredLabels { code, reason })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_without_a_name_share_one_series() {
        let metrics = DnsMetrics::default();
        let registry = Registry::new();
        metrics.register(&registry);
        for kind in [65_000, 65_001] {
            let labels = metrics.count_request(DnsLabels::new(RecordType::from(kind), Transport::Udp, None));
            metrics.count_forwarded(&labels, Duration::from_millis(2), true);
        }
        let text = registry.encode();
        let labels = "request_query_type=\"unknown\",request_protocol=\"udp\",\
                      source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\"";
        for line in [
            format!("istio_dns_requests_total{{{labels}}} 2"),
            format!("istio_dns_upstream_requests_total{{{labels}}} 2"),
            format!("istio_dns_upstream_failures_total{{{labels}}} 2"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.01\",{labels}}} 2"),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn series_of_dns_are_forgotten_and_bounded_like_others() {
        let ttl = Duration::from_secs(900);
        let metrics = DnsMetrics {
            series: SeriesTable::with_max(1),
            ..DnsMetrics::default()
        };
        let registry = Registry::new();
        metrics.register(&registry);
        for kind in [RecordType::A, RecordType::AAAA] {
            let labels = metrics.count_request(DnsLabels::new(kind, Transport::Udp, None));
            metrics.count_forwarded(&labels, Duration::from_millis(2), true);
        }
        let text = registry.encode();
        assert!(
            text.contains("query_type=\"a\"") && !text.contains("query_type=\"aaaa\""),
            "{text}"
        );
        assert!(text.contains("istio_dns_upstream_failures_total{request_query_type=\"overflow\""));
        tokio::time::advance(ttl).await;
        assert_eq!(metrics.expire(ttl), 2);
        let text = registry.encode();
        assert!(!text.contains("query_type="), "{text}");
    }
}
