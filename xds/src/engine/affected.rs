//! Which outputs a change of one object can touch.
//!
//! Asked on the world before the change and on the world after it; what is missed here would stay stale, so that
//! a doubtful case counts as touched. An output that comes out equal costs nothing further.

use std::collections::BTreeSet;

use tulle_k8s::api::Namespace;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::api::{AuthorizationPolicy, EndpointSlice, PeerAuthentication};
use tulle_k8s::translate::namespace as translation;
use tulle_k8s::translate::workload::ENROLMENT_ANNOTATION;
use tulle_k8s::translate::{authorization, peer_authentication, route, service};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::Str;

use super::compute::{OutKey, services};
use super::index::{self, IndexKey, SERVICE_NAME};
use super::world::{SOURCES, World};

/// Label of the parts of a gateway, with its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Outputs to compute again.
pub type Affected = BTreeSet<OutKey>;

/// Whether a new form of an object says anything new to the mesh.
#[must_use]
pub fn differs(old: Option<&Object>, new: Option<&Object>) -> bool {
    match (old, new) {
        (Some(Object::Node(old)), Some(Object::Node(new))) => {
            let locality = |labels: &Labels| -> Vec<Option<Str>> {
                let names = [
                    "topology.kubernetes.io/region",
                    "topology.kubernetes.io/zone",
                    "topology.istio.io/subzone",
                ];
                names.iter().map(|name| labels.get(name).cloned()).collect()
            };
            let enrolment = |labels: &Labels| labels.get(ENROLMENT_ANNOTATION).cloned();
            old.status != new.status
                || locality(&old.metadata.labels) != locality(&new.metadata.labels)
                || enrolment(&old.metadata.annotations) != enrolment(&new.metadata.annotations)
        }
        (old, new) => old != new,
    }
}

/// What of the world a change of an object can touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Nothing that is served.
    Nothing,
    /// What it touches as any object of its kind.
    Own,
    /// Of the root namespace: every output.
    All,
}

/// How far a change of an object goes. Others may come to read later what nobody reads now, so that the world is told of
/// it in any case.
#[must_use]
pub fn extent(key: &Key, new: Option<&Object>, world: &World) -> Extent {
    let is_root = key.kind == Kind::Namespace && key.name == world.mesh().root_namespace;
    match (world.get(key), new) {
        (Some(Object::Namespace(old)), Some(Object::Namespace(new))) => {
            let (of, now) = (&old.metadata, &new.metadata);
            if is_root && !translation::is_of_the_same_network(of, now) {
                Extent::All
            } else if translation::says_the_same(of, now) && is_selected_alike(old, new, world) {
                Extent::Nothing
            } else {
                Extent::Own
            }
        }
        _ if is_root => Extent::All,
        _ => Extent::Own,
    }
}

/// Whether every waypoint that selects namespaces judges both forms alike.
fn is_selected_alike(old: &Namespace, new: &Namespace, world: &World) -> bool {
    if old.metadata.labels == new.metadata.labels {
        return true;
    }
    let gateways = world.of_kind(Kind::Gateway);
    let mut selectors = gateways
        .filter_map(|(_, object)| match object {
            Object::Gateway(gateway) => Some(&gateway.spec.listeners),
            _ => None,
        })
        .flatten()
        .filter_map(|listener| listener.allowed_routes.namespaces.selector.as_ref());
    selectors.all(|selector| translation::is_judged_alike(&old.metadata, &new.metadata, selector))
}

/// The outputs that the object of this key touches as it stands in this world, to this extent.
#[must_use]
pub fn affected(key: &Key, extent: Extent, world: &World) -> Affected {
    let mut out = Affected::new();
    match (extent, world.get(key)) {
        (Extent::Nothing, _) | (_, None) => {}
        (Extent::Own, Some(object)) => touch(key, object, world, &mut out),
        (Extent::All, Some(_)) => everything(world, &mut out),
    }
    out
}

fn touch(key: &Key, object: &Object, world: &World, out: &mut Affected) {
    match object {
        Object::Pod(_) | Object::WorkloadEntry(_) => sharing(key, world, out),
        Object::Service(object) => {
            definitions(&service::hostname(&object.metadata, world.mesh()), world, out)
        }
        Object::ServiceEntry(object) => {
            sharing(key, world, out);
            for host in &object.spec.hosts {
                definitions(host, world, out);
            }
        }
        Object::EndpointSlice(object) => slice(key, object, world, out),
        Object::Namespace(_) => namespace(&key.name, world, out),
        Object::Node(node) => {
            if node.status.ips().next().is_some() {
                // Every waypoint is told where nodes are.
                let gateways = world.of_kind(Kind::Gateway);
                out.extend(gateways.map(|(key, _)| OutKey::Gateways(key.clone())));
            }
            for key in world.lookup(&IndexKey::Node(key.name.clone())) {
                sharing(key, world, out);
            }
        }
        Object::AuthorizationPolicy(object) => authorization_policy(key, object, world, out),
        Object::PeerAuthentication(object) => peer_authentication_policy(key, object, world, out),
        Object::RequestAuthentication(object) => {
            out.insert(OutKey::Policies(key.clone()));
            if let Some(stand_in) = authorization::stand_in_for(object) {
                authorization_policy(key, &stand_in, world, out);
            }
        }
        Object::Gateway(_) => gateway(key, world, out),
        Object::GatewayClass(_) => {
            out.insert(OutKey::Gateways(key.clone()));
            for of_class in gateways_of(&key.name, world) {
                gateway(of_class, world, out);
            }
        }
        Object::ReferenceGrant(_) => {
            let across = world.lookup(&IndexKey::Across(key.namespace.clone()));
            out.extend(across.filter_map(output_of));
        }
        Object::Mesh(_) => everything(world, out),
        Object::ConfigMap(_) if world.is_settings(key) => everything(world, out),
        Object::HttpRoute(_) | Object::GrpcRoute(_) | Object::TlsRoute(_) | Object::TcpRoute(_) => {
            fronts_of_route(key, object, world, out);
        }
        Object::TrafficPolicy(_) | Object::BackendTlsPolicy(_) | Object::ConfigMap(_) | Object::Secret(_) => {
        }
    }
    out.extend(output_of(key));
    rivals(object, world, out);
    referrers(key.kind.as_str(), &key.namespace, &key.name, world, out);
    for entry in index::keys(object, world.mesh()) {
        if let IndexKey::Protecting(kind, namespace, name) = entry {
            protected(&kind, &namespace, &name, world, out);
        }
    }
}

/// What stands in front of the parents of a route: it has to have the rules that somebody else decides about. If a policy
/// protects what the route leads to, the parents themselves.
fn fronts_of_route(key: &Key, object: &Object, world: &World, out: &mut Affected) {
    for parent in route::parents(object) {
        let defined = world.get(&parent).into_iter();
        let entries = defined.flat_map(|object| index::keys(object, world.mesh()));
        out.extend(entries.filter_map(|entry| match entry {
            IndexKey::Hostname(hostname) => Some(OutKey::Services(hostname)),
            _ => None,
        }));
    }
    if services::asked(key.kind.as_str(), &key.namespace, &key.name, world) {
        protected(key.kind.as_str(), &key.namespace, &key.name, world, out);
    }
}

/// The output of a route or a policy.
fn output_of(key: &Key) -> Option<OutKey> {
    match key.kind {
        kind if kind.is_route() => Some(OutKey::Routes(key.clone())),
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::TrafficPolicy
        | Kind::BackendTlsPolicy => Some(OutKey::Policies(key.clone())),
        _ => None,
    }
}

/// The routes and policies that are attached to what this object is attached to.
fn rivals(object: &Object, world: &World, out: &mut Affected) {
    for entry in index::keys(object, world.mesh()) {
        if let IndexKey::Attached(..) = entry {
            out.extend(world.lookup(&entry).filter_map(output_of));
        }
    }
}

/// The routes and policies that refer to an object in any way, and the policies of such routes: what is said of those
/// depends on what the routes hang on.
fn referrers(kind: &str, namespace: &Str, name: &Str, world: &World, out: &mut Affected) {
    let (kind, namespace, name): (Str, Str, Str) = (kind.into(), namespace.clone(), name.clone());
    let attached = IndexKey::Attached(kind.clone(), namespace.clone(), name.clone());
    let refers = IndexKey::Refers(kind, namespace, name);
    for entry in [attached, refers] {
        for key in world.lookup(&entry) {
            out.extend(output_of(key));
            if key.kind.is_route() {
                let kind = key.kind.as_str().into();
                let entry = IndexKey::Attached(kind, key.namespace.clone(), key.name.clone());
                out.extend(world.lookup(&entry).filter_map(output_of));
            }
        }
    }
}

/// The gateways of a class.
fn gateways_of<'a>(class: &'a str, world: &'a World) -> impl Iterator<Item = &'a Key> {
    let gateways = world.of_kind(Kind::Gateway);
    let of_class = gateways.filter(move |(_, object)| match object {
        Object::Gateway(gateway) => &*gateway.spec.gateway_class_name == class,
        _ => false,
    });
    of_class.map(|(key, _)| key)
}

/// A gateway, everything behind it, and the policies that concern it.
fn gateway(key: &Key, world: &World, out: &mut Affected) {
    out.insert(OutKey::Gateways(key.clone()));
    behind(&key.namespace, &key.name, world, out);
    referrers("Gateway", &key.namespace, &key.name, world, out);
    if let Some(Object::Gateway(object)) = world.get(key) {
        let root = &world.mesh().root_namespace;
        referrers("GatewayClass", root, &object.spec.gateway_class_name, world, out);
    }
    out.extend(world.lookup(&IndexKey::Everywhere).filter_map(output_of));
    let replicas = IndexKey::label(&key.namespace, &GATEWAY_NAME.into(), &key.name);
    for replica in world.lookup(&replicas) {
        sharing(replica, world, out);
    }
}

/// Everything that names a waypoint.
fn behind(waypoint: &Str, name: &Str, world: &World, out: &mut Affected) {
    for user in world.lookup(&IndexKey::Uses(waypoint.clone(), name.clone())) {
        match (user.kind, world.get(user)) {
            (Kind::Namespace, _) => namespace(&user.name, world, out),
            (_, Some(Object::Service(object))) => {
                definitions(&service::hostname(&object.metadata, world.mesh()), world, out);
            }
            (_, Some(Object::ServiceEntry(object))) => {
                for host in &object.spec.hosts {
                    definitions(host, world, out);
                }
            }
            _ => sharing(user, world, out),
        }
    }
}

/// Every output of the world.
pub fn everything(world: &World, out: &mut Affected) {
    out.insert(OutKey::StaticStrict);
    out.insert(OutKey::Settings);
    for (key, object) in world.iter() {
        match key.kind {
            Kind::Pod | Kind::WorkloadEntry | Kind::EndpointSlice | Kind::ServiceEntry => {
                out.insert(OutKey::Workloads(key.clone()));
            }
            Kind::Gateway | Kind::GatewayClass => {
                out.insert(OutKey::Gateways(key.clone()));
            }
            _ => out.extend(output_of(key)),
        }
        let hostnames = index::keys(object, world.mesh())
            .into_iter()
            .filter_map(|entry| match entry {
                IndexKey::Hostname(hostname) => Some(OutKey::Services(hostname)),
                _ => None,
            });
        out.extend(hostnames);
    }
}

/// A source of workloads, and those that claim one of its addresses.
fn sharing(key: &Key, world: &World, out: &mut Affected) {
    out.insert(OutKey::Workloads(key.clone()));
    let Some(object) = world.get(key) else { return };
    for entry in index::keys(object, world.mesh()) {
        if let IndexKey::Address(_) = entry {
            out.extend(world.lookup(&entry).cloned().map(OutKey::Workloads));
        }
    }
}

/// A host name, and the endpoints of everything that defines it.
fn definitions(hostname: &Str, world: &World, out: &mut Affected) {
    out.insert(OutKey::Services(hostname.clone()));
    referrers("Hostname", &"".into(), hostname, world, out);
    for key in world.lookup(&IndexKey::Hostname(hostname.clone())) {
        let Some(object) = world.get(key) else { continue };
        referrers(key.kind.as_str(), &key.namespace, &key.name, world, out);
        if key.kind == Kind::ServiceEntry {
            sharing(key, world, out);
        }
        for selected in index::selector(object)
            .into_iter()
            .flat_map(|labels| world.selected(&key.namespace, labels))
        {
            sharing(selected, world, out);
        }
        for slice_key in world.lookup(&IndexKey::SlicesOf(key.namespace.clone(), key.name.clone())) {
            if let Some(object) = world.endpoint_slice(&slice_key.namespace, &slice_key.name) {
                slice(slice_key, object, world, out);
            }
        }
    }
}

/// What a waypoint is asked to protect: without one, its endpoints refuse.
fn protected(kind: &str, namespace: &Str, name: &Str, world: &World, out: &mut Affected) {
    match kind {
        "Service" => {
            if let Some(object) = world.service(namespace, name) {
                definitions(&service::hostname(&object.metadata, world.mesh()), world, out);
            }
        }
        "ServiceEntry" => {
            for host in world
                .service_entry(namespace, name)
                .into_iter()
                .flat_map(|object| &object.spec.hosts)
            {
                definitions(host, world, out);
            }
        }
        "Gateway" => behind(namespace, name, world, out),
        "GatewayClass" => {
            for of_class in gateways_of(name, world) {
                behind(&of_class.namespace, &of_class.name, world, out);
            }
        }
        "Mesh" => everything(world, out),
        _ => {
            let mut routes = Kind::ALL.iter().filter(|kind| kind.is_route());
            let route = routes.find(|of| of.as_str() == kind);
            let route = route.and_then(|of| world.get(&Key::new(*of, namespace.clone(), name.clone())));
            for parent in route.into_iter().flat_map(route::parents) {
                protected(parent.kind.as_str(), &parent.namespace, &parent.name, world, out);
            }
        }
    }
}

fn slice(key: &Key, slice: &EndpointSlice, world: &World, out: &mut Affected) {
    sharing(key, world, out);
    if !slice.metadata.labels.contains_key(SERVICE_NAME) {
        return;
    }
    for target in slice
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.target_ref.as_ref())
    {
        sharing(
            &Key::new(Kind::Pod, key.namespace.clone(), target.name.clone()),
            world,
            out,
        );
    }
}

fn namespace(name: &str, world: &World, out: &mut Affected) {
    for key in world.workloads_in(name) {
        sharing(key, world, out);
    }
    for kind in [Kind::Service, Kind::ServiceEntry] {
        for (_, object) in world.of_kind_in(kind, name) {
            for entry in index::keys(object, world.mesh()) {
                if let IndexKey::Hostname(hostname) = entry {
                    definitions(&hostname, world, out);
                }
            }
        }
    }
}

/// The workloads that a selector selects, in one namespace or from the root namespace in all.
fn selected(namespace: &str, labels: &Labels, world: &World, out: &mut Affected) {
    for key in world.selected(namespace, labels) {
        sharing(key, world, out);
    }
}

fn authorization_policy(key: &Key, policy: &AuthorizationPolicy, world: &World, out: &mut Affected) {
    out.insert(OutKey::Policies(key.clone()));
    let Some(labels) = authorization::selector(policy) else {
        return;
    };
    if key.namespace == world.mesh().root_namespace {
        for namespace in workload_namespaces(world) {
            selected(&namespace, labels, world, out);
        }
    } else {
        selected(&key.namespace, labels, world, out);
    }
}

fn peer_authentication_policy(key: &Key, policy: &PeerAuthentication, world: &World, out: &mut Affected) {
    out.insert(OutKey::StaticStrict);
    out.insert(OutKey::Policies(key.clone()));
    if let Some(labels) = peer_authentication::selector(policy) {
        selected(&key.namespace, labels, world, out);
        return;
    }
    let mesh_wide = key.namespace == world.mesh().root_namespace;
    let reached = |namespace: &Str| mesh_wide || *namespace == key.namespace;
    for (other, _) in world
        .of_kind(Kind::PeerAuthentication)
        .filter(|(other, _)| reached(&other.namespace))
    {
        out.insert(OutKey::Policies(other.clone()));
    }
    for namespace in workload_namespaces(world).into_iter().filter(reached) {
        for key in world.workloads_in(&namespace) {
            sharing(key, world, out);
        }
    }
}

/// The namespaces that hold a source of workloads.
fn workload_namespaces(world: &World) -> BTreeSet<Str> {
    SOURCES
        .into_iter()
        .flat_map(|kind| world.of_kind(kind))
        .map(|(key, _)| key.namespace.clone())
        .collect()
}
