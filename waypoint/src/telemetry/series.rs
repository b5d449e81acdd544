//! Which series exist: found by one look-up per request, bounded in number, forgotten when nobody touches them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;

use crate::clock::Time;

/// Series with a party that the control plane does not describe; more of them share one.
pub const FOREIGN_MAX: usize = 2_000;
/// Series of any kind.
pub const SERIES_MAX: usize = 100_000;
/// A series that nobody touched for so long is dropped.
pub const IDLE_MAX: Duration = Duration::from_secs(15 * 60);

/// Labels that have a place for what exceeds the bound.
pub trait Labels: Clone {
    /// The same for the same labels, and for no others.
    fn id(&self) -> u128;

    /// Whether all of them come from configuration.
    fn is_configured(&self) -> bool;

    /// The labels of the series that takes what exceeds the bound.
    #[must_use]
    fn other(&self) -> Self;
}

/// One series.
#[derive(Debug)]
pub struct Series<L, V> {
    /// Its labels.
    pub labels: L,
    /// What it counts.
    pub value: V,
    touched: AtomicU64,
}

/// The series of one kind.
#[derive(Debug)]
pub struct Table<L, V> {
    series: DashMap<u128, Arc<Series<L, V>>, ahash::RandomState>,
    foreign: AtomicUsize,
    overflowed: AtomicU64,
    foreign_max: usize,
    make: fn() -> V,
}

impl<L: Labels, V> Table<L, V> {
    /// An empty table whose series begin as `make` says.
    #[must_use]
    pub fn new(make: fn() -> V) -> Self {
        Self {
            series: DashMap::with_hasher(ahash::RandomState::new()),
            foreign: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            foreign_max: FOREIGN_MAX,
            make,
        }
    }

    /// The series with these labels, or the one for what exceeds the bound.
    #[must_use]
    pub fn touch(&self, labels: &L, now: Time) -> Arc<Series<L, V>> {
        if let Some(found) = self.series.get(&labels.id()) {
            found.touched.store(now.nanos(), Ordering::Relaxed);
            return Arc::clone(&found);
        }
        let foreign = !labels.is_configured();
        let full = self.series.len() >= SERIES_MAX
            || (foreign && self.foreign.load(Ordering::Relaxed) >= self.foreign_max);
        if full {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return self.enter(labels.other(), false, now);
        }
        self.enter(labels.clone(), foreign, now)
    }

    /// How many requests were counted under `other`.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Drops what nobody touched for [`IDLE_MAX`].
    pub fn sweep(&self, now: Time) {
        self.series.retain(|_, series| {
            let touched = Time::from_nanos(series.touched.load(Ordering::Relaxed));
            // Somebody who holds it is about to count.
            let kept = now.since(touched) < IDLE_MAX || Arc::strong_count(series) > 1;
            if !kept && !series.labels.is_configured() {
                self.foreign.fetch_sub(1, Ordering::Relaxed);
            }
            kept
        });
    }

    /// Every series, in no order.
    pub fn all(&self) -> Vec<Arc<Series<L, V>>> {
        self.series
            .iter()
            .map(|entry| Arc::clone(entry.value()))
            .collect()
    }

    fn enter(&self, labels: L, foreign: bool, now: Time) -> Arc<Series<L, V>> {
        let entry = self.series.entry(labels.id()).or_insert_with(|| {
            if foreign {
                self.foreign.fetch_add(1, Ordering::Relaxed);
            }
            Arc::new(Series {
                labels,
                value: (self.make)(),
                touched: AtomicU64::new(0),
            })
        });
        entry.touched.store(now.nanos(), Ordering::Relaxed);
        Arc::clone(&entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Numbered(u128, bool);

    impl Labels for Numbered {
        fn id(&self) -> u128 {
            self.0
        }

        fn is_configured(&self) -> bool {
            self.1
        }

        fn other(&self) -> Self {
            Self(0, true)
        }
    }

    fn table(foreign_max: usize) -> Table<Numbered, AtomicU64> {
        Table {
            foreign_max,
            ..Table::new(AtomicU64::default)
        }
    }

    #[test]
    fn what_is_not_in_the_configuration_has_a_bound() {
        let table = table(2);
        for id in 1..=5 {
            let _ = table.touch(&Numbered(id, false), Time::ZERO);
        }
        assert_eq!(table.all().len(), 3, "two, and the one for all others");
        assert_eq!(table.overflowed(), 3);
        assert_eq!(
            table.touch(&Numbered(9, true), Time::ZERO).labels,
            Numbered(9, true)
        );
        assert_eq!(
            table.touch(&Numbered(1, false), Time::ZERO).labels,
            Numbered(1, false),
            "known ones stay"
        );
    }

    #[test]
    fn idle_series_are_dropped_and_make_room() {
        let table = table(1);
        drop(table.touch(&Numbered(1, false), Time::ZERO));
        let held = table.touch(&Numbered(7, true), Time::ZERO);
        table.sweep(Time::ZERO + (IDLE_MAX - Duration::from_secs(1)));
        assert_eq!(table.all().len(), 2);
        table.sweep(Time::ZERO + IDLE_MAX);
        assert_eq!(table.all().len(), 1, "one is in use");
        assert_eq!(
            table.touch(&Numbered(2, false), Time::ZERO).labels,
            Numbered(2, false)
        );
        drop(held);
    }
}
