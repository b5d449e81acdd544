//! How much may be tried again: a share of the requests of a sliding window, and some per second always.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tulle_model::policy::traffic;

use crate::clock::Time;

/// Parts of the window; it slides by one of them.
const SLOTS: usize = 10;

/// How much may be tried again, with the defaults in their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Percent of requests.
    pub percent: u32,
    /// Counted over this time.
    pub interval: Duration,
    /// Always allowed, per second.
    pub per_second_min: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&traffic::RetryBudget::default())
    }
}

impl From<&traffic::RetryBudget> for Settings {
    fn from(policy: &traffic::RetryBudget) -> Self {
        let interval = policy.interval.unwrap_or(Duration::from_secs(10));
        Self {
            percent: policy.percent.unwrap_or(20).min(100),
            interval: interval.clamp(Duration::from_secs(1), Duration::from_secs(3_600)),
            per_second_min: policy.per_second_min.unwrap_or(10),
        }
    }
}

impl Settings {
    fn slot(&self) -> u64 {
        let slots = SLOTS as u128;
        u64::try_from(self.interval.as_nanos() / slots).unwrap_or(u64::MAX)
    }

    /// Retries that may have been made in the window with so many requests.
    #[must_use]
    pub fn allowed(&self, requests: u64) -> u64 {
        let share = requests.saturating_mul(u64::from(self.percent)) / 100;
        share.saturating_add(u64::from(self.per_second_min).saturating_mul(self.interval.as_secs()))
    }
}

/// What one parent service has asked for and tried again lately. It survives snapshots.
#[derive(Debug, Default)]
pub struct Budget {
    requests: Window,
    retries: Window,
}

impl Budget {
    /// A request came.
    pub fn request(&self, settings: &Settings, now: Time) {
        self.requests.add(settings.slot(), now, 1);
    }

    /// Whether one more retry may be made; if so, it counts.
    #[must_use]
    pub fn retry(&self, settings: &Settings, now: Time) -> bool {
        let slot = settings.slot();
        // It counts first, so that several at once cannot all see the same last place.
        self.retries.add(slot, now, 1);
        let fits = self.retries.sum(slot, now) <= settings.allowed(self.requests.sum(slot, now));
        if !fits {
            self.retries.take_back(slot, now);
        }
        fits
    }

    /// The share of the budget that is spent, for metrics.
    #[must_use]
    pub fn ratio(&self, settings: &Settings, now: Time) -> f64 {
        let slot = settings.slot();
        let allowed = settings.allowed(self.requests.sum(slot, now)).max(1);
        let float = |count: u64| u32::try_from(count).map_or(f64::MAX, f64::from);
        float(self.retries.sum(slot, now)) / float(allowed)
    }
}

/// Counts of a sliding window: in each slot the number of the time it is for (high half) and the count (low half).
#[derive(Debug, Default)]
struct Window([AtomicU64; SLOTS]);

const COUNT: u64 = u32::MAX as u64;

impl Window {
    fn add(&self, slot: u64, now: Time, count: u64) {
        let number = number(slot, now);
        let add = |packed: u64| {
            let kept = if packed >> 32 == number { packed & COUNT } else { 0 };
            Some(number << 32 | (kept + count).min(COUNT))
        };
        // The closure never refuses.
        let _ = self
            .at(number)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn take_back(&self, slot: u64, now: Time) {
        let number = number(slot, now);
        let take = |packed: u64| (packed >> 32 == number && packed & COUNT > 0).then(|| packed - 1);
        let _ = self
            .at(number)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
    }

    fn sum(&self, slot: u64, now: Time) -> u64 {
        let number = number(slot, now);
        let counts = self.0.iter().map(|slot| {
            let packed = slot.load(Ordering::Relaxed);
            let age = number.wrapping_sub(packed >> 32) & COUNT;
            if age < SLOTS as u64 { packed & COUNT } else { 0 }
        });
        counts.sum()
    }

    fn at(&self, number: u64) -> &AtomicU64 {
        &self.0[usize::try_from(number).unwrap_or_default() % SLOTS]
    }
}

fn number(slot: u64, now: Time) -> u64 {
    (now.nanos() / slot.max(1)) & COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::after(Duration::from_secs(1_000 + seconds))
    }

    fn retries(budget: &Budget, now: Time, wanted: usize) -> usize {
        (0..wanted)
            .filter(|_| budget.retry(&Settings::default(), now))
            .count()
    }

    #[test]
    fn some_retries_are_always_allowed() {
        let budget = Budget::default();
        assert_eq!(retries(&budget, at(0), 500), 100, "ten per second of the window");
        assert_eq!(retries(&budget, at(5), 500), 0);
        assert_eq!(retries(&budget, at(11), 500), 100, "the window has slid on");
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_tried_again() {
        let budget = Budget::default();
        (0..1_000).for_each(|_| budget.request(&Settings::default(), at(0)));
        assert!(budget.ratio(&Settings::default(), at(0)).abs() < f64::EPSILON);
        assert_eq!(retries(&budget, at(1), 1_000), 300);
        assert!((budget.ratio(&Settings::default(), at(1)) - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let nothing = Settings {
            percent: 0,
            per_second_min: 0,
            ..Settings::default()
        };
        let budget = Budget::default();
        budget.request(&nothing, at(0));
        assert!(!budget.retry(&nothing, at(0)));
    }

    proptest::proptest! {
        /// Beside a plain list of everything that happened: never more than the window allows, and never less than
        /// a window that is one slot longer would.
        #[test]
        fn the_window_agrees_with_a_plain_list(
            events in proptest::collection::vec((proptest::bool::ANY, 0u64..700), 0..400), percent in 0u32..=100,
        ) {
            let settings = Settings { percent, per_second_min: 1, ..Settings::default() };
            let budget = Budget::default();
            let (mut now, mut requests, mut made) = (at(0), Vec::new(), Vec::new());
            for (request, millis) in events {
                now = now + Duration::from_millis(millis);
                let slots = |time: &Time| number(settings.slot(), now) - number(settings.slot(), *time);
                let within = |list: &[Time]| list.iter().filter(|time| slots(time) < SLOTS as u64).count() as u64;
                if request {
                    budget.request(&settings, now);
                    requests.push(now);
                } else {
                    let expected = within(&made) < settings.allowed(within(&requests));
                    proptest::prop_assert_eq!(budget.retry(&settings, now), expected);
                    if expected {
                        made.push(now);
                    }
                }
            }
        }
    }
}
