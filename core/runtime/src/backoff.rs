//! Growing waits between attempts: doubling up to a bound, spread by jitter so that a crowd does not retry in step.

use std::time::Duration;

/// How far a wait may lie from its nominal value, as a fraction.
const JITTER: f64 = 0.2;

/// The waits between attempts at one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    nominal: Duration,
}

impl Backoff {
    /// Waits from `min`, doubling, to at most `max` (before ±20 % of jitter).
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            nominal: min,
        }
    }

    /// How long to wait before the next attempt.
    #[allow(
        clippy::should_implement_trait,
        reason = "a backoff never ends, so it is no iterator to collect"
    )]
    pub fn next(&mut self) -> Duration {
        self.next_with(rand::random::<f64>())
    }

    /// As [`Backoff::next`], with the random value (in `0.0..=1.0`) given by the caller.
    pub fn next_with(&mut self, random: f64) -> Duration {
        let wait = spread(self.nominal.min(self.max), random);
        self.nominal = self.nominal.saturating_mul(2).min(self.max);
        wait
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.nominal = self.min;
    }
}

/// `duration` ±20 %: 0.8 of it for a `random` of 0, 1.2 of it for 1.
#[must_use]
pub fn spread(duration: Duration, random: f64) -> Duration {
    duration.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.clamp(0.0, 1.0))
}

/// `duration` ±20 % by the thread's random source.
#[must_use]
pub fn jittered(duration: Duration) -> Duration {
    spread(duration, rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn waits_double_up_to_the_bound_and_begin_anew_after_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let waits: Vec<_> = (0..5).map(|_| backoff.next_with(MIDDLE).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.next_with(MIDDLE).as_millis(), 100);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        assert_eq!(spread(Duration::from_secs(10), 0.0), Duration::from_secs(8));
        assert_eq!(spread(Duration::from_secs(10), 1.0), Duration::from_secs(12));
        let wait = Backoff::new(Duration::from_secs(10), Duration::from_secs(10)).next();
        assert!((8.0..=12.0).contains(&wait.as_secs_f64()), "{wait:?}");
    }
}
