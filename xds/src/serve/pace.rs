//! How soon a change goes out: at once while little happens, in batches while much does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Cuts per second above which they go out in batches.
pub const CALM_MAX: usize = 50;
/// Least time between two batches then, if nothing else is set.
pub const BATCH_APART: Duration = Duration::from_millis(5);
/// Most that it may be set to: a change waits for it.
pub const BATCH_APART_MAX: Duration = Duration::from_millis(10);
/// What "per second" is counted over.
const WINDOW: Duration = Duration::from_secs(1);

/// The cuts of the last second, as far as they matter.
#[derive(Debug, Default)]
pub struct Pace {
    /// The newest [`CALM_MAX`] and one more, oldest first.
    cuts: VecDeque<Instant>,
    sent: Option<Instant>,
}

impl Pace {
    /// Notes a new cut.
    pub fn on_cut(&mut self, now: Instant) {
        self.cuts.push_back(now);
        if self.cuts.len() > CALM_MAX + 1 {
            self.cuts.pop_front();
        }
    }

    /// Notes that something went out.
    pub fn on_sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// Until when to wait before the next batch, where batches are so far apart; `None` is now.
    #[must_use]
    pub fn wait_until(&self, now: Instant, apart: Duration) -> Option<Instant> {
        let busy = self.cuts.len() > CALM_MAX
            && self
                .cuts
                .front()
                .is_some_and(|oldest| now.duration_since(*oldest) < WINDOW);
        let earliest = self.sent? + apart;
        (busy && earliest > now).then_some(earliest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calm_stream_sends_at_once() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for at in 0..CALM_MAX {
            let now = start + Duration::from_millis(20) * u32::try_from(at).unwrap();
            pace.on_cut(now);
            assert_eq!(pace.wait_until(now, BATCH_APART), None);
            pace.on_sent(now);
        }
    }

    #[test]
    fn a_busy_stream_sends_in_batches_and_is_calm_again_after_a_second() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for _ in 0..=CALM_MAX {
            pace.on_cut(start);
        }
        assert_eq!(pace.wait_until(start, BATCH_APART), None, "nothing was sent yet");
        pace.on_sent(start);
        for apart in [BATCH_APART, BATCH_APART_MAX] {
            assert_eq!(pace.wait_until(start, apart), Some(start + apart));
            assert_eq!(pace.wait_until(start + apart, apart), None);
        }
        assert_eq!(
            pace.wait_until(start, Duration::ZERO),
            None,
            "batches are not held apart"
        );
        pace.on_sent(start + WINDOW);
        assert_eq!(pace.wait_until(start + WINDOW, BATCH_APART), None);
    }
}
