//! By a table of hashes: every endpoint fills it in an order of its own, turn by turn, until it is full.

use xxhash_rust::xxh64::xxh64;

use super::{Field, Weighted, walk};

/// Places of the table; a prime, as the method needs.
pub const PLACES: u64 = 65_537;

/// How often a key is hashed again when its endpoint may not be chosen, before they are walked through.
const REHASHES_MAX: u64 = 16;

/// Who has each place.
#[derive(Debug)]
pub struct Table {
    places: Box<[u32]>,
}

/// The order in which one endpoint asks for places.
struct Wishes {
    index: u32,
    weight: u64,
    offset: u64,
    skip: u64,
    asked: u64,
    /// Turns it is owed, in units of the largest weight.
    owed: u64,
}

impl Wishes {
    fn next(&mut self) -> usize {
        let place = (self.offset + self.skip * self.asked) % PLACES;
        self.asked += 1;
        usize::try_from(place).unwrap_or_default()
    }
}

/// Nobody has the place yet.
const FREE: u32 = u32::MAX;

impl Table {
    pub(super) fn new(endpoints: &[Weighted<'_>]) -> Self {
        let numbered = endpoints.iter().enumerate().filter(|(_, one)| one.capacity > 0);
        let mut wishes: Vec<_> = numbered
            .take(usize::try_from(PLACES).unwrap_or(usize::MAX))
            .map(|(index, one)| Wishes {
                index: u32::try_from(index).unwrap_or(FREE),
                weight: u64::from(one.capacity),
                offset: xxh64(one.name.as_bytes(), 0) % PLACES,
                skip: xxh64(one.name.as_bytes(), 1) % (PLACES - 1) + 1,
                asked: 0,
                owed: 0,
            })
            .collect();
        if wishes.is_empty() {
            return Self {
                places: Box::default(),
            };
        }
        let places = fill(&mut wishes);
        Self {
            places: places.into(),
        }
    }

    pub(super) fn pick(&self, field: &dyn Field, hash: u64) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let at = |hash: u64| self.places[usize::try_from(hash % PLACES).unwrap_or_default()] as usize;
        let tries = (0..REHASHES_MAX).map(|nth| match nth {
            0 => at(hash),
            nth => at(xxh64(&hash.to_le_bytes(), nth)),
        });
        let mut usable = tries.filter(|index| field.usable(*index));
        usable.next().or_else(|| walk(field, at(hash), None))
    }
}

fn fill(wishes: &mut [Wishes]) -> Vec<u32> {
    let heaviest = wishes.iter().map(|one| one.weight).max().unwrap_or(1);
    let mut places = vec![FREE; usize::try_from(PLACES).unwrap_or_default()];
    let mut left = places.len();
    loop {
        for one in wishes.iter_mut() {
            one.owed += one.weight;
            if one.owed < heaviest {
                continue;
            }
            one.owed -= heaviest;
            // Its wishes reach every place, and one is free.
            let place = loop {
                let place = one.next();
                if places[place] == FREE {
                    break place;
                }
            };
            places[place] = one.index;
            left -= 1;
            if left == 0 {
                return places;
            }
        }
    }
}
