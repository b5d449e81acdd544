//! Chooses the rule of a connection that is no HTTP: by the server name of TLS, or the one rule of TCP.

use std::sync::Arc;

use ahash::AHashMap;
use smallvec::SmallVec;

use super::precedence::{Age, full_name};
use super::{Parent, Route};
use crate::name::Str;

/// Longest name of DNS.
const NAME_BYTES_MAX: usize = 255;

/// Rules of TLSRoutes by the name that a client asks for.
#[derive(Debug)]
pub struct TlsRouter<T> {
    rules: Vec<T>,
    exact: AHashMap<Box<str>, usize>,
    /// By what stands after `*.`.
    wildcards: AHashMap<Box<str>, usize>,
    /// The rule without names.
    any: Option<usize>,
}

/// Older objects come first, then names, then the rules of one object in their order.
fn order(route: &Route) -> (Age, Str, u32) {
    let origin = &route.origin;
    (Age(origin.created), full_name(origin), origin.rule_index)
}

impl<T> TlsRouter<T> {
    /// Compiles rules, each with the parent that it hangs on here.
    pub fn compile<'r>(
        routes: impl IntoIterator<Item = (&'r Arc<Route>, &'r Parent)>,
        mut rule: impl FnMut(&'r Arc<Route>) -> T,
    ) -> Self {
        let mut routes: Vec<_> = routes.into_iter().collect();
        routes.sort_by_cached_key(|(route, _)| order(route));
        let mut router = Self {
            rules: Vec::with_capacity(routes.len()),
            exact: AHashMap::new(),
            wildcards: AHashMap::new(),
            any: None,
        };
        for (place, (route, parent)) in routes.into_iter().enumerate() {
            router.rules.push(rule(route));
            if parent.hostnames.is_empty() {
                router.any.get_or_insert(place);
            }
            for name in &parent.hostnames {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(suffix) => router.wildcards.entry(suffix.into()).or_insert(place),
                    None => router.exact.entry(name.into()).or_insert(place),
                };
            }
        }
        router
    }

    /// The rule for a server name: exact, then the longest wildcard, then the rule without names. `None` is no rule.
    #[must_use]
    pub fn select(&self, server_name: Option<&str>) -> Option<&T> {
        let named = server_name.and_then(|name| self.named(name));
        named.or(self.any).map(|place| &self.rules[place])
    }

    fn named(&self, name: &str) -> Option<usize> {
        if name.len() > NAME_BYTES_MAX {
            return None;
        }
        let lower: SmallVec<[u8; NAME_BYTES_MAX]> =
            name.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
        let lower = std::str::from_utf8(&lower).ok()?;
        let mut suffixes = std::iter::successors(lower.split_once('.'), |(_, rest)| rest.split_once('.'));
        let exact = self.exact.get(lower);
        let wildcard =
            || suffixes.find_map(|(label, suffix)| self.wildcards.get(suffix).filter(|_| !label.is_empty()));
        exact.or_else(wildcard).copied()
    }

    /// What the rules were compiled to, in the order of precedence.
    #[must_use]
    pub fn rules(&self) -> &[T] {
        &self.rules
    }
}

/// The rule of TCPRoutes: only the first counts.
#[derive(Debug)]
pub struct TcpRouter<T> {
    rule: T,
}

impl<T> TcpRouter<T> {
    /// Compiles the rule that counts. `None` without rules.
    pub fn compile<'r>(
        routes: impl IntoIterator<Item = &'r Arc<Route>>,
        rule: impl FnOnce(&'r Arc<Route>) -> T,
    ) -> Option<Self> {
        let first = routes.into_iter().min_by_key(|route| order(route))?;
        Some(Self { rule: rule(first) })
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> &T {
        &self.rule
    }
}
