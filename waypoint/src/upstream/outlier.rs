//! When an endpoint that fails is left out, and how it comes back.
//!
//! ```text
//!            failures in a row              its time has passed,
//!  ┌────────┐ or bad figures  ┌─────────┐  a request is let through  ┌─────────┐
//!  │ Closed │ ──────────────▶ │ Ejected │ ─────────────────────────▶ │ Probing │
//!  └────────┘                 └─────────┘ ◀───────────────────────── └─────────┘
//!       ▲                                     that request fails          │
//!       └──────────────────────────── it succeeds ────────────────────────┘
//! ```
//!
//! An ejected endpoint whose time has passed is on probation: others avoid it, one real request at a time goes to it.

use std::time::Duration;

use smallvec::SmallVec;
use tulle_model::policy::traffic;

use super::outcome::{Outcome, Unsent};

pub mod compare;
pub mod health;
pub mod machine;

pub use compare::Tally;
pub use health::{Bench, Change, Health};
pub use machine::{Machine, Phase, Step};

/// Failures in a row that are counted at most; a policy that asks for more gets this many.
pub const CONSECUTIVE_MAX: u32 = 1_023;
/// How far an ejection may last longer than it says, so that endpoints do not come back in step.
const JITTER: f64 = 0.1;

/// When endpoints are left out, with the defaults in their places.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Failures in a row.
    pub consecutive: u32,
    /// Only 502, 503 and 504 are failures.
    pub gateway_errors_only: bool,
    /// Statuses that are failures; empty is 500 to 599.
    pub codes: SmallVec<[u16; 4]>,
    /// In which a calm endpoint is forgiven one ejection, and figures are compared.
    pub interval: Duration,
    /// How long the first time.
    pub base: Duration,
    /// How long at most.
    pub max: Duration,
    /// Share of endpoints that may be out at once, in percent.
    pub percent_max: u32,
    /// Left out by comparison with the others.
    pub success_rate: Option<compare::SuccessRate>,
    /// Left out by share of failures.
    pub failure_percent: Option<compare::FailurePercent>,
}

impl From<&traffic::Outlier> for Settings {
    fn from(policy: &traffic::Outlier) -> Self {
        let seconds =
            |given: Option<Duration>, default| given.unwrap_or_else(|| Duration::from_secs(default));
        Self {
            consecutive: policy.consecutive.unwrap_or(5).clamp(1, CONSECUTIVE_MAX),
            gateway_errors_only: policy.gateway_errors_only,
            codes: policy.codes.iter().copied().collect(),
            interval: seconds(policy.interval, 10).max(Duration::from_millis(1)),
            base: seconds(policy.base, 30),
            max: seconds(policy.max, 300),
            percent_max: policy.percent_max.unwrap_or(10).min(100),
            success_rate: policy.success_rate.as_ref().map(Into::into),
            failure_percent: policy.failure_percent.as_ref().map(Into::into),
        }
    }
}

impl Settings {
    /// What the end of a try says of its endpoint: nothing, that it works, or that it fails.
    #[must_use]
    pub fn judge(&self, outcome: &Outcome) -> Option<Verdict> {
        match outcome {
            // An endpoint that sends streams elsewhere in good order is healthy, and so is one that closes idle ones.
            Outcome::ClientGone
            | Outcome::Refused
            | Outcome::Unsent(Unsent::RefusedStream | Unsent::GoAway | Unsent::Stale | Unsent::Own) => None,
            Outcome::Unsent(_) | Outcome::Reset | Outcome::Malformed | Outcome::TimedOut => {
                Some(Verdict::Failed)
            }
            Outcome::Answered(answer) if self.fails(answer.status, answer.grpc) => Some(Verdict::Failed),
            Outcome::Answered(_) | Outcome::Connected => Some(Verdict::Worked),
        }
    }

    fn fails(&self, status: u16, grpc: Option<u32>) -> bool {
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        let call_failed = matches!(grpc, Some(2 | 4 | 13 | 14 | 15));
        let status_failed = match status {
            429 => false,
            _ if !self.codes.is_empty() => self.codes.contains(&status),
            502..=504 => true,
            500..=599 => !self.gateway_errors_only,
            _ => false,
        };
        call_failed || status_failed
    }

    /// Whether figures of an interval are compared.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.success_rate.is_some() || self.failure_percent.is_some()
    }

    /// How many of `usable` endpoints may be out at once. The last one never is.
    #[must_use]
    pub fn out_max(&self, usable: usize) -> usize {
        let share = usable.saturating_mul(self.percent_max as usize) / 100;
        share.max(1).min(usable.saturating_sub(1))
    }

    fn ejected_for(&self, times: u32, jitter: f64) -> Duration {
        let nominal = self.base.saturating_mul(times).min(self.max);
        nominal.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0))
    }
}

/// What the end of a try says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It works.
    Worked,
    /// It fails.
    Failed,
}

#[cfg(test)]
mod tests;
