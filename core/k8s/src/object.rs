//! An object of a known kind, and the way there from a document.

use std::sync::Arc;

use serde::Serialize;
use tulle_model::Str;

use crate::api::{
    AuthorizationPolicy, EndpointSlice, Meta, Namespace, Node, PeerAuthentication, Pod,
    RequestAuthentication, Service, ServiceEntry, WorkloadEntry,
};
use crate::document::Fault;
use crate::document::node::Place;

mod read;
mod stand_in;
#[cfg(test)]
mod tests;

pub use read::read;

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// A namespace.
    Namespace,
    /// A node.
    Node,
    /// A pod.
    Pod,
    /// A service.
    Service,
    /// Endpoints of a service.
    EndpointSlice,
    /// A service outside of Kubernetes.
    ServiceEntry,
    /// A workload that is no pod.
    WorkloadEntry,
    /// Who may talk to whom.
    AuthorizationPolicy,
    /// Whether callers must use mutual TLS.
    PeerAuthentication,
    /// What tokens a request must carry.
    RequestAuthentication,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
    ];

    /// The kind's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
        }
    }

    /// The API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ServiceEntry | Self::WorkloadEntry => "networking.istio.io",
            Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication => {
                "security.istio.io"
            }
        }
    }

    /// The versions that are understood.
    #[must_use]
    pub fn versions(self) -> &'static [&'static str] {
        match self.group() {
            "networking.istio.io" => &["v1", "v1beta1", "v1alpha3"],
            "security.istio.io" => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }

    /// Whether objects of this kind restrict who may do what: they are read strictly and fail closed.
    #[must_use]
    pub fn is_security(self) -> bool {
        self.group() == "security.istio.io"
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// What an object is called by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds without one.
    pub namespace: Str,
    /// Name.
    pub name: Str,
}

impl Key {
    /// Joins the parts of a key.
    pub fn new(kind: Kind, namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `AuthorizationPolicy shop/deny-all`.
impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.as_str())?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An object of a known kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// A service outside of Kubernetes.
    ServiceEntry(ServiceEntry),
    /// A workload that is no pod.
    WorkloadEntry(WorkloadEntry),
    /// Who may talk to whom.
    AuthorizationPolicy(AuthorizationPolicy),
    /// Whether callers must use mutual TLS.
    PeerAuthentication(PeerAuthentication),
    /// What tokens a request must carry.
    RequestAuthentication(RequestAuthentication),
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::WorkloadEntry(object) => &object.metadata,
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::RequestAuthentication(object) => &object.metadata,
        }
    }

    /// Its metadata, to be completed.
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Namespace(object) => &mut object.metadata,
            Self::Node(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::ServiceEntry(object) => &mut object.metadata,
            Self::WorkloadEntry(object) => &mut object.metadata,
            Self::AuthorizationPolicy(object) => &mut object.metadata,
            Self::PeerAuthentication(object) => &mut object.metadata,
            Self::RequestAuthentication(object) => &mut object.metadata,
        }
    }

    /// Whether it stands in for one that could not be read.
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        match self {
            Self::AuthorizationPolicy(object) => object.unreadable.is_some(),
            Self::PeerAuthentication(object) => object.unreadable.is_some(),
            _ => false,
        }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        let meta = self.meta();
        Key {
            kind: self.kind(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        }
    }
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// An object, with what is probably not meant so.
    Good {
        /// Which object.
        key: Key,
        /// The object.
        object: Arc<Object>,
        /// Findings that do not stop it.
        warnings: Vec<Fault>,
        /// Where it begins.
        place: Place,
    },
    /// The document says which object it is, but that object cannot be used.
    Bad {
        /// Which object.
        key: Key,
        /// Why.
        faults: Vec<Fault>,
        /// What stands in for a security object that never had a good form: it denies what it selects.
        stand_in: Option<Arc<Object>>,
        /// Where it begins.
        place: Place,
    },
    /// A kind that means nothing to the mesh, or not yet.
    Skipped(Fault),
    /// Nothing says which object this is.
    Unknown(Fault),
}
