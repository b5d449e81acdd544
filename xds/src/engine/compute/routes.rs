//! Routes and the policies that waypoints enforce, each with the waypoints it is for.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_k8s::translate::{policy, route};
use tulle_k8s::{Key, Object};
use tulle_model::route::{Parent, ParentTo};
use tulle_model::{NamespacedHostname, Str};

use super::super::index::{self, IndexKey};
use super::super::world::World;
use super::{Emitted, Part};

/// The rules of a route object.
pub(super) fn routes(key: &Key, world: &World) -> Vec<Part> {
    let Some(object) = world.get(key) else {
        return Vec::new();
    };
    let translated = route::route(object, &others(key, object, world), world);
    let waypoints = Arc::new(translated.waypoints);
    let emitted = translated
        .routes
        .into_iter()
        .map(|route| Emitted::Route(route, waypoints.clone()));
    vec![Part {
        owner: key.clone(),
        emitted: emitted.collect(),
        conditions: translated.conditions,
    }]
}

/// The routes that name a definition as parent.
pub(super) fn attached(parent: &Key, world: &World) -> Vec<Key> {
    let kind = parent.kind.as_str().into();
    let entry = IndexKey::Attached(kind, parent.namespace.clone(), parent.name.clone());
    let routes = world.lookup(&entry).filter(|key| {
        let object = world.get(key).filter(|_| key.kind.is_route());
        object.is_some_and(|object| route::parents(object).any(|of| of == *parent))
    });
    routes.cloned().collect()
}

/// The rules of a service about whose requests somebody else is asked, by name: without one of them, nobody would be.
pub(super) fn asking(routes: &[Key], service: &NamespacedHostname, world: &World) -> Vec<Str> {
    let mut names = Vec::new();
    for key in routes {
        let Some(object) = world.get(key) else { continue };
        let asking = route::asking(object);
        if asking.is_empty() {
            continue;
        }
        let translated = route::route(object, &others(key, object, world), world).routes;
        let here = translated.iter().enumerate().filter(|(index, route)| {
            let is_parent = |parent: &Parent| matches!(&parent.to, ParentTo::Service(to) if to == service);
            asking.contains(index) && route.parents.iter().any(is_parent)
        });
        names.extend(here.map(|(_, route)| route.name()));
    }
    names.sort();
    names
}

/// The routes of other kinds that name a parent of this one: those of its own kind never take a port from it.
fn others<'a>(key: &Key, object: &Object, world: &'a World) -> Vec<&'a Object> {
    let mut keys: BTreeSet<&Key> = BTreeSet::new();
    for entry in index::keys(object, world.mesh()) {
        if let IndexKey::Attached(..) = entry {
            let attached = world.lookup(&entry);
            keys.extend(attached.filter(|other| other.kind.is_route() && other.kind != key.kind));
        }
    }
    keys.into_iter().filter_map(|key| world.get(key)).collect()
}

/// The other objects that refer to something this one refers to.
fn rivals<'a>(key: &Key, object: &Object, world: &'a World) -> Vec<&'a Object> {
    let mut keys: BTreeSet<&Key> = BTreeSet::new();
    for entry in index::keys(object, world.mesh()) {
        if let IndexKey::Attached(..) = entry {
            keys.extend(world.lookup(&entry).filter(|other| *other != key));
        }
    }
    keys.into_iter().filter_map(|key| world.get(key)).collect()
}

/// What waypoints are told of a policy object.
pub(super) fn translated(key: &Key, world: &World) -> policy::Translated {
    let Some(object) = world.get(key) else {
        return policy::Translated::default();
    };
    policy::policy(object, &rivals(key, object, world), world)
}

/// The concerns of a policy object.
pub(super) fn policies(
    key: &Key,
    world: &World,
) -> (Vec<Emitted>, Vec<tulle_k8s::translate::condition::Condition>) {
    let translated = translated(key, world);
    if translated.policies.is_empty() {
        return (Vec::new(), translated.conditions);
    }
    let mut waypoints: BTreeSet<Str> = translated.waypoints;
    if translated.everywhere || !translated.classes.is_empty() {
        let every = world.of_kind(tulle_k8s::Kind::Gateway);
        let meant = every.filter(|(_, object)| match object {
            Object::Gateway(gateway) => {
                translated.everywhere || translated.classes.contains(&gateway.spec.gateway_class_name)
            }
            _ => false,
        });
        waypoints.extend(meant.map(|(key, _)| Str::from(format!("{}/{}", key.namespace, key.name))));
    }
    let waypoints = Arc::new(waypoints);
    let emitted = translated
        .policies
        .into_iter()
        .map(|policy| Emitted::Policy(policy, waypoints.clone()));
    (emitted.collect(), translated.conditions)
}
