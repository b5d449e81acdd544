//! An ordered map whose clones share what is equal, at little more than the memory of what it holds.
//!
//! A persistent tree takes two allocations, some hundred bytes, for each entry. Here it is one of leaves, sorted lists of
//! up to [`LEAF_MAX`] entries, and a change copies one of them.

use std::borrow::Borrow;
use std::ops::{Bound, RangeFrom};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

/// Entries of one leaf.
const LEAF_MAX: usize = 64;
/// Entries up to which a leaf that lost one is put to the one before it.
const LEAF_SMALL: usize = LEAF_MAX / 4;
/// Entries from which on leaves that are half empty are filled.
const PACKED_MIN: usize = 1_000;
/// Entries that a leaf makes room for at once.
const ROOM: usize = 8;

/// Neighbouring entries, in order.
type Leaf<K, V> = Vec<(K, V)>;

/// The map.
#[derive(Debug, Clone)]
pub struct Leaves<K: Ord, V> {
    /// By a key that is not above those of the leaf, and above those of the leaf before.
    leaves: RedBlackTreeMapSync<K, Arc<Leaf<K, V>>>,
    size: usize,
    /// Entries that came since it was packed.
    fresh: usize,
}

impl<K: Ord, V> Default for Leaves<K, V> {
    fn default() -> Self {
        Self {
            leaves: RedBlackTreeMapSync::default(),
            size: 0,
            fresh: 0,
        }
    }
}

/// What is in it counts, and not how it is spread over leaves.
impl<K: Ord, V: PartialEq> PartialEq for Leaves<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.size == other.size && self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for Leaves<K, V> {}

impl<K: Ord, V> Leaves<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (_, leaf) = self.leaf_of(key)?;
        let at = place(leaf, key).ok()?;
        leaf.get(at).map(|(_, value)| value)
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Every entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let leaves = self.leaves.values();
        leaves.flat_map(|leaf| leaf.iter().map(|(key, value)| (key, value)))
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Every value, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The entries from a key on, in order.
    pub fn range(&self, from: RangeFrom<K>) -> impl Iterator<Item = (&K, &V)> {
        let first = self.leaf_of(&from.start);
        let begun = first.map_or(&[][..], |(_, leaf)| {
            &leaf[leaf.partition_point(|(key, _)| *key < from.start)..]
        });
        let after = first.map(|(at, _)| self.leaves.range((Bound::Excluded(at), Bound::Unbounded)));
        let after = after.into_iter().flatten().flat_map(|(_, leaf)| leaf.iter());
        begun.iter().chain(after).map(|(key, value)| (key, value))
    }

    /// The leaf that a key belongs in, and what that is found by.
    fn leaf_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &Arc<Leaf<K, V>>)>
    where
        K: Borrow<Q>,
    {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let found = self.leaves.range::<Q, _>(upto).next_back();
        found.or_else(|| self.leaves.first())
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Leaves<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut all = Self::default();
        for (key, value) in entries {
            all.insert_mut(key, value);
        }
        all
    }
}

impl<K: Ord + Clone, V: Clone> Leaves<K, V> {
    /// Puts a value in the place of the one there was.
    pub fn insert_mut(&mut self, key: K, value: V) {
        let Some(of) = self.leaf_of(&key).map(|(of, _)| of.clone()) else {
            self.leaves.insert_mut(key.clone(), Arc::new(vec![(key, value)]));
            self.size = 1;
            self.fresh += 1;
            return;
        };
        let of = self.begin_at(of, &key);
        let Some(leaf) = self.leaves.get_mut(&of).map(Arc::make_mut) else {
            return;
        };
        let at = match place(leaf, &key) {
            Ok(at) => return leaf[at].1 = value,
            Err(at) => at,
        };
        self.size += 1;
        self.fresh += 1;
        if leaf.len() < LEAF_MAX {
            return insert(leaf, at, (key, value));
        }
        // What comes in order fills each leaf before it begins the next.
        if at == leaf.len() {
            self.leaves.insert_mut(key.clone(), Arc::new(vec![(key, value)]));
            return;
        }
        let mut upper = leaf.split_off(LEAF_MAX / 2);
        leaf.shrink_to_fit();
        match at.checked_sub(leaf.len()) {
            Some(above) if above > 0 => insert(&mut upper, above, (key, value)),
            _ => insert(leaf, at, (key, value)),
        }
        self.leaves.insert_mut(upper[0].0.clone(), Arc::new(upper));
    }

    /// What the leaf of a key is found by, once it begins no later than that: what is below all others comes into the
    /// first leaf.
    fn begin_at(&mut self, of: K, key: &K) -> K {
        if *key >= of {
            return of;
        }
        let leaf = self.leaves.get(&of).cloned().unwrap_or_default();
        self.leaves.remove_mut(&of);
        self.leaves.insert_mut(key.clone(), leaf);
        key.clone()
    }

    /// Removes a key; says whether it was there.
    pub fn remove_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        let found = self.leaf_of(key);
        let found = found.and_then(|(of, leaf)| Some((of.clone(), place(leaf, key).ok()?)));
        let Some((of, at)) = found else {
            return false;
        };
        let Some(leaf) = self.leaves.get_mut::<K>(&of).map(Arc::make_mut) else {
            return false;
        };
        leaf.remove(at);
        self.size -= 1;
        if leaf.len() <= LEAF_SMALL {
            let left = std::mem::take(leaf);
            self.join(&of, left);
        }
        true
    }

    /// Puts what is left of a leaf to the one before it, if there is room.
    fn join(&mut self, of: &K, left: Leaf<K, V>) {
        let before = (Bound::Unbounded, Bound::Excluded(of));
        let before = self.leaves.range::<K, _>(before).next_back();
        let before = before.filter(|(_, leaf)| leaf.len() + left.len() <= LEAF_MAX);
        let before = before.map(|(before, _)| before.clone());
        if left.is_empty() || before.is_some() {
            self.leaves.remove_mut(of);
        }
        let into = before.as_ref().unwrap_or(of);
        if let Some(leaf) = self.leaves.get_mut(into).map(Arc::make_mut) {
            leaf.reserve_exact(left.len());
            leaf.extend(left);
        }
    }

    /// Fills every leaf once much came: those that were not filled in order are half empty.
    pub fn pack(&mut self) {
        if std::mem::take(&mut self.fresh) < PACKED_MIN {
            return;
        }
        let mut packed = Self::default();
        for (key, value) in self.iter() {
            packed.insert_mut(key.clone(), value.clone());
        }
        *self = Self { fresh: 0, ..packed };
    }
}

/// Where a key stands in a leaf, or would.
fn place<K: Borrow<Q>, V, Q: Ord + ?Sized>(leaf: &[(K, V)], key: &Q) -> Result<usize, usize> {
    leaf.binary_search_by(|(known, _)| known.borrow().cmp(key))
}

fn insert<K, V>(leaf: &mut Leaf<K, V>, at: usize, entry: (K, V)) {
    if leaf.len() == leaf.capacity() {
        leaf.reserve_exact(ROOM.min(LEAF_MAX.saturating_sub(leaf.len()).max(1)));
    }
    leaf.insert(at, entry);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn filled(keys: impl IntoIterator<Item = u32>) -> Leaves<u32, u32> {
        keys.into_iter().map(|key| (key, key)).collect()
    }

    /// Entries that the leaves have room for.
    fn room(leaves: &Leaves<u32, u32>) -> usize {
        leaves.leaves.values().map(|leaf| leaf.capacity()).sum()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(steps in prop::collection::vec((0_u8..5, 0_u32..3_000), 0..4000)) {
            let (mut leaves, mut tree) = (Leaves::default(), BTreeMap::new());
            let older = leaves.clone();
            for (number, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        leaves.insert_mut(key, number);
                        tree.insert(key, number);
                    }
                    2 | 3 => prop_assert_eq!(leaves.remove_mut(&key), tree.remove(&key).is_some()),
                    _ => leaves.pack(),
                }
                prop_assert_eq!(leaves.get(&key), tree.get(&key));
                prop_assert_eq!(leaves.size(), tree.len());
            }
            prop_assert!(leaves.iter().eq(&tree));
            for from in [0, 1, 1_499, 3_000] {
                prop_assert!(leaves.range(from..).eq(tree.range(from..)));
            }
            prop_assert_eq!(older.size(), 0);
        }
    }

    #[test]
    fn a_clone_stays_what_it_was() {
        let mut leaves = filled(0..1000);
        let older = leaves.clone();
        (0..1000).for_each(|key| assert!(leaves.remove_mut(&key)));
        leaves.insert_mut(7, 8);
        assert!(
            older
                .iter()
                .eq((0..1000).map(|key| (key, key)).collect::<BTreeMap<_, _>>().iter())
        );
        assert_eq!(leaves, [(7, 8)].into_iter().collect());
    }

    #[test]
    fn there_is_little_room_for_what_is_not_there() {
        let in_order = filled(0..10_000);
        assert!(room(&in_order) < 10_100, "{}", room(&in_order));
        let mut scattered = filled((0..10_000).map(|number| number * 7919 % 10_007));
        assert!(room(&scattered) < 17_000, "{}", room(&scattered));
        scattered.pack();
        assert!(room(&scattered) < 10_100, "{}", room(&scattered));
        for key in (0..10_007).filter(|key| key % 100 > 0) {
            scattered.remove_mut(&key);
        }
        assert_eq!(scattered.size(), 101);
        assert!(
            scattered.leaves.size() <= 2 * 101 / LEAF_SMALL,
            "{}",
            scattered.leaves.size()
        );
    }

    #[test]
    fn a_change_copies_one_leaf() {
        let mut leaves = filled(0..10_000);
        let older = leaves.clone();
        leaves.insert_mut(5_000, 1);
        let pairs = leaves.leaves.values().zip(older.leaves.values());
        assert_eq!(pairs.filter(|(one, other)| !Arc::ptr_eq(one, other)).count(), 1);
    }
}
