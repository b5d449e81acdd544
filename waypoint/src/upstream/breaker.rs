//! How much goes to one backend at once. What exceeds a bound is refused at once, except for connections: requests
//! wait for those, up to a bound of their own.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tulle_model::policy::traffic::CircuitBreaker;

use super::{CONNECT_TIMEOUT, CONNECT_TIMEOUT_MAX};

/// Requests that wait for a connection, unless a policy says otherwise.
pub const PENDING_MAX: u32 = 1_024;

/// The bounds of a backend in one snapshot; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests that wait for one.
    pub pending: u32,
    /// Requests.
    pub requests: Option<u32>,
    /// Retries.
    pub retries: Option<u32>,
    /// Requests of one connection; it drains after the last of them.
    pub per_connection: Option<u32>,
    /// Age of a connection at which it drains.
    pub age_max: Option<Duration>,
    /// Time in which a connection has to come about.
    pub connect: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&CircuitBreaker::default())
    }
}

impl From<&CircuitBreaker> for Limits {
    fn from(policy: &CircuitBreaker) -> Self {
        Self {
            connections: policy.connections,
            pending: policy.pending.unwrap_or(PENDING_MAX),
            requests: policy.requests,
            retries: policy.retries,
            per_connection: policy.requests_per_connection.map(|requests| requests.max(1)),
            age_max: policy.age_max.filter(|age| !age.is_zero()),
            connect: policy
                .connect_timeout
                .filter(|time| !time.is_zero())
                .unwrap_or(CONNECT_TIMEOUT)
                .min(CONNECT_TIMEOUT_MAX),
        }
    }
}

/// A bound of the backend is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// Too many requests at once.
    #[error("the backend has as many requests as it may have")]
    Requests,
    /// Too many retries at once.
    #[error("the backend has as many retries as it may have")]
    Retries,
    /// Too many requests wait for a connection.
    #[error("as many requests as may do so wait for a connection to the backend")]
    Pending,
}

/// What goes to one backend now. It survives snapshots; the bounds come with each of them.
#[derive(Debug, Default)]
pub struct Breaker {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    freed: Notify,
}

/// What a guard counts in.
#[derive(Debug, Clone, Copy)]
enum What {
    Connection,
    Pending,
    Request,
    Retry,
}

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub struct Guard {
    breaker: Arc<Breaker>,
    what: What,
}

impl Breaker {
    /// A request begins.
    ///
    /// # Errors
    /// There are too many.
    pub fn request(self: &Arc<Self>, limits: Limits) -> Result<Guard, Overflow> {
        self.enter(What::Request, limits.requests)
            .ok_or(Overflow::Requests)
    }

    /// A retry begins.
    ///
    /// # Errors
    /// There are too many.
    pub fn retry(self: &Arc<Self>, limits: Limits) -> Result<Guard, Overflow> {
        self.enter(What::Retry, limits.retries).ok_or(Overflow::Retries)
    }

    /// A connection is to be opened; waits until there may be one more.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn connection(self: &Arc<Self>, limits: Limits) -> Result<Guard, Overflow> {
        self.when_free(limits, || self.try_connection(limits)).await
    }

    /// What `look` finds: now, or when something of the backend has become free. Who waits counts as pending.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn when_free<T>(
        self: &Arc<Self>,
        limits: Limits,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, Overflow> {
        if let Some(found) = look() {
            return Ok(found);
        }
        let _waiting = self.pending(limits)?;
        loop {
            // Whatever becomes free after this line wakes us; whatever was free before it is found by looking again.
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(found) = look() {
                return Ok(found);
            }
            freed.await;
        }
    }

    /// Whether a request waits for a connection.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    /// Something has become free: a connection has ended, or one can take another request.
    pub fn release(&self) {
        // All of them look: what is free may be of use to one of them only.
        if self.is_waited_for() {
            self.freed.notify_waiters();
        }
    }

    /// A connection is to be opened, and there may be one more now.
    #[must_use]
    pub fn try_connection(self: &Arc<Self>, limits: Limits) -> Option<Guard> {
        self.enter(What::Connection, limits.connections)
    }

    /// A request waits for a place on a connection.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn pending(self: &Arc<Self>, limits: Limits) -> Result<Guard, Overflow> {
        self.enter(What::Pending, Some(limits.pending))
            .ok_or(Overflow::Pending)
    }

    /// What is counted now: connections, requests that wait, requests, retries.
    #[must_use]
    pub fn counts(&self) -> [u32; 4] {
        [What::Connection, What::Pending, What::Request, What::Retry]
            .map(|what| self.count(what).load(Ordering::Relaxed))
    }

    fn enter(self: &Arc<Self>, what: What, max: Option<u32>) -> Option<Guard> {
        let more = |count: u32| (count < max.unwrap_or(u32::MAX)).then_some(count + 1);
        // In one order with who releases: one of the two sees the other.
        self.count(what)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .ok()?;
        Some(Guard {
            breaker: Arc::clone(self),
            what,
        })
    }

    fn count(&self, what: What) -> &AtomicU32 {
        match what {
            What::Connection => &self.connections,
            What::Pending => &self.pending,
            What::Request => &self.requests,
            What::Retry => &self.retries,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.breaker.count(self.what).fetch_sub(1, Ordering::SeqCst);
        if matches!(self.what, What::Connection) {
            self.breaker.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn limits(connections: u32, pending: u32, requests: u32) -> Limits {
        Limits {
            connections: Some(connections),
            pending,
            requests: Some(requests),
            retries: Some(1),
            ..Limits::default()
        }
    }

    #[test]
    fn without_policy_only_waiting_has_a_bound() {
        let breaker = Arc::new(Breaker::default());
        let all: Vec<_> = (0..5_000)
            .map(|_| breaker.request(Limits::default()).unwrap())
            .collect();
        let waiting: Vec<_> = (0..PENDING_MAX)
            .map(|_| breaker.pending(Limits::default()).unwrap())
            .collect();
        assert_eq!(breaker.pending(Limits::default()).unwrap_err(), Overflow::Pending);
        assert_eq!(breaker.counts(), [0, 1_024, 5_000, 0]);
        drop((all, waiting));
        assert_eq!(breaker.counts(), [0; 4]);
    }

    #[test]
    fn what_exceeds_a_bound_is_refused_until_something_ends() {
        let breaker = Arc::new(Breaker::default());
        let limits = limits(1, 1, 2);
        let first = breaker.request(limits).unwrap();
        let _second = breaker.request(limits).unwrap();
        assert_eq!(breaker.request(limits).unwrap_err(), Overflow::Requests);
        drop(first);
        let _third = breaker.request(limits).unwrap();
        let _retry = breaker.retry(limits).unwrap();
        assert_eq!(breaker.retry(limits).unwrap_err(), Overflow::Retries);
    }

    #[test]
    fn a_request_waits_for_a_connection_and_gets_the_next_free_one() {
        let breaker = Arc::new(Breaker::default());
        let limits = limits(1, 1, 9);
        let first = breaker.connection(limits).now_or_never().unwrap().unwrap();
        let mut waits = Box::pin(breaker.connection(limits));
        assert!(waits.as_mut().now_or_never().is_none());
        let refused = breaker.connection(limits).now_or_never().unwrap();
        assert_eq!(refused.unwrap_err(), Overflow::Pending, "one waits already");
        drop(first);
        assert!(waits.now_or_never().unwrap().is_ok());
        assert_eq!(breaker.counts(), [0; 4], "nothing is left behind");
    }
}
