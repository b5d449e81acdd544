//! The same load as requests of HTTP: on lasting connections, on new ones, and now and then on pinned ones. As a client
//! does, a connection that the server has closed, or says it will close, is replaced before the next request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tulle_linux::NetNs;

use super::{FAILURES_KEPT, Plan, REQUEST_CONNECTIONS, Report, Samples};
use crate::http::{Asker, get};
use crate::traffic::spawn;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    requests: Samples,
    connects: Samples,
    begun: AtomicU64,
    in_flight: AtomicU64,
    reopened: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// A running load of requests; it ends with the value.
#[derive(Debug)]
pub struct HttpLoad {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Where the requests of a load go.
#[derive(Debug, Clone)]
struct Way {
    from: NetNs,
    to: SocketAddr,
    shared: Arc<Shared>,
}

impl HttpLoad {
    /// Starts every stream of a plan; bulk is none of requests.
    #[must_use]
    pub fn start(from: &NetNs, to: SocketAddr, plan: Plan) -> Self {
        let shared = Arc::new(Shared::default());
        let way = Way {
            from: from.clone(),
            to,
            shared: Arc::clone(&shared),
        };
        let mut tasks = Vec::new();
        for index in 0..plan.pinned {
            let offset = plan.pinned_interval.mul_f64(index as f64 / plan.pinned as f64);
            tasks.push(spawn(way.clone().lasting(plan.pinned_interval, offset)));
        }
        if plan.requests_per_second > 0 {
            let every = Duration::from_secs(1) * REQUEST_CONNECTIONS / plan.requests_per_second;
            for index in 0..REQUEST_CONNECTIONS {
                let offset = every * index / REQUEST_CONNECTIONS;
                tasks.push(spawn(way.clone().lasting(every, offset)));
            }
        }
        if plan.connects_per_second > 0 {
            let every = Duration::from_secs(1) / plan.connects_per_second;
            tasks.push(spawn(way.connects(every)));
        }
        Self { shared, tasks }
    }

    /// Lets the load run for a while and gives what it measured meanwhile.
    pub async fn observe(&self, time: Duration) -> Report {
        let from = Instant::now();
        tokio::time::sleep(time).await;
        self.report(from, Instant::now())
    }

    /// What was measured of requests that were due in an interval.
    #[must_use]
    pub fn report(&self, from: Instant, to: Instant) -> Report {
        Report {
            requests: self.shared.requests.window(from, to),
            connects: self.shared.connects.window(from, to),
            // Messages of pinned connections are requests here.
            messages: super::Window::default(),
        }
    }

    /// Requests that have been sent and not answered, and connections that are being opened for one.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that were begun so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Lasting connections that were replaced.
    #[must_use]
    pub fn reopened(&self) -> u64 {
        self.shared.reopened.load(Ordering::Relaxed)
    }

    /// The first failures, with their text.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }
}

impl Drop for HttpLoad {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Way {
    /// Requests that are due at fixed times, on one connection after the other.
    async fn lasting(self, every: Duration, offset: Duration) {
        let mut ticks = interval(every);
        ticks.reset_after(offset);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open: Option<Asker> = None;
        loop {
            let due = ticks.tick().await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let usable = match &mut open {
                Some(asker) => asker.is_usable().await,
                None => false,
            };
            if !usable && open.take().is_some() {
                self.shared.reopened.fetch_add(1, Ordering::Relaxed);
            }
            match self.ask(open.take()).await {
                Ok(asker) => {
                    open = asker;
                    self.shared.requests.came_back(due);
                }
                Err(error) => {
                    self.shared.requests.failed(due);
                    self.fail("request", error);
                }
            }
        }
    }

    /// New connections with one request each.
    async fn connects(self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            let due = ticks.tick().await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let way = self.clone();
            // Detached: it ends by itself within the patience of a call.
            drop(spawn(async move {
                match way.ask(None).await {
                    Ok(_) => way.shared.connects.came_back(due),
                    Err(error) => {
                        way.shared.connects.failed(due);
                        way.fail("new connection", error);
                    }
                }
            }));
        }
    }

    /// Asks on a connection, or on a new one, and gives it back if it may be used again.
    async fn ask(&self, open: Option<Asker>) -> Result<Option<Asker>, String> {
        self.shared.begun.fetch_add(1, Ordering::Relaxed);
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let exchange = async {
            let mut asker = match open {
                Some(asker) => asker,
                None => Asker::open(&self.from, self.to).await?,
            };
            let answer = asker.ask(get("/load")).await?;
            if answer.status != 200 {
                let reason = answer.headers.get("x-tulle-reason");
                return Err(format!("{} {reason:?}", answer.status));
            }
            let closes = answer
                .headers
                .get("connection")
                .is_some_and(|told| told == "close");
            Ok((!closes).then_some(asker))
        };
        let outcome = tokio::time::timeout(crate::mesh::PATIENCE, exchange).await;
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        outcome.map_err(|_| "no answer in time".to_owned())?
    }

    fn fail(&self, what: &str, error: String) {
        let mut kept = self.shared.failures.lock();
        if kept.len() < FAILURES_KEPT {
            kept.push(format!("{what}: {error}"));
        }
    }
}
