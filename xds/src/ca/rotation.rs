//! Rotation of the root, as values: where it stands, what it waits for, and what comes next.
//!
//! ```text
//!            rotate                 all have both            no old leaf lives          all have the new
//!  Stable ───────────▶ Distribute ───────────────▶ Switch ────────────────────▶ Retire ─────────────────▶ Stable
//!  one root            old + new, old signs          old + new, new signs         new alone
//!                        │ rollback                    │ rollback
//!                        ▼                             ▼
//!                      Retire (old alone)            Switch (the roles changed over)
//! ```

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tulle_model::Str;

/// What a rotation has to wait for at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// In `Distribute`, however fast everybody is.
    pub distribute: Duration,
    /// The same if a client is connected that does not tell whether it has the new root.
    pub distribute_untold: Duration,
    /// In `Switch`, beyond the life of the longest certificate that the old root signed.
    pub margin: Duration,
    /// How long an absent node is waited for before it is reported; it goes on waiting until it is told not to.
    pub deadline: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        Self {
            distribute: Duration::from_secs(600),
            distribute_untold: hours(24),
            margin: hours(1),
            deadline: hours(7 * 24),
        }
    }
}

/// A phase of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// One root.
    Stable,
    /// The old root signs, both are believed.
    Distribute,
    /// The new root signs, both are believed.
    Switch,
    /// The new root alone, until everybody knows.
    Retire,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stable => "stable",
            Self::Distribute => "distribute",
            Self::Switch => "switch",
            Self::Retire => "retire",
        })
    }
}

/// Where a rotation stands. It is kept on disk and survives restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// The phase.
    pub phase: Phase,
    /// When it began, in seconds since 1970.
    pub since: i64,
    /// Counts the changes of what is believed.
    pub generation: u64,
    /// Number of the root that signs.
    pub signs: u64,
    /// Number of the root that is believed beside it.
    pub other: Option<u64>,
    /// Longest validity that was issued, in seconds.
    pub longest_ttl: u64,
    /// Absent nodes and those that tell nothing are not waited for in this phase.
    pub forced: bool,
}

/// What is known at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since 1970.
    pub now: i64,
    /// Connected clients that have accepted what is believed now.
    pub holding: usize,
    /// Connected clients that have not yet.
    pub lacking: Vec<Str>,
    /// Nodes with workloads that are not connected.
    pub absent: Vec<Str>,
    /// A client is connected that is never told.
    pub untold: bool,
}

/// What a phase waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// A time, in seconds from now.
    Time(i64),
    /// Connected clients that have not accepted the roots.
    Lacking(usize),
    /// Nodes that are not connected; the flag says that they were waited for long enough to call for a decision.
    Absent(Vec<Str>, bool),
}

impl Waiting {
    /// Whether it has lasted long enough to call for a decision.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        matches!(self, Self::Absent(_, true))
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(seconds) => write!(f, "{seconds} s to go"),
            Self::Lacking(count) => write!(f, "{count} connected clients have not accepted the roots"),
            Self::Absent(nodes, late) => {
                let named: Vec<&str> = nodes.iter().take(5).map(AsRef::as_ref).collect();
                write!(f, "{} absent nodes ({}", nodes.len(), named.join(", "))?;
                f.write_str(if nodes.len() > named.len() { ", …)" } else { ")" })?;
                if *late {
                    f.write_str("; `tulle ca rotate --force` goes on without them")?;
                }
                Ok(())
            }
        }
    }
}

/// A command that does not fit the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// A rotation is under way.
    #[error("a rotation is under way (phase {0}); wait for its end, or roll it back")]
    UnderWay(Phase),
    /// Nothing can be rolled back.
    #[error("phase {0} cannot be rolled back")]
    NotReversible(Phase),
}

impl State {
    /// One root, numbered 0.
    #[must_use]
    pub fn first(now: i64) -> Self {
        Self {
            phase: Phase::Stable,
            since: now,
            generation: 1,
            signs: 0,
            other: None,
            longest_ttl: 0,
            forced: false,
        }
    }

    /// The beginning of a rotation to the root numbered `new`.
    ///
    /// # Errors
    /// One is under way.
    pub fn rotate(&self, new: u64, now: i64) -> Result<Self, Misplaced> {
        if self.phase != Phase::Stable {
            return Err(Misplaced::UnderWay(self.phase));
        }
        Ok(self.enter(Phase::Distribute, now, self.signs, Some(new)))
    }

    /// The way back.
    ///
    /// # Errors
    /// There is none from this phase.
    pub fn roll_back(&self, now: i64) -> Result<Self, Misplaced> {
        match (self.phase, self.other) {
            (Phase::Distribute, _) => Ok(self.enter(Phase::Retire, now, self.signs, None)),
            (Phase::Switch, Some(other)) => Ok(self.enter(Phase::Switch, now, other, Some(self.signs))),
            _ => Err(Misplaced::NotReversible(self.phase)),
        }
    }

    /// The next state, if nothing is waited for any more.
    ///
    /// # Errors
    /// What is waited for; nothing at all in `Stable`.
    pub fn next(&self, facts: &Facts, waits: &Waits) -> Result<Self, Vec<Waiting>> {
        let waiting = self.waiting(facts, waits);
        if self.phase == Phase::Stable || !waiting.is_empty() {
            return Err(waiting);
        }
        Ok(match (self.phase, self.other) {
            (Phase::Distribute, Some(new)) => {
                let mut next = self.enter(Phase::Switch, facts.now, new, Some(self.signs));
                // What is believed stays the same; only the signer changes.
                next.generation = self.generation;
                next
            }
            (Phase::Distribute | Phase::Switch, _) => self.enter(Phase::Retire, facts.now, self.signs, None),
            (Phase::Retire | Phase::Stable, _) => {
                let mut next = self.enter(Phase::Stable, facts.now, self.signs, None);
                next.generation = self.generation;
                next
            }
        })
    }

    /// What this phase waits for.
    #[must_use]
    pub fn waiting(&self, facts: &Facts, waits: &Waits) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        let seconds = |wait: Duration| i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
        let longest = i64::try_from(self.longest_ttl).unwrap_or(i64::MAX);
        let least = match self.phase {
            Phase::Stable => return waiting,
            Phase::Distribute if facts.untold && !self.forced => seconds(waits.distribute_untold),
            Phase::Distribute => seconds(waits.distribute),
            // Never shortened: certificates of the old root are in use until then.
            Phase::Switch => seconds(waits.margin).saturating_add(longest),
            Phase::Retire => 0,
        };
        let left = self.since.saturating_add(least).saturating_sub(facts.now);
        if left > 0 {
            waiting.push(Waiting::Time(left));
        }
        if matches!(self.phase, Phase::Distribute | Phase::Retire) && !self.forced {
            if !facts.lacking.is_empty() {
                waiting.push(Waiting::Lacking(facts.lacking.len()));
            }
            if !facts.absent.is_empty() {
                let late = facts.now.saturating_sub(self.since) >= seconds(waits.deadline);
                waiting.push(Waiting::Absent(facts.absent.clone(), late));
            }
        }
        waiting
    }

    fn enter(&self, phase: Phase, now: i64, signs: u64, other: Option<u64>) -> Self {
        Self {
            phase,
            since: now,
            generation: self.generation + 1,
            signs,
            other,
            longest_ttl: self.longest_ttl,
            forced: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    fn state() -> State {
        State {
            longest_ttl: 24 * 3600,
            ..State::first(0)
        }
    }

    fn at(now: i64) -> Facts {
        Facts {
            now,
            holding: 3,
            ..Facts::default()
        }
    }

    fn step(state: &State, facts: &Facts) -> Option<State> {
        state.next(facts, &Waits::default()).ok()
    }

    #[test]
    fn a_rotation_goes_through_its_phases_and_no_faster() {
        let start = state().rotate(1, 1000).unwrap();
        assert_eq!(
            (start.phase, start.signs, start.other),
            (Phase::Distribute, 0, Some(1))
        );
        assert_eq!(step(&start, &at(1599)), None);
        let switched = step(&start, &at(1600)).unwrap();
        assert_eq!(
            (switched.phase, switched.signs, switched.other),
            (Phase::Switch, 1, Some(0))
        );
        assert_eq!(
            switched.generation, start.generation,
            "both were believed already"
        );
        assert_eq!(step(&switched, &at(1600 + DAY)), None, "an old leaf may live");
        let retired = step(&switched, &at(1600 + DAY + 3600)).unwrap();
        assert_eq!(
            (retired.phase, retired.signs, retired.other),
            (Phase::Retire, 1, None)
        );
        assert!(retired.generation > switched.generation);
        let stable = step(&retired, &at(1601 + DAY + 3600)).unwrap();
        assert_eq!((stable.phase, stable.signs), (Phase::Stable, 1));
    }

    #[test]
    fn who_lacks_the_new_root_is_waited_for() {
        let start = state().rotate(1, 0).unwrap();
        let lacking = Facts {
            lacking: vec!["n1".into()],
            ..at(9 * DAY)
        };
        assert_eq!(start.waiting(&lacking, &Waits::default()), [Waiting::Lacking(1)]);
        let absent = Facts {
            absent: vec!["n2".into()],
            ..at(DAY)
        };
        assert_eq!(
            start.waiting(&absent, &Waits::default()),
            [Waiting::Absent(vec!["n2".into()], false)]
        );
        let late = Facts {
            now: 7 * DAY,
            ..absent.clone()
        };
        let waiting = start.waiting(&late, &Waits::default());
        assert!(waiting[0].to_string().contains("--force"), "{waiting:?}");
        assert!(waiting[0].is_overdue() && !start.waiting(&absent, &Waits::default())[0].is_overdue());
        let forced = State {
            forced: true,
            ..start
        };
        assert!(step(&forced, &absent).is_some());
    }

    #[test]
    fn clients_that_tell_nothing_get_a_day() {
        let start = state().rotate(1, 0).unwrap();
        let untold = |now| Facts {
            untold: true,
            ..at(now)
        };
        assert_eq!(step(&start, &untold(DAY - 1)), None);
        assert!(step(&start, &untold(DAY)).is_some());
    }

    #[test]
    fn force_never_shortens_the_life_of_old_certificates() {
        let switched = State {
            phase: Phase::Switch,
            forced: true,
            other: Some(1),
            ..state()
        };
        assert_eq!(step(&switched, &at(DAY)), None);
    }

    #[test]
    fn every_phase_before_retire_can_be_rolled_back() {
        let start = state().rotate(1, 0).unwrap();
        let back = start.roll_back(1).unwrap();
        assert_eq!((back.phase, back.signs, back.other), (Phase::Retire, 0, None));
        let switched = step(&start, &at(600)).unwrap();
        let back = switched.roll_back(700).unwrap();
        assert_eq!((back.phase, back.signs, back.other), (Phase::Switch, 0, Some(1)));
        assert_eq!(step(&back, &at(700 + DAY)), None, "leaves of the new root live");
        for state in [state(), step(&back, &at(701 + DAY + 3600)).unwrap()] {
            assert!(matches!(state.roll_back(0), Err(Misplaced::NotReversible(_))));
        }
        assert_eq!(start.rotate(2, 0), Err(Misplaced::UnderWay(Phase::Distribute)));
    }
}
