//! What is in force as it is written, and probably not as it is meant: a look at everything at once, for `tulle analyze`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_k8s::translate::route::object_kind;
use tulle_k8s::{Key, Kind};
use tulle_model::route::unreached::{Unreached, unreached};
use tulle_model::route::{Kind as RouteKind, Origin, Parent, ParentTo, Route};
use tulle_model::{Reason, Str};

use super::compute::{Emitted, OutKey, compute, services};
use super::trace::NoTrace;
use super::world::{SOURCES, World};

/// One piece of advice about one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Advice {
    /// The object.
    pub(crate) key: Key,
    /// What kind of finding it is.
    pub(crate) reason: Reason,
    /// What is not as it seems.
    pub(crate) cause: String,
    /// What to do.
    pub(crate) fix: &'static str,
}

/// Everything that is to be said of a world.
pub(super) fn advice(world: &World) -> BTreeSet<Advice> {
    let mut found = shared(world);
    found.extend(never_won(world));
    found
}

/// Services that share a port of a workload, each protected by another waypoint. The port lets in whoever comes through
/// either, so that what one of them refuses the other may let pass. One workload stands for all of a service.
fn shared(world: &World) -> BTreeSet<Advice> {
    let protected = protected(world);
    let ways: BTreeSet<&BTreeSet<String>> = protected.values().collect();
    if ways.len() < 2 {
        // Most meshes: nothing that a look at each workload could find.
        return BTreeSet::new();
    }
    let mut sharing: BTreeMap<(&Key, &Key, u16), Key> = BTreeMap::new();
    for workload in SOURCES.into_iter().flat_map(|kind| world.of_kind(kind)) {
        let parts = compute(&OutKey::Workloads(workload.0.clone()), world, &mut NoTrace);
        for emitted in parts.iter().flat_map(|part| &part.emitted) {
            for pair in pairs(emitted, &protected, world) {
                sharing.entry(pair).or_insert_with(|| workload.0.clone());
            }
        }
    }
    let advice = sharing.into_iter().map(|((key, other, port), workload)| Advice {
        key: key.clone(),
        reason: Reason::SharedBackend,
        cause: format!(
            "port {port} of {workload} is also behind {other}, which has another waypoint: what one of them refuses, the \
             other may let in"
        ),
        fix: "name the same waypoint at both, or give each a port of its own",
    });
    advice.collect()
}

/// The services that only a waypoint can protect, with the waypoints they name.
fn protected(world: &World) -> BTreeMap<&Key, BTreeSet<String>> {
    let kinds = [Kind::Service, Kind::ServiceEntry];
    let definitions = kinds.into_iter().flat_map(|kind| world.of_kind(kind));
    let named = definitions.filter_map(|(key, object)| {
        let binding = services::binding(key, object, world);
        let waypoints: BTreeSet<String> = binding.named().map(ToString::to_string).collect();
        let is_meant = !waypoints.is_empty() && services::protection(key, object, &binding, world);
        is_meant.then_some((key, waypoints))
    });
    named.collect()
}

/// Pairs of protected services that a port of a workload belongs to, and whose waypoints differ.
fn pairs<'a>(
    emitted: &Emitted,
    protected: &BTreeMap<&'a Key, BTreeSet<String>>,
    world: &'a World,
) -> Vec<(&'a Key, &'a Key, u16)> {
    let Emitted::Workload(workload, _) = emitted else {
        return Vec::new();
    };
    let services = workload.services.iter();
    let services: Vec<_> = services
        .filter_map(|(service, ports)| {
            let key = services::winner(&service.hostname, &service.namespace, world)?;
            Some((key, ports, protected.get(key)?))
        })
        .collect();
    let mut pairs = Vec::new();
    for (key, ports, waypoints) in &services {
        for (other, other_ports, _) in services.iter().filter(|(_, _, others)| others != waypoints) {
            let is_shared = |port: &&u16| other_ports.values().any(|one| one == *port);
            if let Some(port) = ports.values().find(is_shared) {
                pairs.push((*key, *other, *port));
            }
        }
    }
    pairs
}

/// Matches of routes that another one wins over, whatever the request.
fn never_won(world: &World) -> BTreeSet<Advice> {
    let kinds = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute];
    let keys = kinds.into_iter().flat_map(|kind| world.of_kind(kind));
    let routes: Vec<Arc<Route>> = keys
        .flat_map(|(key, _)| compute(&OutKey::Routes(key.clone()), world, &mut NoTrace))
        .flat_map(|part| part.emitted)
        .filter_map(|emitted| match emitted {
            Emitted::Route(route, _) => Some(route),
            _ => None,
        })
        .collect();
    let mut hung: BTreeMap<_, Vec<(&Route, &Parent)>> = BTreeMap::new();
    for route in &routes {
        for parent in &route.parents {
            if let ParentTo::Service(service) = &parent.to {
                let callers = (parent.consumer_namespace.as_ref(), &parent.hostnames);
                let place = (route.origin.kind, service, callers);
                hung.entry(place).or_default().push((route, parent));
            }
        }
    }
    let found = hung.values().flat_map(|hung| unreached(hung));
    found.filter_map(|one| never(&one)).collect()
}

fn never(one: &Unreached<'_>) -> Option<Advice> {
    let key = key_of(&one.route.origin)?;
    let ParentTo::Service(service) = &one.parent.to else {
        return None;
    };
    let by = key_of(&one.by.origin).filter(|by| *by != key);
    let by = by.map_or_else(String::new, |by| format!(" of {by}"));
    let cause = format!(
        "{} can never win at {service}: {}{by} takes the same and {}",
        place(one.route, one.index),
        place(one.by, one.by_index),
        one.because.as_str()
    );
    Some(Advice {
        key,
        reason: Reason::MatchNeverWins,
        cause,
        fix: "remove one of them, or let it ask for something that the other does not",
    })
}

fn key_of(origin: &Origin) -> Option<Key> {
    let (namespace, name): (&Str, &Str) = (&origin.namespace, &origin.name);
    Some(Key::new(
        object_kind(origin.kind)?,
        namespace.clone(),
        name.clone(),
    ))
}

/// `rules[1].matches[0]`; rules of connections have no matches.
fn place(route: &Route, index: usize) -> String {
    let rule = route.origin.rule_index;
    match route.origin.kind {
        RouteKind::Http | RouteKind::Grpc if !route.matches.is_empty() => {
            format!("rules[{rule}].matches[{index}]")
        }
        _ => format!("rules[{rule}]"),
    }
}
