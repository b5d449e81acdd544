//! By chance, in proportion to capacity.

use super::{Field, REDRAWS_MAX, Random, walk, warm};

/// Sums of capacities, to draw by.
#[derive(Debug)]
pub struct Shares {
    /// The sum of all capacities up to and with this endpoint's.
    sums: Box<[u64]>,
}

impl Shares {
    pub(super) fn new(capacities: impl Iterator<Item = u32>) -> Self {
        let sums = capacities.scan(0, |sum, capacity| {
            *sum += u64::from(capacity);
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    pub(super) fn pick(&self, field: &dyn Field, random: Random<'_>) -> Option<usize> {
        let total = self.sums.last().copied().filter(|total| *total > 0)?;
        let mut last = 0;
        for _ in 0..REDRAWS_MAX {
            let point = random(total);
            last = self
                .sums
                .partition_point(|sum| *sum <= point)
                .min(self.sums.len() - 1);
            if field.usable(last) && warm(field, last, random) {
                return Some(last);
            }
        }
        walk(field, last, None)
    }
}
