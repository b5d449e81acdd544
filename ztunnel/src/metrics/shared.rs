//! Values that many connections have in common: one copy of each, hashed once, and found by what they are made of.
//!
//! The labels of a series are some twenty texts. To clone, hash and compare those several times for each connection
//! would cost more than to judge it.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;

/// What is remembered of one kind; beyond that all is forgotten and made anew.
const KNOWN_MAX: usize = 8192;

/// Peers may choose what is hashed, so they must not know how.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A value that is cloned by counting, hashed once, and equal to itself without a look.
pub struct Shared<T>(Arc<Hashed<T>>);

struct Hashed<T> {
    value: T,
    hash: u64,
}

impl<T: Hash> Shared<T> {
    /// Shares a value.
    #[must_use]
    pub fn new(value: T) -> Self {
        let hash = HASHER.hash_one(&value);
        Self(Arc::new(Hashed { value, hash }))
    }
}

impl<T> Shared<T> {
    /// Whether two are one copy.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Hash> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || (self.0.hash == other.0.hash && **self == **other)
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// What was made of values of the mesh, found by the very value it was made of. Clones share it.
#[derive(Debug)]
pub struct Made<S, K, T>(Arc<RwLock<Known<S, K, T>>>);

/// The first value is what the key is the address of; holding it keeps the address from being anybody else's.
type Known<S, K, T> = HashMap<(usize, K), (Arc<S>, Shared<T>)>;

impl<S, K, T> Clone for Made<S, K, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, K, T> Default for Made<S, K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S, K: Eq + Hash, T: Hash> Made<S, K, T> {
    /// What `make` made of this value, in this variety, the first time.
    pub fn of(&self, from: &Arc<S>, variety: K, make: impl FnOnce(&S) -> T) -> Shared<T> {
        let key = (Arc::as_ptr(from).addr(), variety);
        if let Some((_, made)) = self.0.read().get(&key) {
            return made.clone();
        }
        let made = Shared::new(make(from));
        let mut known = self.0.write();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key, (Arc::clone(from), made.clone()));
        made
    }

    /// Forgets what was made of values that nobody else has any more.
    pub fn sweep(&self) {
        let mut known = self.0.write();
        // A value may be known in several varieties, each of which holds it.
        let mut held: HashMap<usize, usize> = HashMap::new();
        for (address, _) in known.keys() {
            *held.entry(*address).or_default() += 1;
        }
        known.retain(|(address, _), (from, _)| {
            held.get(address)
                .is_none_or(|ours| Arc::strong_count(from) > *ours)
        });
    }

    /// How many are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(value: &Shared<String>) -> u64 {
        RandomState::new().hash_one(value)
    }

    #[test]
    fn copies_and_equals_are_equal_and_others_are_not() {
        let one = Shared::new("web".to_owned());
        let same = one.clone();
        let equal = Shared::new("web".to_owned());
        assert!(one.is(&same) && !one.is(&equal));
        assert_eq!(one, equal);
        assert_ne!(one, Shared::new("db".to_owned()));
        let state = RandomState::new();
        assert_eq!(state.hash_one(&one), state.hash_one(&equal));
        assert_ne!(hash_of(&one), 0);
    }

    #[test]
    fn what_was_made_of_a_value_is_made_once_for_each_variety() {
        let made: Made<String, bool, String> = Made::default();
        let web = Arc::new("web".to_owned());
        let first = made.of(&web, true, String::clone);
        assert!(first.is(&made.of(&web, true, |_| unreachable!("it is known"))));
        assert!(!first.is(&made.of(&web, false, String::clone)));
        let twin = Arc::new("web".to_owned());
        assert!(!first.is(&made.of(&twin, true, String::clone)), "another value");
        assert_eq!(made.len(), 3);
    }

    #[test]
    fn what_is_gone_from_the_mesh_is_forgotten() {
        let made: Made<String, bool, String> = Made::default();
        let (stays, goes) = (Arc::new("stays".to_owned()), Arc::new("goes".to_owned()));
        for value in [&stays, &goes] {
            for variety in [true, false] {
                drop(made.of(value, variety, String::clone));
            }
        }
        drop(goes);
        made.sweep();
        assert_eq!(made.len(), 2);
        assert_eq!(*made.of(&stays, true, |_| unreachable!("it stays")), "stays");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let made: Made<usize, (), usize> = Made::default();
        let values: Vec<_> = (0..=KNOWN_MAX).map(Arc::new).collect();
        for value in &values {
            drop(made.of(value, (), |value| *value));
        }
        assert_eq!(made.len(), 1);
    }
}
