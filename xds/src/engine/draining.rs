//! Make before break: what is taken from a waypoint stays with it, marked as draining, until node proxies have heard
//! that it is not in front any more. Whoever waits for that is outside; the engine knows no clock and no client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_model::Str;
use tulle_model::waypoint::{Front, Waypoint};

use super::Engine;
use super::compute::Emitted;
use crate::snapshot::{ResourceType, Scope, Snapshot};

/// Type and name of a resource.
type Named = (ResourceType, Str);

/// What waypoints keep, and what this turn took from them.
#[derive(Debug, Default)]
pub(super) struct Draining {
    waypoints: BTreeMap<Str, Drain>,
    /// Fronts and settings that are not computed any more.
    unbound: Vec<Emitted>,
    /// Rules and policies, and the waypoints they are not for any more.
    narrowed: Vec<(Emitted, BTreeSet<Str>)>,
}

/// What one waypoint keeps.
#[derive(Debug, Default)]
struct Drain {
    /// Cut that took something from it last.
    since: u64,
    kept: BTreeMap<Named, Emitted>,
}

impl Draining {
    /// Puts aside what is not computed any more, if a waypoint may go on with it; says whether it does.
    pub(super) fn take(&mut self, gone: &Emitted) -> bool {
        let takes = matches!(gone, Emitted::Waypoint(_));
        if takes {
            self.unbound.push(gone.clone());
        }
        takes
    }

    /// Notes for which waypoints a rule or policy is not any more.
    pub(super) fn narrow(&mut self, new: &Emitted, before: Option<&Scope>) {
        let (Some(Scope::Waypoints { waypoints: before }), Emitted::Route(_, now) | Emitted::Policy(_, now)) =
            (before, new)
        else {
            return;
        };
        let lost: BTreeSet<Str> = before.difference(now).cloned().collect();
        if !lost.is_empty() {
            self.narrowed.push((new.clone(), lost));
        }
    }

    /// Forgets what is kept of a resource: it is computed again, or gone for everybody.
    pub(super) fn forget(&mut self, ty: ResourceType, name: &Str) -> Vec<Emitted> {
        if self.waypoints.is_empty() {
            return Vec::new();
        }
        let key = (ty, name.clone());
        let drains = self.waypoints.values_mut();
        drains.filter_map(|drain| drain.kept.remove(&key)).collect()
    }

    /// The waypoints that drain, and the cut since which they do.
    fn list(&self) -> BTreeMap<Str, u64> {
        let drains = self.waypoints.iter();
        drains.map(|(name, drain)| (name.clone(), drain.since)).collect()
    }
}

/// The waypoint that a front or settings are of.
fn waypoint_of(emitted: &Emitted) -> Option<Str> {
    match emitted {
        Emitted::Waypoint(waypoint) => Some(match waypoint.as_ref() {
            Waypoint::Settings(settings) => settings.name(),
            Waypoint::Front(front) => front.waypoint.clone(),
        }),
        _ => None,
    }
}

fn is_settings(emitted: &Emitted) -> bool {
    matches!(emitted, Emitted::Waypoint(waypoint) if matches!(waypoint.as_ref(), Waypoint::Settings(_)))
}

/// A front as it stands until it goes.
fn marked(emitted: Emitted) -> Emitted {
    match &emitted {
        Emitted::Waypoint(waypoint) => match waypoint.as_ref() {
            Waypoint::Front(front) => Emitted::Waypoint(Arc::new(Waypoint::Front(Front {
                draining: true,
                ..front.clone()
            }))),
            Waypoint::Settings(_) => emitted,
        },
        _ => emitted,
    }
}

/// A rule or policy as far as one waypoint goes.
fn for_one(emitted: &Emitted, waypoint: &Str) -> Emitted {
    let one = Arc::new(BTreeSet::from([waypoint.clone()]));
    match emitted {
        Emitted::Route(route, _) => Emitted::Route(route.clone(), one),
        Emitted::Policy(policy, _) => Emitted::Policy(policy.clone(), one),
        other => other.clone(),
    }
}

impl Engine {
    /// Undoes what was kept of a resource that is computed again or gone.
    pub(super) fn forget_kept(&mut self, ty: ResourceType, name: &Str) {
        for kept in self.draining.forget(ty, name) {
            self.fronting.count(&kept, false);
        }
    }

    /// Lets waypoints keep what this turn took from them; says whether anything moved.
    pub(super) fn keep_draining(&mut self, sequence: u64) -> bool {
        let mut changed = false;
        let unbound = std::mem::take(&mut self.draining.unbound);
        let leaving: BTreeSet<Str> = unbound
            .iter()
            .filter(|emitted| is_settings(emitted))
            .filter_map(waypoint_of)
            .collect();
        for emitted in unbound {
            let Some(waypoint) = waypoint_of(&emitted) else {
                continue;
            };
            if !leaving.contains(&waypoint) && !self.fronting.is_known(&waypoint) {
                // There is no such waypoint that could go on with anything.
                changed |= self.snapshot.waypoints.remove(&emitted.name(), sequence);
                continue;
            }
            let kept = marked(emitted);
            let resource = kept.encode(self.reach.scope(&kept));
            changed |= self.snapshot.waypoints.set(resource, sequence);
            self.keep(&waypoint, kept, sequence);
        }
        for (emitted, lost) in std::mem::take(&mut self.draining.narrowed) {
            changed |= self.keep_narrowed(&emitted, lost, sequence);
        }
        self.snapshot.draining = Arc::new(self.draining.list());
        changed
    }

    fn keep(&mut self, waypoint: &Str, kept: Emitted, sequence: u64) {
        self.fronting.count(&kept, true);
        let drain = self.draining.waypoints.entry(waypoint.clone()).or_default();
        drain.since = sequence;
        drain.kept.insert((kept.resource_type(), kept.name()), kept);
    }

    fn keep_narrowed(&mut self, emitted: &Emitted, mut lost: BTreeSet<Str>, sequence: u64) -> bool {
        lost.retain(|waypoint| self.draining.waypoints.contains_key(waypoint));
        let (ty, name) = (emitted.resource_type(), emitted.name());
        let slot = self.snapshot.table(ty).get(&name).cloned();
        let Some(Scope::Waypoints { waypoints }) = slot.map(|slot| slot.scope.clone()) else {
            return false;
        };
        if lost.is_empty() {
            return false;
        }
        let waypoints = Arc::new(waypoints.union(&lost).cloned().collect());
        for waypoint in &lost {
            self.keep(waypoint, for_one(emitted, waypoint), sequence);
        }
        let table = self.snapshot.table_mut(ty);
        table.rescope(&name, Scope::Waypoints { waypoints }, sequence)
    }

    /// Takes from a waypoint what it kept since this cut: nobody sends it anything for that any more.
    pub fn release(&mut self, waypoint: &Str, since: u64) -> Snapshot {
        let is_meant = |drain: &Drain| drain.since == since;
        if !self.draining.waypoints.get(waypoint).is_some_and(is_meant) {
            return self.snapshot.clone();
        }
        let drain = self.draining.waypoints.remove(waypoint).unwrap_or_default();
        let sequence = self.snapshot.sequence + 1;
        for ((ty, name), kept) in drain.kept {
            self.fronting.count(&kept, false);
            let slot = self.snapshot.table(ty).get(&name).cloned();
            let table = self.snapshot.table_mut(ty);
            match slot.map(|slot| slot.scope.clone()) {
                Some(Scope::Waypoints { waypoints }) if ty != ResourceType::Waypoint => {
                    let mut waypoints = BTreeSet::clone(&waypoints);
                    waypoints.remove(waypoint);
                    let waypoints = Arc::new(waypoints);
                    table.rescope(&name, Scope::Waypoints { waypoints }, sequence);
                }
                _ => {
                    table.remove(&name, sequence);
                }
            }
        }
        self.publish_fronted();
        self.snapshot.draining = Arc::new(self.draining.list());
        self.snapshot.sequence = sequence;
        self.snapshot.clone()
    }
}
