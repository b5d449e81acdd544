//! What a rule does with its requests: sends each to one of its backends by weight, answers it with another place, or
//! fails it.

use super::{Backend, Route};
use crate::filter::{Filter, Redirect};
use crate::name::Str;

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Sends the request to one of the backends.
    Forward,
    /// Answers with another place.
    Redirect(&'a Redirect),
    /// Answers with 500.
    Fail(Broken<'a>),
}

/// Why a rule can do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken<'a> {
    /// It could not be translated.
    #[error("{0}")]
    Untranslatable(&'a Str),
    /// One of its filters is not supported.
    #[error("{0}")]
    Filter(&'a Str),
    /// It has no backends and no redirect.
    #[error("the rule has no backends")]
    NoBackends,
    /// All weights are zero.
    #[error("the weights of all backends are 0")]
    NoWeight,
}

impl Route {
    /// What the rule does with a request that takes it.
    #[must_use]
    pub fn action(&self) -> Action<'_> {
        if let Some(cause) = &self.error {
            return Action::Fail(Broken::Untranslatable(cause));
        }
        let unsupported = self.filters.iter().find_map(|filter| match filter {
            Filter::Unsupported(cause) => Some(cause),
            _ => None,
        });
        if let Some(cause) = unsupported {
            return Action::Fail(Broken::Filter(cause));
        }
        let redirect = self.filters.iter().find_map(|filter| match filter {
            Filter::Redirect(redirect) => Some(redirect),
            _ => None,
        });
        if let Some(redirect) = redirect {
            return Action::Redirect(redirect);
        }
        match self.backends.as_slice() {
            [] => Action::Fail(Broken::NoBackends),
            backends if backends.iter().all(|backend| backend.weight == 0) => Action::Fail(Broken::NoWeight),
            _ => Action::Forward,
        }
    }
}

/// Backends by weight, ready to be drawn from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// The sum of the weights up to each backend, itself included.
    ends: Box<[u64]>,
}

impl Split {
    /// Adds the weights up.
    #[must_use]
    pub fn new(backends: &[Backend]) -> Self {
        let mut end = 0;
        let add = |backend: &Backend| {
            end += u64::from(backend.weight);
            end
        };
        Self {
            ends: backends.iter().map(add).collect(),
        }
    }

    /// The place of the backend that a uniform random number draws; each gets exactly its weight's share of all numbers,
    /// to within one in 2⁶⁴ ÷ sum. `None` if no backend has a weight.
    #[must_use]
    pub fn draw(&self, random: u64) -> Option<usize> {
        let sum = *self.ends.last()?;
        if sum == 0 {
            return None;
        }
        // The high half of the product is uniform in 0..sum, without a division.
        let point = u64::try_from((u128::from(random) * u128::from(sum)) >> 64).unwrap_or(u64::MAX);
        Some(self.ends.partition_point(|&end| end <= point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::BackendTo;

    fn split(weights: &[u32]) -> Split {
        let backends: Vec<_> = weights
            .iter()
            .map(|&weight| Backend {
                to: BackendTo::Invalid("".into()),
                weight,
                filters: Vec::new(),
            })
            .collect();
        Split::new(&backends)
    }

    /// How often each of `n` evenly spaced numbers draws each backend.
    fn counts(weights: &[u32], n: u64) -> Vec<u64> {
        let split = split(weights);
        let mut counts = vec![0; weights.len()];
        for i in 0..n {
            // The middle of the i-th of n equal parts.
            let random = (u128::from(2 * i + 1) << 63) / u128::from(n);
            counts[split.draw(u64::try_from(random).unwrap()).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn shares_are_exactly_the_weights() {
        assert_eq!(counts(&[70, 30], 100), [70, 30]);
        assert_eq!(counts(&[1, 0, 2, 4], 7_000), [1_000, 0, 2_000, 4_000]);
        assert_eq!(counts(&[1_000_000, 1], 1_000_001), [1_000_000, 1]);
    }

    #[test]
    fn weight_zero_gets_nothing_even_at_the_ends() {
        let split = split(&[0, 5, 0]);
        assert_eq!((split.draw(0), split.draw(u64::MAX)), (Some(1), Some(1)));
    }

    #[test]
    fn without_weight_there_is_nothing_to_draw() {
        assert_eq!(split(&[0, 0]).draw(7), None);
        assert_eq!(split(&[]).draw(7), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        assert_eq!(split(&[u32::MAX; 16]).draw(u64::MAX), Some(15));
    }
}
