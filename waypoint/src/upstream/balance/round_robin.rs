//! In turn, each as often as its capacity says and as evenly as can be.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Field, Random, warm};

/// Turns of one round at most. Capacities whose sum is larger are brought down to it, each to one turn at least.
pub const TURNS_MAX: u64 = 8_192;

/// One round: who has the turn.
#[derive(Debug)]
pub struct Turns {
    order: Box<[u32]>,
}

impl Turns {
    pub(super) fn new(capacities: impl Iterator<Item = u32>) -> Self {
        let weights = reduced(capacities.collect());
        let turns: u64 = weights.iter().sum();
        // Who is due earliest goes next. The n-th turn of weight w is due at (n + ½) / w; times are compared as
        // fractions, so the round is exact and the same everywhere.
        let due = |index: usize, turn: u64| Due {
            turn: 2 * turn + 1,
            weight: weights[index],
            index,
        };
        let starting = (0..weights.len()).filter(|index| weights[*index] > 0);
        let mut queue: BinaryHeap<_> = starting.map(|index| Reverse(due(index, 0))).collect();
        let mut order = Vec::with_capacity(usize::try_from(turns).unwrap_or_default());
        while let Some(Reverse(next)) = queue.pop() {
            order.push(u32::try_from(next.index).unwrap_or(u32::MAX));
            let turn = next.turn.div_ceil(2);
            if turn < next.weight {
                queue.push(Reverse(due(next.index, turn)));
            }
        }
        Self { order: order.into() }
    }

    pub(super) fn pick(&self, field: &dyn Field, turn: &AtomicU64, random: Random<'_>) -> Option<usize> {
        let len = self.order.len();
        let mut cold = None;
        for _ in 0..len {
            let turn = turn.fetch_add(1, Ordering::Relaxed) % (len as u64);
            let index = self.order[usize::try_from(turn).unwrap_or_default()] as usize;
            if !field.usable(index) {
                continue;
            }
            if warm(field, index, random) {
                return Some(index);
            }
            cold = Some(index);
        }
        cold
    }
}

/// When an endpoint has its next turn: `turn / weight`.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    turn: u64,
    weight: u64,
    index: usize,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let (this, that) = (self.turn * other.weight, other.turn * self.weight);
        this.cmp(&that).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Weights without their common divisor, and with a sum that makes a round of bearable length.
fn reduced(capacities: Vec<u32>) -> Vec<u64> {
    let divisor = capacities.iter().copied().fold(0, divisor);
    let mut weights: Vec<u64> = capacities
        .iter()
        .map(|one| u64::from(one / divisor.max(1)))
        .collect();
    let sum: u64 = weights.iter().sum();
    if sum > TURNS_MAX {
        for weight in weights.iter_mut().filter(|weight| **weight > 0) {
            *weight = (*weight * TURNS_MAX / sum).max(1);
        }
    }
    weights
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(capacities: &[u32]) -> Vec<u32> {
        Turns::new(capacities.iter().copied()).order.into()
    }

    #[test]
    fn a_round_is_exact_and_smooth() {
        assert_eq!(order(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(order(&[5, 1, 1]).iter().filter(|one| **one == 0).count(), 5);
        assert_eq!(
            order(&[2, 1]),
            [0, 1, 0],
            "not both turns in a row at the start of a round"
        );
        assert_eq!(order(&[300, 100]).len(), 4, "common divisors are gone");
        assert_eq!(order(&[0, 4]), [1]);
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn a_round_has_a_bearable_length_and_forgets_nobody() {
        let order = order(&[4_000_000_007, 1, 1_999_999_973]);
        assert!(order.len() as u64 <= TURNS_MAX + 3);
        assert_eq!(order.iter().filter(|one| **one == 1).count(), 1);
    }

    proptest::proptest! {
        /// At every point of a round each endpoint has had its share of the turns, give or take less than two.
        #[test]
        fn shares_hold_at_every_point(capacities in proptest::collection::vec(1u32..20, 1..8)) {
            let order = order(&capacities);
            let sum: u32 = capacities.iter().sum();
            let mut had = vec![0u32; capacities.len()];
            for (turn, index) in order.iter().enumerate() {
                had[*index as usize] += 1;
                for (index, capacity) in capacities.iter().enumerate() {
                    let share = (turn as f64 + 1.0) * f64::from(*capacity) / f64::from(sum);
                    proptest::prop_assert!((f64::from(had[index]) - share).abs() < 2.0);
                }
            }
        }
    }
}
