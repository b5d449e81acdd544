//! How many requests a node may make, and how many may wait at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tulle_model::Str;

/// Requests per second and node, in the long run.
pub const RATE_PER_SECOND: u32 = 100;
/// Requests a node may make at once after a pause.
pub const BURST: u32 = 500;
/// Nodes remembered; one that made no request for [`BURST`] / [`RATE_PER_SECOND`] seconds is forgotten first.
const NODES_MAX: usize = 10_000;
/// Requests of one node that may wait for a placement.
pub const HELD_PER_NODE_MAX: usize = 256;
/// Requests that may wait for a placement.
pub const HELD_MAX: usize = 10_000;

/// A token bucket per node.
#[derive(Debug, Default)]
pub struct RateLimit {
    buckets: Mutex<BTreeMap<Str, Bucket>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    /// Requests that may be made, at the time below.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self {
            level: f64::from(BURST),
            at: now,
        }
    }

    fn refilled(self, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(RATE_PER_SECOND);
        Self {
            level: (self.level + gained).min(f64::from(BURST)),
            at: now,
        }
    }
}

impl RateLimit {
    /// Takes one request of a node.
    ///
    /// # Errors
    /// How long until the next one can be taken.
    pub fn take(&self, node: &Str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= NODES_MAX && !buckets.contains_key(node) {
            buckets.retain(|_, bucket| bucket.refilled(now).level < f64::from(BURST));
        }
        let bucket = buckets.entry(node.clone()).or_insert_with(|| Bucket::full(now));
        *bucket = bucket.refilled(now);
        if bucket.level < 1.0 {
            let missing = 1.0 - bucket.level;
            return Err(Duration::from_secs_f64(missing / f64::from(RATE_PER_SECOND)));
        }
        bucket.level -= 1.0;
        Ok(())
    }
}

/// Requests that wait, bounded per node and in all. Clones share the count.
#[derive(Debug, Clone)]
pub struct Holds {
    nodes: Arc<Mutex<BTreeMap<Str, usize>>>,
    per_node_max: usize,
    max: usize,
}

impl Default for Holds {
    fn default() -> Self {
        Self::bounded(HELD_PER_NODE_MAX, HELD_MAX)
    }
}

impl Holds {
    /// With other bounds than those of requests that wait for a placement.
    #[must_use]
    pub fn bounded(per_node_max: usize, max: usize) -> Self {
        Self {
            nodes: Arc::default(),
            per_node_max,
            max,
        }
    }

    /// A place to wait in, if there is one.
    #[must_use]
    pub fn enter(&self, node: &Str) -> Option<Held> {
        let mut nodes = self.nodes.lock();
        let all: usize = nodes.values().sum();
        let own = nodes.get(node).copied().unwrap_or_default();
        if all >= self.max || own >= self.per_node_max {
            return None;
        }
        nodes.insert(node.clone(), own + 1);
        drop(nodes);
        Some(Held {
            holds: self.clone(),
            node: node.clone(),
        })
    }
}

impl Holds {
    /// Whether a request of this node waits.
    #[must_use]
    pub fn waits(&self, node: &str) -> bool {
        self.nodes.lock().contains_key(node)
    }
}

/// One waiting request.
#[derive(Debug)]
pub struct Held {
    holds: Holds,
    node: Str,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut nodes = self.holds.nodes.lock();
        if let Some(count) = nodes.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (limit, node, start) = (RateLimit::default(), Str::from("n1"), Instant::now());
        for _ in 0..BURST {
            assert_eq!(limit.take(&node, start), Ok(()));
        }
        let wait = limit.take(&node, start).unwrap_err();
        assert_eq!(limit.take(&"n2".into(), start), Ok(()));
        assert_eq!(limit.take(&node, start + wait), Ok(()));
        assert!(limit.take(&node, start + wait).is_err());
    }

    #[test]
    fn waiting_is_bounded_per_node_and_places_come_back() {
        let (holds, node) = (Holds::default(), Str::from("n1"));
        let held: Vec<_> = (0..HELD_PER_NODE_MAX)
            .map(|_| holds.enter(&node).unwrap())
            .collect();
        assert!(holds.enter(&node).is_none());
        assert!(holds.enter(&"n2".into()).is_some());
        drop(held);
        assert!(holds.enter(&node).is_some());
    }
}
