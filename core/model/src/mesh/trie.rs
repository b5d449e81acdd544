//! Values by address range, and the ranges that hold an address, the longest first.
//!
//! A binary trie with compressed paths: each node is a prefix, its children go on with a 0 or a 1 after it. It is
//! persistent as the other maps of a snapshot are: a change copies the path to it and shares the rest.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

/// Values by range, of both families.
#[derive(Debug, Clone)]
pub(crate) struct Trie<V> {
    v4: Link<V>,
    v6: Link<V>,
    size: usize,
}

type Link<V> = Option<Arc<Node<V>>>;

/// Found values, the longest range first; rarely more than a few.
pub(crate) type Found<'a, V> = SmallVec<[&'a V; 4]>;

#[derive(Debug)]
struct Node<V> {
    prefix: Prefix,
    /// `None` where two ranges part ways and nothing is kept.
    value: Option<V>,
    children: [Link<V>; 2],
}

/// The first bits of an address; those behind them are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    bits: u128,
    length: u8,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self {
            v4: None,
            v6: None,
            size: 0,
        }
    }
}

impl<V: Clone> Trie<V> {
    /// Replaces the value of a range by what `change` makes of it; `None` removes it.
    pub(crate) fn alter(&mut self, range: IpNet, change: impl FnOnce(Option<&V>) -> Option<V>) {
        let prefix = Prefix::of(range.addr(), range.prefix_len());
        let root = match range {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        };
        let before = value_at(root, prefix);
        let after = change(before);
        self.size = self.size + usize::from(after.is_some()) - usize::from(before.is_some());
        *root = with(root, prefix, after);
    }

    /// The value of exactly this range.
    #[cfg(test)]
    fn get(&self, range: IpNet) -> Option<&V> {
        let prefix = Prefix::of(range.addr(), range.prefix_len());
        match range {
            IpNet::V4(_) => value_at(&self.v4, prefix),
            IpNet::V6(_) => value_at(&self.v6, prefix),
        }
    }

    /// What the ranges hold that hold an address.
    pub(crate) fn holding(&self, address: IpAddr) -> Found<'_, V> {
        let (mut link, address) = match address {
            IpAddr::V4(_) => (&self.v4, Prefix::of(address, 32)),
            IpAddr::V6(_) => (&self.v6, Prefix::of(address, 128)),
        };
        let mut found = Found::new();
        while let Some(node) = link {
            if !node.prefix.holds(address) {
                break;
            }
            found.extend(&node.value);
            let Some(next) = address.bit(node.prefix.length) else {
                break;
            };
            link = &node.children[next];
        }
        found.reverse();
        found
    }

    /// Whether there is no range.
    pub(crate) fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// How many ranges there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.size
    }
}

fn value_at<V>(mut link: &Link<V>, prefix: Prefix) -> Option<&V> {
    while let Some(node) = link {
        if node.prefix == prefix {
            return node.value.as_ref();
        }
        if !node.prefix.holds(prefix) {
            return None;
        }
        link = &node.children[prefix.bit(node.prefix.length)?];
    }
    None
}

/// The tree below `link`, with another value at `prefix`.
fn with<V: Clone>(link: &Link<V>, prefix: Prefix, value: Option<V>) -> Link<V> {
    let Some(node) = link else {
        return leaf(prefix, value);
    };
    if node.prefix == prefix {
        return joined(prefix, value, node.children.clone());
    }
    if let Some(next) = prefix
        .bit(node.prefix.length)
        .filter(|_| node.prefix.holds(prefix))
    {
        let mut children = node.children.clone();
        children[next] = with(&children[next], prefix, value);
        return joined(node.prefix, node.value.clone(), children);
    }
    if value.is_none() {
        return Some(Arc::clone(node));
    }
    // They part ways before this node ends: it goes below the range, or beside it.
    let common = prefix.common(node.prefix);
    let mut children = [None, None];
    if let Some(side) = node.prefix.bit(common.length) {
        children[side] = Some(Arc::clone(node));
    }
    if common == prefix {
        return joined(prefix, value, children);
    }
    if let Some(side) = prefix.bit(common.length) {
        children[side] = leaf(prefix, value);
    }
    joined(common, None, children)
}

fn leaf<V>(prefix: Prefix, value: Option<V>) -> Link<V> {
    value.map(|value| {
        Arc::new(Node {
            prefix,
            value: Some(value),
            children: [None, None],
        })
    })
}

/// A node, unless it would say nothing: one without value and with fewer than two children is passed over.
fn joined<V>(prefix: Prefix, value: Option<V>, children: [Link<V>; 2]) -> Link<V> {
    match (value, children) {
        (None, [only, None] | [None, only]) => only,
        (value, children) => Some(Arc::new(Node {
            prefix,
            value,
            children,
        })),
    }
}

impl Prefix {
    fn of(address: IpAddr, length: u8) -> Self {
        let bits = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => address.into(),
        };
        Self {
            bits: bits & mask(length),
            length,
        }
    }

    /// Whether all that `other` stands for lies within.
    fn holds(self, other: Self) -> bool {
        self.length <= other.length && other.bits & mask(self.length) == self.bits
    }

    /// The bit at a place; `None` behind the end.
    fn bit(self, at: u8) -> Option<usize> {
        (at < self.length).then(|| usize::from(self.bits >> (127 - at) & 1 == 1))
    }

    /// The longest prefix of both.
    fn common(self, other: Self) -> Self {
        let same = u8::try_from((self.bits ^ other.bits).leading_zeros()).unwrap_or(u8::MAX);
        let length = same.min(self.length).min(other.length);
        Self {
            bits: self.bits & mask(length),
            length,
        }
    }
}

/// That many ones, then zeros.
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn trie(ranges: &[&str]) -> Trie<String> {
        let mut trie = Trie::default();
        for range in ranges {
            trie.alter(range.parse().unwrap(), |_| Some((*range).to_owned()));
        }
        trie
    }

    fn holding<'a>(trie: &'a Trie<String>, address: &str) -> Vec<&'a str> {
        let found = trie.holding(address.parse().unwrap());
        found.into_iter().map(String::as_str).collect()
    }

    #[test]
    fn the_longest_range_comes_first_and_families_do_not_mix() {
        let trie = trie(&[
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "::/0",
            "fd00::/8",
        ]);
        assert_eq!(
            holding(&trie, "10.1.2.3"),
            ["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
        );
        assert_eq!(holding(&trie, "10.2.0.0"), ["10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(holding(&trie, "fd00::1"), ["fd00::/8", "::/0"]);
        assert_eq!(holding(&trie, "fe00::1"), ["::/0"]);
    }

    #[test]
    fn a_snapshot_keeps_what_it_had() {
        let before = trie(&["10.0.0.0/8", "10.1.0.0/16"]);
        let mut after = before.clone();
        after.alter("10.1.0.0/16".parse().unwrap(), |_| None);
        assert_eq!(holding(&before, "10.1.0.1"), ["10.1.0.0/16", "10.0.0.0/8"]);
        assert_eq!(holding(&after, "10.1.0.1"), ["10.0.0.0/8"]);
    }

    #[test]
    fn nothing_is_left_of_what_was_removed() {
        let ranges = ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "192.168.0.0/24"];
        let mut trie = trie(&ranges);
        for range in ranges {
            trie.alter(range.parse().unwrap(), |_| None);
        }
        assert!(trie.is_empty() && trie.v4.is_none());
    }

    proptest::proptest! {
        /// As a list of ranges that is searched from end to end.
        #[test]
        fn a_trie_answers_like_a_list(
            changes in proptest::collection::vec((0u32..64, 0u8..=32, proptest::bool::ANY), 0..60),
            asked in 0u32..64,
        ) {
            let spread = |n: u32| std::net::Ipv4Addr::from(n << 26 | n << 13 | n);
            let (mut trie, mut list) = (Trie::default(), BTreeMap::new());
            for (at, length, add) in changes {
                let range = IpNet::new(spread(at).into(), length).unwrap().trunc();
                trie.alter(range, |_| add.then_some(range));
                if add { list.insert(range, range); } else { list.remove(&range); }
                proptest::prop_assert_eq!(trie.get(range).copied(), list.get(&range).copied());
            }
            proptest::prop_assert_eq!(trie.len(), list.len());
            let address = IpAddr::V4(spread(asked));
            let mut expected: Vec<_> = list.keys().filter(|range| range.contains(&address)).copied().collect();
            expected.sort_by_key(|range| std::cmp::Reverse(range.prefix_len()));
            let found: Vec<_> = trie.holding(address).into_iter().copied().collect();
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
