//! Readiness as guards: what must happen first holds one, and drops it when it happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Whether the process is ready, and what it still waits for. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<BTreeMap<String, usize>>,
    changed: Notify,
}

impl Ready {
    /// Ready until something registers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Readiness waits for `name` until the returned guard is dropped.
    #[must_use]
    pub fn register(&self, name: impl Into<String>) -> BlockReady {
        let name = name.into();
        *self.shared.pending.lock().entry(name.clone()).or_default() += 1;
        BlockReady {
            name,
            ready: self.clone(),
        }
    }

    /// What readiness waits for, by name; empty means ready.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        self.shared.pending.lock().keys().cloned().collect()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.pending.lock().is_empty()
    }

    /// Waits until nothing is pending.
    pub async fn wait(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }
}

/// Keeps the process from being ready until it is dropped.
#[derive(Debug)]
pub struct BlockReady {
    name: String,
    ready: Ready,
}

impl BlockReady {
    /// What readiness waits for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another thing the same process waits for, named below this one.
    #[must_use]
    pub fn subtask(&self, name: &str) -> Self {
        self.ready.register(format!("{}/{name}", self.name))
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut pending = self.ready.shared.pending.lock();
        let Some(count) = pending.get_mut(&self.name) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            pending.remove(&self.name);
            tracing::debug!(
                task = self.name,
                pending = pending.len(),
                "one thing less to wait for"
            );
        }
        drop(pending);
        self.ready.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_is_dropped() {
        let ready = Ready::new();
        let first = ready.register("proxies");
        let second = ready.register("configuration");
        assert_eq!(ready.pending(), ["configuration", "proxies"]);
        drop(first);
        assert!(!ready.is_ready());
        drop(second);
        ready.wait().await;
        assert!(ready.is_ready());
    }

    #[test]
    fn two_guards_of_one_name_both_count() {
        let ready = Ready::new();
        let first = ready.register("proxies");
        let second = ready.register("proxies");
        drop(first);
        assert_eq!(ready.pending(), ["proxies"]);
        drop(second);
        assert!(ready.is_ready());
    }

    #[test]
    fn a_subtask_outlives_its_parent() {
        let ready = Ready::new();
        let parent = ready.register("zds");
        let child = parent.subtask("snapshot");
        drop(parent);
        assert_eq!(ready.pending(), ["zds/snapshot"]);
        drop(child);
    }
}
