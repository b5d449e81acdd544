//! What the agent counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tulle_model::Mesh;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Exposition, Registry, Section};
use tulle_xds_client::MeshState;

use crate::repair::Check;

const SECTION: Section = Section {
    title: "Agent",
    about: "Marks of packets are explained in [capture](../capture.md#marks).",
};

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

label_set! {
    /// What was repaired.
    pub struct RepairLabels {
        /// `rules`, `routes`, `tcp_loose`, `listeners`, `proxy`, `probes`, `guard`
        pub check: Check,
    }
}

label_set! {
    /// Why a step failed.
    pub struct FailureLabels {
        /// [the stable code](errors.md)
        pub code: &'static str,
    }
}

label_set! {
    /// State of pods.
    pub struct StateLabels {
        /// `Out`, `Locating`, `Announcing`, `Capturing`, `In`, `Degraded`, `Retry`, `Leaving`, `Gone`
        pub state: &'static str,
    }
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let section = registry.section(&SECTION);
        Self {
            repairs: section.register(
                "tulle_capture_repairs",
                "Deviations of captured pods, and of the node's own tables, that were put right",
                Family::default(),
            ),
            failures: section.register("tulle_capture_failures", "Steps that failed", Family::default()),
            pods: section.register("tulle_agent_pods", "Pods by state", Family::default()),
            proxies: section.register("tulle_agent_proxies", "Connected node proxies", Gauge::default()),
            joins: section.register(
                "tulle_agent_join_duration_seconds",
                "Time from wanting a pod captured to having it captured",
                Histogram::new(JOIN_BUCKETS),
            ),
            resets: section.register(
                "tulle_agent_reset_connections",
                "Captured connections reset because no node proxy was connected",
                Counter::default(),
            ),
            forged_marks: section.register(
                "tulle_forged_marks",
                "Packets of pods that carried the proxy's mark without being the proxy's; it was taken off",
                Counter::default(),
            ),
        }
    }
}

/// Registers all that the agent exports: its own metrics, and those of its configuration.
#[must_use]
pub(crate) fn export(mesh: &MeshState) -> (Metrics, tulle_xds_client::Metrics, Exposition) {
    let registry = Registry::for_process("agent");
    let configuration = tulle_xds_client::Metrics::register(&registry, mesh);
    let metrics = Metrics::register(&registry);
    (metrics, configuration, registry.seal())
}

/// What is exported, while nothing runs: for the reference.
#[must_use]
pub fn reference() -> Exposition {
    export(&MeshState::new(Mesh::new())).2
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
