//! Too few descriptors, or too little memory: new connections of the heaviest workload are refused, so that one pod cannot starve the rest.
//!
//! Existing connections live, other workloads are served on, and what was refused is served again within a second of
//! relief. Who is refused is decided by [`heaviest`]; the rest of this file counts and asks.

mod memory;

use std::cmp::{Ordering as Order, Reverse};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::limits;

pub use self::memory::MemoryLimits;
use crate::config::WorkloadName;
use crate::error::Error;

/// Share of its limit that may be used before anybody is refused, in percent.
const USED_MAX_PERCENT: u64 = 90;

/// Time between two looks; with [`PAUSE_MAX`], less than a second passes until relief is noticed.
const PERIOD: Duration = Duration::from_millis(250);

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

    /// Of whatever is closest to its limit, now.
    #[must_use]
    pub fn worst(memory: &MemoryLimits) -> Self {
        let descriptors = Self::of_descriptors();
        let all = std::iter::once(descriptors).chain(memory.pressure());
        all.max_by(Self::compare).unwrap_or(descriptors)
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

/// The weights of all workloads of this process.
#[derive(Debug, Default)]
pub struct Shedder {
    weights: Mutex<Vec<Weak<Weight>>>,
    arrivals: AtomicU64,
    look: Notify,
    /// `tulle_shedding`: 1 while somebody is refused.
    shedding: Gauge,
    /// `tulle_shed_total`: connections that were refused.
    shed: Counter,
}

impl Shedder {
    /// Makes it and registers what it counts.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let shedder = Self::default();
        registry.register(
            "tulle_shedding",
            "1 while new connections of the heaviest workload are refused for want of descriptors or memory",
            shedder.shedding.clone(),
        );
        registry.register(
            "tulle_shed",
            "Connections that were refused for want of descriptors or memory",
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

    /// Decides anew who is refused.
    pub fn judge(&self, pressure: Pressure) {
        self.arrivals.store(0, Ordering::Relaxed);
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

    fn living(&self) -> Vec<Arc<Weight>> {
        let mut weights = self.weights.lock();
        weights.retain(|weight| weight.strong_count() > 0);
        weights.iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks at what `pressure` says, again and again, until the process has drained.
    pub async fn run(&self, pressure: impl Fn() -> Pressure, drain: DrainWatcher) {
        loop {
            tokio::select! {
                () = drain.over() => return,
                () = self.look.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
            let began = std::time::Instant::now();
            self.judge(pressure());
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
mod tests {
    use super::*;
    use tulle_runtime::drain;

    const fn used(used: u64, limit: u64) -> Pressure {
        Pressure {
            of: Resource::Descriptors,
            used,
            limit,
        }
    }

    const LOW: Pressure = used(90, 100);
    const HIGH: Pressure = used(91, 100);

    fn name(name: &str) -> WorkloadName {
        WorkloadName {
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
        }
    }

    fn holding(shedder: &Shedder, weight: &Arc<Weight>, count: usize) -> Vec<Load> {
        (0..count).map(|_| shedder.admit(weight).unwrap()).collect()
    }

    #[test]
    fn above_nine_tenths_the_heaviest_is_refused() {
        let unlimited = used(1 << 40, u64::MAX);
        for (pressure, weights, expected) in [
            (LOW, &[1, 5, 3][..], None),
            (HIGH, &[1, 5, 3], Some(1)),
            (HIGH, &[5, 1, 5], Some(0)),
            (HIGH, &[0, 0], None),
            (HIGH, &[], None),
            (unlimited, &[1, 5], None),
            (used(120, 100), &[0, 1], Some(1)),
        ] {
            assert_eq!(heaviest(pressure, weights), expected, "{pressure:?} {weights:?}");
        }
    }

    #[test]
    fn what_is_closest_to_its_limit_decides() {
        let memory = Pressure {
            of: Resource::Memory,
            ..used(950, 1000)
        };
        assert_eq!(Pressure::compare(&HIGH, &memory), Order::Less);
        assert_eq!(Pressure::compare(&used(0, u64::MAX), &LOW), Order::Less);
        assert_eq!(Pressure::compare(&used(5, 10), &used(50, 100)), Order::Equal);
    }

    #[test]
    fn others_are_served_and_what_is_open_stays() {
        let shedder = Shedder::default();
        let (heavy, light) = (shedder.enter(name("heavy")), shedder.enter(name("light")));
        let mut open = holding(&shedder, &heavy, 3);
        open.extend(holding(&shedder, &light, 1));
        shedder.judge(HIGH);
        assert!(matches!(shedder.admit(&heavy), Err(Error::Overload(_))));
        assert!(shedder.admit(&light).is_ok());
        assert_eq!((shedder.shedding.get(), shedder.shed.get()), (1, 1));
        assert_eq!(heavy.held.load(Ordering::Relaxed), 3, "a refusal weighs nothing");
        shedder.judge(LOW);
        assert!(shedder.admit(&heavy).is_ok());
        assert_eq!(shedder.shedding.get(), 0);
    }

    #[test]
    fn a_workload_that_is_gone_weighs_nothing() {
        let shedder = Shedder::default();
        let (gone, left) = (shedder.enter(name("gone")), shedder.enter(name("left")));
        drop(holding(&shedder, &gone, 9));
        drop(gone);
        let _open = holding(&shedder, &left, 1);
        shedder.judge(HIGH);
        assert!(shedder.admit(&left).is_err());
        assert_eq!(shedder.living().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_resumes_within_a_second_of_relief() {
        let shedder = Shedder::default();
        let weight = shedder.enter(name("heavy"));
        let _open = holding(&shedder, &weight, 1);
        let high = AtomicBool::new(true);
        let pressure = || if high.load(Ordering::Relaxed) { HIGH } else { LOW };
        let (_trigger, drain) = drain::new();
        tokio::select! {
            () = shedder.run(pressure, drain) => {}
            () = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(shedder.admit(&weight).is_err());
                high.store(false, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(shedder.admit(&weight).is_ok());
            } => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_noticed_before_the_period_ends() {
        let shedder = Shedder::default();
        let weight = shedder.enter(name("heavy"));
        let (_trigger, drain) = drain::new();
        let began = tokio::time::Instant::now();
        tokio::select! {
            () = shedder.run(|| HIGH, drain) => {}
            () = async {
                let mut open = Vec::new();
                while let Ok(load) = shedder.admit(&weight) {
                    open.push(load);
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        assert!(began.elapsed() < PERIOD);
    }
}
