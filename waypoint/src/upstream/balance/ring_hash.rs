//! By a ring of hashes: a key goes to the next entry on the ring, and stays there when others come and go.

use xxhash_rust::xxh64::xxh64;

use super::{Field, Weighted};

/// Entries of a ring at least, unless a policy says otherwise.
pub const RING_MIN: u32 = 1_024;
/// Entries of a ring at most, besides one of each endpoint.
pub const RING_MAX: u64 = 262_144;

/// Entries in the order of their hashes.
#[derive(Debug)]
pub struct Ring {
    entries: Box<[(u64, u32)]>,
}

impl Ring {
    pub(super) fn new(endpoints: &[Weighted<'_>], ring_min: Option<u32>) -> Self {
        let least = u64::from(ring_min.unwrap_or(RING_MIN)).clamp(1, RING_MAX);
        let sum: u64 = endpoints.iter().map(|one| u64::from(one.capacity)).sum();
        // A power of two: the entries of the others do not change with every endpoint that comes or goes.
        let unit = least.div_ceil(sum.max(1)).next_power_of_two();
        let whole = sum.saturating_mul(unit);
        let mut entries = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate().filter(|(_, one)| one.capacity > 0) {
            let share = u64::from(endpoint.capacity) * unit;
            let share = if whole > 2 * RING_MAX {
                share * RING_MAX / whole
            } else {
                share
            };
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let hash = |nth: u64| (xxh64(endpoint.name.as_bytes(), nth), index);
            entries.extend((0..share.max(1)).map(hash));
        }
        entries.sort_unstable();
        Self {
            entries: entries.into(),
        }
    }

    pub(super) fn pick(&self, field: &dyn Field, hash: u64) -> Option<usize> {
        let start = self.entries.partition_point(|(entry, _)| *entry < hash);
        let round = self.entries[start..].iter().chain(&self.entries[..start]);
        let mut indexes = round.map(|(_, index)| *index as usize);
        indexes.find(|index| field.usable(*index))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
