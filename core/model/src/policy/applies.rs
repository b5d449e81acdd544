//! Which policies apply at a place, and which of them wins.
//!
//! Traffic concerns: route rule, route, port of the service, service, waypoint, class, mesh. The nearest wins whole;
//! fields are not merged. Among equals the oldest wins, then the first by namespace and name. Security concerns never
//! override each other: all that apply are evaluated, in one fixed order.

use std::sync::Arc;

use super::{Concern, On, Policy, Target};
use crate::name::{NamespacedHostname, Str, WorkloadUid};
use crate::route::{Created, Origin};

#[cfg(test)]
mod tests;

/// A place that policies are attached to: where a request or connection stands when a concern is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place<'a> {
    /// The waypoint it passes; `None` asks for what is attached to the object itself, as for the backend of a route.
    pub waypoint: Option<Passed<'a>>,
    /// What is addressed.
    pub object: Object<'a>,
    /// The route that was chosen, with its rule.
    pub route: Option<&'a Origin>,
}

/// A waypoint that is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed<'a> {
    /// `<namespace>/<gateway>`.
    pub name: &'a str,
    /// Class of its gateway.
    pub class: &'a str,
}

/// What is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Object<'a> {
    /// Nothing that a policy names.
    #[default]
    Unnamed,
    /// A port of a service.
    Service(&'a NamespacedHostname, u16),
    /// A port of a workload, reached by its own address.
    Workload(&'a WorkloadUid, u16),
}

/// How near a target is; the smaller, the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rank {
    /// One rule of a route.
    Rule,
    /// A route.
    Route,
    /// A port of a service or workload.
    Port,
    /// A service or workload.
    Object,
    /// A waypoint.
    Waypoint,
    /// Waypoints of a class.
    Class,
    /// The mesh.
    Mesh,
}

impl Target {
    /// How near this target is to a place; `None` if the place is not meant.
    #[must_use]
    pub fn rank(&self, place: &Place<'_>) -> Option<Rank> {
        let port = match place.object {
            Object::Unnamed => None,
            Object::Service(_, port) | Object::Workload(_, port) => Some(port),
        };
        if self.port.is_some() && self.port != port {
            return None;
        }
        let passed = |holds: &dyn Fn(Passed<'_>) -> bool| place.waypoint.is_some_and(holds);
        let near = |rank| if self.port.is_some() { Rank::Port } else { rank };
        match &self.on {
            On::Route {
                kind,
                namespace,
                name,
            } => {
                let route = place.route?;
                let is_route = (route.kind, &route.namespace, &route.name) == (*kind, namespace, name);
                match &self.section {
                    None => is_route.then_some(Rank::Route),
                    Some(section) => (is_route && route.rule_name == *section).then_some(Rank::Rule),
                }
            }
            On::Service(name) => {
                let is_it = matches!(place.object, Object::Service(service, _) if service == name);
                is_it.then(|| near(Rank::Object))
            }
            On::Workload(uid) => {
                let is_it = matches!(place.object, Object::Workload(workload, _) if workload == uid);
                is_it.then(|| near(Rank::Object))
            }
            On::Waypoint(name) => passed(&|it| *it.name == **name).then_some(Rank::Waypoint),
            On::Class(name) => passed(&|it| *it.class == **name).then_some(Rank::Class),
            On::Mesh => passed(&|_| true).then_some(Rank::Mesh),
        }
    }
}

impl Policy {
    /// How near the policy is to a place: the rank of its nearest target.
    #[must_use]
    pub fn rank(&self, place: &Place<'_>) -> Option<Rank> {
        self.targets.iter().filter_map(|target| target.rank(place)).min()
    }

    /// What orders policies of one rank: the older comes first, then the first by namespace and name. One without an
    /// age is the youngest.
    #[must_use]
    pub fn age(&self) -> Age<'_> {
        let Origin {
            created,
            namespace,
            name,
            ..
        } = &self.origin;
        Age {
            is_unknown: created.is_none(),
            created: *created,
            namespace,
            name,
            object: &self.object,
            concern: self.concern.as_str(),
        }
    }
}

/// What orders policies of one rank. The last two parts tell concerns of one object apart, and objects of different
/// kinds that share a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age<'a> {
    is_unknown: bool,
    created: Option<Created>,
    namespace: &'a Str,
    name: &'a Str,
    object: &'a Str,
    concern: &'static str,
}

/// The security policies that apply at a place, oldest first. All of them are to be evaluated, dry ones included.
#[must_use]
pub fn security<'a>(
    policies: impl IntoIterator<Item = &'a Arc<Policy>>,
    place: &Place<'_>,
) -> Vec<&'a Arc<Policy>> {
    let mut found: Vec<_> = policies
        .into_iter()
        .filter(|policy| policy.concern.is_security() && policy.rank(place).is_some())
        .collect();
    found.sort_by_key(|policy| policy.age());
    found
}

/// The policy that decides a traffic concern at a place. `pick` says which concern; dry policies decide nothing.
#[must_use]
pub fn winner<'a, C>(
    policies: impl IntoIterator<Item = &'a Arc<Policy>>,
    place: &Place<'_>,
    pick: impl Fn(&'a Concern) -> Option<&'a C>,
) -> Option<(&'a Arc<Policy>, &'a C)> {
    let near = ranked(policies, place, pick);
    near.min_by_key(|(rank, policy, _)| (*rank, policy.age()))
        .map(|(_, policy, concern)| (policy, concern))
}

/// The winner of each rank, nearest first: for limits, of which a request has to pass every one that stands in its
/// way. A limit of the waypoint so holds beside that of a route.
#[must_use]
pub fn each_rank<'a, C>(
    policies: impl IntoIterator<Item = &'a Arc<Policy>>,
    place: &Place<'_>,
    pick: impl Fn(&'a Concern) -> Option<&'a C>,
) -> Vec<(&'a Arc<Policy>, &'a C)> {
    let mut found: Vec<_> = ranked(policies, place, pick).collect();
    found.sort_by_key(|(rank, policy, _)| (*rank, policy.age()));
    found.dedup_by_key(|(rank, ..)| *rank);
    found
        .into_iter()
        .map(|(_, policy, concern)| (policy, concern))
        .collect()
}

fn ranked<'a, C: 'a>(
    policies: impl IntoIterator<Item = &'a Arc<Policy>>,
    place: &Place<'_>,
    pick: impl Fn(&'a Concern) -> Option<&'a C>,
) -> impl Iterator<Item = (Rank, &'a Arc<Policy>, &'a C)> {
    policies.into_iter().filter_map(move |policy| {
        let concern = pick(&policy.concern).filter(|_| !policy.dry_run)?;
        Some((policy.rank(place)?, policy, concern))
    })
}
