//! What translation asks of the objects around the one it translates.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_model::service::Service as Model;
use tulle_model::{NamespacedHostname, Str};

use super::MeshConfig;
use crate::api::{Gateway, GatewayClass, Namespace, ReferenceGrant};
use crate::{Kind, Object};

/// A definition of a service that holds in its namespace.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The service.
    pub service: Model,
    /// It has no address of its own.
    pub is_headless: bool,
    /// Its ports by name, as far as they have one.
    pub port_names: BTreeMap<Str, u16>,
}

/// Why there is no definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDefinition {
    /// No such object.
    Missing,
    /// An object that stands for nothing in the mesh, such as an `ExternalName`.
    NotInMesh,
    /// Another object defines the same host name.
    Conflicted,
}

/// The objects around.
pub trait Lookup {
    /// Settings of the mesh.
    fn mesh(&self) -> &MeshConfig;
    /// A namespace's object.
    fn namespace(&self, name: &str) -> Option<&Namespace>;
    /// A gateway.
    fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway>;
    /// A class of gateways.
    fn gateway_class(&self, name: &str) -> Option<&GatewayClass>;
    /// Every gateway.
    fn gateways(&self) -> Vec<&Gateway>;
    /// A route of one of the four kinds.
    fn route(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object>;
    /// What a Service becomes.
    fn service_of(&self, namespace: &str, name: &str) -> Result<Definition, NoDefinition>;
    /// What the hosts of a ServiceEntry become.
    fn entry_of(&self, namespace: &str, name: &str) -> Result<Vec<Definition>, NoDefinition>;
    /// The service with this host name that holds for objects of a namespace.
    fn hostname(&self, namespace: &str, hostname: &str) -> Option<Definition>;
    /// The grants in a namespace.
    fn grants(&self, namespace: &str) -> Vec<&ReferenceGrant>;
    /// Certificates of a ConfigMap or Secret, as PEM.
    fn certificates(&self, kind: &str, namespace: &str, name: &str) -> Option<Str>;
    /// The waypoints that a service names, bound or not: `<namespace>/<gateway>`.
    fn waypoints_of(&self, service: &NamespacedHostname) -> Vec<Str>;
    /// Whether a waypoint in front of a service is ready.
    fn is_bound(&self, service: &NamespacedHostname) -> bool;
    /// The addresses of all nodes, in order.
    fn node_addresses(&self) -> Vec<IpAddr>;
}

/// A reference from one object to another.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// Group, kind and namespace of the object that refers.
    pub from: (&'a str, &'a str, &'a str),
    /// Group, kind, namespace and name of what it refers to.
    pub to: (&'a str, &'a str, &'a str, &'a str),
}

/// Whether a reference stays in its namespace, or a grant lets it in.
pub fn is_granted(reference: Reference<'_>, around: &impl Lookup) -> bool {
    let (group, kind, namespace) = reference.from;
    let (to_group, to_kind, to_namespace, to_name) = reference.to;
    namespace == to_namespace
        || around.grants(to_namespace).iter().any(|grant| {
            let from =
                grant.spec.from.iter().any(|from| {
                    &*from.group == group && &*from.kind == kind && &*from.namespace == namespace
                });
            let to = grant.spec.to.iter().any(|to| {
                &*to.group == to_group && &*to.kind == to_kind && (to.name.is_empty() || &*to.name == to_name)
            });
            from && to
        })
}
