//! The services of a host name: one per namespace that defines it, one of them canonical.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tulle_k8s::translate::condition::{CONFLICTED, Condition};
use tulle_k8s::translate::lookup::Lookup;
use tulle_k8s::translate::route;
use tulle_k8s::translate::service::{self, Around};
use tulle_k8s::translate::waypoint::{self, Binding, Subject, Traffic};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::service::Visibility;
use tulle_model::waypoint::FrontOf;
use tulle_model::{NamespacedName, Service, Str};

use super::super::index::IndexKey;
use super::super::trace::{Step, Trace};
use super::super::world::World;
use super::workloads::bound;
use super::{Emitted, Part, fronts};

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
pub(in crate::engine) fn winner<'a>(hostname: &Str, namespace: &str, world: &'a World) -> Option<&'a Key> {
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

/// The definition of a host name that counts for everybody else.
pub(in crate::engine) fn canonical<'a>(hostname: &Str, world: &'a World) -> Option<&'a Key> {
    let keys = world.lookup(&IndexKey::Hostname(hostname.clone()));
    let public = keys.filter(|key| winner(hostname, &key.namespace, world) == Some(*key));
    let public = public.filter_map(|key| {
        let object = world.get(key)?;
        let (found, _) = translate(object, hostname, world);
        (found?.visibility == Visibility::Public).then(|| (precedence(key, object), key))
    });
    public.min().map(|(_, key)| key)
}

/// Computes every service of a host name.
pub(super) fn services(hostname: &Str, world: &World, trace: &mut impl Trace) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut emitted: BTreeMap<Precedence<'_>, usize> = BTreeMap::new();
    for key in world.lookup(&IndexKey::Hostname(hostname.clone())) {
        let Some(object) = world.get(key) else { continue };
        let (found, conditions) = translate(object, hostname, world);
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
                emit(key, object, found, &mut part, world, trace);
            }
            (Some(_), Some(winner)) => part.conditions.push(conflicted(hostname, winner)),
            _ => trace.step(|| Step::of("service", "spec.type", format!("{hostname} is not sent")).by(key)),
        }
        parts.push(part);
    }
    if let Some(Emitted::Service(canonical, _)) = emitted
        .values()
        .next()
        .and_then(|index| parts[*index].emitted.first_mut())
    {
        Arc::make_mut(canonical).canonical = true;
        trace.step(|| {
            let text = "it is the one that callers in other namespaces mean by this name";
            Step::of(
                "canonical",
                "metadata.creationTimestamp",
                canonical.key().to_string(),
            )
            .saying(text)
        });
    }
    parts
}

/// A service with its waypoint, and what the waypoint is told of it.
fn emit(
    key: &Key,
    object: &Object,
    mut found: Service,
    part: &mut Part,
    world: &World,
    trace: &mut impl Trace,
) {
    let binding = binding(key, object, world);
    trace.step(|| bound(&binding));
    let is_protected = protection(key, object, &binding, world);
    found.waypoint = binding.address(is_protected, world.mesh());
    found.weighted_waypoints = binding.weighted();
    // Conditions speak of the whole object; one of its hosts tells them.
    if tells(object, &found.hostname) {
        part.conditions.extend(binding.condition());
    }
    let of_gateway = waypoint::is_gateway(object.meta());
    let service = found.key();
    // Where nobody is left, the service itself says so: an empty list of these is everybody.
    let client_namespaces = match &found.visibility {
        Visibility::Public => Vec::new(),
        Visibility::Namespace => vec![found.namespace.clone()],
        Visibility::Namespaces(listed) => listed.iter().cloned().collect(),
    };
    part.emitted.push(Emitted::Service(Arc::new(found), of_gateway));
    for waypoint in binding.named() {
        part.emitted.push(Emitted::Waypoint(Arc::new(fronts::front(
            waypoint,
            FrontOf::Service(service.clone()),
            Some(key),
            client_namespaces.clone(),
            world,
        ))));
    }
}

/// Whether this host speaks for its object.
fn tells(object: &Object, hostname: &Str) -> bool {
    match object {
        Object::ServiceEntry(entry) => entry.spec.hosts.first() == Some(hostname),
        _ => true,
    }
}

/// The waypoint in front of a definition.
pub(in crate::engine) fn binding(key: &Key, object: &Object, world: &World) -> Binding {
    let visibility = match object {
        Object::Service(object) => service::visibility_of_service(object),
        Object::ServiceEntry(entry) => service::visibility_of_entry(entry),
        _ => Visibility::Public,
    };
    debug_assert!(
        matches!(key.kind, Kind::Service | Kind::ServiceEntry),
        "only these define services"
    );
    let subject = Subject {
        meta: object.meta(),
        traffic: Traffic::Service,
        visibility: &visibility,
    };
    waypoint::bind(subject, world)
}

fn conflicted(hostname: &str, winner: &Key) -> Condition {
    let message = format!("{winner} defines {hostname} too and wins; rename the host or remove one of them");
    Condition::holds(CONFLICTED, "Conflicted", message)
}

/// Whether anything asks for the protection of a waypoint: of the definition itself, or of a waypoint it names.
pub(in crate::engine) fn protection(key: &Key, object: &Object, binding: &Binding, world: &World) -> bool {
    let itself = asked(key.kind.as_str(), &key.namespace, &key.name, world) || asked_of_routes(key, world);
    let canary = waypoint::canary(object.meta(), world.namespace(&key.namespace));
    itself
        || binding
            .named()
            .chain(&canary)
            .any(|waypoint| is_protecting(waypoint, world))
}

/// Whether a policy that only waypoints can enforce is attached to a route of the definition's own namespace.
fn asked_of_routes(key: &Key, world: &World) -> bool {
    let policies = world.lookup(&IndexKey::OnRoutes(key.namespace.clone()));
    let targets = policies
        .filter_map(|policy| world.get(policy))
        .flat_map(waypoint::targets);
    let mut routes = targets.filter_map(|target| {
        let kind = Kind::ALL
            .iter()
            .find(|kind| kind.is_route() && kind.as_str() == &*target.kind)?;
        world.get(&Key::new(*kind, key.namespace.clone(), target.name))
    });
    routes.any(|object| route::parents(object).any(|parent| parent == *key))
}

/// Whether a policy that only waypoints can enforce is attached to this waypoint, to its class or to the whole mesh.
pub(super) fn is_protecting(waypoint: &NamespacedName, world: &World) -> bool {
    let class = Lookup::gateway(world, &waypoint.namespace, &waypoint.name);
    let class = class.map(|gateway| &gateway.spec.gateway_class_name);
    let root = &world.mesh().root_namespace;
    asked("Mesh", root, &"".into(), world)
        || asked("Gateway", &waypoint.namespace, &waypoint.name, world)
        || class.is_some_and(|class| asked("GatewayClass", root, class, world))
}

/// Whether anything asks for the protection of a waypoint for this: kind, namespace, name.
pub(in crate::engine) fn asked(kind: &str, namespace: &Str, name: &Str, world: &World) -> bool {
    let entry = IndexKey::Protecting(kind.into(), namespace.clone(), name.clone());
    world.lookup(&entry).next().is_some()
}

/// The service of this host name that an object defines.
pub(in crate::engine) fn translate(
    object: &Object,
    hostname: &Str,
    world: &World,
) -> (Option<Service>, Vec<Condition>) {
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
