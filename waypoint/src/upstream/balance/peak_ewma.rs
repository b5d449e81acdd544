//! The better of two by time to answer: a moving average that jumps up at once and comes down slowly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Field, Random, draw};
use crate::clock::Time;

/// How long an observation takes to lose two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint is taken for before anything is known of any.
pub const UNKNOWN: Duration = Duration::from_secs(1);
/// What a failure counts for, unless the endpoint says when to ask again.
pub const FAILURE: Duration = Duration::from_secs(5);
/// What a failure counts for at most.
pub const FAILURE_MAX: Duration = Duration::from_secs(300);

/// The unit of the stamp: about a millisecond. It wraps after 52 days.
const STAMP_SHIFT: u32 = 20;

/// The average of one endpoint, in one atomic number: 32 bits of time to answer (nanoseconds, as a float), 32 bits of
/// when it was last observed. Zero is unknown.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    /// Takes an observation.
    pub fn observe(&self, rtt: Duration, now: Time) {
        let update = |packed| Some(observed(packed, rtt, now));
        // The closure never refuses.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// The average, in nanoseconds, as it has come down until now; `None` if nothing was ever observed.
    #[must_use]
    pub fn nanos(&self, now: Time) -> Option<f64> {
        let packed = self.0.load(Ordering::Relaxed);
        (packed != 0).then(|| {
            let (rtt, idle) = unpack(packed, now);
            rtt * (-idle / DECAY.as_secs_f64()).exp()
        })
    }
}

fn observed(packed: u64, rtt: Duration, now: Time) -> u64 {
    let sample = rtt.as_secs_f64() * 1e9;
    let average = if packed == 0 {
        sample
    } else {
        let (before, idle) = unpack(packed, now);
        if sample >= before {
            sample
        } else {
            let keep = (-idle / DECAY.as_secs_f64()).exp();
            before * keep + sample * (1.0 - keep)
        }
    };
    pack(average, now)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "seven digits of a time to answer are more than enough"
)]
fn pack(nanos: f64, now: Time) -> u64 {
    // At least one, so that nothing observed is ever taken for nothing known.
    let bits = (nanos.max(1.0) as f32).to_bits();
    u64::from(bits) << 32 | u64::from(stamp(now))
}

/// The average when it was last observed, and the seconds since.
fn unpack(packed: u64, now: Time) -> (f64, f64) {
    let bits = u32::try_from(packed >> 32).unwrap_or_default();
    let then = u32::try_from(packed & u64::from(u32::MAX)).unwrap_or_default();
    let idle = stamp(now).wrapping_sub(then);
    // A stamp from just behind another thread's back looks like one from long ago.
    let idle = if idle > u32::MAX / 2 { 0 } else { idle };
    let unit = f64::from(1u32 << STAMP_SHIFT) / 1e9;
    (f64::from(f32::from_bits(bits)), f64::from(idle) * unit)
}

fn stamp(now: Time) -> u32 {
    u32::try_from((now.nanos() >> STAMP_SHIFT) & u64::from(u32::MAX)).unwrap_or_default()
}

/// The better of two distinct usable endpoints.
pub(super) fn pick(field: &dyn Field, random: Random<'_>) -> Option<usize> {
    let first = draw(field, None, random)?;
    let Some(second) = draw(field, Some(first), random) else {
        return Some(first);
    };
    let better = field.peak_cost(second) < field.peak_cost(first);
    Some(if better { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn at(seconds: f64) -> Time {
        Time::after(Duration::from_secs_f64(seconds))
    }

    fn millis(latency: &Latency, now: Time) -> f64 {
        latency.nanos(now).unwrap() / 1e6
    }

    #[test]
    fn a_peak_counts_at_once_and_comes_down_slowly() {
        let latency = Latency::default();
        assert_eq!(latency.nanos(at(1.0)), None);
        latency.observe(MILLISECOND, at(1.0));
        assert!((millis(&latency, at(1.0)) - 1.0).abs() < 0.01);
        latency.observe(100 * MILLISECOND, at(1.0));
        assert!((millis(&latency, at(1.0)) - 100.0).abs() < 0.1, "the peak");
        latency.observe(MILLISECOND, at(2.0));
        let after = millis(&latency, at(2.0));
        assert!((85.0..95.0).contains(&after), "{after}");
    }

    #[test]
    fn an_endpoint_that_is_not_asked_is_forgotten_by_and_by() {
        let latency = Latency::default();
        latency.observe(FAILURE, at(1.0));
        let after = millis(&latency, at(1.0) + DECAY);
        assert!((1_800.0..1_900.0).contains(&after), "{after}");
    }

    #[test]
    fn a_clock_that_seems_to_go_back_does_no_harm() {
        let latency = Latency::default();
        latency.observe(MILLISECOND, at(5.0));
        latency.observe(MILLISECOND, at(4.9));
        assert!((0.9..1.1).contains(&millis(&latency, at(4.8))));
    }
}
