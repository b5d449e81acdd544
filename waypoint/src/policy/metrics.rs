//! What is counted of policies. Labels are names out of the configuration, never text of clients.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tulle_model::Str;
use tulle_runtime::label_set;
use tulle_runtime::metrics::{Registry, Section};

const SECTION: Section = Section {
    title: "Waypoint: policies",
    about: "\
Policies stand here by the name of their resource, `<kind>/<namespace>/<name>/<concern>`; text of clients is never a
label.",
};

/// Seconds an authorizer takes.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Counters of policies. Clones count together.
#[derive(Debug, Clone)]
pub struct PolicyMetrics {
    authz: Family<OfPolicy, Counter>,
    limited: Family<OfLimit, Counter>,
    overflows: Family<OfLimit, Counter>,
    tokens: Family<OfToken, Counter>,
    faults: Family<OfFault, Counter>,
    /// Seconds that authorizers took.
    pub ext_authz: Histogram,
}

label_set! {
    struct OfPolicy {
        /// `deny`, `audit`, `custom`
        action: &'static str,
        /// empty where no ALLOW matched
        policy: String,
        /// `true`, `false`
        dry_run: &'static str,
    }
}

label_set! {
    struct OfLimit {
        policy: String,
    }
}

label_set! {
    struct OfToken {
        /// `too_large`, `malformed`, `algorithm`, `unknown_issuer`, `audience`, `expired`, `not_yet`, `signature`,
        /// `no_keys`, `loop`
        reason: &'static str,
    }
}

label_set! {
    struct OfFault {
        /// `delay`; `delay_skipped`, for those that found 1,000 requests waiting already; `abort`
        kind: &'static str,
    }
}

impl Default for PolicyMetrics {
    fn default() -> Self {
        Self {
            authz: Family::default(),
            limited: Family::default(),
            overflows: Family::default(),
            tokens: Family::default(),
            faults: Family::default(),
            ext_authz: Histogram::new(SECONDS),
        }
    }
}

impl PolicyMetrics {
    /// Counters that `registry` exports.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let made = Self::default();
        let section = registry.section(&SECTION);
        section.register(
            "tulle_waypoint_authz",
            "Requests and streams that a policy refused or marked, or would have refused if it were enforced",
            made.authz.clone(),
        );
        section.register(
            "tulle_waypoint_rate_limited",
            "Requests over a rate limit, local or global",
            made.limited.clone(),
        );
        section.register(
            "tulle_waypoint_rate_limit_overflow",
            "Requests that shared the bucket of all others, because a local rate limit had as many buckets as it may have \
             (`maxKeys`)",
            made.overflows.clone(),
        );
        section.register(
            "tulle_waypoint_jwt_failures",
            "Tokens that are not valid",
            made.tokens.clone(),
        );
        section.register(
            "tulle_waypoint_fault",
            "Faults that were injected",
            made.faults.clone(),
        );
        section.register(
            "tulle_waypoint_ext_authz_duration_seconds",
            "Time that external authorizers took",
            made.ext_authz.clone(),
        );
        made
    }

    /// A policy decided, marked, or would have refused.
    pub fn judged(&self, action: &'static str, policy: &Str, dry_run: bool) {
        let labels = OfPolicy {
            action,
            policy: policy.to_string(),
            dry_run: if dry_run { "true" } else { "false" },
        };
        self.authz.get_or_create(&labels).inc();
    }

    /// A request was over a limit.
    pub fn limited(&self, policy: &Str) {
        let labels = OfLimit {
            policy: policy.to_string(),
        };
        self.limited.get_or_create(&labels).inc();
    }

    /// Counts the requests to a limit that find no room for a bucket of their own.
    #[must_use]
    pub fn overflows(&self, policy: &Str) -> Counter {
        let labels = OfLimit {
            policy: policy.to_string(),
        };
        self.overflows.get_or_create(&labels).clone()
    }

    /// A token was not valid.
    pub fn bad_token(&self, reason: &'static str) {
        self.tokens.get_or_create(&OfToken { reason }).inc();
    }

    /// A fault was injected: `delay`, `abort`, or `delay_skipped`.
    pub fn fault(&self, kind: &'static str) {
        self.faults.get_or_create(&OfFault { kind }).inc();
    }
}
