//! What tunnels of this process hold for slow readers, in all: bytes that arrived in them and were not taken. Windows
//! bound each tunnel; with many tunnels that bounds nothing, so a process may set itself a budget.
//!
//! ```text
//! 0 ──── 1/2 ──────────── 9/10 ───────────── budget
//!   ample │ new windows small │ nothing new       │ who holds more than a little loses its heaviest streams
//! ```
//!
//! A tunnel carries connections of many who are not to pay for one slow reader among them. So streams are ended, those that
//! hold the most first. Where streams are not ours to end (under the `h2` crate), it is the tunnel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// One connection may hold this much, however little room is left; less where the whole budget is small.
const LITTLE: usize = 1024 * 1024;
/// What a connection that is in use holds at most while its readers are quick: so much is always left to it.
const LEAST: usize = 128 * 1024;

/// Bytes that may be held; 0 is without a bound, and nothing is counted.
static BUDGET: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Enough.
    Ample,
    /// More than half of the budget is used: what is new gets less.
    Scarce,
    /// More than nine tenths are used: nothing new is taken.
    Short,
    /// All of it is used: who holds more than a little is relieved of it.
    None,
}

/// Sets how many bytes this process may hold. What tunnels hold is counted from the first time on that this is not 0; each
/// is counted whole when something arrives in it, or is taken.
pub fn set_budget(bytes: usize) {
    BUDGET.store(bytes, Ordering::Relaxed);
}

/// Bytes that are held now, in this process.
#[must_use]
pub fn bytes() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// With less left of a budget, buffers themselves count: the large ones of some dozen connections come to as much.
const TIGHT: usize = 8 * 1024 * 1024;

/// Whether so little is left that connections do with buffers of one record.
pub(super) fn is_tight() -> bool {
    tight(bytes(), BUDGET.load(Ordering::Relaxed))
}

fn tight(held: usize, budget: usize) -> bool {
    budget > 0 && budget.saturating_sub(held) < TIGHT
}

/// How much room there is now.
#[must_use]
pub fn room() -> Room {
    room_of(bytes(), BUDGET.load(Ordering::Relaxed))
}

/// How much room is left of a budget, 0 being none.
fn room_of(held: usize, budget: usize) -> Room {
    if budget == 0 || held <= budget / 2 {
        Room::Ample
    } else if held <= budget / 10 * 9 {
        Room::Scarce
    } else if held < budget {
        Room::Short
    } else {
        Room::None
    }
}

/// What one connection may hold of a budget that is used up.
fn little(budget: usize) -> usize {
    (budget / 4).clamp(LEAST, LITTLE)
}

/// A part of what is held, given back when dropped: buffers of those who carry what came in tunnels.
#[derive(Debug, Default)]
pub struct Part(usize);

impl Part {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Holds so much now, instead of what it held before.
    pub fn set(&mut self, bytes: usize) {
        HELD.fetch_add(bytes, Ordering::Relaxed);
        HELD.fetch_sub(self.0, Ordering::Relaxed);
        self.0 = bytes;
    }

    /// What it holds.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What the streams of one connection hold.
///
/// Our own framing knows and tells it. Under the `h2` crate it is counted by the numbers of streams, as frames go by: what
/// arrives for a stream that nobody reads any more is thrown away by the library, and is held by nobody.
#[derive(Debug, Default)]
pub(super) struct Held {
    streams: Mutex<Streams>,
    told: AtomicBool,
}

#[derive(Debug, Default)]
struct Streams {
    of: HashMap<u32, usize>,
    all: Part,
    /// The last that the peer opened: what comes for a lower number opens nothing.
    last: u32,
}

/// The process holds all it may, and this connection more than a little of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process holds as much for slow readers as it may")]
pub(super) struct TooMuch {
    /// What it may go on to hold.
    pub(super) may: usize,
}

impl Held {
    /// The framing tells what is held; frames that go by are not counted.
    pub(super) fn is_told(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// All streams together hold so much now.
    pub(super) fn tell(&self, all: usize) {
        if BUDGET.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut streams = self.streams.lock();
        if streams.all.get() != all {
            streams.all.set(all);
        }
    }

    /// More has arrived; all streams together hold so much now.
    pub(super) fn judge(all: usize) -> Result<(), TooMuch> {
        if all <= LEAST || room() != Room::None {
            return Ok(());
        }
        let may = little(BUDGET.load(Ordering::Relaxed));
        if all > may { Err(TooMuch { may }) } else { Ok(()) }
    }

    fn counts(&self) -> bool {
        BUDGET.load(Ordering::Relaxed) > 0 && !self.told.load(Ordering::Relaxed)
    }

    /// A stream was opened by us.
    pub(super) fn opened(&self, stream: u32) {
        if self.counts() {
            self.streams.lock().of.insert(stream, 0);
        }
    }

    /// The peer has sent a head: it opens a stream, or ends one that was opened before.
    pub(super) fn head(&self, stream: u32) {
        if !self.counts() {
            return;
        }
        let mut streams = self.streams.lock();
        if stream > streams.last {
            streams.last = stream;
            streams.of.insert(stream, 0);
        }
    }

    /// Bytes of a stream have arrived.
    pub(super) fn arrived(&self, stream: u32, bytes: usize) -> Result<(), TooMuch> {
        if !self.counts() {
            return Ok(());
        }
        let mut streams = self.streams.lock();
        let Some(held) = streams.of.get_mut(&stream) else {
            return Ok(());
        };
        *held += bytes;
        let all = streams.all.get() + bytes;
        streams.all.set(all);
        Self::judge(all)
    }

    /// Bytes of a stream were taken.
    pub(super) fn taken(&self, stream: u32, bytes: usize) {
        if !self.counts() {
            return;
        }
        let mut streams = self.streams.lock();
        if let Some(held) = streams.of.get_mut(&stream) {
            let bytes = bytes.min(*held);
            *held -= bytes;
            let all = streams.all.get() - bytes;
            streams.all.set(all);
        }
    }

    /// Nobody reads a stream any more.
    pub(super) fn closed(&self, stream: u32) {
        if !self.counts() {
            return;
        }
        let mut streams = self.streams.lock();
        if let Some(held) = streams.of.remove(&stream) {
            let all = streams.all.get() - held;
            streams.all.set(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_not_counted_as_well() {
        let held = Held::default();
        held.is_told();
        held.opened(1);
        held.arrived(1, 500).unwrap();
        assert_eq!(held.streams.lock().all.get(), 0);
        held.tell(LITTLE);
        assert_eq!(
            held.streams.lock().all.get(),
            0,
            "without a budget nothing is counted"
        );
    }

    #[test]
    fn who_holds_little_is_never_cut() {
        assert_eq!(little(0), LEAST);
        assert_eq!(little(2 * LITTLE), LITTLE / 2);
        assert_eq!(little(usize::MAX), LITTLE);
    }

    #[test]
    fn without_a_budget_nothing_is_tight() {
        assert!(!tight(usize::MAX, 0));
        assert!(!tight(TIGHT, 2 * TIGHT));
        assert!(tight(TIGHT + 1, 2 * TIGHT));
        assert!(tight(2 * TIGHT, TIGHT));
    }

    #[test]
    fn room_gets_less_in_three_steps() {
        for (held, room) in [
            (500, Room::Ample),
            (501, Room::Scarce),
            (900, Room::Scarce),
            (901, Room::Short),
            (999, Room::Short),
            (1_000, Room::None),
        ] {
            assert_eq!(room_of(held, 1_000), room, "{held}");
        }
        assert_eq!(room_of(usize::MAX, 0), Room::Ample, "without a budget");
    }
}
