//! An open-loop load between pods: requests, new connections, pinned connections and a paced bulk stream.
//!
//! Every sample is timed from the moment it was due, so a stall shows as latency and not as a pause. Nothing is
//! retried.

pub mod http;
pub mod pauses;
mod samples;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tulle_linux::NetNs;

pub use samples::{Samples, Slow, Window};

use self::pauses::Pause;
use crate::traffic::spawn;

/// How much of each kind of traffic runs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests per second on lasting connections.
    pub requests_per_second: u32,
    /// New connections per second, one request each.
    pub connects_per_second: u32,
    /// Connections held through the whole run.
    pub pinned: usize,
    /// Time between two messages of a pinned connection.
    pub pinned_interval: Duration,
    /// Bytes per second of one bulk stream, each way.
    pub bulk_bytes_per_second: u64,
}

impl Plan {
    /// The load of most fault scenarios: 300 requests/s, 50 new connections/s, 500 pinned connections with a message
    /// every 5 s each, 20 Mbit/s of bulk.
    #[must_use]
    pub fn l1() -> Self {
        Self {
            requests_per_second: 300,
            connects_per_second: 50,
            pinned: 500,
            pinned_interval: Duration::from_secs(5),
            bulk_bytes_per_second: 2_500_000,
        }
    }

    /// A tenth of [`Self::l1`], for tests that run on every change.
    #[must_use]
    pub fn light() -> Self {
        Self {
            requests_per_second: 30,
            connects_per_second: 20,
            pinned: 50,
            pinned_interval: Duration::from_millis(500),
            bulk_bytes_per_second: 250_000,
        }
    }
}

/// Lasting connections that carry the requests of a load.
const REQUEST_CONNECTIONS: u32 = 10;
/// Failures kept with their text.
const FAILURES_KEPT: usize = 20;

/// What all streams of a load write to.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    requests: Samples,
    connects: Samples,
    messages: Samples,
    established: AtomicU64,
    lost: AtomicU64,
    corrupt: AtomicU64,
    bulk_bytes: AtomicU64,
    failures: parking_lot::Mutex<Vec<String>>,
}

impl Shared {
    fn note(&self, failure: String) {
        let mut kept = self.failures.lock();
        if kept.len() < FAILURES_KEPT {
            kept.push(failure);
        }
    }

    fn lose(&self, what: &str, error: &std::io::Error) {
        if !self.stop.load(Ordering::Relaxed) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.note(format!("{what} lost: {error}"));
        }
    }

    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A running load; it ends with the value.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Opens the lasting connections to echo servers and starts every stream.
    pub async fn start(from: &NetNs, targets: &[SocketAddr], plan: Plan) -> Self {
        let shared = Arc::new(Shared::default());
        let target = |index: usize| targets[index % targets.len()];
        let mut tasks = Vec::new();
        for index in 0..plan.pinned {
            let stream = streams::open(from, target(index), &shared).await;
            let pin = streams::pin(stream, plan.pinned_interval, index, Arc::clone(&shared));
            tasks.push(spawn(pin));
        }
        if plan.requests_per_second > 0 {
            let every = Duration::from_secs(1) * REQUEST_CONNECTIONS / plan.requests_per_second;
            for index in 0..REQUEST_CONNECTIONS {
                let stream = streams::open(from, target(index as usize), &shared).await;
                tasks.push(spawn(streams::requests(stream, every, Arc::clone(&shared))));
            }
        }
        if plan.bulk_bytes_per_second > 0 {
            let stream = streams::open(from, target(0), &shared).await;
            let rate = plan.bulk_bytes_per_second;
            tasks.push(spawn(streams::bulk(stream, rate, Arc::clone(&shared))));
        }
        if plan.connects_per_second > 0 {
            let every = Duration::from_secs(1) / plan.connects_per_second;
            let connects = streams::connects(from.clone(), targets.to_vec(), every, Arc::clone(&shared));
            tasks.push(spawn(connects));
        }
        Self { shared, tasks }
    }

    /// Lets the load run for a while and gives what it measured meanwhile.
    pub async fn observe(&self, time: Duration) -> Report {
        let from = Instant::now();
        tokio::time::sleep(time).await;
        self.report(from, Instant::now())
    }

    /// What was measured of samples that were due in an interval.
    #[must_use]
    pub fn report(&self, from: Instant, to: Instant) -> Report {
        self.report_without(from, to, &[])
    }

    /// What was measured, less the time that the machine itself stood still.
    #[must_use]
    pub fn report_without(&self, from: Instant, to: Instant, pauses: &[Pause]) -> Report {
        let window = |samples: &Samples| samples.window_without(from, to, pauses);
        Report {
            requests: window(&self.shared.requests),
            connects: window(&self.shared.connects),
            messages: window(&self.shared.messages),
        }
    }

    /// Connections opened to last, and how many of them ended by themselves.
    #[must_use]
    pub fn established(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.shared.established), read(&self.shared.lost))
    }

    /// Answers that were not what was sent.
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.shared.corrupt.load(Ordering::Relaxed)
    }

    /// Bytes of the bulk stream that came back.
    #[must_use]
    pub fn bulk_bytes(&self) -> u64 {
        self.shared.bulk_bytes.load(Ordering::Relaxed)
    }

    /// The first failures, with their text.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a load measured in an interval.
#[derive(Debug, Clone)]
pub struct Report {
    /// Requests on lasting connections.
    pub requests: Window,
    /// New connections with one request each.
    pub connects: Window,
    /// Messages of pinned connections.
    pub messages: Window,
}
