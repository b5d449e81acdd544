//! Sets of string patterns, compiled so that exact ones are found by bisection and no principal is ever built.

use super::policy::StringMatch;
use crate::identity::Identity;
use crate::name::Str;

/// Patterns for a plain text.
#[derive(Debug, Default)]
pub(crate) struct TextSet {
    exact: Vec<Str>,
    affixes: Affixes,
}

impl TextSet {
    pub(crate) fn new(patterns: &[StringMatch]) -> Self {
        let mut exact = exacts(patterns);
        exact.sort_unstable();
        Self {
            exact,
            affixes: Affixes::new(patterns),
        }
    }

    pub(crate) fn contains(&self, text: &str) -> bool {
        self.contains_bytes(text.as_bytes())
    }

    /// As [`Self::contains`], for what need not be text, such as the value of a header field.
    pub(crate) fn contains_bytes(&self, text: &[u8]) -> bool {
        let Affixes {
            prefixes,
            suffixes,
            presence,
        } = &self.affixes;
        self.exact
            .binary_search_by(|one| one.as_bytes().cmp(text))
            .is_ok()
            || (*presence && !text.is_empty())
            || prefixes.iter().any(|prefix| text.starts_with(prefix.as_bytes()))
            || suffixes.iter().any(|suffix| text.ends_with(suffix.as_bytes()))
    }
}

/// Patterns for the principal of an identity.
#[derive(Debug, Default)]
pub(crate) struct PrincipalSet {
    /// Exact patterns in the form of an identity.
    exact: Vec<Identity>,
    /// Exact patterns in any other form, which only an unusual identity can equal.
    odd: Vec<Str>,
    affixes: Affixes,
}

impl PrincipalSet {
    pub(crate) fn new(patterns: &[StringMatch]) -> Self {
        let mut set = Self {
            affixes: Affixes::new(patterns),
            ..Self::default()
        };
        for text in exacts(patterns) {
            match format!("spiffe://{text}").parse() {
                Ok(identity) => set.exact.push(identity),
                Err(_) => set.odd.push(text),
            }
        }
        set.exact.sort_unstable();
        set
    }

    pub(crate) fn contains(&self, identity: &Identity) -> bool {
        let principal = Principal::new(identity);
        // Every principal holds at least its fixed words, so presence is certain.
        self.affixes.presence
            || self.exact.binary_search(identity).is_ok()
            || self.odd.iter().any(|text| principal.equals(text))
            || self
                .affixes
                .prefixes
                .iter()
                .any(|prefix| principal.starts_with(prefix))
            || self
                .affixes
                .suffixes
                .iter()
                .any(|suffix| principal.ends_with(suffix))
    }
}

/// The patterns that are not exact.
#[derive(Debug, Default)]
struct Affixes {
    prefixes: Vec<Str>,
    suffixes: Vec<Str>,
    presence: bool,
}

impl Affixes {
    fn new(patterns: &[StringMatch]) -> Self {
        let mut affixes = Self::default();
        for pattern in patterns {
            match pattern {
                StringMatch::Exact(_) => {}
                StringMatch::Prefix(text) => affixes.prefixes.push(text.clone()),
                StringMatch::Suffix(text) => affixes.suffixes.push(text.clone()),
                StringMatch::Presence => affixes.presence = true,
            }
        }
        affixes
    }
}

fn exacts(patterns: &[StringMatch]) -> Vec<Str> {
    let exact = |pattern: &StringMatch| match pattern {
        StringMatch::Exact(text) => Some(text.clone()),
        _ => None,
    };
    patterns.iter().filter_map(exact).collect()
}

/// `<trust domain>/ns/<namespace>/sa/<service account>` in its parts, compared without joining them.
struct Principal<'a>([&'a [u8]; 5]);

impl<'a> Principal<'a> {
    fn new(identity: &'a Identity) -> Self {
        let Identity {
            trust_domain,
            namespace,
            service_account,
        } = identity;
        Self([
            trust_domain.as_bytes(),
            b"/ns/",
            namespace.as_bytes(),
            b"/sa/",
            service_account.as_bytes(),
        ])
    }

    fn equals(&self, text: &str) -> bool {
        let rest = self
            .0
            .iter()
            .try_fold(text.as_bytes(), |rest, part| rest.strip_prefix(*part));
        rest.is_some_and(<[u8]>::is_empty)
    }

    fn starts_with(&self, prefix: &str) -> bool {
        let mut rest = prefix.as_bytes();
        for part in self.0 {
            if rest.len() <= part.len() {
                return part.starts_with(rest);
            }
            let Some(after) = rest.strip_prefix(part) else {
                return false;
            };
            rest = after;
        }
        rest.is_empty()
    }

    fn ends_with(&self, suffix: &str) -> bool {
        let mut rest = suffix.as_bytes();
        for part in self.0.into_iter().rev() {
            if rest.len() <= part.len() {
                return part.ends_with(rest);
            }
            let Some(before) = rest.strip_suffix(part) else {
                return false;
            };
            rest = before;
        }
        rest.is_empty()
    }
}
