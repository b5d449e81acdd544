//! Finds the rules of a large policy that can match at all, so that a million of them cost what a few do.
//!
//! A rule that asks for exact principals, accounts, namespaces or paths, or for paths below whole segments, is kept
//! under the hash of each of them; all other rules are scanned. A rule that is found is still judged as a whole, so two
//! keys that meet in one hash only cost time.

use ahash::{AHashMap, RandomState};

use super::path::upper_escapes;
use super::{Attributes, From, PathPattern, Rule, To, Values};
use crate::authz::policy::StringMatch;
use crate::identity::Identity;

/// Fewer rules are scanned faster than found. In tests every policy is indexed.
pub(super) const RULES_MIN: usize = if cfg!(test) { 1 } else { 16 };
/// A rule of more keys than this is scanned.
const KEYS_MAX: usize = 64;

/// Places of rules, by what they ask for.
#[derive(Debug)]
pub(super) struct Index {
    hasher: RandomState,
    keyed: AHashMap<u64, Vec<u32>>,
    scanned: Vec<u32>,
}

/// What a rule can be found by.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Principal(&'a str, &'a str, &'a str),
    Account(&'a str, &'a str),
    Namespace(&'a str),
    Path(&'a str),
    /// A path up to the end of its first or second segment, with the slash.
    Below(&'a str),
}

impl Index {
    /// `None` if there are few rules, or more than can be numbered.
    pub(super) fn new<'r>(rules: impl ExactSizeIterator<Item = &'r Rule>) -> Option<Self> {
        if rules.len() < RULES_MIN || u32::try_from(rules.len()).is_err() {
            return None;
        }
        let mut index = Self {
            hasher: RandomState::new(),
            keyed: AHashMap::new(),
            scanned: Vec::new(),
        };
        for (place, rule) in (0u32..).zip(rules) {
            match index.keys(rule) {
                Some(mut keys) => {
                    keys.sort_unstable();
                    keys.dedup();
                    for key in keys {
                        index.keyed.entry(key).or_default().push(place);
                    }
                }
                None => index.scanned.push(place),
            }
        }
        Some(index)
    }

    /// The first rule that matches, of those that can. `None` if it cannot be told by this index: of a stream, what is
    /// asked of requests counts as told.
    pub(super) fn first(
        &self,
        of: &Attributes<'_>,
        matches: impl Fn(usize) -> bool,
    ) -> Option<Option<usize>> {
        let request = of.request?;
        let mut best: Option<u32> = None;
        let mut look = |list: &[u32]| {
            let earlier = list
                .iter()
                .take_while(|place| best.is_none_or(|best| **place < best));
            let found = earlier.copied().find(|place| matches(to_usize(*place)));
            best = found.or(best);
        };
        let mut look_up = |key: Key<'_>| {
            if let Some(list) = self.keyed.get(&self.hash(&key)) {
                look(list);
            }
        };
        if let Some(Identity {
            trust_domain,
            namespace,
            service_account,
        }) = &of.source.identity
        {
            look_up(Key::Principal(trust_domain, namespace, service_account));
            look_up(Key::Account(namespace, service_account));
            look_up(Key::Namespace(namespace));
        }
        for path in [Some(&*request.path), of.decoded.as_deref()]
            .into_iter()
            .flatten()
        {
            look_up(Key::Path(path));
            for below in below(path).into_iter().flatten() {
                look_up(Key::Below(below));
            }
        }
        look(&self.scanned);
        Some(best.map(to_usize))
    }

    fn hash(&self, key: &Key<'_>) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The keys of which a request must have one for the rule to match; `None` if there are no such keys.
    fn keys(&self, rule: &Rule) -> Option<Vec<u64>> {
        self.all(&rule.from, |from, keys| self.of_source(from, keys))
            .or_else(|| self.all(&rule.to, |to, keys| self.of_operation(to, keys)))
    }

    /// The keys of all alternatives, if each of them has some.
    fn all<T>(
        &self,
        alternatives: &[T],
        keys_of: impl Fn(&T, &mut Vec<u64>) -> Option<()>,
    ) -> Option<Vec<u64>> {
        let mut keys = Vec::new();
        for alternative in alternatives {
            keys_of(alternative, &mut keys)?;
        }
        (1..=KEYS_MAX).contains(&keys.len()).then_some(keys)
    }

    fn of_source(&self, from: &From, keys: &mut Vec<u64>) -> Option<()> {
        if let Some(principals) = exacts(&from.principals) {
            for text in principals {
                let identity: Identity = format!("spiffe://{text}").parse().ok()?;
                let Identity {
                    trust_domain,
                    namespace,
                    service_account,
                } = &identity;
                keys.push(self.hash(&Key::Principal(trust_domain, namespace, service_account)));
            }
            return Some(());
        }
        if !from.service_accounts.any.is_empty() {
            let accounts = from.service_accounts.any.iter();
            keys.extend(accounts.map(|of| self.hash(&Key::Account(&of.namespace, &of.service_account))));
            return Some(());
        }
        let namespaces = exacts(&from.namespaces)?;
        keys.extend(namespaces.map(|text| self.hash(&Key::Namespace(text))));
        Some(())
    }

    fn of_operation(&self, to: &To, keys: &mut Vec<u64>) -> Option<()> {
        if to.paths.any.is_empty() {
            return None;
        }
        for pattern in &to.paths.any {
            // A pattern of its own that cannot be read counts as told, and so cannot be found by its path.
            let PathPattern::Text(text) = pattern else {
                return None;
            };
            let key = match text {
                StringMatch::Exact(text) => self.hash(&Key::Path(&upper_escapes(text))),
                StringMatch::Prefix(text) => {
                    let text = upper_escapes(text);
                    let [first, second] = below(&text);
                    self.hash(&Key::Below(second.or(first)?))
                }
                StringMatch::Suffix(_) | StringMatch::Presence => return None,
            };
            keys.push(key);
        }
        // The excluded patterns may hold one that cannot be read.
        let is_text = |pattern: &PathPattern| matches!(pattern, PathPattern::Text(_));
        to.paths.none.iter().all(is_text).then_some(())
    }
}

/// The texts, if all are exact and there is one.
fn exacts(values: &Values<StringMatch>) -> Option<impl Iterator<Item = &str>> {
    let exact = |one: &StringMatch| matches!(one, StringMatch::Exact(_));
    let is_exact = !values.any.is_empty() && values.any.iter().all(exact);
    is_exact.then(|| {
        values.any.iter().filter_map(|one| match one {
            StringMatch::Exact(text) => Some(&**text),
            _ => None,
        })
    })
}

/// The path up to the slash behind its first segment, and behind its second.
fn below(path: &str) -> [Option<&str>; 2] {
    let mut ends = path
        .bytes()
        .enumerate()
        .filter(|(_, byte)| *byte == b'/')
        .map(|(at, _)| at);
    let _root = ends.next();
    let first = ends.next().map(|at| &path[..=at]);
    let second = ends.next().map(|at| &path[..=at]);
    [first, second]
}

fn to_usize(place: u32) -> usize {
    usize::try_from(place).expect("a usize holds what counts the places of a list in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_its_whole_segments() {
        assert_eq!(below("/a/b/c"), [Some("/a/"), Some("/a/b/")]);
        assert_eq!(below("/a/b"), [Some("/a/"), None]);
        assert_eq!(below("/a"), [None, None]);
        assert_eq!(below(""), [None, None]);
    }
}
