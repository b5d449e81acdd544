//! How long a connection of a client may take for the head of a request, and how long it may be idle.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::wire::Tap;
use crate::buffers::Carried;

/// Time for the head of a request, from its first byte.
pub const HEAD_MAX: Duration = Duration::from_secs(10);
/// Time without a request.
pub const IDLE_MAX: Duration = Duration::from_secs(5 * 60);

/// The time a connection takes. Shared by the connection, what reads from it, and its requests.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
    head_max: Duration,
    carried: Carried,
}

#[derive(Debug)]
struct State {
    /// Requests that are not answered to their end.
    running: u32,
    /// When the head began that is not complete.
    head_since: Option<Instant>,
    /// When the last request ended.
    idle_since: Instant,
}

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// The head of a request.
    Head,
    /// The next request.
    Idle,
}

/// A request that runs; until it is dropped the connection is not idle.
#[derive(Debug)]
pub struct Running(Arc<Pace>);

impl Pace {
    /// A connection that begins now; `head_max` is for the settings to say.
    #[must_use]
    pub fn begin(head_max: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                running: 0,
                head_since: None,
                idle_since: Instant::now(),
            }),
            head_max: head_max.unwrap_or(HEAD_MAX),
            carried: Carried::default(),
        })
    }

    /// What the library holds of it.
    #[must_use]
    pub fn carried(&self) -> &Carried {
        &self.carried
    }

    /// A head is complete.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> Running {
        let mut state = self.state.lock();
        state.running += 1;
        state.head_since = None;
        drop(state);
        Running(Arc::clone(self))
    }

    /// Waits until something takes too long. To be polled after what reads, by the same task.
    ///
    /// One timer is always set, no later than anything can be due, and is looked at when it fires: a request that comes
    /// and goes sets none and wakes nobody.
    pub async fn overdue(&self) -> Overdue {
        let mut timer = pin!(sleep(IDLE_MAX));
        poll_fn(|cx| {
            loop {
                let (now, due) = (Instant::now(), self.deadline());
                match due {
                    Some((deadline, overdue)) if deadline <= now => return Poll::Ready(overdue),
                    Some((deadline, _)) if deadline < timer.deadline() => timer.as_mut().reset(deadline),
                    _ => {}
                }
                ready!(timer.as_mut().poll(cx));
                // What has been put off meanwhile; a request that still runs cannot be overdue before this.
                let next = due.map_or(now + IDLE_MAX, |(deadline, _)| deadline);
                timer.as_mut().reset(next);
            }
        })
        .await
    }

    fn deadline(&self) -> Option<(Instant, Overdue)> {
        let state = self.state.lock();
        match state.head_since {
            Some(since) => Some((since + self.head_max, Overdue::Head)),
            None if state.running == 0 => Some((state.idle_since + IDLE_MAX, Overdue::Idle)),
            None => None,
        }
    }

    fn bytes(&self) {
        let mut state = self.state.lock();
        if state.running == 0 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if state.running == 0 {
            state.idle_since = Instant::now();
            drop(state);
            self.0.carried.clear();
        }
    }
}

impl Tap for Arc<Pace> {
    fn arrived(&mut self, _: &[u8]) -> Result<(), Bytes> {
        self.bytes();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_on() {
        let pace = Pace::begin(None);
        advance(Duration::from_secs(60)).await;
        pace.bytes();
        let begun = Instant::now();
        assert_eq!(pace.overdue().await, Overdue::Head);
        assert_eq!(begun.elapsed(), HEAD_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_the_end_of_its_last_request_on() {
        let pace = Pace::begin(None);
        pace.bytes();
        let running = pace.request();
        pace.bytes();
        assert!(
            timeout(IDLE_MAX * 2, pace.overdue()).await.is_err(),
            "a request runs"
        );
        drop(running);
        let ended = Instant::now();
        assert_eq!(pace.overdue().await, Overdue::Idle);
        assert_eq!(ended.elapsed(), IDLE_MAX);
    }
}
