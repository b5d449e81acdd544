//! A histogram of atomic numbers: observing takes no lock and allocates nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds a request may have taken.
pub const DURATION_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Bytes a body may have.
pub const SIZE_BYTES: [f64; 8] = [
    1.0,
    64.0,
    1_024.0,
    16_384.0,
    262_144.0,
    1_048_576.0,
    16_777_216.0,
    1_073_741_824.0,
];

/// How many observations fell below each bound.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    counts: [AtomicU64; N],
    /// Those above the last bound.
    above: AtomicU64,
    /// The sum in thousandths, so that it fits into a whole number.
    sum_milli: AtomicU64,
}

/// What a histogram says at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Sum of what was observed.
    pub sum: f64,
    /// How many observations.
    pub count: u64,
    /// Upper bounds with the observations between it and the one before; the last one is without end.
    pub buckets: Vec<(f64, u64)>,
}

impl<const N: usize> Histogram<N> {
    /// An empty one with these upper bounds.
    #[must_use]
    pub fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum_milli: AtomicU64::new(0),
        }
    }

    /// Observes a value, given in thousandths.
    pub fn observe_milli(&self, milli: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a bucket is chosen, nothing is kept")]
        let value = milli as f64 / 1_000.0;
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let count = self.counts.get(bucket).unwrap_or(&self.above);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum_milli.fetch_add(milli, Ordering::Relaxed);
    }

    /// What it says now.
    #[must_use]
    pub fn read(&self) -> Reading {
        let counts = self.counts.iter().chain([&self.above]);
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        #[expect(clippy::cast_precision_loss, reason = "the exposition knows floats only")]
        let sum = self.sum_milli.load(Ordering::Relaxed) as f64 / 1_000.0;
        Reading {
            sum,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&DURATION_MS);
        for milli in [400, 500, 501, 4_000_000_000] {
            histogram.observe_milli(milli);
        }
        let read = histogram.read();
        assert_eq!(read.count, 4);
        assert_eq!(read.buckets[0], (0.5, 2), "bounds belong to their bucket");
        assert_eq!(read.buckets[1], (1.0, 1));
        assert_eq!(read.buckets.last(), Some(&(f64::INFINITY, 1)));
        assert!((read.sum - 4_000_001.401).abs() < 0.001);
    }
}
