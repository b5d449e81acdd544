//! How much may be open at once, in all and for one caller.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tulle_model::Identity;

/// Tunnel connections at once, unless the settings say otherwise.
pub const TUNNELS_MAX: u32 = 10_000;
/// Streams in tunnels at once, unless the settings say otherwise.
pub const STREAMS_MAX: u32 = 50_000;
/// One identity may have this part of the streams: one of four.
const SHARE_OF_ONE: u32 = 4;

/// Counts what is open.
#[derive(Debug, Default)]
pub struct Limits {
    tunnels: Arc<AtomicU32>,
    streams: Arc<Mutex<Streams>>,
}

#[derive(Debug, Default)]
struct Streams {
    open: u32,
    /// Holds nobody without a stream.
    of: HashMap<Identity, u32>,
}

/// Something that is open, counted until it is dropped.
#[derive(Debug)]
pub struct TunnelPlace(Arc<AtomicU32>);

/// A stream that is open, counted until it is dropped.
#[derive(Debug)]
pub struct StreamPlace {
    streams: Arc<Mutex<Streams>>,
    identity: Identity,
}

impl Limits {
    /// A place for a tunnel connection, if there is one.
    #[must_use]
    pub fn tunnel(&self, max: Option<u32>) -> Option<TunnelPlace> {
        let max = max.unwrap_or(TUNNELS_MAX);
        let one_more = |open: u32| (open < max).then_some(open + 1);
        let taken = self
            .tunnels
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| TunnelPlace(Arc::clone(&self.tunnels)))
    }

    /// A place for a stream of a caller, if there is one.
    #[must_use]
    pub fn stream(&self, identity: &Identity, max: Option<u32>) -> Option<StreamPlace> {
        let max = max.unwrap_or(STREAMS_MAX);
        let mut streams = self.streams.lock();
        let own = streams.of.get(identity).copied().unwrap_or_default();
        if streams.open >= max || own >= (max / SHARE_OF_ONE).max(1) {
            return None;
        }
        streams.open += 1;
        streams.of.insert(identity.clone(), own + 1);
        Some(StreamPlace {
            streams: Arc::clone(&self.streams),
            identity: identity.clone(),
        })
    }
}

impl Drop for TunnelPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        streams.open -= 1;
        if let Some(own) = streams.of.get_mut(&self.identity) {
            *own -= 1;
            if *own == 0 {
                streams.of.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_gets_a_quarter_and_leaves_the_rest_to_others() {
        let limits = Limits::default();
        let (greedy, other) = (Identity::new("td", "a", "x"), Identity::new("td", "b", "y"));
        let held: Vec<_> = (0..3).filter_map(|_| limits.stream(&greedy, Some(8))).collect();
        assert_eq!(held.len(), 2);
        assert!(limits.stream(&other, Some(8)).is_some());
        drop(held);
        assert!(limits.stream(&greedy, Some(8)).is_some(), "places come back");
        assert!(limits.streams.lock().of.is_empty());
    }

    #[test]
    fn tunnels_are_counted_while_they_live() {
        let limits = Limits::default();
        let first = limits.tunnel(Some(1));
        assert!(first.is_some() && limits.tunnel(Some(1)).is_none());
        drop(first);
        assert!(limits.tunnel(Some(1)).is_some());
    }
}
