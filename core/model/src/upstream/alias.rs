//! Draws from weighted choices in constant time (Vose's alias method, in whole numbers and therefore exact).
//!
//! Every column holds the same share of the total: a part of its own choice, and for the rest one other choice. A draw
//! picks a column, then a point within it.

/// A weighted draw among `0..len`. Weights of zero are never drawn.
#[derive(Debug, Default)]
pub(super) struct Alias {
    columns: Vec<Column>,
    /// The height of a column: the sum of all weights. Zero: all weigh the same, and a column is its own choice.
    height: u64,
}

#[derive(Debug, Clone, Copy)]
struct Column {
    /// Points below it are the column's own choice.
    own: u64,
    /// Whose the others are.
    other: u32,
}

impl Alias {
    /// Builds it in linear time.
    pub(super) fn new(weights: &[u32]) -> Self {
        let height: u64 = weights.iter().copied().map(u64::from).sum();
        if height == 0 {
            return Self::default();
        }
        let even = weights.iter().all(|weight| *weight == weights[0]);
        let mut columns: Vec<_> = (0..weights.len()).map(Column::whole(height)).collect();
        if even {
            return Self { columns, height: 0 };
        }
        // What a choice still has to place, where a column takes `height`; the sum is `height` times their number.
        let number = weights.len() as u128;
        let mut rest: Vec<u128> = weights
            .iter()
            .map(|weight| u128::from(*weight) * number)
            .collect();
        let full = u128::from(height);
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|choice| rest[*choice] < full);
        while let (Some(&giver), Some(taker)) = (large.last(), small.pop()) {
            columns[taker] = Column {
                own: u64::try_from(rest[taker]).unwrap_or(height),
                other: u32::try_from(giver).unwrap_or(u32::MAX),
            };
            rest[giver] -= full - rest[taker];
            if rest[giver] < full {
                large.pop();
                small.push(giver);
            }
        }
        Self { columns, height }
    }

    /// Whether there is nothing to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Draws; `random(n)` is uniform in `0..n`.
    pub(super) fn draw(&self, random: &mut dyn FnMut(u64) -> u64) -> usize {
        let last = self.columns.len() - 1;
        // A number beyond its bound would break the caller's promise; the last one is as good as any.
        let column =
            usize::try_from(random(self.columns.len() as u64)).map_or(last, |column| column.min(last));
        let Column { own, other } = self.columns[column];
        if self.height == 0 || random(self.height) < own {
            column
        } else {
            other as usize
        }
    }
}

impl Column {
    fn whole(height: u64) -> impl Fn(usize) -> Self {
        move |choice| Self {
            own: height,
            other: u32::try_from(choice).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each choice is drawn, over all numbers there are.
    fn counts(weights: &[u32]) -> Vec<u64> {
        let alias = Alias::new(weights);
        let height: u64 = weights.iter().copied().map(u64::from).sum();
        let mut counts = vec![0; weights.len()];
        for column in 0..weights.len() as u64 {
            for point in 0..height {
                let mut numbers = [column, point].into_iter();
                counts[alias.draw(&mut |_| numbers.next().unwrap())] += 1;
            }
        }
        counts
    }

    #[test]
    fn draws_are_exactly_proportional_to_weights() {
        for weights in [
            &[1][..],
            &[1, 1],
            &[3, 1],
            &[0, 5],
            &[5, 0, 0, 1],
            &[1, 2, 3, 4, 5, 6, 7],
            &[100, 1, 1, 1],
        ] {
            let expected: Vec<_> = weights
                .iter()
                .map(|weight| u64::from(*weight) * weights.len() as u64)
                .collect();
            assert_eq!(counts(weights), expected, "{weights:?}");
        }
    }

    #[test]
    fn nothing_is_drawn_from_nothing() {
        assert!(Alias::new(&[]).is_empty());
        assert!(Alias::new(&[0, 0]).is_empty());
    }

    #[test]
    fn huge_weights_do_not_overflow() {
        let weights = vec![u32::MAX; 3000].into_iter().chain([1]).collect::<Vec<_>>();
        let alias = Alias::new(&weights);
        assert_eq!(alias.height, u64::from(u32::MAX) * 3000 + 1);
        assert!(
            alias.columns[3000].own < alias.height,
            "the light one lends its column"
        );
        assert!(alias.draw(&mut |of| of - 1) < weights.len());
    }

    proptest::proptest! {
        #[test]
        fn any_weights_are_drawn_by_their_share(weights in proptest::collection::vec(0u32..9, 1..9)) {
            proptest::prop_assume!(weights.iter().any(|weight| *weight > 0));
            let expected: Vec<_> = weights.iter().map(|weight| u64::from(*weight) * weights.len() as u64).collect();
            proptest::prop_assert_eq!(counts(&weights), expected);
        }
    }
}
