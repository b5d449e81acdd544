//! What the node proxy counts.

pub mod labels;
pub mod series;

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tulle_model::Reason;
use tulle_model::reason::ResponseFlag;

use self::labels::{Direction, DirectionLabel, RefusalLabels, ReporterLabel, TrafficLabels};
use self::series::SeriesTable;
use crate::dns::metrics::DnsMetrics;
use crate::events::Events;

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
    pub series: SeriesTable,
    /// `tulle_series_expired_total`
    pub series_expired: Counter,
    /// `istio_tcp_sockets_open`
    pub sockets: Family<ReporterLabel, Gauge>,
    /// `tulle_denied_total`: every refusal of this proxy.
    pub denied: Family<RefusalLabels, Counter>,
    /// `tulle_would_deny_total`: refusals of dry-run policies.
    pub would_deny: Family<RefusalLabels, Counter>,
    /// `tulle_refused_total`: refusals of peers, with the reason they gave.
    pub refused: Family<RefusalLabels, Counter>,
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
    /// What happens to connections, for those who watch.
    pub events: Events,
}

impl Metrics {
    /// Makes the metrics and registers them under their full names.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        metrics.register_traffic(registry);
        metrics.register_refusals(registry);
        metrics.register_proxies(registry);
        metrics.dns.register(registry);
        metrics
    }

    fn register_traffic(&self, registry: &mut Registry) {
        registry.register(
            "istio_tcp_connections_opened",
            "TCP connections opened",
            self.opened.clone(),
        );
        registry.register(
            "istio_tcp_connections_closed",
            "TCP connections closed",
            self.closed.clone(),
        );
        registry.register(
            "istio_tcp_connections_failed",
            "TCP connections that could not be established, or ended for a reason of the mesh",
            self.failed.clone(),
        );
        registry.register(
            "istio_tcp_received_bytes",
            "Bytes received from clients",
            self.received.clone(),
        );
        registry.register("istio_tcp_sent_bytes", "Bytes sent to clients", self.sent.clone());
        registry.register(
            "istio_tcp_sockets_open",
            "Open TCP sockets of applications",
            self.sockets.clone(),
        );
        registry.register(
            "tulle_series_expired",
            "Series of traffic that were removed because nobody touched them",
            self.series_expired.clone(),
        );
        registry.register(
            "tulle_plaintext_connections",
            "Connections that crossed the network without mutual TLS",
            self.plaintext_connections.clone(),
        );
        registry.register(
            "tulle_plaintext_bytes",
            "Bytes that crossed the network without mutual TLS",
            self.plaintext_bytes.clone(),
        );
    }

    fn register_refusals(&self, registry: &mut Registry) {
        registry.register(
            "tulle_denied",
            "Connections this proxy refused",
            self.denied.clone(),
        );
        registry.register(
            "tulle_would_deny",
            "Connections that a dry-run policy would have refused",
            self.would_deny.clone(),
        );
        registry.register(
            "tulle_refused",
            "Connections of local workloads that a peer refused, by the reason it gave",
            self.refused.clone(),
        );
        registry.register(
            "istio_crl_policy_rejections",
            "Tunnels refused or closed because a certificate is revoked or denied, or its status unknown",
            self.crl_rejections.clone(),
        );
        registry.register(
            "istio_crl_untracked_connections",
            "Tunnels whose certificates cannot be judged again while they are open",
            self.crl_untracked.clone(),
        );
        registry.register(
            "tulle_drain_remaining",
            "Connections that a drain still waits for",
            self.drain_remaining.clone(),
        );
        registry.register(
            "tulle_events_lost",
            "Events of connections that slow watchers lost",
            self.events.lost.clone(),
        );
        registry.register("tulle_tunnels", "Tunnel connections open", self.tunnels.clone());
    }

    fn register_proxies(&self, registry: &mut Registry) {
        registry.register(
            "workload_manager_active_proxy_count",
            "Pods with a running proxy",
            self.proxies_active.clone(),
        );
        registry.register(
            "workload_manager_pending_proxy_count",
            "Pods whose proxy could not be started yet",
            self.proxies_pending.clone(),
        );
        registry.register(
            "workload_manager_proxies_started",
            "Proxies of pods that were started",
            self.proxies_started.clone(),
        );
        registry.register(
            "workload_manager_proxies_stopped",
            "Proxies of pods that were stopped",
            self.proxies_stopped.clone(),
        );
        registry.register(
            "tulle_proxy_restarts",
            "Proxies of pods that ended by a fault and were started again",
            self.proxy_restarts.clone(),
        );
    }

    /// Counts a refusal by this proxy.
    pub fn count_denied(&self, reason: Reason, direction: Direction) {
        self.denied.get_or_create(&refusal(reason, Some(direction))).inc();
    }

    /// Counts a tunnel that is refused or closed because of what is known of a certificate.
    pub fn count_crl_rejection(&self, direction: Direction) {
        self.crl_rejections.get_or_create(&ReporterLabel(direction)).inc();
    }

    /// Counts what a dry-run policy would have refused.
    pub fn count_would_deny(&self, reason: Reason, direction: Direction) {
        self.would_deny
            .get_or_create(&refusal(reason, Some(direction)))
            .inc();
    }

    /// Counts a refusal by a peer.
    pub fn count_refused(&self, reason: Reason) {
        self.refused.get_or_create(&refusal(reason, None)).inc();
    }

    /// Counts a connection that opened; the labels are to be given back to [`Self::count_closed`].
    #[must_use]
    pub fn count_opened(&self, labels: TrafficLabels) -> TrafficLabels {
        let labels = self.series.open(labels);
        self.opened.get_or_create(&labels).inc();
        labels
    }

    /// Counts the end of a connection that opened under `opened`.
    pub fn count_closed(&self, opened: &TrafficLabels, flag: ResponseFlag) {
        self.series.close(opened);
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
        let gauge = self.sockets.get_or_create_owned(&ReporterLabel(direction));
        gauge.inc();
        SocketGuard { gauge }
    }
}

fn refusal(reason: Reason, direction: Option<Direction>) -> RefusalLabels {
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
    use super::labels::{Party, ServiceLabels};
    use super::*;
    use prometheus_client::encoding::text::encode;
    use tulle_model::Identity;

    fn encoded(metrics: impl FnOnce(&Metrics)) -> String {
        let mut registry = Registry::default();
        metrics(&Metrics::register(&mut registry));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn what_is_not_known_is_unknown() {
        let labels = TrafficLabels {
            direction: Direction::Outbound,
            source: Party::default().proven(Some(Identity::new("td", "shop", "web"))),
            destination: Party::default(),
            service: ServiceLabels::default(),
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

    #[test]
    fn a_refusal_names_code_and_direction() {
        let text = encoded(|metrics| metrics.count_denied(Reason::PolicyDenied, Direction::Inbound));
        let line = "tulle_denied_total{code=\"T0412\",reason=\"policy_denied\",direction=\"inbound\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
