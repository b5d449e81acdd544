//! How many messages of a kind a peer may send that cost more than they carry: many at once, few for long.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A number of messages that refills with time. Plain data, but for the clock: elsewhere that begins anew.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Budget {
    left: u32,
    burst: u32,
    per_second: u32,
    #[serde(skip, default = "Instant::now")]
    refilled: Instant,
}

impl Budget {
    pub(crate) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self {
            left: burst,
            burst,
            per_second,
            refilled: now,
        }
    }

    /// Takes one; false if none is left.
    #[must_use]
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        let seconds = now.duration_since(self.refilled).as_secs();
        if seconds > 0 {
            let refill = u32::try_from(seconds)
                .unwrap_or(u32::MAX)
                .saturating_mul(self.per_second);
            self.left = self.left.saturating_add(refill).min(self.burst);
            self.refilled = now;
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_fine_and_a_flood_is_not() {
        let now = Instant::now();
        let mut budget = Budget::new(10, 2, now);
        assert_eq!((0..100).take_while(|_| budget.spend(now)).count(), 10);
        let later = now + Duration::from_secs(3);
        assert_eq!((0..100).take_while(|_| budget.spend(later)).count(), 6);
        let much_later = now + Duration::from_secs(300);
        assert_eq!((0..100).take_while(|_| budget.spend(much_later)).count(), 10);
    }
}
