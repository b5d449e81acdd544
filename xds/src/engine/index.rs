//! What each object can be found by.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_k8s::api::Meta;
use tulle_k8s::api::meta::Labels;
use tulle_k8s::api::route::BackendRef;
use tulle_k8s::api::security::LabelSelector;
use tulle_k8s::translate::workload::{entry_labels, node_of, pod_addresses};
use tulle_k8s::translate::{
    MeshConfig, authorization, peer_authentication, policy, route, service, waypoint,
};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::Str;

use crate::few::Few;

/// One entry of the reverse index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum IndexKey {
    /// Sources of workloads with this address.
    Address(IpAddr),
    /// Workloads on this node.
    Node(Str),
    /// Definitions of this host name.
    Hostname(Str),
    /// Sources of workloads in a namespace with this label.
    Label(Str, Str, Str),
    /// Selectors in a namespace whose first label is this.
    Selector(Str, Str, Str),
    /// Slices of this service.
    SlicesOf(Str, Str),
    /// Slices with an endpoint that is this pod.
    SlicesWith(Str, Str),
    /// Objects that ask a waypoint to protect this: kind, namespace, name.
    Protecting(Str, Str, Str),
    /// Policies of a namespace that ask a waypoint to protect what routes lead to.
    OnRoutes(Str),
    /// Routes and policies that are attached to this, and may compete for it: kind, namespace, name.
    Attached(Str, Str, Str),
    /// Routes and policies that refer to this in any other way: kind, namespace, name.
    Refers(Str, Str, Str),
    /// Routes and policies with a reference into this namespace that needs a grant.
    Across(Str),
    /// Objects and namespaces that name this waypoint, also to try it out: namespace, name.
    Uses(Str, Str),
    /// Policies that concern every waypoint.
    Everywhere,
}

impl IndexKey {
    /// The entry of a label.
    pub(super) fn label(namespace: &str, name: &Str, value: &Str) -> Self {
        Self::Label(namespace.into(), name.clone(), value.clone())
    }

    /// The entry of a selector.
    pub(super) fn selector(namespace: &str, name: &Str, value: &Str) -> Self {
        Self::Selector(namespace.into(), name.clone(), value.clone())
    }
}

/// Objects by what they can be found by.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Apart from the rest, whose entries are twice as large: nearly every workload has one that is its own.
    addresses: BTreeMap<IpAddr, Few<Key>>,
    others: BTreeMap<IndexKey, Few<Key>>,
}

impl Index {
    /// Lets an object be found by an entry.
    pub(super) fn insert(&mut self, entry: IndexKey, key: Key) {
        let keys = match entry {
            IndexKey::Address(address) => self.addresses.entry(address).or_default(),
            other => self.others.entry(other).or_default(),
        };
        keys.insert(key);
    }

    /// Lets an object not be found by an entry any more.
    pub(super) fn remove(&mut self, entry: &IndexKey, key: &Key) {
        match entry {
            IndexKey::Address(address) => take(&mut self.addresses, address, key),
            other => take(&mut self.others, other, key),
        }
    }

    /// The objects that are found by an entry.
    pub(super) fn get<'a>(&'a self, entry: &IndexKey) -> impl Iterator<Item = &'a Key> + use<'a> {
        let keys = match entry {
            IndexKey::Address(address) => self.addresses.get(address),
            other => self.others.get(other),
        };
        keys.into_iter().flat_map(Few::iter)
    }

    /// Gives back what maps take that were filled in order: their nodes are only half full.
    pub(super) fn pack(&mut self) {
        self.addresses = std::mem::take(&mut self.addresses).into_iter().collect();
        self.others = std::mem::take(&mut self.others).into_iter().collect();
    }
}

fn take<E: Ord>(entries: &mut BTreeMap<E, Few<Key>>, entry: &E, key: &Key) {
    if let Some(keys) = entries.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            entries.remove(entry);
        }
    }
}

/// Label of slices with the name of their service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The labels an object selects workloads by, if it selects any.
pub(super) fn selector(object: &Object) -> Option<&Labels> {
    let labels = match object {
        Object::Service(object) => Some(&object.spec.selector),
        Object::ServiceEntry(object) => object
            .spec
            .workload_selector
            .as_ref()
            .map(|selector| &selector.labels),
        Object::AuthorizationPolicy(object) => authorization::selector(object),
        Object::RequestAuthentication(object) => LabelSelector::labels(object.spec.selector.as_ref()),
        Object::PeerAuthentication(object) => peer_authentication::selector(object),
        _ => None,
    };
    labels.filter(|labels| !labels.is_empty())
}

/// Everything an object can be found by.
pub(super) fn keys(object: &Object, mesh: &MeshConfig) -> Vec<IndexKey> {
    let namespace = &object.meta().namespace;
    let mut keys = Vec::new();
    if let Some((name, value)) = selector(object).and_then(|labels| labels.iter().next()) {
        keys.push(IndexKey::selector(namespace, name, value));
    }
    let labelled = |labels: &Labels| -> Vec<IndexKey> {
        labels
            .iter()
            .map(|(name, value)| IndexKey::label(namespace, name, value))
            .collect()
    };
    for target in waypoint::targets(object) {
        if is_route(&target.kind, &target.group) {
            keys.push(IndexKey::OnRoutes(namespace.clone()));
        }
        keys.push(IndexKey::Protecting(target.kind, namespace.clone(), target.name));
    }
    references(object, namespace, mesh, &mut keys);
    match object {
        Object::Pod(pod) => {
            keys.extend(labelled(&pod.metadata.labels));
            keys.push(IndexKey::Node(pod.spec.node_name.clone()));
            keys.extend(pod_addresses(pod).into_iter().map(IndexKey::Address));
        }
        Object::WorkloadEntry(entry) => {
            keys.extend(labelled(&entry_labels(entry)));
            keys.extend(node_of(&entry.metadata).map(IndexKey::Node));
            keys.extend(
                tulle_k8s::translate::workload::entry_addresses(entry)
                    .into_iter()
                    .map(IndexKey::Address),
            );
        }
        Object::ServiceEntry(entry) => {
            keys.extend(entry.spec.hosts.iter().cloned().map(IndexKey::Hostname));
            for endpoint in &entry.spec.endpoints {
                keys.extend(labelled(&endpoint.labels));
                keys.extend(address(&endpoint.address).map(IndexKey::Address));
            }
        }
        Object::Service(object) => keys.push(IndexKey::Hostname(service::hostname(&object.metadata, mesh))),
        Object::EndpointSlice(slice) => {
            if let Some(service) = slice.metadata.labels.get(SERVICE_NAME) {
                keys.push(IndexKey::SlicesOf(namespace.clone(), service.clone()));
            }
            for endpoint in &slice.endpoints {
                keys.extend(
                    endpoint
                        .addresses
                        .iter()
                        .filter_map(|text| address(text))
                        .map(IndexKey::Address),
                );
                let target = endpoint
                    .target_ref
                    .as_ref()
                    .filter(|target| &*target.kind == "Pod");
                keys.extend(
                    target.map(|target| IndexKey::SlicesWith(namespace.clone(), target.name.clone())),
                );
            }
        }
        _ => {}
    }
    keys
}

/// What an object refers to: waypoints, parents, backends, targets.
fn references(object: &Object, namespace: &Str, mesh: &MeshConfig, keys: &mut Vec<IndexKey>) {
    let meta = object.meta();
    match object {
        Object::Namespace(_) => {
            // What a namespace asks for stands for everything in it.
            let of_namespace = Meta {
                namespace: meta.name.clone(),
                ..meta.clone()
            };
            keys.extend(uses(&of_namespace));
        }
        Object::Service(_) | Object::ServiceEntry(_) | Object::Pod(_) | Object::WorkloadEntry(_) => {
            keys.extend(uses(meta));
        }
        _ => {}
    }
    for target in policy::refs(object) {
        keys.push(IndexKey::Attached(
            target.kind.clone(),
            namespace.clone(),
            target.name.clone(),
        ));
        if is_route(&target.kind, &target.group) {
            keys.push(IndexKey::Everywhere);
        }
    }
    if let Some(facts) = route::facts(object) {
        for parent in facts.parents {
            let home = if parent.namespace.is_empty() {
                namespace
            } else {
                &parent.namespace
            };
            let kind = match route::is_gateway(parent) {
                true => "Gateway".into(),
                false => parent.kind.clone(),
            };
            keys.push(IndexKey::Attached(kind, home.clone(), parent.name.clone()));
        }
    }
    for backend in route::backend_refs(object) {
        refer(backend, namespace, keys);
    }
    match object {
        Object::TrafficPolicy(policy) => {
            if policy::is_mesh_wide(policy) {
                keys.push(IndexKey::Everywhere);
                keys.push(IndexKey::Attached("Mesh".into(), namespace.clone(), "".into()));
                let asks = policy.spec.external_auth.is_some() || policy.unreadable.is_some();
                if asks && *namespace == mesh.root_namespace {
                    keys.push(IndexKey::Protecting("Mesh".into(), namespace.clone(), "".into()));
                }
            }
            let asked = policy
                .spec
                .external_auth
                .as_ref()
                .and_then(|auth| auth.backend_ref.as_ref());
            if let Some(backend) = asked {
                refer(backend, namespace, keys);
            }
        }
        Object::BackendTlsPolicy(policy) => {
            let roots = policy.spec.validation.ca_certificate_refs.iter();
            keys.extend(
                roots.map(|root| IndexKey::Refers(root.kind.clone(), namespace.clone(), root.name.clone())),
            );
        }
        _ => {}
    }
    keys.sort();
    keys.dedup();
}

fn is_route(kind: &str, group: &str) -> bool {
    Kind::target(kind, group).is_some_and(Kind::is_route)
}

fn uses(meta: &Meta) -> impl Iterator<Item = IndexKey> {
    let named = [waypoint::named(meta, None), waypoint::canary(meta, None)];
    named
        .into_iter()
        .flatten()
        .map(|waypoint| IndexKey::Uses(waypoint.namespace, waypoint.name))
}

fn refer(backend: &BackendRef, namespace: &Str, keys: &mut Vec<IndexKey>) {
    let home = if backend.namespace.is_empty() {
        namespace
    } else {
        &backend.namespace
    };
    let kind: Str = if backend.kind.is_empty() {
        "Service".into()
    } else {
        backend.kind.clone()
    };
    let home_of = if &*kind == "Hostname" {
        "".into()
    } else {
        home.clone()
    };
    keys.push(IndexKey::Refers(kind, home_of, backend.name.clone()));
    if home != namespace {
        keys.push(IndexKey::Across(home.clone()));
    }
}

/// An address in the form it is compared in.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_half_of_any_other_entry() {
        let (address, other) = (size_of::<(IpAddr, Few<Key>)>(), size_of::<(IndexKey, Few<Key>)>());
        assert_eq!((address, other), (40, 72));
        // In a node of a tree keys and values stand apart: an address takes 17 bytes there.
        assert_eq!(size_of::<IpAddr>() + size_of::<Few<Key>>(), 33);
    }
}
