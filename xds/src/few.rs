//! Sets that mostly hold one thing, at the memory of that one thing.

use std::collections::BTreeSet;

/// Things kept in a sorted list, such as the pods of a node; from one more on they are kept in a tree.
const LISTED_MAX: usize = 64;

/// A set. One thing stands for itself, a few are a list, many are a tree.
#[allow(
    clippy::box_collection,
    reason = "most sets hold one thing of a word, and are not to take the room of a list"
)]
#[derive(Debug, Clone, Default)]
pub(crate) enum Few<T> {
    /// Nothing.
    #[default]
    None,
    /// One thing.
    One(T),
    /// A few, in order.
    Listed(Box<Vec<T>>),
    /// Many.
    Many(Box<BTreeSet<T>>),
}

/// What is in it counts, and not in which form: that depends on what was in it before.
impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T: Ord> Few<T> {
    /// Adds a thing; says whether it is new.
    pub(crate) fn insert(&mut self, new: T) -> bool {
        if self.contains(&new) {
            return false;
        }
        *self = match std::mem::take(self) {
            Self::None => Self::One(new),
            Self::One(one) if one < new => Self::Listed(Box::new(vec![one, new])),
            Self::One(one) => Self::Listed(Box::new(vec![new, one])),
            Self::Listed(mut list) if list.len() < LISTED_MAX => {
                let at = list.partition_point(|one| *one < new);
                list.reserve_exact(1);
                list.insert(at, new);
                Self::Listed(list)
            }
            Self::Listed(list) => Self::Many(Box::new(list.into_iter().chain([new]).collect())),
            Self::Many(mut tree) => {
                tree.insert(new);
                Self::Many(tree)
            }
        };
        true
    }

    /// Removes a thing; says whether it was there.
    pub(crate) fn remove(&mut self, old: &T) -> bool {
        let removed = match self {
            Self::None => false,
            Self::One(one) => one == old,
            Self::Listed(list) => match list.binary_search(old) {
                Ok(at) => {
                    list.remove(at);
                    true
                }
                Err(_) => false,
            },
            Self::Many(tree) => tree.remove(old),
        };
        if removed {
            self.shrink();
        }
        removed
    }

    /// Goes back to the smaller form: to a list at half of what makes a tree, so that it does not go to and fro.
    fn shrink(&mut self) {
        *self = match std::mem::take(self) {
            // Only called when something was removed: the one thing is gone.
            Self::None | Self::One(_) => Self::None,
            Self::Listed(mut list) if list.len() <= 1 => list.pop().map_or(Self::None, Self::One),
            Self::Many(tree) if tree.len() <= LISTED_MAX / 2 => {
                Self::Listed(Box::new(tree.into_iter().collect()))
            }
            other => other,
        };
    }

    /// Whether a thing is in it.
    pub(crate) fn contains(&self, wanted: &T) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => one == wanted,
            Self::Listed(list) => list.binary_search(wanted).is_ok(),
            Self::Many(tree) => tree.contains(wanted),
        }
    }
}

impl<T> Few<T> {
    /// Everything, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        let (list, tree) = match self {
            Self::None => (&[][..], None),
            Self::One(one) => (std::slice::from_ref(one), None),
            Self::Listed(list) => (list.as_slice(), None),
            Self::Many(tree) => (&[][..], Some(&**tree)),
        };
        list.iter().chain(tree.into_iter().flatten())
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_tree_holds(steps in prop::collection::vec((any::<bool>(), 0_u8..160), 0..800)) {
            let (mut few, mut tree) = (Few::default(), BTreeSet::new());
            for (add, thing) in steps {
                let (one, other) = match add {
                    true => (few.insert(thing), tree.insert(thing)),
                    false => (few.remove(&thing), tree.remove(&thing)),
                };
                prop_assert_eq!(one, other);
                prop_assert!(few.iter().eq(&tree));
                prop_assert_eq!(few.is_empty(), tree.is_empty());
                prop_assert_eq!(few.contains(&thing), tree.contains(&thing));
            }
        }
    }

    #[test]
    fn sets_of_the_same_are_equal_however_they_came_about() {
        let (mut grown, mut shrunk) = (Few::default(), Few::default());
        (0..48).for_each(|thing| assert!(grown.insert(thing)));
        (0..160).for_each(|thing| assert!(shrunk.insert(thing)));
        (48..160).for_each(|thing| assert!(shrunk.remove(&thing)));
        assert!(matches!((&grown, &shrunk), (Few::Listed(_), Few::Many(_))));
        assert_eq!(grown, shrunk);
    }

    #[test]
    fn one_thing_takes_a_word_more_than_itself() {
        assert_eq!(size_of::<Few<tulle_k8s::Key>>(), 2 * size_of::<usize>());
        assert_eq!(size_of::<tulle_k8s::Key>(), size_of::<usize>());
    }
}
