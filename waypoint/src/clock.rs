//! Time as one number, so that it fits into an atomic and tests can say what time it is.

use std::ops::Add;
use std::time::Duration;

use tokio::time::Instant;

/// A point in time: how long after the clock's start, in nanoseconds. It holds 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(u64);

impl Time {
    /// The clock's start.
    pub const ZERO: Self = Self(0);

    /// So long after the clock's start.
    #[must_use]
    pub fn after(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// As a number of nanoseconds.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// From a number of nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// As a number of whole milliseconds.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// From a number of milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// How long after `earlier`; nothing if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(Self::after(duration).0))
    }
}

/// Says what time it is. It follows tokio's clock, which tests can hold.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::after(self.start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_follows_the_held_time() {
        let clock = Clock::start();
        assert_eq!(clock.now(), Time::ZERO);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), Time::from_millis(1_500));
        assert_eq!(clock.now().since(Time::ZERO), Duration::from_millis(1_500));
        assert_eq!(Time::ZERO.since(clock.now()), Duration::ZERO, "never negative");
    }
}
