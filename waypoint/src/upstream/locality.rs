//! In which places endpoints are, and which place the next request goes to.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tulle_model::Str;
use tulle_model::policy::traffic;
use tulle_model::upstream::Serving;
use tulle_model::workload::{Locality, Workload};

use super::balance::Random;

/// A place overflows into the next when less than this share of it is usable: 1 / 1.4.
const OVERPROVISIONING_PERCENT: u64 = 140;
/// Loads of places add up to this.
const WHOLE: u64 = 10_000;

/// Endpoints by place, and how the places share the requests.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    /// Indexes of endpoints, place by place.
    pub members: Vec<Vec<usize>>,
    /// How the places share the requests.
    pub spread: Spread,
}

/// How places share the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spread {
    /// The first one that has enough usable endpoints; what it lacks goes to the next.
    Failover,
    /// By these shares.
    Shares(Vec<u32>),
}

/// How full a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Endpoints that may be chosen.
    pub usable: usize,
    /// All endpoints.
    pub total: usize,
}

impl Places {
    /// Sorts endpoints into places, as the waypoint `here` sees them.
    #[must_use]
    pub fn new(here: &Workload, policy: Option<&traffic::Locality>, serving: &[Serving]) -> Self {
        match policy {
            Some(policy) if !policy.distribute.is_empty() => {
                if let Some(shares) = most_specific(&policy.distribute, &here.locality) {
                    return Self::shared(shares, serving);
                }
                Self::failing_over(here, &policy.failover, serving)
            }
            Some(policy) => Self::failing_over(here, &policy.failover, serving),
            None => Self::ranked(serving, |one| (0, Reverse(one.rank))),
        }
    }

    /// One place for each share: so many endpoints, one after the other, and what they get.
    #[must_use]
    pub fn of_shares(shares: &[(usize, u32)]) -> Self {
        let mut start = 0;
        let members = shares.iter().map(|(count, _)| {
            let members = (start..start + count).collect();
            start += count;
            members
        });
        Self {
            members: members.collect(),
            spread: Spread::Shares(shares.iter().map(|(_, weight)| *weight).collect()),
        }
    }

    fn failing_over(here: &Workload, failover: &BTreeMap<Str, Vec<Str>>, serving: &[Serving]) -> Self {
        let own = &here.locality.region;
        let next = failover.get(own).map(Vec::as_slice).unwrap_or_default();
        let order = |one: &Serving| {
            let region = &one.workload.locality.region;
            let named = next.iter().position(|name| name == region);
            match named {
                _ if region == own => 0,
                Some(position) => position + 1,
                None => next.len() + 1,
            }
        };
        Self::ranked(serving, |one| {
            let near = shared(&here.locality, &one.workload.locality);
            (order(one), Reverse(one.rank.max(near)))
        })
    }

    fn ranked<K: Ord>(serving: &[Serving], key: impl Fn(&Serving) -> K) -> Self {
        let mut places: BTreeMap<K, Vec<usize>> = BTreeMap::new();
        for (index, one) in serving.iter().enumerate() {
            places.entry(key(one)).or_default().push(index);
        }
        Self {
            members: places.into_values().collect(),
            spread: Spread::Failover,
        }
    }

    /// Endpoints that no share names get nothing.
    fn shared(shares: &BTreeMap<Str, u32>, serving: &[Serving]) -> Self {
        let mut members = vec![Vec::new(); shares.len()];
        for (index, one) in serving.iter().enumerate() {
            let fitting = shares.keys().enumerate().filter_map(|(place, pattern)| {
                let specific = specificity(pattern, &one.workload.locality)?;
                Some((specific, Reverse(place)))
            });
            if let Some((_, Reverse(place))) = fitting.max() {
                members[place].push(index);
            }
        }
        Self {
            members,
            spread: Spread::Shares(shares.values().copied().collect()),
        }
    }
}

impl Spread {
    /// The place for the next request; `None` if no place has a usable endpoint.
    #[must_use]
    pub fn choose(&self, fills: &[Fill], random: Random<'_>) -> Option<usize> {
        let loads = self.loads(fills);
        let sum: u64 = loads.iter().sum();
        if sum == 0 {
            return None;
        }
        // Most often one place takes all; it needs no draw.
        if let Some(all) = loads.iter().position(|load| *load == sum) {
            return Some(all);
        }
        let mut point = random(sum).min(sum - 1);
        loads.iter().position(|load| match point.checked_sub(*load) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }

    /// What each place takes, in proportion.
    #[must_use]
    pub fn loads(&self, fills: &[Fill]) -> smallvec::SmallVec<[u64; 8]> {
        match self {
            Self::Shares(shares) => {
                let load = |(share, fill): (&u32, &Fill)| if fill.usable > 0 { u64::from(*share) } else { 0 };
                shares.iter().zip(fills).map(load).collect()
            }
            Self::Failover => {
                let mut left = WHOLE;
                let load = |fill: &Fill| {
                    let health = match fill.total as u64 {
                        0 => 0,
                        total => {
                            (fill.usable as u64 * OVERPROVISIONING_PERCENT * WHOLE / (100 * total)).min(WHOLE)
                        }
                    };
                    // A place with a usable endpoint takes something, however large it is.
                    let health = if fill.usable > 0 { health.max(1) } else { 0 };
                    let load = health.min(left);
                    left -= load;
                    load
                };
                fills.iter().map(load).collect()
            }
        }
    }
}

/// How many of region, zone and subzone are the same, from the region on.
fn shared(here: &Locality, there: &Locality) -> usize {
    let parts = |place: &Locality| [place.region.clone(), place.zone.clone(), place.subzone.clone()];
    let pairs = parts(here).into_iter().zip(parts(there));
    pairs.take_while(|(here, there)| here == there).count()
}

fn most_specific<'a, T>(by_place: &'a BTreeMap<Str, T>, here: &Locality) -> Option<&'a T> {
    let fitting = by_place
        .iter()
        .filter_map(|(pattern, value)| Some((specificity(pattern, here)?, value)));
    fitting
        .max_by_key(|(specific, _)| *specific)
        .map(|(_, value)| value)
}

/// How many parts a pattern (`region/zone/subzone`, `*` at the end) names, if the place fits.
fn specificity(pattern: &str, place: &Locality) -> Option<usize> {
    let mut named = 0;
    let parts = [&place.region, &place.zone, &place.subzone];
    for (given, part) in pattern.split('/').zip(parts) {
        if given == "*" {
            break;
        }
        if given != &**part {
            return None;
        }
        named += 1;
    }
    Some(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balance::tests::seeded;
    use tulle_model::testing::workload;

    fn serving(place: &str, rank: usize) -> Serving {
        Serving {
            workload: workload("a").locality(place).build().into(),
            target_port: 80,
            rank,
            healthy: true,
        }
    }

    fn fill(usable: usize, total: usize) -> Fill {
        Fill { usable, total }
    }

    fn loads(fills: &[Fill]) -> Vec<u64> {
        Spread::Failover.loads(fills).to_vec()
    }

    #[test]
    fn without_policy_the_rank_decides() {
        let here = workload("way").locality("eu/1").build();
        let all = [
            serving("us/1", 0),
            serving("eu/1", 2),
            serving("eu/2", 1),
            serving("us/2", 0),
        ];
        let places = Places::new(&here, None, &all);
        assert_eq!(places.members, [vec![1], vec![2], vec![0, 3]]);
    }

    #[test]
    fn a_policy_orders_regions() {
        let here = workload("way").locality("eu/1").build();
        let policy = traffic::Locality {
            failover: BTreeMap::from([("eu".into(), vec!["us".into(), "asia".into()])]),
            ..traffic::Locality::default()
        };
        let all = [
            serving("af/1", 0),
            serving("asia/1", 0),
            serving("us/1", 0),
            serving("eu/2", 0),
            serving("eu/1", 0),
        ];
        let places = Places::new(&here, Some(&policy), &all);
        assert_eq!(places.members, [vec![4], vec![3], vec![2], vec![1], vec![0]]);
    }

    #[test]
    fn a_policy_shares_out_places() {
        let here = workload("way").locality("eu/1").build();
        let shares = BTreeMap::from([("eu/1/*".into(), 80), ("eu/2/*".into(), 20)]);
        let policy = traffic::Locality {
            distribute: BTreeMap::from([
                ("eu/*".into(), BTreeMap::new()),
                ("eu/1/*".into(), shares),
                ("us/*".into(), BTreeMap::new()),
            ]),
            ..traffic::Locality::default()
        };
        let all = [serving("eu/1/a", 0), serving("eu/2/a", 0), serving("us/1", 0)];
        let places = Places::new(&here, Some(&policy), &all);
        assert_eq!(places.members, [vec![0], vec![1]], "who has no share is left out");
        let mut random = seeded(3);
        let mut draw = |fills: &[Fill]| places.spread.choose(fills, &mut random);
        let second = (0..10_000)
            .filter(|_| draw(&[fill(1, 1), fill(1, 1)]) == Some(1))
            .count();
        assert!((1_800..2_200).contains(&second), "{second}");
        assert_eq!(
            draw(&[fill(0, 1), fill(1, 1)]),
            Some(1),
            "what cannot be served goes elsewhere"
        );
        assert_eq!(draw(&[fill(0, 1), fill(0, 1)]), None);
    }

    #[test]
    fn a_place_that_lacks_endpoints_spills_the_missing_share() {
        assert_eq!(loads(&[fill(10, 10), fill(5, 5)]), [10_000, 0]);
        assert_eq!(
            loads(&[fill(8, 10), fill(5, 5)]),
            [10_000, 0],
            "above 1/1.4 it takes all"
        );
        assert_eq!(loads(&[fill(5, 10), fill(5, 5)]), [7_000, 3_000]);
        assert_eq!(loads(&[fill(0, 10), fill(5, 5)]), [0, 10_000]);
        assert_eq!(
            loads(&[fill(1, 10), fill(1, 10), fill(5, 5)]),
            [1_400, 1_400, 7_200]
        );
        assert_eq!(loads(&[fill(0, 0), fill(0, 3)]), [0, 0]);
        assert_eq!(loads(&[fill(1, 100_000), fill(0, 5)]), [1, 0]);
    }

    proptest::proptest! {
        #[test]
        fn a_usable_place_is_found_if_there_is_one(
            sizes in proptest::collection::vec((0usize..6, 0usize..6), 0..6), seed: u64,
        ) {
            let fills: Vec<_> = sizes.into_iter().map(|(usable, rest)| fill(usable, usable + rest)).collect();
            let found = Spread::Failover.choose(&fills, &mut seeded(seed));
            match found {
                Some(place) => proptest::prop_assert!(fills[place].usable > 0),
                None => proptest::prop_assert!(fills.iter().all(|fill| fill.usable == 0)),
            }
        }
    }
}
