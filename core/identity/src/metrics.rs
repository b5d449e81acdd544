//! What the certificate store reports about itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tulle_model::identity::Identity;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Registry, Section};

const SECTION: Section = Section {
    title: "Certificates",
    about: "",
};

/// Metrics of a [`SecretManager`](crate::SecretManager). The default reports to nobody.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    not_after: Family<OfIdentity, Gauge>,
    fetches: Family<Outcome, Counter>,
    outage_budget: Gauge,
    overdue: Gauge,
}

label_set! {
    struct OfIdentity {
        identity: String,
    }
}

label_set! {
    struct Outcome {
        /// `issued`, `failed`
        result: &'static str,
    }
}

impl Metrics {
    /// Metrics that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let not_after = "When the certificate in use expires, as a Unix timestamp";
        let fetches = "Requests to the certificate authority";
        let budget = "How long all local workloads could go on if no certificate were issued any more";
        let overdue = "Certificates of local workloads with less than a third of their life left: they should have been \
                       renewed at half; the log names each once";
        let section = registry.section(&SECTION);
        Self {
            not_after: section.register("tulle_cert_not_after_seconds", not_after, Family::default()),
            fetches: section.register("tulle_cert_fetches", fetches, Family::default()),
            overdue: section.register("tulle_cert_overdue", overdue, Gauge::default()),
            outage_budget: section.register("tulle_ca_outage_budget_seconds", budget, Gauge::default()),
        }
    }

    pub(crate) fn issued(&self, identity: &Identity, not_after: SystemTime) {
        self.fetches.get_or_create(&Outcome { result: "issued" }).inc();
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.not_after
            .get_or_create(&of(identity))
            .set(seconds.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn failed(&self) {
        self.fetches.get_or_create(&Outcome { result: "failed" }).inc();
    }

    pub(crate) fn outage_budget(&self, left: Option<Duration>) {
        let seconds = left.unwrap_or_default().as_secs();
        self.outage_budget.set(seconds.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn overdue(&self, certificates: usize) {
        self.overdue.set(certificates.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn forgotten(&self, identity: &Identity) {
        self.not_after.remove(&of(identity));
    }
}

fn of(identity: &Identity) -> OfIdentity {
    OfIdentity {
        identity: identity.to_string(),
    }
}
