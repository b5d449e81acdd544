//! Requests counted by this replica: one virtual clock per bucket (GCRA), without locks and timers.
//!
//! A bucket is one number: the time at which it will be full again. A request moves it on by what one request costs;
//! it is refused if that would reach further ahead of `now` than the burst allows. Buckets stand in groups of a fixed
//! table. An idle one is full, which is what a new one would be, so it can be given away without a timer.

use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tulle_model::policy::matches::Matches;
use tulle_model::policy::traffic::{Key, LocalRateLimit};
use tulle_model::request::RequestHead;

use super::key::Keyed;

#[cfg(test)]
mod tests;

/// Buckets of one policy, unless it says otherwise.
pub const KEYS_MAX: u32 = 10_000;
/// Most buckets that a policy can ask for: 64 MiB of table.
pub const KEYS_MAX_MAX: u32 = 1_000_000;
/// Buckets of a group: all that one key could have, and four cache lines.
const GROUP: usize = 16;
/// Places per bucket, so that groups do not overflow before the whole does.
const SPREAD: usize = 4;
/// Groups that are searched for idle buckets whenever an unseen key finds the table full.
const SWEEP: usize = 8;

/// One limit, with its buckets. It outlives changes of the configuration that do not concern it.
#[derive(Debug)]
pub struct Limiter {
    matches: Matches,
    keys: Vec<Key>,
    /// Nanoseconds that one request costs, before shares; `None` lets nothing pass.
    cost: Option<u64>,
    burst: u64,
    share: bool,
    replicas: AtomicU32,
    keys_max: usize,
    /// The one bucket of a limit without keys, and that of keys for which there is no room.
    other: AtomicU64,
    overflows: Counter,
    table: OnceLock<Table>,
    hasher: ahash::RandomState,
}

/// What a limit says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Requests at once: `x-ratelimit-limit`.
    pub limit: u64,
    /// Requests left: `x-ratelimit-remaining`.
    pub remaining: u64,
    /// Seconds until all are there again: `x-ratelimit-reset`.
    pub reset: u64,
}

/// A request over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which of the limits, in the order they were given.
    pub index: usize,
    /// Seconds after which one more would pass: `retry-after`. At least 1.
    pub retry_after: u64,
    /// What there is.
    pub state: State,
}

/// Counts a request against every limit that is for it. If one refuses, none is charged.
///
/// `now` is the time since any fixed point; it may not run backwards by much.
pub fn take<'l>(
    limiters: impl IntoIterator<Item = &'l Limiter>,
    of: &Keyed<'_>,
    now: Duration,
) -> Result<(), Refused> {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let mut charged: smallvec::SmallVec<[Charged<'l>; 4]> = smallvec::SmallVec::new();
    for (index, limiter) in limiters.into_iter().enumerate() {
        if !limiter.is_for(of.head) {
            continue;
        }
        match limiter.charge(of, now) {
            Ok(one) => charged.push(one),
            Err(refusal) => {
                charged.iter().for_each(Charged::give_back);
                return Err(Refused { index, ..refusal });
            }
        }
    }
    Ok(())
}

/// A bucket that was charged.
struct Charged<'l> {
    bucket: &'l AtomicU64,
    cost: u64,
}

impl Charged<'_> {
    /// Moves the clock back by what was paid: the bucket is as if nothing had been asked.
    fn give_back(&self) {
        self.bucket.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl Limiter {
    /// A limit with full buckets.
    #[must_use]
    pub fn new(of: &LocalRateLimit) -> Self {
        let per = u64::try_from(of.per.as_nanos()).unwrap_or(u64::MAX);
        let second = 1_000_000_000;
        let earned = || {
            let earned = u128::from(of.requests) * second / u128::from(per.max(1));
            u32::try_from(earned).unwrap_or(u32::MAX)
        };
        let keys_max = of.keys_max.unwrap_or(KEYS_MAX).clamp(1, KEYS_MAX_MAX);
        Self {
            matches: Matches::new(&of.matches),
            keys: of.keys.clone(),
            cost: (of.requests > 0).then(|| (per / u64::from(of.requests)).max(1)),
            burst: of.burst.unwrap_or_else(earned).max(1).into(),
            share: of.share,
            replicas: AtomicU32::new(1),
            keys_max: usize::try_from(keys_max).unwrap_or(usize::MAX),
            other: AtomicU64::new(0),
            overflows: Counter::default(),
            table: OnceLock::new(),
            hasher: ahash::RandomState::new(),
        }
    }

    /// The same, whose requests without a bucket of their own are counted there.
    #[must_use]
    pub fn counted(of: &LocalRateLimit, overflows: Counter) -> Self {
        Self {
            overflows,
            ..Self::new(of)
        }
    }

    /// Says how many replicas are ready; a limit that is shared is divided by that.
    pub fn set_replicas(&self, ready: u32) {
        self.replicas.store(ready.max(1), Ordering::Relaxed);
    }

    /// Requests that had to share a bucket because there was no room for their key.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows.get()
    }

    /// Keys with a bucket of their own.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.table
            .get()
            .map_or(0, |table| table.used.load(Ordering::Relaxed))
    }

    fn is_for(&self, head: &RequestHead) -> bool {
        self.matches.contain(head)
    }

    fn charge(&self, of: &Keyed<'_>, now: u64) -> Result<Charged<'_>, Refused> {
        let replicas = match self.share {
            true => u64::from(self.replicas.load(Ordering::Relaxed)),
            false => 1,
        };
        let limit = (self.burst / replicas).max(1);
        let refused = |retry_after: u64, state| Refused {
            index: 0,
            retry_after: seconds(retry_after).max(1),
            state,
        };
        let Some(cost) = self.cost.and_then(|cost| cost.checked_mul(replicas)) else {
            let nothing = State {
                limit: 0,
                remaining: 0,
                reset: 1,
            };
            return Err(refused(0, nothing));
        };
        let span = cost.saturating_mul(limit);
        let bucket = self.bucket(of, now, span);
        let mut full_at = bucket.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(cost);
            let ahead = next - now;
            if ahead > span {
                let state = State {
                    limit,
                    remaining: 0,
                    reset: seconds(full_at.saturating_sub(now)),
                };
                return Err(refused(ahead - span, state));
            }
            match bucket.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Charged { bucket, cost }),
                Err(moved) => full_at = moved,
            }
        }
    }

    /// The bucket of a request. A missing value is a value of its own.
    fn bucket(&self, of: &Keyed<'_>, now: u64, span: u64) -> &AtomicU64 {
        if self.keys.is_empty() {
            return &self.other;
        }
        let mut hasher = self.hasher.build_hasher();
        for key in &self.keys {
            let has = of.feed(key, &mut |piece| hasher.write(piece));
            hasher.write_u8(if has { 1 } else { 2 });
        }
        // Zero is the mark of an empty place.
        let hash = hasher.finish().max(1);
        let table = self.table.get_or_init(|| Table::new(self.keys_max));
        // Idle for twice the time in which it fills.
        let idle = span.saturating_mul(2);
        table.find(hash, now, idle, self.keys_max).unwrap_or_else(|| {
            self.overflows.inc();
            &self.other
        })
    }
}

fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}

/// Buckets by the hash of their key. The hash is keyed by chance, so nobody can make two keys meet on purpose.
#[derive(Debug)]
struct Table {
    places: Box<[Place]>,
    used: AtomicUsize,
    swept: AtomicUsize,
}

#[derive(Debug, Default)]
struct Place {
    /// Hash of the key; zero is empty.
    key: AtomicU64,
    full_at: AtomicU64,
}

impl Place {
    /// Whether it has been full for so long that it is worth nothing.
    fn is_idle(&self, now: u64, idle: u64) -> bool {
        self.full_at.load(Ordering::Relaxed).saturating_add(idle) < now
    }
}

impl Table {
    fn new(keys_max: usize) -> Self {
        let places = (keys_max * SPREAD).next_power_of_two().max(GROUP);
        Self {
            places: (0..places).map(|_| Place::default()).collect(),
            used: AtomicUsize::new(0),
            swept: AtomicUsize::new(0),
        }
    }

    fn group(&self, hash: u64) -> &[Place] {
        let groups = self.places.len() / GROUP;
        // The number of groups is a power of two, and the product of two sizes that fit into the table.
        let mask = u64::try_from(groups - 1).unwrap_or(u64::MAX);
        let at = usize::try_from(hash & mask).unwrap_or(0) * GROUP;
        &self.places[at..at + GROUP]
    }

    /// The bucket of a key, an old one or a new one; `None` if there is no room.
    fn find(&self, hash: u64, now: u64, idle: u64, keys_max: usize) -> Option<&AtomicU64> {
        let group = self.group(hash);
        let known = |place: &&Place| place.key.load(Ordering::Acquire) == hash;
        if let Some(place) = group.iter().find(known) {
            return Some(&place.full_at);
        }
        let place = self.claim(group, hash, now, idle, keys_max)?;
        // Two requests may have claimed a place for the same key at once: the first place is the key's.
        let first = group.iter().find(known)?;
        if !std::ptr::eq(first, place)
            && place
                .key
                .compare_exchange(hash, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        Some(&first.full_at)
    }

    fn claim<'t>(
        &'t self,
        group: &'t [Place],
        hash: u64,
        now: u64,
        idle: u64,
        keys_max: usize,
    ) -> Option<&'t Place> {
        // A place that somebody left is taken over with its clock, which lies in the past and so means nothing.
        for place in group {
            let key = place.key.load(Ordering::Acquire);
            let is_left = key != 0 && place.is_idle(now, idle);
            let takes = |from| {
                place
                    .key
                    .compare_exchange(from, hash, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            };
            if is_left && takes(key) {
                return Some(place);
            }
        }
        self.make_room(now, idle, keys_max)?;
        for place in group {
            // A place that was given back may hold a clock that still runs; it then waits until it is idle.
            let is_free =
                place.key.load(Ordering::Acquire) == 0 && place.full_at.load(Ordering::Relaxed) <= now;
            if is_free
                && place
                    .key
                    .compare_exchange(0, hash, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                return Some(place);
            }
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Counts one more bucket. Where there are as many as may be, some idle ones are given up first.
    fn make_room(&self, now: u64, idle: u64, keys_max: usize) -> Option<()> {
        let more = |used: usize| (used < keys_max).then_some(used + 1);
        let count = || {
            self.used
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
                .is_ok()
        };
        if count() {
            return Some(());
        }
        let groups = self.places.len() / GROUP;
        for _ in 0..SWEEP.min(groups) {
            let at = self.swept.fetch_add(1, Ordering::Relaxed) % groups * GROUP;
            for place in &self.places[at..at + GROUP] {
                let key = place.key.load(Ordering::Acquire);
                if key != 0
                    && place.is_idle(now, idle)
                    && place
                        .key
                        .compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                {
                    self.used.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        count().then_some(())
    }
}
