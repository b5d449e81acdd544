//! Which waypoints there are, who they are, and which addresses each needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use tulle_model::{Identity, Str};

/// One waypoint, as far as serving it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fronts {
    /// The identity its replicas carry.
    pub identity: Identity,
    /// Names of the Address resources it needs: its own replicas, fronts, backends of its routes, endpoints of both.
    pub addresses: BTreeSet<Str>,
    /// Names of the policies that its own replicas name, which judge who may connect to them.
    pub authorizations: BTreeSet<Str>,
}

/// Every waypoint by `<namespace>/<gateway>`.
#[derive(Debug, Clone, Default)]
pub struct Fronted {
    waypoints: RedBlackTreeMapSync<Str, Arc<Fronts>>,
    /// Several gateways may run under one service account; the first by name counts.
    by_identity: RedBlackTreeMapSync<Identity, Arc<BTreeSet<Str>>>,
}

impl Fronted {
    /// The waypoint of this name, `<namespace>/<gateway>`.
    #[must_use]
    pub fn of(&self, waypoint: &str) -> Option<&Fronts> {
        self.waypoints.get(waypoint).map(AsRef::as_ref)
    }

    /// The waypoints whose replicas carry this identity, by name.
    pub fn with_identity(&self, identity: &Identity) -> impl Iterator<Item = &Str> {
        self.by_identity
            .get(identity)
            .into_iter()
            .flat_map(|names| names.iter())
    }

    /// Every waypoint, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Str, &Fronts)> {
        self.waypoints
            .iter()
            .map(|(name, fronts)| (name, fronts.as_ref()))
    }

    /// Replaces or forgets a waypoint; says whether that is a change.
    pub(crate) fn set(&mut self, waypoint: &Str, fronts: Option<Fronts>) -> bool {
        if self.of(waypoint) == fronts.as_ref() {
            return false;
        }
        if let Some(old) = self.of(waypoint).map(|old| old.identity.clone()) {
            self.name(&old, waypoint, false);
        }
        match fronts {
            Some(fronts) => {
                self.name(&fronts.identity, waypoint, true);
                self.waypoints.insert_mut(waypoint.clone(), Arc::new(fronts));
            }
            None => drop(self.waypoints.remove_mut(waypoint)),
        }
        true
    }

    fn name(&mut self, identity: &Identity, waypoint: &Str, add: bool) {
        let mut names = self
            .by_identity
            .get(identity)
            .map(|names| BTreeSet::clone(names))
            .unwrap_or_default();
        if add {
            names.insert(waypoint.clone());
        } else {
            names.remove(waypoint);
        }
        if names.is_empty() {
            self.by_identity.remove_mut(identity);
        } else {
            self.by_identity.insert_mut(identity.clone(), Arc::new(names));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waypoint_is_found_by_the_identity_it_has_now() {
        let (old, new) = (
            Identity::new("cluster.local", "shop", "way"),
            Identity::new("cluster.local", "shop", "other"),
        );
        let fronts = |identity: &Identity| Fronts {
            identity: identity.clone(),
            addresses: BTreeSet::new(),
            authorizations: BTreeSet::new(),
        };
        let mut fronted = Fronted::default();
        assert!(fronted.set(&"shop/way".into(), Some(fronts(&old))));
        assert!(!fronted.set(&"shop/way".into(), Some(fronts(&old))));
        assert!(fronted.set(&"shop/way".into(), Some(fronts(&new))));
        assert_eq!(fronted.with_identity(&old).count(), 0);
        assert_eq!(
            fronted.with_identity(&new).collect::<Vec<_>>(),
            [&Str::from("shop/way")]
        );
        assert!(fronted.set(&"shop/way".into(), None));
        assert_eq!(fronted.with_identity(&new).count(), 0);
    }
}
