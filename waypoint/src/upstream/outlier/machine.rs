//! What one endpoint is taken for, and what each event makes of it: pure, and small enough for one atomic number.

use std::time::Duration;

use super::{CONSECUTIVE_MAX, Settings, Verdict};
use crate::clock::Time;

/// Ejections in a row that are counted at most.
pub(super) const TIMES_MAX: u32 = 63;

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
    pub(super) phase: Phase,
    /// Failures in a row.
    pub(super) consecutive: u32,
    /// Ejections that are not forgiven.
    pub(super) times: u32,
    /// The last failure or return, in milliseconds; of use while closed.
    pub(super) calm_since: Time,
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
    /// Of what is no endpoint any more.
    pub(super) fn removed() -> Self {
        Self {
            phase: Phase::Removed,
            ..Self::default()
        }
    }

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
    pub(super) fn pack(self) -> u64 {
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

    pub(super) fn unpack(packed: u64) -> Self {
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
