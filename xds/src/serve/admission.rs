//! When clients are told what they lack as they come: a bucket of bytes that every stream draws from until it has been told
//! that, be it a whole table or what changed while it was away, so that thousands of them that come at once do not fill the
//! machine's memory and links with the same bytes.
//!
//! Who waits longest goes first; a node on which a workload waits for its certificate goes as if it had waited for
//! [`URGENT_LEAD`] already, so that others are overtaken and never starve.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Bytes per second that openings may take, unless set otherwise.
pub const BYTES_PER_SECOND_DEFAULT: u64 = 200 << 20;
/// Streams that may wait; more are sent away with a time to come back.
pub const WAITING_MAX: usize = 10_000;
/// What an urgent stream is ahead of others.
pub const URGENT_LEAD: Duration = Duration::from_secs(15);
/// Time to come back after, at least and at most; random in between, so that those sent away do not come together.
pub const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Too many streams wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many clients start at once; come back in {} ms", retry_after.as_millis())]
pub struct TooMany {
    /// When to come back.
    pub retry_after: Duration,
}

/// The bucket. Clones share it.
#[derive(Debug, Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The bucket is empty until then; it holds one second at most.
    empty_until: Instant,
    tickets: u64,
    waiting: BTreeMap<Place, Arc<Notify>>,
}

/// By the time since when one waits, then by arrival.
type Place = (Instant, u64);

impl Default for Admission {
    fn default() -> Self {
        Self::new(BYTES_PER_SECOND_DEFAULT)
    }
}

impl Admission {
    /// A full bucket.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        let state = State {
            empty_until: Instant::now(),
            tickets: 0,
            waiting: BTreeMap::new(),
        };
        let inner = Inner {
            bytes_per_second: bytes_per_second.max(1),
            state: Mutex::new(state),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Streams that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.state.lock().waiting.len()
    }

    /// Waits until this many bytes may go out.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn enter(self, bytes: usize, urgent: bool) -> Result<(), TooMany> {
        let turn = self.queue(urgent)?;
        loop {
            let until = match self.try_take(&turn.place, bytes) {
                Next::Taken => return Ok(()),
                Next::At(until) => until,
                // Whoever is before this one wakes it.
                Next::Behind => Instant::now() + RETRY_AFTER.1,
            };
            tokio::select! {
                () = sleep_until(until) => {}
                () = turn.woken.notified() => {}
            }
        }
    }

    fn queue(&self, urgent: bool) -> Result<Turn, TooMany> {
        let mut state = self.inner.state.lock();
        if state.waiting.len() >= WAITING_MAX {
            let (least, most) = RETRY_AFTER;
            return Err(TooMany {
                retry_after: rand::random_range(least..most),
            });
        }
        state.tickets += 1;
        let lead = if urgent { URGENT_LEAD } else { Duration::ZERO };
        let now = Instant::now();
        let place = (now.checked_sub(lead).unwrap_or(now), state.tickets);
        let woken = Arc::new(Notify::new());
        state.waiting.insert(place, woken.clone());
        drop(state);
        Ok(Turn {
            admission: self.clone(),
            place,
            woken,
        })
    }

    fn try_take(&self, place: &Place, bytes: usize) -> Next {
        let mut state = self.inner.state.lock();
        if state.waiting.keys().next() != Some(place) {
            return Next::Behind;
        }
        let now = Instant::now();
        let full = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        if state.empty_until > now {
            return Next::At(state.empty_until);
        }
        let seconds = bytes as f64 / self.inner.bytes_per_second as f64;
        state.empty_until = state.empty_until.max(full) + Duration::from_secs_f64(seconds);
        Next::Taken
    }
}

enum Next {
    Taken,
    At(Instant),
    Behind,
}

/// A place in the queue, given up when dropped.
struct Turn {
    admission: Admission,
    place: Place,
    woken: Arc<Notify>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.admission.inner.state.lock();
        state.waiting.remove(&self.place);
        if let Some(next) = state.waiting.values().next() {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn a_second_of_bytes_passes_at_once_and_more_wait() {
        let (admission, begin) = (Admission::new(10 << 20), Instant::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        for _ in 0..2 {
            admission.clone().enter(10 * MIB, false).await.unwrap();
        }
        let waited = begin.elapsed().as_millis() - 5000;
        assert!(waited < 5, "{waited}");
        admission.clone().enter(MIB, false).await.unwrap();
        let waited = begin.elapsed().as_millis() - 5000;
        assert!((1000..1010).contains(&waited), "{waited}");
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_urgent_node_overtakes_and_nobody_starves() {
        let admission = Admission::new(1 << 20);
        admission.clone().enter(5 * MIB, false).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, urgent) in [("one", false), ("two", false), ("urgent", true)] {
            let (admission, order) = (admission.clone(), order.clone());
            tasks.push(tulle_runtime::tasks::spawn("waiting", async move {
                admission.enter(20 * MIB, urgent).await.unwrap();
                order.lock().push(name);
            }));
            tokio::task::yield_now().await;
        }
        // An urgent one that comes when another has waited longer than its lead goes after that one.
        tokio::time::sleep(Duration::from_secs(16)).await;
        let (late, ended) = (admission.clone(), order.clone());
        tasks.push(tulle_runtime::tasks::spawn("late", async move {
            late.enter(MIB, true).await.unwrap();
            ended.lock().push("late");
        }));
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), ["urgent", "one", "two", "late"]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_are_sent_away_with_a_time_and_places_come_back() {
        let admission = Admission::new(1);
        admission.clone().enter(1000, false).await.unwrap();
        let turns: Vec<Turn> = (0..WAITING_MAX)
            .map(|_| admission.queue(false).unwrap())
            .collect();
        let refused = admission.clone().enter(1, true).await.unwrap_err();
        assert!((RETRY_AFTER.0..RETRY_AFTER.1).contains(&refused.retry_after));
        drop(turns);
        assert_eq!(admission.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gives_up_does_not_hold_up_the_next() {
        let admission = Admission::new(1 << 20);
        admission.clone().enter(3 * MIB, false).await.unwrap();
        let first = tulle_runtime::tasks::spawn("first", admission.clone().enter(MIB, false));
        tokio::task::yield_now().await;
        let second = tulle_runtime::tasks::spawn("second", admission.clone().enter(MIB, false));
        tokio::task::yield_now().await;
        first.abort();
        second.await.unwrap().unwrap();
    }
}
