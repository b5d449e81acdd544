use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;

/// Endpoints as a test wants them.
pub(crate) struct Plain {
    usable: Vec<bool>,
    cost: Vec<f64>,
    warmth: Vec<f64>,
}

impl Plain {
    fn of(len: usize) -> Self {
        Self {
            usable: vec![true; len],
            cost: vec![1.0; len],
            warmth: vec![1.0; len],
        }
    }

    fn without(mut self, index: usize) -> Self {
        self.usable[index] = false;
        self
    }
}

impl Field for Plain {
    fn len(&self) -> usize {
        self.usable.len()
    }

    fn usable(&self, index: usize) -> bool {
        self.usable[index]
    }

    fn peak_cost(&self, index: usize) -> f64 {
        self.cost[index]
    }

    fn flight_cost(&self, index: usize) -> f64 {
        self.cost[index]
    }

    fn warmth(&self, index: usize) -> f64 {
        self.warmth[index]
    }
}

const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("cluster//Pod/default/web-{n}:8080"))
        .collect()
}

fn balance(algorithm: Algorithm, names: &[String], capacities: &[u32]) -> Balance {
    let weighted: Vec<_> = names
        .iter()
        .zip(capacities)
        .map(|(name, capacity)| Weighted {
            name,
            capacity: *capacity,
        })
        .collect();
    Balance::new(algorithm, &LoadBalancing::default(), &weighted)
}

/// A small generator that is the same on every run.
pub(crate) fn seeded(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |n| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    }
}

fn counts(balance: &Balance, field: &Plain, picks: u64) -> Vec<u32> {
    let turn = AtomicU64::new(0);
    let mut random = seeded(1);
    let mut counts = vec![0; field.len()];
    for key in 0..picks {
        let hash = xxhash_rust::xxh64::xxh64(&key.to_le_bytes(), 7);
        counts[balance.pick(field, Some(hash), &turn, &mut random).unwrap()] += 1;
    }
    counts
}

#[test]
fn nothing_is_picked_from_nothing() {
    for algorithm in ALGORITHMS {
        let empty = balance(algorithm, &[], &[]);
        let picked = empty.pick(&Plain::of(0), Some(7), &AtomicU64::new(0), &mut seeded(1));
        assert_eq!(picked, None, "{algorithm:?}");
        let one = balance(algorithm, &names(1), &[1]);
        let out = Plain::of(1).without(0);
        assert_eq!(
            one.pick(&out, Some(7), &AtomicU64::new(0), &mut seeded(1)),
            None,
            "{algorithm:?}"
        );
    }
}

#[test]
fn capacity_decides_the_share_where_endpoints_are_equally_fast() {
    for algorithm in [
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::RingHash,
        Algorithm::Maglev,
    ] {
        let counts = counts(&balance(algorithm, &names(3), &[1, 2, 1]), &Plain::of(3), 20_000);
        let share = f64::from(counts[1]) / 20_000.0;
        assert!((0.43..0.57).contains(&share), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn the_cheaper_of_two_is_taken() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let field = Plain {
            cost: vec![9.0, 1.0],
            ..Plain::of(2)
        };
        let counts = counts(&balance(algorithm, &names(2), &[1, 1]), &field, 1_000);
        assert_eq!(counts, [0, 1_000], "{algorithm:?}");
    }
}

#[test]
fn a_cold_endpoint_takes_its_share_only() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::Random] {
        let field = Plain {
            warmth: vec![1.0, 0.1],
            ..Plain::of(2)
        };
        let counts = counts(&balance(algorithm, &names(2), &[1, 1]), &field, 10_000);
        let share = f64::from(counts[1]) / f64::from(counts[0]);
        assert!((0.05..0.2).contains(&share), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn a_ring_has_its_least_size() {
    for count in [1, 3, 10, 1_500] {
        let names = names(count);
        let Balance::RingHash(ring) = balance(Algorithm::RingHash, &names, &vec![1; count]) else {
            panic!("a ring")
        };
        assert!(ring.len() >= 1_024, "{count}: {}", ring.len());
    }
    let Balance::RingHash(ring) = balance(Algorithm::RingHash, &names(3), &[u32::MAX; 3]) else {
        panic!("a ring")
    };
    assert!(ring.len() as u64 <= 2 * ring_hash::RING_MAX);
}

fn moved(algorithm: Algorithm, before: usize, after: usize) -> f64 {
    let names = names(before.max(after));
    let of = |count: usize| balance(algorithm, &names[..count], &vec![1; count]);
    let (old, new) = (of(before), of(after));
    let turn = AtomicU64::new(0);
    let keys = 20_000u32;
    let moved = (0..keys).filter(|key| {
        let hash = Some(xxhash_rust::xxh64::xxh64(&key.to_le_bytes(), 7));
        let at = |balance: &Balance, count| balance.pick(&Plain::of(count), hash, &turn, &mut seeded(1));
        at(&old, before) != at(&new, after)
    });
    f64::from(u32::try_from(moved.count()).unwrap()) / f64::from(keys)
}

#[test]
fn one_endpoint_more_or_less_moves_about_its_share_of_the_keys() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        for (before, after) in [(10, 11), (11, 10), (4, 5)] {
            let share = 1.0 / f64::from(u32::try_from(before.max(after)).unwrap());
            let moved = moved(algorithm, before, after);
            assert!(moved < 1.6 * share, "{algorithm:?} {before} → {after}: {moved}");
        }
    }
}

#[test]
fn a_key_whose_endpoint_is_out_goes_to_another_and_comes_back() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let balance = balance(algorithm, &names(5), &[1; 5]);
        let pick = |field: &Plain| {
            balance
                .pick(field, Some(42), &AtomicU64::new(0), &mut seeded(1))
                .unwrap()
        };
        let own = pick(&Plain::of(5));
        let other = pick(&Plain::of(5).without(own));
        assert_ne!(own, other, "{algorithm:?}");
        assert_eq!(
            other,
            pick(&Plain::of(5).without(own)),
            "{algorithm:?}: the same one for all replicas"
        );
        assert_eq!(own, pick(&Plain::of(5)), "{algorithm:?}");
    }
}

proptest! {
    /// Whoever is out: an endpoint that may be chosen is found if there is one, and none else.
    #[test]
    fn a_usable_endpoint_is_found_if_there_is_one(
        usable in proptest::collection::vec(any::<bool>(), 0..12), hash: Option<u64>, seed: u64, capacity in 1u32..9,
    ) {
        let field = Plain { usable: usable.clone(), ..Plain::of(usable.len()) };
        for algorithm in [
            Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random,
            Algorithm::RingHash,
        ] {
            let capacities: Vec<_> = (0..usable.len()).map(|n| if n % 2 == 0 { capacity } else { 1 }).collect();
            let balance = balance(algorithm, &names(usable.len()), &capacities);
            let picked = balance.pick(&field, hash, &AtomicU64::new(seed % 1_000), &mut seeded(seed));
            match picked {
                Some(index) => prop_assert!(usable[index], "{:?}", algorithm),
                None => prop_assert!(!usable.contains(&true), "{:?}", algorithm),
            }
        }
    }
}
