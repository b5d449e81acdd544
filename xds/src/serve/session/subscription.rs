//! What a client wants of one type: everything, or names and aliases.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_model::Str;
use tulle_proto::resume::Layout;

use crate::serve::session::Request;
use crate::snapshot::Slot;

/// The subscription of one type on one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    wildcard: bool,
    /// Shared with what is told of the client.
    names: Arc<BTreeSet<Str>>,
    /// The client asks by name for what it meets; then what goes with those names is told along.
    on_demand: bool,
    along: Arc<BTreeSet<Str>>,
    /// The first cut whose acceptance says that everything asked for by name is there.
    told_by: u64,
}

impl Subscription {
    /// The subscription that a type's first request makes.
    ///
    /// Two empty lists mean the wildcard. Without a wildcard, the names the client reports to hold count as
    /// subscribed.
    #[must_use]
    pub fn open(request: &Request) -> Self {
        let mut subscription = Self {
            wildcard: !request.changes_subscription(),
            on_demand: request.names_wildcard() && request.unsubscribe.iter().any(|name| &**name == "*"),
            ..Self::default()
        };
        if !subscription.wildcard {
            subscription.subscribe(&request.subscribe);
            let wildcard_given_up = request.unsubscribe.iter().any(|name| &**name == "*");
            if !subscription.wildcard || wildcard_given_up {
                let held = request.initial_versions.keys().filter(|name| {
                    &***name != "*" && !Layout::ALL.iter().any(|layout| layout.name() == &***name)
                });
                Arc::make_mut(&mut subscription.names).extend(held.cloned());
            }
            subscription.unsubscribe(&request.unsubscribe);
        }
        subscription
    }

    /// Applies a later request; gives the names that it must be answered with, whether changed or not.
    ///
    /// Those are the names subscribed to (again), and names given up while the wildcard still covers them.
    pub fn change(&mut self, request: &Request) -> BTreeSet<Str> {
        let mut asked = self.subscribe(&request.subscribe);
        let given_up = self.unsubscribe(&request.unsubscribe);
        if self.wildcard {
            asked.extend(given_up);
        } else {
            asked.retain(|name| self.names.contains(name));
        }
        asked
    }

    fn subscribe(&mut self, names: &[Str]) -> BTreeSet<Str> {
        let mut subscribed = BTreeSet::new();
        for name in names {
            if &**name == "*" {
                self.wildcard = true;
            } else {
                Arc::make_mut(&mut self.names).insert(name.clone());
                subscribed.insert(name.clone());
            }
        }
        subscribed
    }

    /// Gives the names that were subscribed to before; others are ignored.
    fn unsubscribe(&mut self, names: &[Str]) -> BTreeSet<Str> {
        let mut given_up = BTreeSet::new();
        for name in names {
            if &**name == "*" {
                self.wildcard = false;
            } else if self.names.contains(name) && Arc::make_mut(&mut self.names).remove(name) {
                given_up.insert(name.clone());
            }
        }
        given_up
    }

    /// Whether everything is wanted.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty() && self.along.is_empty()
    }

    /// Names and aliases subscribed to.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<Str> {
        &self.names
    }

    /// Whether the client asks by name for what it meets.
    #[must_use]
    pub fn is_on_demand(&self) -> bool {
        self.on_demand && !self.wildcard
    }

    /// What is told along with the names.
    #[must_use]
    pub fn along(&self) -> &Arc<BTreeSet<Str>> {
        &self.along
    }

    /// Replaces what is told along.
    pub fn set_along(&mut self, along: Arc<BTreeSet<Str>>) {
        self.along = along;
    }

    /// Notes that what is asked for by name is not told whole before this cut is.
    pub fn set_told_by(&mut self, cut: u64) {
        self.told_by = self.told_by.max(cut);
    }

    /// Whether a client that accepted this cut has this resource, which it is to have.
    #[must_use]
    pub fn has_by(&self, acked: u64, slot: &Slot) -> bool {
        acked >= slot.sequence && (acked >= self.told_by || self.wildcard && !self.names_it(slot))
    }

    /// Whether the client asked for this resource by its name or an alias, or for what it goes with.
    #[must_use]
    pub fn names_it(&self, slot: &Slot) -> bool {
        self.along.contains(&slot.name)
            || self.names.contains(&slot.name)
            || slot.aliases.iter().any(|alias| self.names.contains(alias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(subscribe: &[&str], unsubscribe: &[&str]) -> Request {
        Request {
            subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
            unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
            ..Request::default()
        }
    }

    fn names(names: &[&str]) -> BTreeSet<Str> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn two_empty_lists_mean_the_wildcard_only_at_first() {
        let mut subscription = Subscription::open(&request(&[], &[]));
        assert!(subscription.is_wildcard());
        subscription.change(&request(&[], &["*"]));
        subscription.change(&request(&[], &[]));
        assert!(subscription.is_empty());
    }

    #[test]
    fn subscribing_to_names_does_not_end_the_wildcard() {
        for mut subscription in [
            Subscription::open(&request(&[], &[])),
            Subscription::open(&request(&["*"], &[])),
        ] {
            assert_eq!(subscription.change(&request(&["a"], &[])), names(&["a"]));
            assert!(subscription.is_wildcard());
            subscription.change(&request(&[], &["*"]));
            assert_eq!(*subscription.names(), names(&["a"]));
        }
    }

    #[test]
    fn subscribe_comes_before_unsubscribe() {
        assert!(Subscription::open(&request(&["*"], &["*"])).is_empty());
        let mut subscription = Subscription::open(&request(&["a"], &[]));
        assert_eq!(subscription.change(&request(&["b"], &["b"])), names(&[]));
        assert_eq!(*subscription.names(), names(&["a"]));
    }

    #[test]
    fn held_names_count_as_subscribed_unless_the_wildcard_covers_them() {
        let with_held = |mut request: Request| {
            request.initial_versions.insert("held".into(), "1".into());
            Subscription::open(&request)
        };
        assert_eq!(*with_held(request(&["a"], &[])).names(), names(&["a", "held"]));
        assert_eq!(*with_held(request(&["*"], &["*"])).names(), names(&["held"]));
        assert_eq!(*with_held(request(&["*"], &[])).names(), names(&[]));
        assert_eq!(*with_held(request(&[], &[])).names(), names(&[]));
    }

    #[test]
    fn a_name_given_up_under_the_wildcard_is_answered_and_an_unknown_one_is_not() {
        let mut subscription = Subscription::open(&request(&["*", "a"], &[]));
        assert_eq!(
            subscription.change(&request(&[], &["a", "unknown"])),
            names(&["a"])
        );
    }
}
