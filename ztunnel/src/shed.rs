//! Too few descriptors, or too little memory: new connections of the heaviest workload are refused, so that one pod cannot starve the rest.
//!
//! Existing connections live, other workloads are served on, and what was refused is served again within a second of
//! relief. Who is refused is decided by [`heaviest`]; the rest of this file counts and asks. What is open may grow, too:
//! tunnels hold what came for slow readers. They share [what memory leaves](Pressures::readers).

use std::cmp::{Ordering as Order, Reverse};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::limits;
use tulle_runtime::memory::{self, MemoryLimits};
use tulle_runtime::metrics::Registry;

use crate::config::WorkloadName;
use crate::error::Error;
use crate::metrics::SECTION;

/// Share of its limit that may be used before anybody is refused, in percent.
const USED_MAX_PERCENT: u64 = 90;

/// Time between two looks; with [`PAUSE_MAX`], less than a second passes until relief is noticed.
const PERIOD: Duration = Duration::from_millis(250);

/// Part of the memory limit that handshakes may hold: one in so many bytes.
const HANDSHAKES_SHARE: u64 = 16;

/// What a handshake that is under way holds, at most: TLS and its buffers, the task, the socket in the kernel.
const HANDSHAKE_BYTES: u64 = 32 * 1024;

/// Handshakes of this process at a time, with little memory and with plenty.
const HANDSHAKES_MIN: usize = 32;
const HANDSHAKES_MAX: usize = 16 * 1024;

/// So many connections after the last look, the next is not waited for: a burst may be quicker than the period.
const ARRIVALS_MAX: u64 = 64;

/// Bounds of the pause after a look, which is nine times as long as the look took.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What may be scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// File descriptors.
    Descriptors,
    /// Memory.
    Memory,
}

impl Resource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

/// How much of something this process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// What.
    pub of: Resource,
    /// In use.
    pub used: u64,
    /// All there is.
    pub limit: u64,
}

impl Pressure {
    /// Of file descriptors, now.
    #[must_use]
    pub fn of_descriptors() -> Self {
        Self {
            of: Resource::Descriptors,
            used: limits::open_descriptors(),
            limit: limits::max_descriptors(),
        }
    }

    /// Of memory, as it was read.
    #[must_use]
    pub fn of_memory(memory: memory::Usage) -> Self {
        Self {
            of: Resource::Memory,
            used: memory.used,
            limit: memory.limit,
        }
    }

    /// Which is closer to its limit.
    fn compare(a: &Self, b: &Self) -> Order {
        let share = |one: &Self, other: &Self| u128::from(one.used) * u128::from(other.limit);
        share(a, b).cmp(&share(b, a))
    }

    fn is_high(self) -> bool {
        self.used.saturating_mul(100) > self.limit.saturating_mul(USED_MAX_PERCENT)
    }
}

/// How much of everything that may be scarce is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressures {
    /// File descriptors.
    pub descriptors: Pressure,
    /// Memory, where it is limited.
    pub memory: Option<Pressure>,
}

impl Pressures {
    /// Those of this process, now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            descriptors: Pressure::of_descriptors(),
            memory: MemoryLimits::of_process().usage().map(Pressure::of_memory),
        }
    }

    /// Of whatever is closest to its limit.
    #[must_use]
    pub fn worst(self) -> Pressure {
        let memory = self
            .memory
            .filter(|memory| Pressure::compare(memory, &self.descriptors).is_gt());
        memory.unwrap_or(self.descriptors)
    }

    /// Handshakes of peers that may be under way at a time.
    ///
    /// Whoever can reach a tunnel port can begin one, prove nothing, and stay for the time it may take. So all of them
    /// together get a small part of the memory, and with little memory there are few.
    #[must_use]
    pub fn handshakes(self) -> usize {
        let room = self
            .memory
            .map_or(u64::MAX, |memory| memory.limit / HANDSHAKES_SHARE);
        let count = usize::try_from(room / HANDSHAKE_BYTES).unwrap_or(HANDSHAKES_MAX);
        count.clamp(HANDSHAKES_MIN, HANDSHAKES_MAX)
    }

    /// Bytes that all tunnels together may hold for slow readers, of which they hold some now: as many more as memory
    /// leaves below the mark from which on nothing new is taken. 0 is without a bound.
    #[must_use]
    pub fn readers(self, held: usize) -> usize {
        let Some(memory) = self.memory else { return 0 };
        let mark = memory.limit / 100 * USED_MAX_PERCENT;
        let left = usize::try_from(mark.saturating_sub(memory.used)).unwrap_or(usize::MAX);
        held.saturating_add(left).max(1)
    }
}

/// Whose new connections are refused, given how many each workload has; of equals, the first.
#[must_use]
pub fn heaviest(pressure: Pressure, weights: &[usize]) -> Option<usize> {
    if !pressure.is_high() {
        return None;
    }
    let weighty = weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
    let (heaviest, _) = weighty.max_by_key(|(index, weight)| (**weight, Reverse(*index)))?;
    Some(heaviest)
}

/// What one workload holds, and whether it may have more.
#[derive(Debug)]
pub struct Weight {
    name: WorkloadName,
    held: AtomicUsize,
    refused: AtomicBool,
}

/// A connection, or a tunnel of a peer, as long as it lives.
#[derive(Debug)]
pub struct Load(Arc<Weight>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A handshake of a peer, as long as it is under way.
#[derive(Debug)]
pub struct Handshake<'a>(&'a Shedder);

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The spare descriptor, given up as long as this lives.
#[derive(Debug)]
pub struct Spare<'a>(&'a Shedder);

impl Drop for Spare<'_> {
    fn drop(&mut self) {
        self.0.keep_spare();
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// The weights of all workloads of this process.
#[derive(Debug)]
pub struct Shedder {
    /// Handshakes under way, and how many may be.
    handshakes: AtomicUsize,
    handshakes_max: AtomicUsize,
    weights: Mutex<Vec<Weak<Weight>>>,
    /// A descriptor that can be done without: see [`Self::spare`].
    spare: Mutex<Option<File>>,
    arrivals: AtomicU64,
    look: Notify,
    /// `tulle_shedding`: 1 while somebody is refused.
    shedding: Gauge,
    /// `tulle_shed_total`: connections that were refused.
    shed: Counter,
}

impl Default for Shedder {
    fn default() -> Self {
        Self {
            handshakes: AtomicUsize::new(0),
            // Until the first look; a flood does not come before it.
            handshakes_max: AtomicUsize::new(HANDSHAKES_MIN),
            weights: Mutex::default(),
            spare: Mutex::new(open_spare()),
            arrivals: AtomicU64::new(0),
            look: Notify::new(),
            shedding: Gauge::default(),
            shed: Counter::default(),
        }
    }
}

impl Shedder {
    /// Makes it and registers what it counts.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let shedder = Self::default();
        let section = registry.section(&SECTION);
        section.register(
            "tulle_shedding",
            "1 while new connections of the heaviest workload are refused because file descriptors, or the memory its \
             control group allows, are used by more than 90 %",
            shedder.shedding.clone(),
        );
        section.register(
            "tulle_shed",
            "Connections that were refused while `tulle_shedding` is 1; they are also in `tulle_denied_total` as `T0515`",
            shedder.shed.clone(),
        );
        shedder
    }

    /// Takes in one more workload, for as long as its weight is kept.
    #[must_use]
    pub fn enter(&self, name: WorkloadName) -> Arc<Weight> {
        let weight = Arc::new(Weight {
            name,
            held: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
        });
        self.weights.lock().push(Arc::downgrade(&weight));
        weight
    }

    /// Lets a workload have one more connection.
    ///
    /// # Errors
    /// `overload` while it is the heaviest and descriptors or memory are scarce.
    pub fn admit(&self, weight: &Arc<Weight>) -> Result<Load, Error> {
        if self.arrivals.fetch_add(1, Ordering::Relaxed) + 1 == ARRIVALS_MAX {
            self.look.notify_one();
        }
        if weight.refused.load(Ordering::Relaxed) {
            self.shed.inc();
            return Err(Error::Overload(
                "descriptors or memory are scarce, and no workload here holds more connections",
            ));
        }
        weight.held.fetch_add(1, Ordering::Relaxed);
        Ok(Load(Arc::clone(weight)))
    }

    /// Lets a peer begin a handshake.
    ///
    /// # Errors
    /// `overload` while as many are under way as the memory of this process allows.
    pub fn handshake(&self) -> Result<Handshake<'_>, Error> {
        let before = self.handshakes.fetch_add(1, Ordering::Relaxed);
        let handshake = Handshake(self);
        if before >= self.handshakes_max.load(Ordering::Relaxed) {
            self.shed.inc();
            return Err(Error::Overload(
                "too many handshakes at once for the memory of this process",
            ));
        }
        Ok(handshake)
    }

    /// Gives up the descriptor that is kept for the moment when there is no other, for as long as the value lives: with
    /// it a caller can be accepted and refused, who would else wait for nothing. Nothing while somebody else has it.
    pub fn spare(&self) -> Option<Spare<'_>> {
        let given_up = self.spare.lock().take();
        given_up.map(|_closed| Spare(self))
    }

    /// Counts a connection that was turned away with the spare descriptor.
    pub fn turned_away(&self) {
        self.shed.inc();
    }

    /// Decides anew who is refused.
    pub fn judge(&self, pressures: Pressures) {
        self.handshakes_max
            .store(pressures.handshakes(), Ordering::Relaxed);
        let pressure = pressures.worst();
        self.arrivals.store(0, Ordering::Relaxed);
        self.keep_spare();
        let weights = self.living();
        let held: Vec<_> = weights
            .iter()
            .map(|weight| weight.held.load(Ordering::Relaxed))
            .collect();
        let chosen = heaviest(pressure, &held);
        for (index, weight) in weights.iter().enumerate() {
            weight.refuse(chosen == Some(index), pressure);
        }
        self.shedding.set(i64::from(chosen.is_some()));
    }

    /// Opens the spare descriptor again, if it is gone and there is one.
    fn keep_spare(&self) {
        let mut spare = self.spare.lock();
        if spare.is_none() {
            *spare = open_spare();
        }
    }

    fn living(&self) -> Vec<Arc<Weight>> {
        let mut weights = self.weights.lock();
        weights.retain(|weight| weight.strong_count() > 0);
        weights.iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks at what `pressure` says, again and again, until the process has drained.
    pub async fn run(&self, pressures: impl Fn() -> Pressures, drain: DrainWatcher) {
        self.judge(pressures());
        loop {
            tokio::select! {
                () = drain.over() => return,
                () = self.look.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
            let began = std::time::Instant::now();
            self.judge(pressures());
            let pause = began.elapsed() * 9;
            tokio::time::sleep(pause.clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
    }
}

impl Weight {
    fn refuse(&self, refuse: bool, Pressure { of, used, limit }: Pressure) {
        if self.refused.swap(refuse, Ordering::Relaxed) == refuse {
            return;
        }
        let (workload, what) = (&self.name, of.as_str());
        if refuse {
            tracing::warn!(%workload, what, used, limit, "scarce: refusing new connections of the heaviest workload");
        } else {
            tracing::info!(%workload, what, used, limit, "new connections of the workload are taken again");
        }
    }
}

#[cfg(test)]
mod tests;
