//! What is counted of backends: how much of their retry budgets is spent, who is out, and who ever was.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Collect, Descriptor, Registry, Scrape};

use super::backend::Backend;
use super::cluster::Standing;
use crate::metrics::SECTION;

/// Events of all backends. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// Endpoints that went out.
    pub ejections: Counter,
    /// Endpoints that should have gone out, and too few would have been left.
    pub skipped: Counter,
}

/// Metrics of backends. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct UpstreamMetrics {
    /// What has happened.
    pub events: Events,
    backends: Arc<Mutex<Vec<Weak<Backend>>>>,
}

impl UpstreamMetrics {
    /// Metrics that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let this = Self::default();
        let section = registry.section(&SECTION);
        section.register(
            "tulle_waypoint_ejections",
            "Endpoints that outlier detection took out",
            this.events.ejections.clone(),
        );
        section.register(
            "tulle_waypoint_ejections_skipped",
            "Endpoints that should have been taken out, and too few would have been left",
            this.events.skipped.clone(),
        );
        section.collect(this.clone());
        this
    }

    /// Counts a backend for as long as it is used.
    pub fn watch(&self, backend: &Arc<Backend>) {
        self.backends.lock().push(Arc::downgrade(backend));
    }

    /// Every backend that is used; those that are not are forgotten.
    fn backends(&self) -> Vec<Arc<Backend>> {
        let mut backends = self.backends.lock();
        let mut used = Vec::with_capacity(backends.len());
        backends.retain(|backend| {
            let backend = backend.upgrade();
            let is_used = backend.is_some();
            used.extend(backend);
            is_used
        });
        used
    }
}

label_set! {
    struct OfState {
        /// `usable`, `ejected`, `probation`
        state: &'static str,
    }
}

impl Collect for UpstreamMetrics {
    const METRICS: &'static [Descriptor] = &[
        Descriptor::gauge(
            "tulle_waypoint_retry_budget_ratio",
            "The largest share of a retry budget that is spent, of all services: at 1 and above retries are refused",
        ),
        Descriptor::gauge(
            "tulle_waypoint_endpoints",
            "Endpoints of backends that something refers to, by how it stands with them",
        )
        .by::<OfState>(),
    ];

    fn collect(&self, scrape: &mut Scrape<'_>) -> fmt::Result {
        let (mut most, mut states) = (0.0_f64, BTreeMap::new());
        for state in [Standing::Usable, Standing::Ejected, Standing::Probation] {
            states.insert(state, 0_i64);
        }
        for backend in self.backends() {
            most = most.max(backend.budget_ratio());
            // A route's own view of a backend has the endpoints of the backend.
            let Some(cluster) = backend.cluster().filter(|_| !backend.is_of_route()) else {
                continue;
            };
            for endpoint in cluster.endpoints() {
                let state = cluster.state_of(endpoint, backend.now());
                *states.entry(state).or_default() += 1;
            }
        }
        scrape.gauge("tulle_waypoint_retry_budget_ratio", most)?;
        let mut endpoints = scrape.gauges("tulle_waypoint_endpoints")?;
        for (state, count) in states {
            let state = state.as_str();
            endpoints.gauge(&OfState { state }, count)?;
        }
        Ok(())
    }
}
