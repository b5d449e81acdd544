//! A storm of short connections, each of which must come back whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tulle_linux::NetNs;

use crate::traffic::{call, spawn};

/// Failures kept with their text.
const FAILURES_KEPT: usize = 8;

/// Workers that call one after the other until the storm ends.
#[derive(Debug)]
pub struct Storm {
    shared: Arc<Shared>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// What a storm came to.
#[derive(Debug)]
pub struct Outcome {
    /// Calls that came back whole.
    pub done: u64,
    /// Calls that did not.
    pub failed: u64,
    /// Some of the failures.
    pub failures: Vec<String>,
}

impl Storm {
    /// Starts the workers.
    #[must_use]
    pub fn start(namespace: &NetNs, targets: &[SocketAddr], workers: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let worker = |index: usize| {
            let (shared, namespace) = (Arc::clone(&shared), namespace.clone());
            let target = targets[index % targets.len()];
            spawn(async move { blow(&namespace, target, &shared).await })
        };
        let workers = (0..workers).map(worker).collect();
        Self { shared, workers }
    }

    /// Calls that came back whole so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Ends the storm after the calls under way.
    pub async fn end(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("a worker does not panic");
        }
        Outcome {
            done: self.shared.done.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            failures: self.shared.failures.lock().clone(),
        }
    }
}

async fn blow(namespace: &NetNs, target: SocketAddr, shared: &Shared) {
    let text = b"one of many";
    while !shared.stop.load(Ordering::Relaxed) {
        let failure = match call(namespace, target, text).await {
            Ok(answer) if answer == text => None,
            Ok(answer) => Some(format!("{target}: cut after {} bytes", answer.len())),
            Err(error) => Some(format!("{target}: {error}")),
        };
        match failure {
            None => {
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            Some(failure) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                let mut kept = shared.failures.lock();
                if kept.len() < FAILURES_KEPT {
                    kept.push(failure);
                }
            }
        }
    }
}
