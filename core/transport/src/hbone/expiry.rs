//! When a tunnel connection may no longer take streams: its certificate has expired, by either clock.
//!
//! The wall clock may jump. A jump back must not lengthen a life, so the time that was left when the connection was
//! made also runs down on the clock that never jumps.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tulle_identity::Clock;

/// How often the wall clock is looked at, should it have jumped ahead.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The end of a certificate's validity.
#[derive(Debug)]
pub(super) struct Expiry {
    at: SystemTime,
    deadline: Instant,
}

impl Expiry {
    pub(super) fn new(not_after: SystemTime, wall: SystemTime, now: Instant) -> Self {
        let left = not_after.duration_since(wall).unwrap_or_default();
        Self {
            at: not_after,
            // A date beyond the clock's range is looked at again and again, and never comes.
            deadline: now
                .checked_add(left)
                .unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX))),
        }
    }

    /// How long it can be waited before looking again; nothing once it has passed.
    pub(super) fn left(&self, wall: SystemTime, now: Instant) -> Option<Duration> {
        let by_wall = self.at.duration_since(wall).ok()?;
        let by_now = self.deadline.checked_duration_since(now)?;
        Some(by_wall.min(by_now)).filter(|left| !left.is_zero())
    }

    /// Waits for it.
    pub(super) async fn passed(&self, clock: &Clock) {
        while let Some(left) = self.left(clock.now(), Instant::now()) {
            sleep(left.min(LOOK_EVERY)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_of_both_clocks_decides() {
        let (wall, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1000), Instant::now());
        let hour = Duration::from_secs(3600);
        let expiry = Expiry::new(wall + hour, wall, now);
        assert_eq!(expiry.left(wall, now), Some(hour));
        assert_eq!(expiry.left(wall + hour, now), None, "the wall clock jumped ahead");
        let back = wall - Duration::from_secs(500);
        assert_eq!(expiry.left(back, now + hour), None, "it jumped back");
        assert_eq!(expiry.left(back, now + hour / 2), Some(hour / 2));
        assert_eq!(Expiry::new(wall, wall + hour, now).left(wall + hour, now), None);
    }
}
