//! When to fetch which certificate: decided from events and `now`, without a clock, a task or randomness.
//!
//! ```text
//!            retain, or a connection waits
//!   (none) ------------------------------> wanted --next()--> fetching
//!                                            ^  ^                |  |
//!                       retry_at has passed  |  +-- failed() ----+  | fetched()
//!                                            +--- half life -- held <+
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use tulle_model::identity::Identity;

/// Requests under way at once.
pub const FETCHES_MAX: usize = 8;
/// Identities kept track of; further ones that no local workload has are not fetched.
pub const IDENTITIES_MAX: usize = 16_384;
/// Pause after the first failure; it doubles with each further one.
pub const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
pub const RETRY_MAX: Duration = Duration::from_secs(150);
/// Pause between attempts, of all identities together, while connections wait for an authority that is away.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two renewals, so that a node does not flood an authority that just came back.
pub const RENEWAL_SPACING: Duration = Duration::from_millis(25);
/// Pauses vary by this part, so that a node's requests do not come together.
const RETRY_JITTER: f64 = 0.2;
/// Renewals vary by this part.
const RENEWAL_JITTER: f64 = 0.05;

/// How urgently a certificate is wanted, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Priority {
    /// A connection waits for it.
    Waiting,
    /// A new workload has none yet.
    First,
    /// One exists and gets old.
    Renewal,
}

/// Whose fault a failed attempt was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The authority did not answer. Once it does for anybody, all others try again.
    Outage,
    /// It answered, and refused this identity.
    Refusal,
}

/// Both clocks: certificates live by the wall clock, pauses by the one that nobody can set.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Wall clock.
    pub wall: SystemTime,
    /// Monotonic clock.
    pub monotonic: Instant,
}

/// What is known of every identity that matters.
#[derive(Debug, Default)]
pub struct Schedule {
    entries: HashMap<Identity, Entry>,
    fetching: usize,
    arrivals: u64,
    last_start: Option<Instant>,
    last_renewal: Option<Instant>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Local workloads with this identity.
    retained: usize,
    /// Callers that wait, by priority.
    waiting: [usize; 3],
    /// Asked for since the last certificate came, so a successor is worth having.
    used: bool,
    fetching: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// The pause is the authority's fault.
    outage: bool,
    held: Option<Held>,
    /// Order of arrival; first come, first served within a priority.
    arrival: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    renew_at: SystemTime,
    not_after: SystemTime,
}

/// When an entry should be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now(Priority),
    In(Duration),
    Never,
}

impl Entry {
    /// How long nothing may be asked for it. While a connection waits for an authority that is away, that is
    /// not longer than the pause between probes.
    fn pause(&self, now: Now, last_start: Option<Instant>) -> Duration {
        let left = |at: Option<Instant>| {
            at.map(|at| at.saturating_duration_since(now.monotonic))
                .unwrap_or_default()
        };
        let own = left(self.retry_at);
        match self.most_urgent_waiter() {
            Some(Priority::Waiting) if self.outage => own.min(left(last_start.map(|at| at + PROBE_INTERVAL))),
            _ => own,
        }
    }

    fn wanted(&self, wall: SystemTime) -> Due {
        match self.held {
            Some(held) if wall <= held.not_after => match held.renew_at.duration_since(wall) {
                _ if self.retained == 0 && !self.used => Due::Never,
                Ok(later) if later > Duration::ZERO => Due::In(later),
                _ => Due::Now(Priority::Renewal),
            },
            _ => match self.most_urgent_waiter() {
                Some(priority) => Due::Now(priority),
                None if self.retained > 0 => Due::Now(Priority::First),
                None => Due::Never,
            },
        }
    }

    fn most_urgent_waiter(&self) -> Option<Priority> {
        let at = self.waiting.iter().position(|count| *count > 0)?;
        Some([Priority::Waiting, Priority::First, Priority::Renewal][at])
    }

    /// Whether anybody would miss it.
    fn is_needed(&self) -> bool {
        self.retained > 0 || self.used || self.most_urgent_waiter().is_some()
    }

    /// Whether it only takes room: nobody keeps it, and its certificate and its pause are over.
    fn is_spent(&self, now: Now) -> bool {
        let held = self.held.is_some_and(|held| {
            let useful_until = if self.used { held.not_after } else { held.renew_at };
            now.wall < useful_until
        });
        let paused = self.retry_at.is_some_and(|at| at > now.monotonic);
        let kept = self.fetching || self.retained > 0 || self.most_urgent_waiter().is_some();
        !(kept || held || paused)
    }
}

impl Schedule {
    fn due(&self, entry: &Entry, now: Now) -> Due {
        let wanted = if entry.fetching {
            Due::Never
        } else {
            entry.wanted(now.wall)
        };
        let mut pause = entry.pause(now, self.last_start);
        if let (Due::Now(Priority::Renewal), Some(last)) = (wanted, self.last_renewal) {
            pause = pause.max((last + RENEWAL_SPACING).saturating_duration_since(now.monotonic));
        }
        match wanted {
            Due::Now(_) if pause > Duration::ZERO => Due::In(pause),
            Due::In(later) => Due::In(later.max(pause)),
            wanted => wanted,
        }
    }

    fn entry(&mut self, identity: &Identity) -> &mut Entry {
        self.arrivals += 1;
        let new = Entry {
            arrival: self.arrivals,
            ..Entry::default()
        };
        self.entries.entry(identity.clone()).or_insert(new)
    }

    /// A local workload of this identity appeared.
    pub fn retain(&mut self, identity: &Identity) {
        self.entry(identity).retained += 1;
    }

    /// A local workload of this identity is gone. Says whether it was the last one.
    pub fn release(&mut self, identity: &Identity) -> bool {
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        let had_one = entry.retained > 0;
        entry.retained = entry.retained.saturating_sub(1);
        let last = had_one && entry.retained == 0;
        if last {
            entry.used = false;
            entry.held = None;
        }
        last
    }

    /// Somebody uses, or wants, a certificate of this identity. Says whether there is room to care for it.
    pub fn touch(&mut self, identity: &Identity) -> bool {
        let room = self.entries.len() < IDENTITIES_MAX || self.entries.contains_key(identity);
        if room {
            self.entry(identity).used = true;
        }
        room
    }

    /// Somebody begins to wait.
    pub fn wait(&mut self, identity: &Identity, priority: Priority) {
        self.entry(identity).waiting[priority as usize] += 1;
    }

    /// Somebody waits no longer.
    pub fn leave(&mut self, identity: &Identity, priority: Priority) {
        if let Some(entry) = self.entries.get_mut(identity) {
            let waiting = &mut entry.waiting[priority as usize];
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// The next identity to fetch, if one is due and the bound is not reached. It counts as under way until
    /// [`fetched`](Self::fetched) or [`failed`](Self::failed).
    pub fn next(&mut self, now: Now) -> Option<(Identity, Priority)> {
        if self.fetching >= FETCHES_MAX {
            return None;
        }
        let due = self
            .entries
            .iter()
            .filter_map(|(identity, entry)| match self.due(entry, now) {
                Due::Now(priority) => Some((priority, entry.arrival, identity)),
                _ => None,
            });
        let (priority, _, identity) = due.min()?;
        let identity = identity.clone();
        self.entry(&identity).fetching = true;
        self.fetching += 1;
        self.last_start = Some(now.monotonic);
        if priority == Priority::Renewal {
            self.last_renewal = Some(now.monotonic);
        }
        Some((identity, priority))
    }

    /// A certificate came. `random` is in -1..=1. Says whether it is still wanted.
    pub fn fetched(&mut self, identity: &Identity, not_after: SystemTime, random: f64, now: Now) -> bool {
        self.end_outage();
        let Some(entry) = self.finish(identity) else {
            return false;
        };
        entry.failures = 0;
        entry.retry_at = None;
        if !entry.is_needed() {
            return false;
        }
        entry.used = entry.most_urgent_waiter().is_some();
        entry.held = Some(Held {
            renew_at: renew_at(not_after, random, now.wall),
            not_after,
        });
        true
    }

    /// An attempt failed. `random` is in -1..=1.
    pub fn failed(&mut self, identity: &Identity, failure: Failure, random: f64, now: Now) {
        if failure == Failure::Refusal {
            self.end_outage();
        }
        if let Some(entry) = self.finish(identity) {
            entry.outage = failure == Failure::Outage;
            entry.retry_at = Some(now.monotonic + pause(entry.failures, random));
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// The authority answers again: nobody waits longer because it did not.
    fn end_outage(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.outage) {
            entry.outage = false;
            entry.failures = 0;
            entry.retry_at = None;
        }
    }

    fn finish(&mut self, identity: &Identity) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(identity).filter(|entry| entry.fetching)?;
        entry.fetching = false;
        self.fetching -= 1;
        Some(entry)
    }

    /// How long until the next attempt for this identity may start; nothing when one is under way or due.
    #[must_use]
    pub fn pause_left(&self, identity: &Identity, now: Now) -> Option<Duration> {
        let entry = self.entries.get(identity).filter(|entry| !entry.fetching)?;
        let left = entry.pause(now, self.last_start);
        (left > Duration::ZERO).then_some(left)
    }

    /// How long until something becomes due by itself.
    #[must_use]
    pub fn wake_in(&self, now: Now) -> Option<Duration> {
        let waits = self
            .entries
            .values()
            .filter_map(|entry| match self.due(entry, now) {
                Due::In(later) => Some(later),
                Due::Now(_) | Due::Never => None,
            });
        waits.min()
    }

    /// Forgets what nobody needs any more, and says what that was.
    pub fn sweep(&mut self, now: Now) -> Vec<Identity> {
        let spent = self.entries.iter().filter(|(_, entry)| entry.is_spent(now));
        let spent: Vec<_> = spent.map(|(identity, _)| identity.clone()).collect();
        for identity in &spent {
            self.entries.remove(identity);
        }
        spent
    }

    /// When the certificate of this identity is to be renewed, and how many local workloads have it.
    #[must_use]
    pub fn outlook(&self, identity: &Identity) -> (Option<SystemTime>, usize) {
        match self.entries.get(identity) {
            Some(entry) => (entry.held.map(|held| held.renew_at), entry.retained),
            None => (None, 0),
        }
    }

    /// How long until the first certificate of a local workload expires.
    #[must_use]
    pub fn first_expiry(&self, wall: SystemTime) -> Option<Duration> {
        let retained = self.entries.values().filter(|entry| entry.retained > 0);
        let left = |held: Option<Held>| {
            held.map(|held| held.not_after.duration_since(wall).unwrap_or_default())
                .unwrap_or_default()
        };
        retained.map(|entry| left(entry.held)).min()
    }

    /// Whether a local workload has this identity.
    #[must_use]
    pub fn is_retained(&self, identity: &Identity) -> bool {
        self.entries.get(identity).is_some_and(|entry| entry.retained > 0)
    }

    /// Every identity that is kept track of.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.entries.keys()
    }
}

/// Half of what is left, ±5 %. Counted from `now`: authorities date certificates back, and half of a short
/// life that began before we had it may be over on arrival.
fn renew_at(not_after: SystemTime, random: f64, now: SystemTime) -> SystemTime {
    let half = not_after.duration_since(now).unwrap_or_default() / 2;
    now + varied(half, RENEWAL_JITTER, random).max(RETRY_MIN)
}

/// 0.5 s doubling, ±20 %, at most 150 s.
fn pause(failures: u32, random: f64) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
    varied(doubled.min(RETRY_MAX), RETRY_JITTER, random).min(RETRY_MAX)
}

fn varied(duration: Duration, part: f64, random: f64) -> Duration {
    duration.mul_f64(1.0 + part * random.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests;
