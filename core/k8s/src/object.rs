//! An object of a known kind, and the way there from a document.

use std::sync::Arc;

use serde::Serialize;
use tulle_model::Str;

use crate::api::{
    AuthorizationPolicy, BackendTlsPolicy, ConfigMap, EndpointSlice, Gateway, GatewayClass, GrpcRoute,
    HttpRoute, Mesh, Meta, Namespace, Node, PeerAuthentication, Pod, ReferenceGrant, RequestAuthentication,
    Secret, Service, ServiceEntry, TcpRoute, TlsRoute, TrafficPolicy, WorkloadEntry,
};
use crate::document::Fault;
use crate::document::node::{Node as Document, Place};

mod read;
mod shared;
mod stand_in;
#[cfg(test)]
mod tests;
mod unread;
mod validate;

pub use read::{read, read_mesh, unread};
pub use shared::Pool;
pub use unread::{Unread, Weight};

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

const CORE: &str = "";
const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const V1: &[&str] = &["v1"];

/// Defines the kinds, their objects, and everything that must know all of them.
macro_rules! kinds {
    ($($kind:ident $name:literal $group:tt $versions:expr, $place:ident $doc:literal;)*) => {
        /// The kinds that are read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $doc] $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind's name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// The API group; empty for the core group.
            #[must_use]
            pub fn group(self) -> &'static str {
                match self { $(Self::$kind => $group,)* }
            }

            /// The versions that are understood.
            #[must_use]
            pub fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => $versions,)* }
            }

            /// Whether objects of this kind live in a namespace.
            #[must_use]
            pub fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => place!($place),)* }
            }
        }

        /// An object of a known kind.
        #[allow(
            clippy::large_enum_variant,
            reason = "objects are kept behind a counted reference, each in an allocation of its own"
        )]
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Object {
            $(#[doc = $doc] $kind($kind),)*
        }

        impl Object {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its metadata.
            #[must_use]
            pub fn meta(&self) -> &Meta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// Its metadata, to be completed.
            pub fn meta_mut(&mut self) -> &mut Meta {
                match self { $(Self::$kind(object) => &mut object.metadata,)* }
            }

            /// Reads an object of this kind.
            fn of(kind: Kind, node: &Document) -> Result<Self, Fault> {
                Ok(match kind { $(Kind::$kind => Self::$kind(node.read()?),)* })
            }
        }
    };
}

macro_rules! place {
    (namespaced) => {
        true
    };
    (cluster) => {
        false
    };
}

kinds! {
    Namespace "Namespace" CORE V1, cluster "A namespace.";
    Node "Node" CORE V1, cluster "A node.";
    Pod "Pod" CORE V1, namespaced "A pod.";
    Service "Service" CORE V1, namespaced "A service.";
    EndpointSlice "EndpointSlice" "discovery.k8s.io" V1, namespaced "Endpoints of a service.";
    ServiceEntry "ServiceEntry" NETWORKING &["v1", "v1beta1", "v1alpha3"], namespaced "A service outside of Kubernetes.";
    WorkloadEntry "WorkloadEntry" NETWORKING &["v1", "v1beta1", "v1alpha3"], namespaced "A workload that is no pod.";
    AuthorizationPolicy "AuthorizationPolicy" SECURITY &["v1", "v1beta1"], namespaced "Who may talk to whom.";
    PeerAuthentication "PeerAuthentication" SECURITY &["v1", "v1beta1"], namespaced "Whether callers must use mutual TLS.";
    RequestAuthentication "RequestAuthentication" SECURITY &["v1", "v1beta1"], namespaced "What tokens a request must carry.";
    GatewayClass "GatewayClass" GATEWAY &["v1", "v1beta1"], cluster "A class of gateways.";
    Gateway "Gateway" GATEWAY &["v1", "v1beta1"], namespaced "A gateway, or a waypoint.";
    HttpRoute "HTTPRoute" GATEWAY &["v1", "v1beta1"], namespaced "A route of HTTP.";
    GrpcRoute "GRPCRoute" GATEWAY &["v1", "v1alpha2"], namespaced "A route of gRPC.";
    TlsRoute "TLSRoute" GATEWAY &["v1", "v1alpha3", "v1alpha2"], namespaced "A route of TLS.";
    TcpRoute "TCPRoute" GATEWAY &["v1", "v1alpha2"], namespaced "A route of TCP.";
    ReferenceGrant "ReferenceGrant" GATEWAY &["v1", "v1beta1", "v1alpha2"], namespaced "Lets references from other namespaces in.";
    BackendTlsPolicy "BackendTLSPolicy" GATEWAY &["v1", "v1alpha3"], namespaced "How backends are spoken to over TLS.";
    TrafficPolicy "TrafficPolicy" "tulle.dev" &["v1alpha1"], namespaced "How traffic is treated.";
    ConfigMap "ConfigMap" CORE V1, namespaced "Settings of the mesh, or certificates.";
    Secret "Secret" CORE V1, namespaced "Certificates of backends.";
    Mesh "Mesh" "tulle.dev" &["v1alpha1"], cluster "Settings of the mesh, from the file `mesh.yaml`.";
}

impl Kind {
    /// Whether objects of this kind restrict who may do what: they are read strictly and fail closed.
    #[must_use]
    pub fn is_security(self) -> bool {
        self.group() == SECURITY || self == Self::Mesh
    }

    /// Whether this is a kind of route.
    #[must_use]
    pub fn is_route(self) -> bool {
        matches!(
            self,
            Self::HttpRoute | Self::GrpcRoute | Self::TlsRoute | Self::TcpRoute
        )
    }

    /// What policies can be attached to.
    const TARGETS: [Self; 8] = [
        Self::Service,
        Self::ServiceEntry,
        Self::Gateway,
        Self::GatewayClass,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
    ];

    /// The kind of something that a policy can be attached to. One that is written without a group is of its own.
    #[must_use]
    pub fn target(name: &str, group: &str) -> Option<Self> {
        let known = Self::TARGETS.into_iter().find(|kind| kind.as_str() == name)?;
        let own = known.group();
        (group.is_empty() || group == own || (group == "core" && own == CORE)).then_some(known)
    }

    /// The kind with this name and group.
    #[must_use]
    pub fn find(name: &str, group: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|kind| kind.as_str() == name && kind.group() == group)
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What an object is called by. Copies share one: an object is named in a dozen places, and there may be a hundred
/// thousand of them.
#[derive(Clone, Serialize)]
pub struct Key(Arc<Called>);

/// The parts of a key, which are read through it.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Called {
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
        Self(Arc::new(Called {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }))
    }

    /// The parts, to be exchanged for equal ones that are shared, while nobody else has the key.
    fn parts_mut(&mut self) -> Option<&mut Called> {
        Arc::get_mut(&mut self.0)
    }
}

impl std::ops::Deref for Key {
    type Target = Called;

    fn deref(&self) -> &Called {
        &self.0
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match Arc::ptr_eq(&self.0, &other.0) {
            true => std::cmp::Ordering::Equal,
            false => self.0.cmp(&other.0),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
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

impl Object {
    /// Whether it stands in for one that could not be read.
    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        match self {
            Self::AuthorizationPolicy(object) => object.unreadable.is_some(),
            Self::PeerAuthentication(object) => object.unreadable.is_some(),
            Self::RequestAuthentication(object) => object.unreadable.is_some(),
            Self::TrafficPolicy(object) => object.unreadable.is_some(),
            Self::Mesh(object) => object.unreadable.is_some(),
            Self::HttpRoute(object) => {
                let mut rules = object.spec.rules.iter();
                rules.any(|rule| stand_in::is_closed(&rule.filters))
            }
            Self::GrpcRoute(object) => {
                let mut rules = object.spec.rules.iter();
                rules.any(|rule| stand_in::is_closed(&rule.filters))
            }
            _ => false,
        }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Key {
        let meta = self.meta();
        Key::new(self.kind(), meta.namespace.clone(), meta.name.clone())
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
    Skipped(Box<Unread>),
    /// Nothing says which object this is.
    Unknown {
        /// Why.
        fault: Fault,
        /// Whether it may be an object that restricts access.
        may_restrict: bool,
    },
}
