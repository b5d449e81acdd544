//! How loaded a tunnel connection is: bytes that wait to be sent, time its writes were blocked, bulk streams on it.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::liveness::Vitals;

/// A stream that has moved this much is a bulk stream, and new ones avoid its connection.
pub(super) const BULK_AFTER: u64 = 10 * 1024 * 1024;

/// How far back it is remembered that writing was blocked.
pub(super) const BLOCKED_WINDOW: Duration = Duration::from_millis(100);

/// What a connection carries, as far as the choice between connections needs to know.
#[derive(Debug)]
pub(super) struct Traffic {
    unsent: AtomicUsize,
    bulk_streams: AtomicU32,
    blocked: Mutex<Blocked>,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            unsent: AtomicUsize::new(0),
            bulk_streams: AtomicU32::new(0),
            blocked: Mutex::new(Blocked::new(now)),
        }
    }

    /// Payload that was handed over and is not on its way yet.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.load(Ordering::Relaxed)
    }

    /// The same, by whoever counts it anyway.
    pub(super) fn set_unsent(&self, bytes: usize) {
        self.unsent.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn has_bulk(&self) -> bool {
        self.bulk_streams.load(Ordering::Relaxed) > 0
    }

    /// A stream has become a bulk stream.
    pub(super) fn bulk_began(&self) {
        self.bulk_streams.fetch_add(1, Ordering::Relaxed);
    }

    /// A bulk stream has ended.
    pub(super) fn bulk_ended(&self) {
        self.bulk_streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// The connection takes no more bytes for now.
    pub(super) fn write_blocked(&self, now: Instant) {
        self.blocked.lock().begin(now);
    }

    /// It does again.
    pub(super) fn write_resumed(&self, now: Instant) {
        self.blocked.lock().end(now);
    }

    /// For how much of the last [`BLOCKED_WINDOW`] it took none.
    pub(super) fn blocked(&self, now: Instant) -> Duration {
        self.blocked.lock().total(now)
    }
}

/// Payload on its way out: counted as unsent until it is written.
#[derive(Debug)]
pub(super) struct Outgoing {
    bytes: Bytes,
    vitals: Arc<Vitals>,
}

impl Outgoing {
    pub(super) fn new(bytes: Bytes, vitals: &Arc<Vitals>) -> Self {
        vitals.traffic().unsent.fetch_add(bytes.len(), Ordering::Relaxed);
        Self {
            bytes,
            vitals: Arc::clone(vitals),
        }
    }

    fn sent(&self, bytes: usize) {
        self.vitals.traffic().unsent.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.sent(bytes);
    }
}

impl Drop for Outgoing {
    /// What a reset discards is not waiting any more.
    fn drop(&mut self) {
        self.sent(self.bytes.len());
    }
}

/// Parts that [`BLOCKED_WINDOW`] is remembered in.
const PARTS: usize = 10;
const PART: Duration = Duration::from_millis(10);

/// How long writing was blocked of late, to the precision of one [`PART`].
#[derive(Debug)]
struct Blocked {
    epoch: Instant,
    since: Option<Instant>,
    /// Which part of time each entry speaks of, and how much of it was blocked.
    parts: [(u64, Duration); PARTS],
}

impl Blocked {
    fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            since: None,
            parts: [(0, Duration::ZERO); PARTS],
        }
    }

    fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn end(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        let (mut at, end) = (since.max(self.horizon(now)) - self.epoch, now - self.epoch);
        while at < end {
            let part = part_of(at);
            let until = end.min(PART * u32::try_from(part + 1).unwrap_or(u32::MAX));
            let entry = &mut self.parts[usize::try_from(part).unwrap_or(0) % PARTS];
            if entry.0 != part {
                *entry = (part, Duration::ZERO);
            }
            entry.1 += until - at;
            if until <= at {
                return;
            }
            at = until;
        }
    }

    fn total(&self, now: Instant) -> Duration {
        let oldest = part_of(self.horizon(now) - self.epoch);
        let current = part_of(now - self.epoch);
        let live = |(part, _): &&(u64, Duration)| *part > oldest && *part <= current || oldest == 0;
        let past: Duration = self.parts.iter().filter(live).map(|(_, blocked)| *blocked).sum();
        let present = self
            .since
            .map(|since| now - since.max(self.horizon(now)))
            .unwrap_or_default();
        (past + present).min(BLOCKED_WINDOW)
    }

    /// Nothing before this counts at `now`.
    fn horizon(&self, now: Instant) -> Instant {
        now.checked_sub(BLOCKED_WINDOW)
            .map_or(self.epoch, |at| at.max(self.epoch))
    }
}

fn part_of(since_epoch: Duration) -> u64 {
    u64::try_from(since_epoch.as_millis() / PART.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hbone::Settings;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn blocked_time_is_that_of_the_last_tenth_of_a_second() {
        let start = Instant::now();
        let mut blocked = Blocked::new(start);
        let at = |ms| start + ms * MS;
        assert_eq!(blocked.total(at(500)), Duration::ZERO);
        blocked.begin(at(1000));
        assert_eq!(blocked.total(at(1015)), 15 * MS, "also while it lasts");
        blocked.end(at(1015));
        blocked.begin(at(1040));
        blocked.end(at(1050));
        assert_eq!(blocked.total(at(1050)), 25 * MS);
        assert_eq!(blocked.total(at(1125)), 10 * MS);
        assert_eq!(blocked.total(at(1160)), Duration::ZERO);
        blocked.begin(at(2000));
        assert_eq!(blocked.total(at(9000)), BLOCKED_WINDOW);
        blocked.end(at(9000));
        assert!(blocked.total(at(9000)) >= 90 * MS);
        assert_eq!(blocked.total(at(9200)), Duration::ZERO);
    }

    #[test]
    fn the_first_moments_of_a_connection_count_as_well() {
        let start = Instant::now();
        let mut blocked = Blocked::new(start);
        blocked.begin(start);
        blocked.end(start + 30 * MS);
        assert_eq!(blocked.total(start + 40 * MS), 30 * MS);
        assert_eq!(blocked.total(start + 300 * MS), Duration::ZERO);
    }

    #[tokio::test]
    async fn bytes_are_unsent_until_they_are_written_or_discarded() {
        let vitals = Vitals::new(&Settings::client());
        let mut chunk = Outgoing::new(Bytes::from_static(b"twelve bytes"), &vitals);
        assert_eq!(vitals.traffic().unsent(), 12);
        chunk.advance(5);
        assert_eq!(vitals.traffic().unsent(), 7);
        drop(chunk);
        assert_eq!(vitals.traffic().unsent(), 0);
    }
}
