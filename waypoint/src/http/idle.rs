//! How long something may stand still: a timer that is set only while nothing moves.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Time between parts of a request's body, unless the settings say otherwise.
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(5 * 60);
/// Time between bytes of a WebSocket or a stream of TCP, unless the settings say otherwise.
pub const STREAM_IDLE_MAX: Duration = Duration::from_secs(60 * 60);

/// The same once one side has finished: the other has nothing to wait for.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(10 * 60);

/// Waits for something that may stand still for so long.
#[derive(Debug)]
pub struct Idle {
    max: Duration,
    moved: Instant,
    /// Set when something waits for the first time; what moves meanwhile only puts it off.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    /// It moves now.
    #[must_use]
    pub fn new(max: Duration) -> Self {
        Self {
            max,
            moved: Instant::now(),
            timer: None,
        }
    }

    /// It has moved.
    pub fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// It does not move: ready when that has lasted too long. Then it begins anew.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (max, moved) = (self.max, self.moved);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(moved + max)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let ends = self.moved + max;
            if ends <= Instant::now() {
                self.moved = Instant::now();
                self.timer = None;
                return Poll::Ready(());
            }
            timer.as_mut().reset(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn time_counts_from_when_it_last_moved() {
        let second = Duration::from_secs(1);
        let mut idle = Idle::new(10 * second);
        assert!(poll_fn(|cx| Poll::Ready(idle.poll(cx).is_pending())).await);
        advance(9 * second).await;
        idle.moved();
        let begun = Instant::now();
        poll_fn(|cx| idle.poll(cx)).await;
        assert!(begun.elapsed() >= 10 * second);
        assert!(begun.elapsed() < 11 * second);
    }
}
