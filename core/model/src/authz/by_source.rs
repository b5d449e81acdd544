//! Which rules of a long policy may match at all, by the caller's address: found through a trie of their ranges.
//!
//! A policy that lists thousands of networks, a rule each, is not walked for every connection. Leaving a rule out is only
//! ever right if it could not match; a rule that asks for no source address is always looked at.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::cidr::canonical_net;
use super::policy::{Match, Rule};
use crate::mesh::trie::Trie;

/// Rules by the source addresses that they demand; positions are ascending.
#[derive(Debug, Default)]
pub(super) struct BySource {
    /// Those that demand none.
    anywhere: Vec<usize>,
    ranges: Trie<Arc<[usize]>>,
}

impl BySource {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut anywhere = Vec::new();
        let mut by_range: HashMap<IpNet, Vec<usize>> = HashMap::new();
        for (position, rule) in rules.iter().enumerate() {
            let Some(demanded) = demanded(rule) else {
                anywhere.push(position);
                continue;
            };
            for range in demanded {
                let positions = by_range.entry(canonical_net(range)).or_default();
                if positions.last() != Some(&position) {
                    positions.push(position);
                }
            }
        }
        let mut ranges = Trie::default();
        for (range, positions) in by_range {
            ranges.alter(range, |_| Some(positions.into()));
        }
        Self { anywhere, ranges }
    }

    /// The first position, of those that may match a caller at this address, for which `matches` holds.
    pub(super) fn first(&self, address: IpAddr, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let found = self.ranges.holding(address.to_canonical());
        let mut lists: SmallVec<[&[usize]; 4]> = found.into_iter().map(|positions| &**positions).collect();
        lists.push(&self.anywhere);
        loop {
            let next = lists.iter().filter_map(|list| list.first().copied()).min()?;
            if matches(next) {
                return Some(next);
            }
            for list in &mut lists {
                if let [first, rest @ ..] = *list
                    && *first == next
                {
                    *list = rest;
                }
            }
        }
    }
}

/// The ranges without which a rule cannot match: those of a clause whose every match asks for some.
fn demanded(rule: &Rule) -> Option<Vec<IpNet>> {
    rule.clauses.iter().find_map(|clause| {
        // A match with no field set is skipped.
        let telling = || clause.matches.iter().filter(|one| **one != Match::default());
        let demands = !clause.matches.is_empty() && telling().all(|one| !one.source_ips.is_empty());
        demands.then(|| telling().flat_map(|one| one.source_ips.iter().copied()).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::policy::Clause;

    fn from(nets: &[&str]) -> Match {
        Match {
            source_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..Match::default()
        }
    }

    fn rule(clauses: Vec<Vec<Match>>) -> Rule {
        let clauses = clauses.into_iter().map(|matches| Clause { matches });
        Rule {
            clauses: clauses.collect(),
        }
    }

    /// Which rules are looked at for an address.
    fn looked_at(rules: &[Rule], address: &str) -> Vec<usize> {
        let mut seen = Vec::new();
        BySource::new(rules).first(address.parse().unwrap(), |position| {
            seen.push(position);
            false
        });
        seen
    }

    #[test]
    fn only_rules_whose_ranges_hold_the_address_are_looked_at_and_in_their_order() {
        let anybody = || Match {
            destination_ports: vec![80],
            ..Match::default()
        };
        let rules = [
            rule(vec![vec![from(&["10.1.0.0/16", "10.1.2.0/24"])]]),
            rule(vec![vec![anybody()]]),
            rule(vec![vec![from(&["10.0.0.0/8"]), anybody()]]),
            rule(vec![vec![anybody()], vec![from(&["10.1.2.3/32"])]]),
            rule(vec![vec![from(&["fd00::/8"])]]),
            rule(vec![vec![]]),
            rule(vec![vec![Match::default()]]),
        ];
        assert_eq!(looked_at(&rules, "10.1.2.3"), [0, 1, 2, 3, 5]);
        assert_eq!(looked_at(&rules, "::ffff:10.1.2.4"), [0, 1, 2, 5]);
        assert_eq!(looked_at(&rules, "192.0.2.1"), [1, 2, 5]);
        assert_eq!(looked_at(&rules, "fd00::1"), [1, 2, 4, 5]);
    }
}
