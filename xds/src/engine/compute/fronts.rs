//! Waypoints: their settings, and the fronts that their users emit.

use std::sync::Arc;

use tulle_k8s::translate::policy::Passed;
use tulle_k8s::translate::{gateway, policy};
use tulle_k8s::{Key, Object};
use tulle_model::policy::Policy;
use tulle_model::waypoint::{Front, FrontOf, Waypoint};
use tulle_model::{NamespacedName, Str};

use super::super::index::IndexKey;
use super::super::world::World;
use super::{Emitted, Part, routes};

/// The settings of a waypoint, or what is said of a class.
pub(super) fn gateways(key: &Key, world: &World) -> Vec<Part> {
    let mut part = Part {
        owner: key.clone(),
        emitted: Vec::new(),
        conditions: Vec::new(),
    };
    match world.get(key) {
        Some(Object::Gateway(object)) => {
            let settings = gateway::settings(object, world);
            part.emitted.extend(
                settings.map(|settings| Emitted::Waypoint(Arc::new(Waypoint::Settings(Box::new(settings))))),
            );
            part.conditions = gateway::conditions(object, world);
        }
        Some(Object::GatewayClass(object)) => part.conditions = gateway::class_conditions(object),
        _ => return Vec::new(),
    }
    vec![part]
}

/// What a waypoint is told of something it stands in front of.
pub(super) fn front(
    waypoint: &NamespacedName,
    object: FrontOf,
    defined_by: Option<&Key>,
    client_namespaces: Vec<Str>,
    world: &World,
) -> Waypoint {
    let name: Str = waypoint.to_string().into();
    let class = tulle_k8s::translate::lookup::Lookup::gateway(world, &waypoint.namespace, &waypoint.name);
    let class: Str = class.map_or_else(|| "".into(), |gateway| gateway.spec.gateway_class_name.clone());
    let protecting = |kind: &str, namespace: &Str, name: &Str| {
        let entry = IndexKey::Protecting(kind.into(), namespace.clone(), name.clone());
        world.lookup(&entry)
    };
    let routes = defined_by.map_or_else(Vec::new, |key| routes::attached(key, world));
    let itself = defined_by
        .into_iter()
        .chain(&routes)
        .flat_map(|key| protecting(key.kind.as_str(), &key.namespace, &key.name));
    let root = &world.mesh().root_namespace;
    let policies: Vec<Arc<Policy>> = itself
        .chain(protecting("Gateway", &waypoint.namespace, &waypoint.name))
        .chain(protecting("GatewayClass", root, &class))
        .chain(protecting("Mesh", root, &"".into()))
        .flat_map(|key| routes::translated(key, world).policies)
        .collect();
    let service = match &object {
        FrontOf::Service(service) => Some(service),
        FrontOf::Workload(_) => None,
    };
    let passed = Passed {
        service,
        routes: &routes,
        waypoint: &name,
        class: &class,
    };
    let required_policies = policy::required(policies.iter().map(AsRef::as_ref), passed);
    let required_routes = service.map_or_else(Vec::new, |service| routes::asking(&routes, service, world));
    Waypoint::Front(Front {
        waypoint: name,
        object,
        required_policies,
        required_routes,
        client_namespaces,
        draining: false,
    })
}
