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

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tulle_model::policy::traffic;

use super::outcome::{Outcome, Unsent};
use crate::clock::Time;

pub mod compare;

pub use compare::Tally;

/// Failures in a row that are counted at most; a policy that asks for more gets this many.
pub const CONSECUTIVE_MAX: u32 = 1_023;
/// Ejections in a row that are counted at most.
const TIMES_MAX: u32 = 63;
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

/// What an endpoint is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It takes requests.
    Closed,
    /// It takes none until this time; after it, one at a time.
    Ejected(Time),
    /// A request is with it on probation.
    Probing,
    /// It is no endpoint any more.
    Removed,
}

/// The state of one endpoint. Small enough for one atomic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    phase: Phase,
    /// Failures in a row.
    consecutive: u32,
    /// Ejections that are not forgiven.
    times: u32,
    /// The last failure or return, in milliseconds; of use while closed.
    calm_since: Time,
}

/// What is to be done because of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// This is the state now, if it changed at all.
    Become(Machine),
    /// This is the state if the endpoint may be ejected; it has to be asked whether it may.
    Eject {
        /// If it may.
        granted: Machine,
        /// If not.
        denied: Machine,
    },
    /// This is the state now, and the endpoint is no longer out.
    Readmit(Machine),
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            phase: Phase::Closed,
            consecutive: 0,
            times: 0,
            calm_since: Time::ZERO,
        }
    }
}

impl Machine {
    /// What the endpoint is taken for.
    #[must_use]
    pub fn phase(self) -> Phase {
        self.phase
    }

    /// What an observed end changes. `probe` says that the try was the one on probation; ends of tries that began
    /// before an ejection change nothing.
    #[must_use]
    pub fn observe(
        self,
        settings: &Settings,
        verdict: Option<Verdict>,
        probe: bool,
        now: Time,
        jitter: f64,
    ) -> Step {
        match (self.phase, verdict) {
            (Phase::Closed, Some(Verdict::Worked)) => Step::Become(Self {
                consecutive: 0,
                ..self
            }),
            (Phase::Closed, Some(Verdict::Failed)) => self.failed(settings, now, jitter),
            (Phase::Probing, Some(Verdict::Worked)) if probe => Step::Readmit(Self {
                phase: Phase::Closed,
                consecutive: 0,
                calm_since: now,
                ..self
            }),
            (Phase::Probing, Some(Verdict::Failed)) if probe => {
                Step::Become(self.ejected(settings, now, jitter))
            }
            (Phase::Probing, None) if probe => Step::Become(Self {
                phase: Phase::Ejected(now),
                ..self
            }),
            _ => Step::Become(self),
        }
    }

    /// What it changes that figures speak against the endpoint.
    #[must_use]
    pub fn condemn(self, settings: &Settings, now: Time, jitter: f64) -> Step {
        match self.phase {
            Phase::Closed => Step::Eject {
                granted: self.forgiven(settings, now).ejected(settings, now, jitter),
                denied: self,
            },
            _ => Step::Become(self),
        }
    }

    /// The state with a request on probation, if one may be let through.
    #[must_use]
    pub fn probe(self, now: Time) -> Option<Self> {
        match self.phase {
            Phase::Ejected(until) if now >= until => Some(Self {
                phase: Phase::Probing,
                ..self
            }),
            _ => None,
        }
    }

    fn failed(self, settings: &Settings, now: Time, jitter: f64) -> Step {
        let failed = Self {
            consecutive: (self.consecutive + 1).min(CONSECUTIVE_MAX),
            calm_since: now,
            ..self.forgiven(settings, now)
        };
        if failed.consecutive < settings.consecutive {
            return Step::Become(failed);
        }
        Step::Eject {
            granted: failed.ejected(settings, now, jitter),
            denied: failed,
        }
    }

    /// One ejection is forgiven per interval without failure.
    fn forgiven(self, settings: &Settings, now: Time) -> Self {
        let calm = now.since(self.calm_since).as_nanos() / settings.interval.as_nanos().max(1);
        let times = self.times.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX));
        Self { times, ..self }
    }

    fn ejected(self, settings: &Settings, now: Time, jitter: f64) -> Self {
        let times = (self.times + 1).min(TIMES_MAX);
        Self {
            phase: Phase::Ejected(now + settings.ejected_for(times, jitter)),
            consecutive: 0,
            times,
            calm_since: now,
        }
    }

    // 2 bits of phase, 10 of failures in a row, 6 of ejections, 46 of milliseconds (2,231 years).
    fn pack(self) -> u64 {
        let (phase, time) = match self.phase {
            Phase::Closed => (0, self.calm_since),
            // Rounded up: it never comes back early.
            Phase::Ejected(until) => (1, until + Duration::from_nanos(999_999)),
            Phase::Probing => (2, self.calm_since),
            Phase::Removed => (3, Time::ZERO),
        };
        let time = time.millis() & ((1 << 46) - 1);
        phase << 62 | u64::from(self.consecutive & 0x3ff) << 52 | u64::from(self.times & 0x3f) << 46 | time
    }

    fn unpack(packed: u64) -> Self {
        let time = Time::from_millis(packed & ((1 << 46) - 1));
        let (phase, calm_since) = match packed >> 62 {
            0 => (Phase::Closed, time),
            1 => (Phase::Ejected(time), Time::ZERO),
            2 => (Phase::Probing, time),
            _ => (Phase::Removed, Time::ZERO),
        };
        Self {
            phase,
            consecutive: u32::try_from(packed >> 52 & 0x3ff).unwrap_or_default(),
            times: u32::try_from(packed >> 46 & 0x3f).unwrap_or_default(),
            calm_since,
        }
    }
}

/// How many endpoints of one backend are out, and when the next may be tried.
#[derive(Debug)]
pub struct Bench {
    out: AtomicU32,
    /// No endpoint's time passes before this, in nanoseconds.
    due: AtomicU64,
    /// Rises whenever an endpoint goes out or comes back.
    epoch: AtomicU64,
    ejections: AtomicU64,
    skipped: AtomicU64,
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            out: AtomicU32::new(0),
            due: AtomicU64::new(u64::MAX),
            epoch: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }
}

impl Bench {
    /// Endpoints that are out, on probation or not.
    #[must_use]
    pub fn out(&self) -> usize {
        self.out.load(Ordering::Relaxed) as usize
    }

    /// Ejections so far.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Ejections that did not happen because too few endpoints would have been left.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Rises whenever an endpoint goes out or comes back.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether the time of some endpoint may have passed. Who is told so looks for it, and says when the next is due.
    #[must_use]
    pub fn is_due(&self, now: Time) -> bool {
        let due = self.due.load(Ordering::Relaxed);
        due <= now.nanos()
            && self
                .due
                .compare_exchange(due, u64::MAX, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// No endpoint's time passes before `at`, as far as the caller knows.
    pub fn due_at(&self, at: Time) {
        self.due.fetch_min(at.nanos(), Ordering::Relaxed);
    }

    fn reserve(&self, max: usize) -> bool {
        let take = |out: u32| ((out as usize) < max).then_some(out + 1);
        let taken = self.out.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok()
    }

    fn release(&self) {
        let give = |out: u32| Some(out.saturating_sub(1));
        let _ = self.out.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    fn moved(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// The state of one endpoint, shared by all requests.
#[derive(Debug)]
pub struct Health {
    machine: AtomicU64,
    /// Successes (low half) and failures (high half) of the interval.
    tally: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            machine: AtomicU64::new(Machine::default().pack()),
            tally: AtomicU64::new(0),
        }
    }
}

/// What an observation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing of note.
    None,
    /// The endpoint is out.
    Ejected,
    /// It should be out, and too few would be left.
    Skipped,
    /// It is back.
    Readmitted,
}

impl Health {
    /// What the endpoint is taken for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Machine::unpack(self.machine.load(Ordering::Relaxed)).phase
    }

    /// Whether it takes requests as any other.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.machine.load(Ordering::Relaxed) >> 62 == 0
    }

    /// Whether it is no endpoint any more.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.machine.load(Ordering::Relaxed) >> 62 == 3
    }

    /// Observes the end of a try. `usable` is how many endpoints there are to go to.
    pub fn observe(
        &self,
        bench: &Bench,
        settings: &Settings,
        verdict: Option<Verdict>,
        probe: bool,
        usable: usize,
        now: Time,
    ) -> Change {
        match verdict.filter(|_| settings.compares()) {
            Some(Verdict::Worked) => self.tally.fetch_add(1, Ordering::Relaxed),
            Some(Verdict::Failed) => self.tally.fetch_add(1 << 32, Ordering::Relaxed),
            None => 0,
        };
        let jitter = || rand::random::<f64>();
        self.change(bench, settings.out_max(usable), |machine| {
            machine.observe(settings, verdict, probe, now, jitter())
        })
    }

    /// Takes the endpoint out because figures speak against it, if it may.
    pub fn condemn(&self, bench: &Bench, settings: &Settings, usable: usize, now: Time) -> Change {
        let jitter = rand::random::<f64>();
        self.change(bench, settings.out_max(usable), |machine| {
            machine.condemn(settings, now, jitter)
        })
    }

    /// Claims the one place for a request on probation, if it is time and the place is free.
    #[must_use]
    pub fn probe(&self, now: Time) -> bool {
        let claim = |packed| Machine::unpack(packed).probe(now).map(Machine::pack);
        let claimed = self
            .machine
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim);
        claimed.is_ok()
    }

    /// The endpoint is none any more: it leaves the count of those that are out.
    pub fn remove(&self, bench: &Bench) {
        let removed = Machine {
            phase: Phase::Removed,
            ..Machine::default()
        };
        let before = Machine::unpack(self.machine.swap(removed.pack(), Ordering::Relaxed));
        if matches!(before.phase, Phase::Ejected(_) | Phase::Probing) {
            bench.release();
            bench.moved();
        }
    }

    /// The successes and failures of the interval, which ends now.
    #[must_use]
    pub fn take_tally(&self) -> Tally {
        let tally = self.tally.swap(0, Ordering::Relaxed);
        Tally {
            worked: u32::try_from(tally & u64::from(u32::MAX)).unwrap_or(u32::MAX),
            failed: u32::try_from(tally >> 32).unwrap_or(u32::MAX),
        }
    }

    fn change(&self, bench: &Bench, out_max: usize, step: impl Fn(Machine) -> Step) -> Change {
        loop {
            let packed = self.machine.load(Ordering::Relaxed);
            let (next, change) = match step(Machine::unpack(packed)) {
                Step::Become(next) => (next, Change::None),
                Step::Readmit(next) => (next, Change::Readmitted),
                Step::Eject { granted, .. } if bench.reserve(out_max) => (granted, Change::Ejected),
                Step::Eject { denied, .. } => (denied, Change::Skipped),
            };
            let swapped = next.pack() == packed || {
                let (order, failed) = (Ordering::Relaxed, Ordering::Relaxed);
                self.machine
                    .compare_exchange(packed, next.pack(), order, failed)
                    .is_ok()
            };
            if swapped {
                settle(bench, next, change);
                return change;
            }
            if change == Change::Ejected {
                bench.release();
            }
        }
    }
}

/// What the others have to know of a change that is made.
fn settle(bench: &Bench, next: Machine, change: Change) {
    if let Phase::Ejected(until) = next.phase {
        bench.due_at(until);
    }
    match change {
        Change::None => {}
        Change::Ejected => {
            bench.ejections.fetch_add(1, Ordering::Relaxed);
            bench.moved();
        }
        Change::Skipped => {
            bench.skipped.fetch_add(1, Ordering::Relaxed);
        }
        Change::Readmitted => {
            bench.release();
            bench.moved();
        }
    }
}

#[cfg(test)]
mod tests;
