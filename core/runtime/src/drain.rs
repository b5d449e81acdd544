//! Ending in order: one trigger tells every watcher, guards are waited for, and what is left after the deadline is told too.
//!
//! ```text
//! Running ──start──▶ Draining(mode) ──last guard dropped, or deadline──▶ Over
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainMode {
    /// Stop accepting, let what is open come to its own end.
    Graceful,
    /// Stop accepting and end what is open now.
    Immediate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Draining(DrainMode),
    Over,
}

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    guards: AtomicUsize,
    released: Notify,
}

/// A trigger and the watcher it reaches.
#[must_use]
pub fn new() -> (DrainTrigger, DrainWatcher) {
    let shared = Arc::new(Shared {
        phase: watch::Sender::new(Phase::Running),
        guards: AtomicUsize::new(0),
        released: Notify::new(),
    });
    (
        DrainTrigger {
            shared: Arc::clone(&shared),
        },
        DrainWatcher { shared },
    )
}

/// Starts a drain and waits for it. Dropping it unused starts nothing.
#[derive(Debug)]
pub struct DrainTrigger {
    shared: Arc<Shared>,
}

impl DrainTrigger {
    /// Tells every watcher to drain. A second call may only make it more urgent.
    pub fn start(&self, mode: DrainMode) {
        self.shared.phase.send_if_modified(|phase| {
            let next = match (*phase, mode) {
                (Phase::Running, mode) => Phase::Draining(mode),
                (Phase::Draining(DrainMode::Graceful), DrainMode::Immediate) => Phase::Draining(mode),
                (same, _) => same,
            };
            std::mem::replace(phase, next) != next
        });
    }

    /// Drains gracefully; returns how many guards were still held when the deadline passed (0: all ended).
    pub async fn drain_and_wait(self, deadline: Duration) -> usize {
        self.start(DrainMode::Graceful);
        self.wait(deadline).await
    }

    /// Waits for the last guard, at most until the deadline, then tells watchers that it is over.
    pub async fn wait(self, deadline: Duration) -> usize {
        // A deadline that passes is a normal end; the count below tells it.
        let _ = tokio::time::timeout(deadline, self.shared.idle()).await;
        let remaining = self.shared.guards.load(Ordering::Acquire);
        self.shared.phase.send_replace(Phase::Over);
        remaining
    }

    /// Guards held now.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.shared.guards.load(Ordering::Acquire)
    }

    /// Another watcher of this drain.
    #[must_use]
    pub fn watcher(&self) -> DrainWatcher {
        DrainWatcher {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Shared {
    async fn idle(&self) {
        loop {
            let released = self.released.notified();
            if self.guards.load(Ordering::Acquire) == 0 {
                return;
            }
            released.await;
        }
    }
}

/// Learns of a drain. Clones watch the same one.
#[derive(Debug, Clone)]
pub struct DrainWatcher {
    shared: Arc<Shared>,
}

impl DrainWatcher {
    /// Waits for the drain to start and says how to drain.
    pub async fn signaled(&self) -> DrainMode {
        match self.reached(|phase| phase != Phase::Running).await {
            Phase::Draining(mode) => mode,
            Phase::Running | Phase::Over => DrainMode::Immediate,
        }
    }

    /// Waits until what is open must end now: the drain is immediate, or its deadline passed.
    pub async fn urgent(&self) {
        self.reached(|phase| matches!(phase, Phase::Draining(DrainMode::Immediate) | Phase::Over))
            .await;
    }

    /// Waits until the drain is over: the last guard was dropped or the deadline passed.
    pub async fn over(&self) {
        self.reached(|phase| phase == Phase::Over).await;
    }

    /// Waits until no guard is held; more may be taken later.
    pub async fn idle(&self) {
        self.shared.idle().await;
    }

    /// Whether a drain was started.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.phase.borrow() != Phase::Running
    }

    /// Keeps the drain waiting until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        self.shared.guards.fetch_add(1, Ordering::AcqRel);
        DrainGuard {
            watcher: self.clone(),
        }
    }

    async fn reached(&self, is: impl Fn(Phase) -> bool) -> Phase {
        let mut phases = self.shared.phase.subscribe();
        let phase = phases.wait_for(|phase| is(*phase)).await.map(|phase| *phase);
        phase.expect("the watcher itself holds the sender, so the channel is open")
    }
}

/// Something the drain waits for.
#[derive(Debug)]
pub struct DrainGuard {
    watcher: DrainWatcher,
}

impl DrainGuard {
    /// The drain this guard holds up.
    #[must_use]
    pub fn watcher(&self) -> &DrainWatcher {
        &self.watcher
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.watcher.shared.guards.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.watcher.shared.released.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_guard() {
        let (trigger, watcher) = new();
        let guard = watcher.guard();
        tasks::spawn("guarded", async move {
            assert_eq!(guard.watcher().signaled().await, DrainMode::Graceful);
        });
        assert_eq!(trigger.drain_and_wait(DEADLINE).await, 0);
        watcher.over().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_who_is_left_and_tells_them() {
        let (trigger, watcher) = new();
        let _first = watcher.guard();
        let _second = watcher.guard();
        let before = tokio::time::Instant::now();
        assert_eq!(trigger.drain_and_wait(DEADLINE).await, 2);
        assert_eq!(before.elapsed(), DEADLINE);
        watcher.urgent().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_graceful_drain_may_become_immediate_but_not_the_other_way() {
        let (trigger, watcher) = new();
        trigger.start(DrainMode::Graceful);
        assert_eq!(watcher.signaled().await, DrainMode::Graceful);
        trigger.start(DrainMode::Immediate);
        trigger.start(DrainMode::Graceful);
        assert_eq!(watcher.signaled().await, DrainMode::Immediate);
        watcher.urgent().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_trigger_starts_nothing() {
        let (trigger, watcher) = new();
        drop(trigger);
        assert!(!watcher.is_draining());
        let waited = tokio::time::timeout(DEADLINE, watcher.signaled()).await;
        assert!(waited.is_err());
    }
}
