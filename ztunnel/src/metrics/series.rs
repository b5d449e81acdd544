//! Which series exist: bounded in number, and forgotten when nobody touches them.
//!
//! Labels come partly from what peers say of themselves, so without a bound a peer could fill the memory.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Series of one kind at once; what would be one more is counted in [`Overflow::overflow`].
pub const SERIES_MAX: usize = 100_000;

/// Labels that have a place for what exceeds the bound.
pub trait Overflow: Clone + Eq + Hash + Debug {
    /// The labels of the series that takes it.
    #[must_use]
    fn overflow(&self) -> Self;
}

/// The series of one kind of labels. Clones share them.
#[derive(Debug, Clone)]
pub struct SeriesTable<L> {
    /// One copy of the labels is shared by all connections of a series.
    kept: Arc<Mutex<HashMap<Arc<L>, Kept<L>>>>,
    max: usize,
}

#[derive(Debug)]
struct Kept<L> {
    /// The copy that is shared.
    labels: Arc<L>,
    /// Open connections that count into it.
    open: usize,
    touched: Instant,
}

impl<L: Overflow> Default for SeriesTable<L> {
    fn default() -> Self {
        Self::with_max(SERIES_MAX)
    }
}

impl<L: Overflow> SeriesTable<L> {
    /// A table with another bound than [`SERIES_MAX`].
    #[must_use]
    pub fn with_max(max: usize) -> Self {
        Self {
            kept: Arc::default(),
            max,
        }
    }

    /// The labels to count under now: those given, or `overflow` when there are too many.
    #[must_use]
    pub fn touch(&self, labels: L) -> Arc<L> {
        self.enter(labels, 0)
    }

    /// As [`Self::touch`], for an open connection: the series stays until [`Self::close`].
    #[must_use]
    pub fn open(&self, labels: L) -> Arc<L> {
        self.enter(labels, 1)
    }

    /// The connection that was entered under these labels has ended.
    pub fn close(&self, labels: &L) {
        if let Some(kept) = self.kept.lock().get_mut(labels) {
            kept.open = kept.open.saturating_sub(1);
            kept.touched = Instant::now();
        }
    }

    /// Forgets series that nobody touched for `ttl`, and returns their labels.
    #[must_use]
    pub fn expire(&self, ttl: Duration) -> Vec<Arc<L>> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        let expired = kept.extract_if(|_, kept| kept.open == 0 && now.duration_since(kept.touched) >= ttl);
        expired.map(|(labels, _)| labels).collect()
    }

    fn enter(&self, labels: L, open: usize) -> Arc<L> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if let Some(kept) = kept.get_mut(&labels) {
            return kept.enter(open, now);
        }
        let labels = if kept.len() < self.max {
            labels
        } else {
            labels.overflow()
        };
        let labels = Arc::new(labels);
        let new = || Kept {
            labels: Arc::clone(&labels),
            open: 0,
            touched: now,
        };
        kept.entry(Arc::clone(&labels))
            .or_insert_with(new)
            .enter(open, now)
    }
}

impl<L> Kept<L> {
    fn enter(&mut self, open: usize, now: Instant) -> Arc<L> {
        self.open += open;
        self.touched = now;
        Arc::clone(&self.labels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Direction, Party, TrafficLabels};
    use super::*;

    const TTL: Duration = Duration::from_secs(900);

    fn labels(namespace: &str) -> TrafficLabels {
        let mut labels = TrafficLabels::overflowed(Direction::Inbound);
        let source = Party {
            namespace: Some(namespace.into()),
            ..Party::default()
        };
        labels.source = source.into();
        labels
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_without_connection_is_forgotten_after_its_time() {
        let table = SeriesTable::default();
        let open = table.open(labels("open"));
        let _ = table.touch(labels("idle"));
        tokio::time::advance(TTL).await;
        assert_eq!(table.expire(TTL), [labels("idle").into()]);
        table.close(&open);
        assert!(table.expire(TTL).is_empty(), "its end touched it");
        tokio::time::advance(TTL).await;
        assert_eq!(table.expire(TTL), [labels("open").into()]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_series_share_one() {
        let table = SeriesTable::with_max(1);
        assert_eq!(*table.touch(labels("first")), labels("first"));
        assert_eq!(
            *table.touch(labels("second")),
            TrafficLabels::overflowed(Direction::Inbound)
        );
        assert_eq!(*table.touch(labels("first")), labels("first"), "known ones stay");
    }
}
