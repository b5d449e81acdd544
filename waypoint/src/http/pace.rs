//! How long a connection of a client may take for the head of a request, how long it may be idle, and when what serves it
//! can rest.

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

/// Time without a request after which nothing is kept of a connection that it can do without.
pub const REST_AFTER: Duration = Duration::from_secs(1);

/// The time a connection takes. Shared by the connection, what reads from it, and its requests.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
    head_max: Duration,
    /// Whether it can rest.
    rests: bool,
    carried: Carried,
}

#[derive(Debug)]
struct State {
    /// Requests that are not answered to their end.
    running: u32,
    /// Requests so far.
    turn: u64,
    /// The library may not be done with the last one: its body was not read to its end, or it could become a stream of
    /// bytes.
    unfinished: bool,
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
    /// It is only quiet, for [`REST_AFTER`]: it can rest.
    Rest,
}

/// A request that runs; until it is dropped the connection is not idle.
#[derive(Debug)]
pub struct Running(Arc<Pace>);

impl Pace {
    /// A connection that begins now; `head_max` is for the settings to say.
    #[must_use]
    pub fn begin(head_max: Option<Duration>) -> Arc<Self> {
        Self::of(head_max, false)
    }

    /// The same for one that can rest.
    #[must_use]
    pub fn resting(head_max: Option<Duration>) -> Arc<Self> {
        Self::of(head_max, true)
    }

    fn of(head_max: Option<Duration>, rests: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                running: 0,
                turn: 0,
                unfinished: false,
                head_since: None,
                idle_since: Instant::now(),
            }),
            head_max: head_max.unwrap_or(HEAD_MAX),
            rests,
            carried: Carried::default(),
        })
    }

    /// What the library holds of it.
    #[must_use]
    pub fn carried(&self) -> &Carried {
        &self.carried
    }

    /// A head is complete. `unfinished` says that the library goes on with the request beside its answer: until that is
    /// [finished](Self::finished), the connection does not rest. The number is that of the request on its connection.
    #[must_use]
    pub fn request(self: &Arc<Self>, unfinished: bool) -> (Running, u64) {
        let mut state = self.state.lock();
        state.running += 1;
        state.turn += 1;
        state.unfinished = unfinished;
        state.head_since = None;
        let turn = state.turn;
        drop(state);
        (Running(Arc::clone(self)), turn)
    }

    /// The body of a request was read to its end. It says nothing of the request after it.
    pub fn finished(&self, turn: u64) {
        let mut state = self.state.lock();
        if state.turn == turn {
            state.unfinished = false;
        }
    }

    /// Waits until something takes too long, or the connection is quiet and `may_rest`. To be polled after what reads, by
    /// the same task.
    ///
    /// One timer is always set, no later than anything can be due, and is looked at when it fires: a request that comes
    /// and goes sets none, but for one in a while, and wakes nobody.
    pub async fn overdue(&self, may_rest: impl Fn() -> bool) -> Overdue {
        let mut timer = pin!(sleep(IDLE_MAX));
        poll_fn(|cx| {
            loop {
                let now = Instant::now();
                let due = self.deadline(now);
                match due {
                    Some((deadline, overdue)) if deadline <= now => return Poll::Ready(overdue),
                    Some((deadline, _)) if deadline < timer.deadline() => timer.as_mut().reset(deadline),
                    _ => {}
                }
                if self.is_quiet(now) && may_rest() {
                    return Poll::Ready(Overdue::Rest);
                }
                ready!(timer.as_mut().poll(cx));
                // What has been put off meanwhile; a request that still runs cannot be overdue before this.
                let next = due.map_or(now + IDLE_MAX, |(deadline, _)| deadline);
                timer.as_mut().reset(next);
            }
        })
        .await
    }

    /// When to look again, and what is overdue then unless something happens.
    fn deadline(&self, now: Instant) -> Option<(Instant, Overdue)> {
        let state = self.state.lock();
        match state.head_since {
            Some(since) => Some((since + self.head_max, Overdue::Head)),
            None if state.running > 0 => None,
            None if self.rests && now < state.idle_since + REST_AFTER => {
                Some((state.idle_since + REST_AFTER, Overdue::Rest))
            }
            None => Some((state.idle_since + IDLE_MAX, Overdue::Idle)),
        }
    }

    /// Whether nothing has happened for a while, and nothing is left of what did.
    fn is_quiet(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let idle = state.running == 0 && state.head_since.is_none() && !state.unfinished;
        self.rests && idle && now >= state.idle_since + REST_AFTER
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

    fn never() -> bool {
        false
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte_on() {
        let pace = Pace::begin(None);
        advance(Duration::from_secs(60)).await;
        pace.bytes();
        let begun = Instant::now();
        assert_eq!(pace.overdue(never).await, Overdue::Head);
        assert_eq!(begun.elapsed(), HEAD_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_the_end_of_its_last_request_on() {
        let pace = Pace::begin(None);
        pace.bytes();
        let (running, _) = pace.request(false);
        pace.bytes();
        assert!(
            timeout(IDLE_MAX * 2, pace.overdue(never)).await.is_err(),
            "a request runs"
        );
        drop(running);
        let ended = Instant::now();
        assert_eq!(pace.overdue(never).await, Overdue::Idle);
        assert_eq!(ended.elapsed(), IDLE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_quiet_rests_if_it_may_and_is_idle_later_if_not() {
        let pace = Pace::resting(None);
        drop(pace.request(false));
        let ended = Instant::now();
        assert_eq!(pace.overdue(|| true).await, Overdue::Rest);
        assert_eq!(ended.elapsed(), REST_AFTER);
        assert_eq!(pace.overdue(never).await, Overdue::Idle);
        assert_eq!(ended.elapsed(), IDLE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_rests_while_something_is_left_of_a_request() {
        let pace = Pace::resting(None);
        let ((before, earlier), (running, turn)) = (pace.request(true), pace.request(true));
        let rests = || timeout(IDLE_MAX / 8, pace.overdue(|| true));
        assert!(rests().await.is_err(), "it runs");
        drop((before, running));
        assert!(rests().await.is_err(), "its body has not ended");
        pace.finished(earlier);
        assert!(rests().await.is_err(), "that was another's");
        pace.finished(turn);
        assert_eq!(rests().await, Ok(Overdue::Rest));
        pace.bytes();
        assert_eq!(rests().await, Ok(Overdue::Head), "the next one begins");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_can_rest_does() {
        let pace = Pace::begin(None);
        assert_eq!(pace.overdue(|| true).await, Overdue::Idle);
    }
}
