//! Which endpoint of a place takes the next request.
//!
//! Every algorithm works on indexes of one slice of endpoints and asks [`Field`] what it must know of them, so each is
//! a pure function of what it is told. None of them takes a lock.

pub mod least_request;
pub mod maglev;
pub mod peak_ewma;
pub mod random;
pub mod ring_hash;
pub mod round_robin;

use std::sync::atomic::AtomicU64;

use tulle_model::policy::traffic::{Algorithm, LoadBalancing};

/// How often a draw is repeated before the endpoints are walked through.
const REDRAWS_MAX: usize = 5;

/// Endpoints compared at most by who chooses the best of several.
pub const CHOICES_MAX: u32 = 16;

/// What an algorithm may know of the endpoints of one place.
pub trait Field {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this one may be chosen now.
    fn usable(&self, index: usize) -> bool;

    /// How much the request would cost there by time to answer; the least wins.
    fn peak_cost(&self, index: usize) -> f64;

    /// How much it would cost there by requests in flight; the least wins.
    fn flight_cost(&self, index: usize) -> f64;

    /// Which share of its requests a new endpoint takes, up to 1.
    fn warmth(&self, index: usize) -> f64;
}

/// Uniform in `0..n`; asked with `n > 0` only.
pub type Random<'a> = &'a mut dyn FnMut(u64) -> u64;

/// An algorithm with what it keeps for one place.
#[derive(Debug)]
pub enum Balance {
    /// The better of two by time to answer and requests in flight.
    PeakEwma,
    /// The best of some by requests in flight.
    LeastRequest {
        /// How many are compared.
        choices: u32,
    },
    /// In turn, by capacity.
    RoundRobin(round_robin::Turns),
    /// By chance, by capacity.
    Random(random::Shares),
    /// By a ring of hashes.
    RingHash(ring_hash::Ring),
    /// By a table of hashes.
    Maglev(maglev::Table),
}

/// An endpoint as the tables need it.
#[derive(Debug, Clone, Copy)]
pub struct Weighted<'a> {
    /// What it is hashed by; the same in every replica.
    pub name: &'a str,
    /// Its capacity.
    pub capacity: u32,
}

impl Balance {
    /// Builds the tables for these endpoints.
    #[must_use]
    pub fn new(algorithm: Algorithm, policy: &LoadBalancing, endpoints: &[Weighted<'_>]) -> Self {
        let capacities = || endpoints.iter().map(|one| one.capacity);
        match algorithm {
            Algorithm::PeakEwma => Self::PeakEwma,
            Algorithm::LeastRequest => Self::LeastRequest {
                choices: policy.choices.unwrap_or(2).clamp(2, CHOICES_MAX),
            },
            Algorithm::RoundRobin => Self::RoundRobin(round_robin::Turns::new(capacities())),
            Algorithm::Random => Self::Random(random::Shares::new(capacities())),
            Algorithm::RingHash => Self::RingHash(ring_hash::Ring::new(endpoints, policy.ring_min)),
            Algorithm::Maglev => Self::Maglev(maglev::Table::new(endpoints)),
        }
    }

    /// Whether a hash decides.
    #[must_use]
    pub fn hashes(&self) -> bool {
        matches!(self, Self::RingHash(_) | Self::Maglev(_))
    }

    /// The endpoint for a request; `None` if none may be chosen. `turn` counts the requests of the backend. Where a
    /// hash should decide and there is none, the better of two is taken.
    pub fn pick(
        &self,
        field: &dyn Field,
        hash: Option<u64>,
        turn: &AtomicU64,
        random: Random<'_>,
    ) -> Option<usize> {
        match (self, hash) {
            (Self::RingHash(ring), Some(hash)) => ring.pick(field, hash),
            (Self::Maglev(table), Some(hash)) => table.pick(field, hash),
            (Self::LeastRequest { choices }, _) => least_request::pick(field, *choices, random),
            (Self::RoundRobin(turns), _) => turns.pick(field, turn, random),
            (Self::Random(shares), _) => shares.pick(field, random),
            (Self::PeakEwma | Self::RingHash(_) | Self::Maglev(_), _) => peak_ewma::pick(field, random),
        }
    }
}

/// A usable endpoint drawn evenly, other than `not`. After some unlucky draws they are walked through.
fn draw(field: &dyn Field, not: Option<usize>, random: Random<'_>) -> Option<usize> {
    let len = field.len();
    if len == 0 {
        return None;
    }
    let mut last = 0;
    for _ in 0..REDRAWS_MAX {
        last = index(random, len);
        if Some(last) != not && field.usable(last) {
            return Some(last);
        }
    }
    walk(field, last, not)
}

/// The first usable endpoint from `start` on, round the end, other than `not`.
fn walk(field: &dyn Field, start: usize, not: Option<usize>) -> Option<usize> {
    let len = field.len();
    let mut round = (start..len).chain(0..start.min(len));
    round.find(|index| Some(*index) != not && field.usable(*index))
}

/// An index below `len`, which is not zero.
fn index(random: Random<'_>, len: usize) -> usize {
    let drawn = random(len as u64);
    usize::try_from(drawn).unwrap_or(0).min(len - 1)
}

/// Whether chance lets an endpoint of this warmth take a request.
fn warm(field: &dyn Field, index: usize, random: Random<'_>) -> bool {
    const STEPS: u32 = 1_000;
    let warmth = field.warmth(index);
    warmth >= 1.0 || {
        let drawn = u32::try_from(random(u64::from(STEPS))).unwrap_or(0);
        f64::from(drawn) < warmth * f64::from(STEPS)
    }
}

#[cfg(test)]
pub(crate) mod tests;
