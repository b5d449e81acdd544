//! Policies in the form they are evaluated in, and which of them apply to a workload.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Map, OrderedMap, empty_map};
use crate::authz::matcher::Matcher;
use crate::authz::policy::{Authorization, Scope};
use crate::name::{NamespacedName, Str};
use crate::workload::Workload;

/// Names up to which each is compared with those before it.
const COMPARED_MAX: usize = 16;

/// A policy and its compiled rules. It reads like the [`Authorization`] it was made from.
#[derive(Debug)]
pub struct Policy {
    authorization: Arc<Authorization>,
    key: NamespacedName,
    matcher: Matcher,
}

impl Policy {
    /// Compiles a policy.
    #[must_use]
    pub fn new(authorization: Arc<Authorization>) -> Self {
        let matcher = Matcher::new(&authorization);
        Self {
            key: authorization.key(),
            authorization,
            matcher,
        }
    }

    /// The policy as it travels.
    #[must_use]
    pub fn authorization(&self) -> &Arc<Authorization> {
        &self.authorization
    }

    /// The key it is stored and referred to by.
    #[must_use]
    pub fn key(&self) -> &NamespacedName {
        &self.key
    }

    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }
}

impl std::ops::Deref for Policy {
    type Target = Authorization;

    fn deref(&self) -> &Authorization {
        &self.authorization
    }
}

/// The policies that apply to one workload; [`PolicySet::check`] judges a connection by them.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    /// Global ones, then its namespace's, each in the order of names; then those it names.
    pub policies: Vec<Arc<Policy>>,
    /// Policies it names that have not arrived.
    pub missing: Vec<NamespacedName>,
}

/// Policies by name and by reach.
#[derive(Debug, Clone)]
pub(super) struct Policies {
    by_key: Map<NamespacedName, Arc<Policy>>,
    global: OrderedMap<NamespacedName, Arc<Policy>>,
    by_namespace: Map<Str, OrderedMap<NamespacedName, Arc<Policy>>>,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            by_key: empty_map(),
            global: OrderedMap::default(),
            by_namespace: empty_map(),
        }
    }
}

impl Policies {
    /// Adds or replaces. `None`: nothing changed; else the scope it had before, if it was there.
    pub(super) fn insert(&mut self, authorization: Arc<Authorization>) -> Option<Option<Scope>> {
        let key = authorization.key();
        if self
            .by_key
            .get(&key)
            .is_some_and(|before| before.authorization == authorization)
        {
            return None;
        }
        let before = self.remove(&key);
        let policy = Arc::new(Policy::new(authorization));
        match policy.scope {
            Scope::Global => self.global.insert_mut(key.clone(), Arc::clone(&policy)),
            Scope::Namespace => {
                let mut group = self.by_namespace.get(&key.namespace).cloned().unwrap_or_default();
                group.insert_mut(key.clone(), Arc::clone(&policy));
                self.by_namespace.insert_mut(key.namespace.clone(), group);
            }
            Scope::WorkloadSelector => {}
        }
        self.by_key.insert_mut(key, policy);
        Some(before)
    }

    /// Removes; the scope it had, if it was there.
    pub(super) fn remove(&mut self, key: &NamespacedName) -> Option<Scope> {
        let scope = self.by_key.get(key)?.scope;
        self.by_key.remove_mut(key);
        match scope {
            Scope::Global => {
                self.global.remove_mut(key);
            }
            Scope::Namespace => {
                let rest = self
                    .by_namespace
                    .get(&key.namespace)
                    .map(|group| group.remove(key));
                match rest {
                    Some(rest) if !rest.is_empty() => {
                        self.by_namespace.insert_mut(key.namespace.clone(), rest);
                    }
                    _ => {
                        self.by_namespace.remove_mut(&key.namespace);
                    }
                }
            }
            Scope::WorkloadSelector => {}
        }
        Some(scope)
    }

    pub(super) fn get(&self, key: &NamespacedName) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    /// A named policy applies only if its scope says so: one of another scope already applies, or does not.
    pub(super) fn of(&self, workload: &Workload) -> PolicySet {
        let mut set = PolicySet::default();
        set.policies.extend(self.global.values().cloned());
        if let Some(group) = self.by_namespace.get(&workload.namespace) {
            set.policies.extend(group.values().cloned());
        }
        for name in each_once(&workload.authorization_policies) {
            match self.by_key.get(name) {
                Some(policy) if policy.scope == Scope::WorkloadSelector => {
                    set.policies.push(Arc::clone(policy));
                }
                Some(_) => {}
                None => set.missing.push(name.clone()),
            }
        }
        self.try_out(workload, &mut set);
        set
    }

    /// What is only judged is never missing, and one that is enforced meanwhile waits until it is named as such.
    fn try_out(&self, workload: &Workload, set: &mut PolicySet) {
        let mut named = workload.dry_runs().peekable();
        if named.peek().is_none() {
            return;
        }
        let enforced: HashSet<_> = workload.authorization_policies.iter().collect();
        let named = named.filter(|name| !enforced.contains(name));
        let found = named.filter_map(|name| self.by_key.get(&name));
        let tried = found.filter(|policy| policy.scope == Scope::WorkloadSelector && policy.dry_run);
        set.policies.extend(tried.cloned());
    }

    /// How many entries all indexes hold, to prove that none is left behind.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.by_key.size() + self.global.size() + self.by_namespace.size()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }
}

/// Each name once, where it stands first. This is on the way of every connection: a few names are compared without an
/// allocation, and of thousands none is compared with all before it.
fn each_once(names: &[NamespacedName]) -> impl Iterator<Item = &NamespacedName> {
    let mut seen = HashSet::with_hasher(ahash::RandomState::new());
    names.iter().enumerate().filter_map(move |(at, name)| {
        let is_new = match names.len() {
            ..=COMPARED_MAX => !names[..at].contains(name),
            _ => seen.insert(name),
        };
        is_new.then_some(name)
    })
}
