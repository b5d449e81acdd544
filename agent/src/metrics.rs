//! What the agent counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tulle_runtime::metrics::Registry;

use crate::repair::Check;

/// Upper bounds of a join's duration, in seconds.
const JOIN_BUCKETS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The agent's own metrics. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Deviations of captured pods that were put right.
    pub repairs: Family<RepairLabels, Counter>,
    /// Steps that failed.
    pub failures: Family<FailureLabels, Counter>,
    /// Pods by state.
    pub pods: Family<StateLabels, Gauge>,
    /// Connected proxies.
    pub proxies: Gauge,
    /// Time from wanting a pod captured to having it captured.
    pub joins: Histogram,
    /// Connections reset because no proxy was there to take them.
    pub resets: Counter,
    /// Packets that carried the proxy's mark and were not the proxy's.
    pub forged_marks: Counter,
}

/// What was repaired.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RepairLabels {
    /// The check that found it.
    pub check: Check,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    /// The stable code.
    pub code: &'static str,
}

/// State of pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    /// The state's name.
    pub state: &'static str,
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self {
            repairs: registry.register(
                "tulle_capture_repairs",
                "Deviations of captured pods that were put right",
                Family::default(),
            ),
            failures: registry.register("tulle_capture_failures", "Steps that failed", Family::default()),
            pods: registry.register("tulle_agent_pods", "Pods by state", Family::default()),
            proxies: registry.register("tulle_agent_proxies", "Connected node proxies", Gauge::default()),
            joins: registry.register(
                "tulle_agent_join_duration_seconds",
                "Time from wanting a pod captured to having it captured",
                Histogram::new(JOIN_BUCKETS),
            ),
            resets: registry.register(
                "tulle_agent_reset_connections",
                "Captured connections reset because no node proxy was connected",
                Counter::default(),
            ),
            forged_marks: registry.register(
                "tulle_forged_marks",
                "Packets of pods that carried the proxy's mark without being the proxy's; it was taken off",
                Counter::default(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_is_counted_by_its_check() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        metrics
            .repairs
            .get_or_create(&RepairLabels { check: Check::routes })
            .inc();
        let text = registry.encode();
        assert!(
            text.contains("tulle_capture_repairs_total{check=\"routes\"} 1"),
            "{text}"
        );
    }
}
