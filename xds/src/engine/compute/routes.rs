//! Routes and the policies that waypoints enforce, each with the waypoints it is for.

use std::collections::BTreeSet;
use std::sync::Arc;

use tulle_k8s::translate::{policy, route};
use tulle_k8s::{Key, Object};
use tulle_model::Str;

use super::super::index::{self, IndexKey};
use super::super::world::World;
use super::{Emitted, Part};

/// The rules of a route object.
pub(super) fn routes(key: &Key, world: &World) -> Vec<Part> {
    let Some(object) = world.get(key) else {
        return Vec::new();
    };
    let translated = route::route(object, &rivals(key, object, world), world);
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
