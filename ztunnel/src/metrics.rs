//! What the node proxy counts.

mod buffers;
pub(crate) mod exported;
pub mod labels;
pub mod series;
pub mod shared;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tulle_model::reason::ResponseFlag;
use tulle_model::{Reason, Str};
use tulle_runtime::metrics::{InSection, Registry, Section};

use self::buffers::Buffers;
pub use self::exported::reference;
use self::labels::{
    Described, Direction, DirectionLabel, NameLabels, Party, PeerRefusalLabels, RefusalLabels, ReporterLabel,
    TrafficLabels,
};
use self::series::SeriesTable;
use self::shared::Shared;
use crate::dns::metrics::DnsMetrics;
use crate::events::Events;

pub(crate) const SECTION: Section = Section {
    title: "Node proxy",
    about: "\
What is not known of traffic is `unknown`. There are at most 100,000 series of traffic, and as many of
`istio_on_demand_dns_total`; what would be one more is counted in one whose labels say `overflow`. A series without an
open connection that nobody touched for `TULLE_METRIC_TTL` is removed.

Where `POD_NAME`, `POD_NAMESPACE` and `SERVICE_ACCOUNT` are set, a proxy in shared mode serves its metrics behind mutual
TLS, too: it accepts tunnels at port 15008 of its own pod, under the pod's identity, that lead to port 15020 and nowhere
else. Policies of the pod hold for them.",
};

/// Every metric of the node proxy. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// `istio_tcp_connections_opened_total`
    pub opened: Family<TrafficLabels, Counter>,
    /// `istio_tcp_connections_closed_total`
    pub closed: Family<TrafficLabels, Counter>,
    /// `istio_tcp_connections_failed_total`
    pub failed: Family<TrafficLabels, Counter>,
    /// `istio_tcp_received_bytes_total`: from the client.
    pub received: Family<TrafficLabels, Counter>,
    /// `istio_tcp_sent_bytes_total`: to the client.
    pub sent: Family<TrafficLabels, Counter>,
    /// Which of the series above exist.
    pub series: SeriesTable<TrafficLabels>,
    /// Labels of what the mesh describes.
    pub described: Described,
    /// `istio_on_demand_dns_total`: host names that were looked up because a connection needed their address.
    pub looked_up: Family<NameLabels, Counter>,
    /// Which series of those exist.
    pub names: SeriesTable<NameLabels>,
    /// `tulle_series_expired_total`
    pub series_expired: Counter,
    /// `istio_tcp_sockets_open`
    pub sockets: Family<ReporterLabel, Gauge>,
    /// `tulle_denied_total`: every refusal of this proxy.
    pub denied: Family<RefusalLabels, Counter>,
    /// `tulle_would_deny_total`: refusals of dry-run policies.
    pub would_deny: Family<RefusalLabels, Counter>,
    /// `tulle_refused_total`: refusals of peers, with the reason they gave.
    pub refused: Family<PeerRefusalLabels, Counter>,
    /// `istio_crl_policy_rejections_total`: ends of tunnels that were refused or closed as revoked, denied or unknown.
    pub crl_rejections: Family<ReporterLabel, Counter>,
    /// `istio_crl_untracked_connections_total`: tunnels whose proofs cannot be judged again while they are open.
    pub crl_untracked: Family<ReporterLabel, Counter>,
    /// `tulle_plaintext_connections_total`
    pub plaintext_connections: Family<DirectionLabel, Counter>,
    /// `tulle_plaintext_bytes_total`
    pub plaintext_bytes: Family<DirectionLabel, Counter>,
    /// `workload_manager_active_proxy_count`
    pub proxies_active: Gauge,
    /// `workload_manager_pending_proxy_count`
    pub proxies_pending: Gauge,
    /// `workload_manager_proxies_started_total`
    pub proxies_started: Counter,
    /// `workload_manager_proxies_stopped_total`
    pub proxies_stopped: Counter,
    /// `tulle_proxy_restarts_total`: proxies of one pod that ended by a fault.
    pub proxy_restarts: Counter,
    /// Questions for names.
    pub dns: DnsMetrics,
    /// `tulle_drain_remaining`: connections a drain still waits for.
    pub drain_remaining: Gauge,
    /// `tulle_tunnels`: tunnel connections of peers, and to peers as long as they take streams.
    pub tunnels: Gauge,
    /// `tulle_otlp_lines_dropped_total`
    pub lines_dropped: Counter,
    /// What happens to connections, for those who watch.
    pub events: Events,
    /// Where lines are exported to.
    #[cfg(feature = "otlp")]
    pub exporter: Option<crate::record::otlp::Exporter>,
}

impl Metrics {
    /// Makes the metrics and registers them under their full names.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self::default();
        let section = registry.section(&SECTION);
        metrics.register_traffic(section);
        metrics.register_refusals(section);
        metrics.register_state(section);
        metrics.register_proxies(section);
        section.collect(Buffers);
        metrics.dns.register(registry);
        metrics
    }

    fn register_traffic(&self, section: InSection<'_>) {
        section.register(
            "istio_tcp_connections_opened",
            "TCP connections opened",
            self.opened.clone(),
        );
        section.register(
            "istio_tcp_connections_closed",
            "TCP connections closed",
            self.closed.clone(),
        );
        section.register(
            "istio_tcp_connections_failed",
            "TCP connections that could not be established, or ended for a reason of the mesh",
            self.failed.clone(),
        );
        section.register(
            "istio_tcp_received_bytes",
            "Bytes received from clients",
            self.received.clone(),
        );
        section.register("istio_tcp_sent_bytes", "Bytes sent to clients", self.sent.clone());
        section.register(
            "istio_tcp_sockets_open",
            "Open TCP sockets of applications",
            self.sockets.clone(),
        );
        section.register(
            "istio_on_demand_dns",
            "Connections to workloads that have a host name and no address: the name was looked up, or known from before",
            self.looked_up.clone(),
        );
        section.register(
            "tulle_series_expired",
            "Series of traffic that were removed because nobody touched them for `TULLE_METRIC_TTL`",
            self.series_expired.clone(),
        );
        section.register(
            "tulle_plaintext_connections",
            "Connections that crossed the network without mutual TLS",
            self.plaintext_connections.clone(),
        );
        section.register(
            "tulle_plaintext_bytes",
            "Bytes that crossed the network without mutual TLS",
            self.plaintext_bytes.clone(),
        );
    }

    fn register_refusals(&self, section: InSection<'_>) {
        section.register(
            "tulle_denied",
            "Connections this proxy refused",
            self.denied.clone(),
        );
        section.register(
            "tulle_would_deny",
            "Connections that a dry-run policy would have refused",
            self.would_deny.clone(),
        );
        section.register(
            "tulle_refused",
            "Connections of local workloads that a peer refused, by the reason it gave",
            self.refused.clone(),
        );
        section.register(
            "istio_crl_policy_rejections",
            "Tunnels refused or closed because a certificate is revoked or denied, or its status unknown",
            self.crl_rejections.clone(),
        );
        section.register(
            "istio_crl_untracked_connections",
            "Tunnels whose certificates cannot be judged again while they are open; always 0",
            self.crl_untracked.clone(),
        );
    }

    fn register_state(&self, section: InSection<'_>) {
        section.register(
            "tulle_drain_remaining",
            "Connections that a drain still waits for",
            self.drain_remaining.clone(),
        );
        section.register(
            "tulle_events_lost",
            "Events of connections that slow watchers of `GET /events` lost",
            self.events.lost.clone(),
        );
        section.register(
            "tulle_tunnels",
            "Tunnel connections of peers, and to peers as long as they take new connections",
            self.tunnels.clone(),
        );
        section.register(
            "tulle_otlp_lines_dropped",
            "Access lines that the collector did not take: it refused them, or 10,000 waited for it; 0 where none \
             are exported (feature `otlp`)",
            self.lines_dropped.clone(),
        );
    }

    fn register_proxies(&self, section: InSection<'_>) {
        section.register(
            "workload_manager_active_proxy_count",
            "Pods with a running proxy",
            self.proxies_active.clone(),
        );
        section.register(
            "workload_manager_pending_proxy_count",
            "Pods whose proxy could not be started yet",
            self.proxies_pending.clone(),
        );
        section.register(
            "workload_manager_proxies_started",
            "Proxies of pods that were started",
            self.proxies_started.clone(),
        );
        section.register(
            "workload_manager_proxies_stopped",
            "Proxies of pods that were stopped",
            self.proxies_stopped.clone(),
        );
        section.register(
            "tulle_proxy_restarts",
            "Proxies of pods that ended by a fault and were started again",
            self.proxy_restarts.clone(),
        );
    }

    /// Counts a refusal by this proxy.
    pub fn count_denied(&self, reason: Reason, direction: Direction) {
        self.denied.get_or_create(&refusal(reason, direction)).inc();
    }

    /// Counts a tunnel that is refused or closed because of what is known of a certificate.
    pub fn count_crl_rejection(&self, direction: Direction) {
        self.crl_rejections
            .get_or_create(&ReporterLabel::from(direction))
            .inc();
    }

    /// Counts what a dry-run policy would have refused.
    pub fn count_would_deny(&self, reason: Reason, direction: Direction) {
        self.would_deny.get_or_create(&refusal(reason, direction)).inc();
    }

    /// Counts a refusal by a peer.
    pub fn count_refused(&self, reason: Reason) {
        let labels = PeerRefusalLabels {
            code: reason.code(),
            reason: reason.token(),
        };
        self.refused.get_or_create(&labels).inc();
    }

    /// Counts a connection that opened; the labels are to be given back to [`Self::count_closed`].
    #[must_use]
    pub fn count_opened(&self, labels: TrafficLabels) -> Arc<TrafficLabels> {
        let labels = self.series.open(labels);
        self.opened.get_or_create(&labels).inc();
        labels
    }

    /// Counts the end of a connection that opened under `opened`.
    pub fn count_closed(&self, opened: &TrafficLabels, flag: ResponseFlag) {
        self.series.close(opened);
        if flag == opened.flag {
            self.closed.get_or_create(opened).inc();
            return;
        }
        let labels = self.series.touch(TrafficLabels {
            flag,
            ..opened.clone()
        });
        self.closed.get_or_create(&labels).inc();
    }

    /// Counts a connection that failed.
    pub fn count_failed(&self, labels: TrafficLabels) {
        self.failed.get_or_create(&self.series.touch(labels)).inc();
    }

    /// Counts a host name that was looked up for a connection of `source`.
    pub fn count_looked_up(&self, source: Shared<Party>, hostname: &Str) {
        let hostname = Str::clone(hostname);
        let labels = self.names.touch(NameLabels { source, hostname });
        self.looked_up.get_or_create(&labels).inc();
    }

    /// Removes series that nobody touched for `ttl`.
    pub fn expire(&self, ttl: Duration) {
        for labels in self.series.expire(ttl) {
            for family in [
                &self.opened,
                &self.closed,
                &self.failed,
                &self.received,
                &self.sent,
            ] {
                family.remove(&labels);
            }
            self.series_expired.inc();
        }
        for labels in self.names.expire(ttl) {
            self.looked_up.remove(&labels);
            self.series_expired.inc();
        }
        self.series_expired.inc_by(self.dns.expire(ttl));
        self.described.sweep();
    }

    /// Counts an open tunnel connection until the guard is dropped.
    #[must_use]
    pub fn tunnel(&self) -> SocketGuard {
        let gauge = self.tunnels.clone();
        gauge.inc();
        SocketGuard { gauge }
    }

    /// Counts an open application socket until the guard is dropped.
    #[must_use]
    pub fn socket(&self, direction: Direction) -> SocketGuard {
        let gauge = self.sockets.get_or_create_owned(&ReporterLabel::from(direction));
        gauge.inc();
        SocketGuard { gauge }
    }
}

fn refusal(reason: Reason, direction: Direction) -> RefusalLabels {
    RefusalLabels {
        code: reason.code(),
        reason: reason.token(),
        direction,
    }
}

/// An open socket, as long as it lives.
#[derive(Debug)]
pub struct SocketGuard {
    gauge: Gauge,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::Identity;

    fn encoded(metrics: impl FnOnce(&Metrics)) -> String {
        let registry = Registry::new();
        metrics(&Metrics::register(&registry));
        registry.encode()
    }

    #[test]
    fn what_is_not_known_is_unknown() {
        let labels = TrafficLabels {
            direction: Direction::Outbound,
            source: Shared::new(Party::default().proven(Some(Identity::new("td", "shop", "web")))),
            destination: Shared::default(),
            service: Shared::default(),
            flag: ResponseFlag::None,
            mutual_tls: false,
        };
        let text = encoded(|metrics| {
            metrics.opened.get_or_create(&labels).inc();
        });
        assert!(
            text.contains("istio_tcp_connections_opened_total{reporter=\"source\""),
            "{text}"
        );
        assert!(text.contains("source_principal=\"spiffe://td/ns/shop/sa/web\""));
        assert!(text.contains("destination_workload=\"unknown\""));
        assert!(text.contains("connection_security_policy=\"unknown\""));
        assert!(!text.contains("source_region"), "localities only where known");
    }

    fn traffic(workload: &str) -> TrafficLabels {
        let mut labels = TrafficLabels::overflowed(Direction::Outbound);
        labels.source = Shared::new(Party {
            workload: Some(workload.into()),
            ..Party::clone(&labels.source)
        });
        labels
    }

    fn series_of<'a>(text: &'a str, workload: &'a str) -> impl Iterator<Item = &'a str> {
        let label = format!("source_workload=\"{workload}\"");
        text.lines().filter(move |line| line.contains(&label))
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_touches_leaves_every_family_and_is_counted() {
        let ttl = Duration::from_secs(900);
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let open = metrics.count_opened(traffic("open"));
        metrics.received.get_or_create(&open).inc_by(7);
        let gone = metrics.count_opened(traffic("gone"));
        metrics.sent.get_or_create(&gone).inc_by(7);
        metrics.count_closed(&gone, ResponseFlag::Deny);
        metrics.count_failed(traffic("gone"));
        metrics.count_looked_up(traffic("gone").source, &"db.example.com".into());
        tokio::time::advance(ttl).await;
        metrics.expire(ttl);
        let text = registry.encode();
        assert_eq!(series_of(&text, "gone").count(), 0, "{text}");
        assert_eq!(series_of(&text, "open").count(), 2, "it is open: {text}");
        // Opened and failed share their labels; closed has its flag, and the name is one of its own.
        assert!(text.contains("tulle_series_expired_total 3"), "{text}");
    }

    #[test]
    fn what_exceeds_the_bound_is_counted_as_overflow() {
        let registry = Registry::new();
        let metrics = Metrics {
            series: SeriesTable::with_max(1),
            names: SeriesTable::with_max(1),
            ..Metrics::register(&registry)
        };
        for workload in ["first", "second", "third"] {
            let opened = metrics.count_opened(traffic(workload));
            metrics.count_closed(&opened, ResponseFlag::None);
            metrics.count_looked_up(traffic(workload).source, &workload.into());
        }
        let text = registry.encode();
        assert_eq!(series_of(&text, "second").count(), 0, "{text}");
        let overflow: Vec<&str> = series_of(&text, "overflow").collect();
        assert_eq!(overflow.len(), 3, "{text}");
        assert!(overflow.iter().all(|line| line.ends_with(" 2")), "{overflow:?}");
        assert!(overflow.iter().any(|line| line.contains("hostname=\"overflow\"")));
    }

    #[test]
    fn a_name_is_counted_for_who_needed_it() {
        let text = encoded(|metrics| {
            metrics.count_looked_up(traffic("web").source, &"db.example.com".into());
        });
        let counted =
            series_of(&text, "web").find(|line| line.starts_with("istio_on_demand_dns_total{source_"));
        assert!(
            counted.is_some_and(|line| line.ends_with("hostname=\"db.example.com\"} 1")),
            "{text}"
        );
        assert!(text.contains("\ntulle_buffer_bytes "), "{text}");
    }

    #[test]
    fn a_refusal_names_code_and_direction() {
        let text = encoded(|metrics| metrics.count_denied(Reason::PolicyDenied, Direction::Inbound));
        let line = "tulle_denied_total{code=\"T0412\",reason=\"policy_denied\",direction=\"inbound\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
