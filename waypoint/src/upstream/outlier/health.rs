//! The state of each endpoint as all requests share it, and how many of a backend are out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::machine::{Machine, Phase, Step};
use super::{Settings, Tally, Verdict};
use crate::clock::Time;
use crate::upstream::metrics::Events;

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
    /// Of all backends.
    events: Events,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(Events::default())
    }
}

impl Bench {
    /// Nobody is out. What happens is counted there, too.
    #[must_use]
    pub fn new(events: Events) -> Self {
        Self {
            out: AtomicU32::new(0),
            due: AtomicU64::new(u64::MAX),
            epoch: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            events,
        }
    }

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
        Machine::unpack(self.machine.load(Ordering::Relaxed)).phase()
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
        let removed = Machine::removed().pack();
        let before = Machine::unpack(self.machine.swap(removed, Ordering::Relaxed));
        if matches!(before.phase(), Phase::Ejected(_) | Phase::Probing) {
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
    if let Phase::Ejected(until) = next.phase() {
        bench.due_at(until);
    }
    match change {
        Change::None => {}
        Change::Ejected => {
            bench.ejections.fetch_add(1, Ordering::Relaxed);
            bench.events.ejections.inc();
            bench.moved();
        }
        Change::Skipped => {
            bench.skipped.fetch_add(1, Ordering::Relaxed);
            bench.events.skipped.inc();
        }
        Change::Readmitted => {
            bench.release();
            bench.moved();
        }
    }
}
