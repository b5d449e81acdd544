//! Latencies with the moment they were due, and their percentiles in an interval.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::pauses::{Pause, away};

/// Samples of one kind of traffic.
#[derive(Debug, Default)]
pub struct Samples(Mutex<Vec<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    due: Instant,
    /// None: it failed.
    took: Option<Duration>,
}

/// The samples of an interval, added up.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Samples that came back whole.
    pub ok: usize,
    /// Samples that did not.
    pub failed: usize,
    /// Half of the good ones took at most this; [`Duration::MAX`] if there were none, as for the next two.
    pub p50: Duration,
    /// 99 of 100 good ones took at most this.
    pub p99: Duration,
    /// The longest of the good ones.
    pub max: Duration,
    /// When that one was due.
    pub max_due: Option<Instant>,
}

/// The good ones that took longer than they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// How many.
    pub count: usize,
    /// When the first of them was due.
    pub first: Instant,
    /// When the last of them was due.
    pub last: Instant,
}

impl Samples {
    /// Those that took longer than this: one stall has them side by side, a lack of something has them everywhere.
    #[must_use]
    pub fn slower_than(&self, limit: Duration) -> Option<Slow> {
        let samples = self.0.lock();
        let slow = samples
            .iter()
            .filter(|sample| sample.took.is_some_and(|took| took > limit));
        let due: Vec<Instant> = slow.map(|sample| sample.due).collect();
        drop(samples);
        Some(Slow {
            count: due.len(),
            first: *due.iter().min()?,
            last: *due.iter().max()?,
        })
    }

    /// Notes that what was due at a moment came back now.
    pub fn came_back(&self, due: Instant) {
        let took = Some(due.elapsed());
        self.0.lock().push(Sample { due, took });
    }

    /// Notes that what was due at a moment failed.
    pub fn failed(&self, due: Instant) {
        self.0.lock().push(Sample { due, took: None });
    }

    /// Adds up what was due in an interval.
    #[must_use]
    pub fn window(&self, from: Instant, to: Instant) -> Window {
        self.window_without(from, to, &[])
    }

    /// Adds up what was due in an interval, each sample less the time that a processor was away meanwhile.
    #[must_use]
    pub fn window_without(&self, from: Instant, to: Instant, pauses: &[Pause]) -> Window {
        let samples = self.0.lock();
        let inside = samples
            .iter()
            .filter(|sample| sample.due >= from && sample.due < to);
        let (mut good, mut failed) = (Vec::new(), 0);
        let mut longest: Option<(Duration, Instant)> = None;
        for sample in inside {
            match sample.took {
                Some(took) => {
                    let took = took.saturating_sub(away(pauses, sample.due, sample.due + took));
                    good.push(took);
                    longest = longest.max(Some((took, sample.due)));
                }
                None => failed += 1,
            }
        }
        drop(samples);
        good.sort_unstable();
        Window {
            ok: good.len(),
            failed,
            p50: percentile(&good, 50),
            p99: percentile(&good, 99),
            max: good.last().copied().unwrap_or(Duration::MAX),
            max_due: longest.map(|(_, due)| due),
        }
    }
}

/// The nearest-rank percentile of sorted values; of none, a time that meets no target.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(100));
        assert_eq!(percentile(&values, 99), Duration::from_millis(198));
        assert_eq!(percentile(&values[..1], 99), Duration::from_millis(1));
        assert_eq!(
            percentile(&[], 99),
            Duration::MAX,
            "an interval without answers is not a fast one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_holds_what_was_due_in_it_and_counts_failures_apart() {
        let samples = Samples::default();
        let start = Instant::now();
        samples.came_back(start);
        tokio::time::advance(Duration::from_secs(1)).await;
        samples.came_back(start + Duration::from_millis(900));
        samples.failed(Instant::now());
        let window = samples.window(start + Duration::from_millis(500), start + Duration::from_secs(2));
        assert_eq!((window.ok, window.failed), (1, 1));
        assert_eq!(window.max, Duration::from_millis(100));
        assert_eq!(window.max_due, Some(start + Duration::from_millis(900)));
        let away = Pause {
            from: start + Duration::from_millis(930),
            to: start + Duration::from_millis(990),
        };
        let without = samples.window_without(start + Duration::from_millis(500), Instant::now(), &[away]);
        assert_eq!(without.max, Duration::from_millis(40));
        let slow = samples.slower_than(Duration::from_millis(50));
        let at = start + Duration::from_millis(900);
        let only = Slow {
            count: 1,
            first: at,
            last: at,
        };
        assert_eq!(slow, Some(only));
        assert_eq!(samples.slower_than(Duration::from_millis(100)), None);
    }
}
