//! How much to ask the allocator for.

/// Up to so many bytes a copy takes no more room than it needs.
const EXACT_MAX: usize = 8 * 1024;

/// Room for so many bytes that are copied. What is large is of few sizes: an allocator has a piece of half a MiB for each
/// size that it is asked for and each thread, which stays resident for a while after it was used.
pub(crate) fn room_for(bytes: usize) -> usize {
    match bytes {
        ..=EXACT_MAX => bytes,
        _ => bytes.next_power_of_two(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_is_room_and_of_few_sizes() {
        assert_eq!([0, 1, 100, EXACT_MAX].map(room_for), [0, 1, 100, EXACT_MAX]);
        let large: BTreeSet<usize> = (EXACT_MAX + 1..=64 * 1024).map(room_for).collect();
        assert_eq!(large, BTreeSet::from([16 << 10, 32 << 10, 64 << 10]));
        assert!((0..100_000).all(|bytes| room_for(bytes) >= bytes));
    }
}
