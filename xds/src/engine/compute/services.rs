//! The services of a host name: one per namespace that defines it, one of them canonical.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tulle_k8s::translate::condition::{CONFLICTED, Condition};
use tulle_k8s::translate::service::{self, Around};
use tulle_k8s::translate::waypoint;
use tulle_k8s::{Key, Kind, Object};
use tulle_model::service::Visibility;
use tulle_model::{NamespacedName, Service, Str};

use super::super::index::IndexKey;
use super::super::world::World;
use super::{Emitted, Part};

/// The better definition is the smaller one: Kubernetes services first, then age, then name.
type Precedence<'a> = (bool, Timestamp, &'a Key);

fn precedence<'a>(key: &'a Key, object: &Object) -> Precedence<'a> {
    let created = object.meta().creation_timestamp.unwrap_or(Timestamp::MAX);
    (key.kind != Kind::Service, created, key)
}

/// Whether an object defines a service at all.
fn defines(object: &Object) -> bool {
    match object {
        Object::Service(object) => !service::is_external_name(object),
        Object::ServiceEntry(_) => true,
        _ => false,
    }
}

/// The definition of a host name that holds in a namespace.
pub(super) fn winner<'a>(hostname: &Str, namespace: &str, world: &'a World) -> Option<&'a Key> {
    let keys = world.lookup(&IndexKey::Hostname(hostname.clone()));
    keys.filter(|key| &*key.namespace == namespace)
        .filter_map(|key| {
            world
                .get(key)
                .filter(|object| defines(object))
                .map(|object| precedence(key, object))
        })
        .min()
        .map(|(_, _, key)| key)
}

/// Computes every service of a host name.
pub(super) fn services(hostname: &Str, world: &World) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut emitted: BTreeMap<Precedence<'_>, usize> = BTreeMap::new();
    for key in world.lookup(&IndexKey::Hostname(hostname.clone())) {
        let Some(object) = world.get(key) else { continue };
        let (mut found, conditions) = translate(object, hostname, world);
        if let (Some(found), (Some(missing), true)) = (&mut found, protection(key, object, world)) {
            found.waypoint = Some(waypoint::address(&missing, world.mesh()));
        }
        let mut part = Part {
            owner: key.clone(),
            emitted: Vec::new(),
            conditions,
        };
        match (found, winner(hostname, &key.namespace, world)) {
            (Some(found), Some(winner)) if winner == key => {
                if found.visibility == Visibility::Public {
                    emitted.insert(precedence(key, object), parts.len());
                }
                let of_gateway = waypoint::is_gateway(object.meta());
                part.emitted.push(Emitted::Service(Arc::new(found), of_gateway));
            }
            (Some(_), Some(winner)) => part.conditions.push(conflicted(hostname, winner)),
            _ => {}
        }
        parts.push(part);
    }
    if let Some(Emitted::Service(canonical, _)) = emitted
        .values()
        .next()
        .and_then(|index| parts[*index].emitted.first_mut())
    {
        Arc::make_mut(canonical).canonical = true;
    }
    parts
}

fn conflicted(hostname: &str, winner: &Key) -> Condition {
    let message = format!("{winner} defines {hostname} too and wins; rename the host or remove one of them");
    Condition::holds(CONFLICTED, "Conflicted", message)
}

/// The waypoint a definition names, and whether anything asks for that waypoint's protection.
pub(super) fn protection(key: &Key, object: &Object, world: &World) -> (Option<NamespacedName>, bool) {
    let waypoint = waypoint::named(object.meta(), world.namespace(&key.namespace));
    let asked = |kind: &str, namespace: &Str, name: &Str| {
        let entry = IndexKey::Protecting(kind.into(), namespace.clone(), name.clone());
        world.lookup(&entry).next().is_some()
    };
    let itself = asked(key.kind.as_str(), &key.namespace, &key.name);
    let gateway = waypoint
        .as_ref()
        .is_some_and(|waypoint| asked("Gateway", &waypoint.namespace, &waypoint.name));
    (waypoint, itself || gateway)
}

/// The service of this host name that an object defines.
fn translate(object: &Object, hostname: &Str, world: &World) -> (Option<Service>, Vec<Condition>) {
    let network = world.network();
    let namespace = world.namespace(&object.meta().namespace);
    let around = Around {
        mesh: world.mesh(),
        namespace,
        network: &network,
    };
    match object {
        Object::Service(object) => service::service(object, around),
        Object::ServiceEntry(object) => {
            let (services, conditions) = service::service_entry(object, around);
            let found = services.into_iter().find(|service| service.hostname == *hostname);
            // Conditions speak of the whole entry; one of its hosts tells them.
            let tells = object.spec.hosts.first() == Some(hostname);
            (found, if tells { conditions } else { Vec::new() })
        }
        _ => (None, Vec::new()),
    }
}
