//! The best of some by requests in flight, divided by capacity.

use super::{Field, Random, draw};

/// The best of `choices` draws among usable endpoints. The second one is another than the first.
pub(super) fn pick(field: &dyn Field, choices: u32, random: Random<'_>) -> Option<usize> {
    let mut best = draw(field, None, random)?;
    for _ in 1..choices {
        let Some(other) = draw(field, Some(best), random) else {
            break;
        };
        if field.flight_cost(other) < field.flight_cost(best) {
            best = other;
        }
    }
    Some(best)
}
