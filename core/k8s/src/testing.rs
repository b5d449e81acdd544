//! Objects from text, and a world of them to translate in, for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_model::service::Visibility;
use tulle_model::{NamespacedHostname, Str};

use crate::api::{Gateway, GatewayClass, Namespace, ReferenceGrant};
use crate::document::documents;
use crate::object::{Key, Kind, Object, Reading, read, read_mesh};
use crate::translate::condition::Condition;
use crate::translate::lookup::{Definition, Lookup, NoDefinition};
use crate::translate::waypoint::{Binding, Subject, Traffic, bind};
use crate::translate::{MeshConfig, service};

/// The objects of a text; a bad one becomes its stand-in.
///
/// # Panics
/// Something in the text is no object.
#[must_use]
pub fn objects(text: &str) -> Vec<Object> {
    let read = |node: &_| match read(node) {
        Reading::Good { object, .. }
        | Reading::Bad {
            stand_in: Some(object),
            ..
        } => Object::clone(&object),
        other => panic!("no object: {other:?}"),
    };
    documents(text)
        .iter()
        .map(|document| read(document.as_ref().expect("a readable document")))
        .collect()
}

/// The mesh as settings have it, and what is said of them.
///
/// # Panics
/// The text is no settings.
#[must_use]
pub fn mesh(text: &str) -> (MeshConfig, Vec<Condition>) {
    let document = documents(text).remove(0).expect("a readable document");
    match read_mesh(&document) {
        Reading::Good { object, .. } => match &*object {
            Object::Mesh(object) => MeshConfig::default().with(&object.settings),
            other => panic!("another kind: {other:?}"),
        },
        other => panic!("no settings: {other:?}"),
    }
}

/// Defines a function that reads one object of a kind.
macro_rules! one {
    ($($name:ident $kind:ident;)*) => {
        $(
            #[doc = concat!("The ", stringify!($kind), " of a text.")]
            ///
            /// # Panics
            /// The text is something else.
            #[must_use]
            pub fn $name(text: &str) -> crate::api::$kind {
                match objects(text).remove(0) {
                    Object::$kind(object) => object,
                    other => panic!("another kind: {other:?}"),
                }
            }
        )*
    };
}

one! {
    namespace Namespace;
    node Node;
    pod Pod;
    service Service;
    endpoint_slice EndpointSlice;
    service_entry ServiceEntry;
    workload_entry WorkloadEntry;
    authorization_policy AuthorizationPolicy;
    peer_authentication PeerAuthentication;
    request_authentication RequestAuthentication;
    gateway Gateway;
    http_route HttpRoute;
    traffic_policy TrafficPolicy;
}

/// Objects as translation looks them up. Every definition of a service holds, also where two share a host name.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The mesh.
    pub mesh: MeshConfig,
    objects: BTreeMap<Key, Object>,
}

impl Around {
    /// A world of the objects of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let keyed = objects(text).into_iter().map(|object| (object.key(), object));
        Self {
            mesh: MeshConfig::default(),
            objects: keyed.collect(),
        }
    }

    /// With the objects of a text, too.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.objects.extend(Self::of(text).objects);
        self
    }

    /// The same in another mesh.
    #[must_use]
    pub fn within(self, mesh: MeshConfig) -> Self {
        Self { mesh, ..self }
    }

    /// An object.
    #[must_use]
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&Key::new(kind, namespace, name))
    }

    fn services(&self, object: &Object) -> Vec<Definition> {
        let around = service::Around {
            mesh: &self.mesh,
            namespace: self.namespace(&object.meta().namespace),
            network: &self.mesh.network,
        };
        let found = match object {
            Object::Service(object) => service::service(object, around).0.into_iter().collect(),
            Object::ServiceEntry(object) => service::service_entry(object, around).0,
            _ => Vec::new(),
        };
        let definition = |found| Definition {
            service: found,
            is_headless: false,
            port_names: service::port_names(object),
        };
        found.into_iter().map(definition).collect()
    }

    fn binding(&self, service: &NamespacedHostname) -> Binding {
        let defines = |object: &&Object| {
            let mut found = self.services(object).into_iter();
            found.any(|found| found.service.key() == *service)
        };
        let Some(object) = self.objects.values().find(defines) else {
            return Binding::None;
        };
        let subject = Subject {
            meta: object.meta(),
            traffic: Traffic::Service,
            visibility: &Visibility::Public,
        };
        bind(subject, self)
    }
}

impl Lookup for Around {
    fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    fn namespace(&self, name: &str) -> Option<&Namespace> {
        match self.get(Kind::Namespace, "", name)? {
            Object::Namespace(object) => Some(object),
            _ => None,
        }
    }

    fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        match self.get(Kind::Gateway, namespace, name)? {
            Object::Gateway(object) => Some(object),
            _ => None,
        }
    }

    fn gateway_class(&self, name: &str) -> Option<&GatewayClass> {
        match self.get(Kind::GatewayClass, "", name)? {
            Object::GatewayClass(object) => Some(object),
            _ => None,
        }
    }

    fn gateways(&self) -> Vec<&Gateway> {
        let gateways = self.objects.values().filter_map(|object| match object {
            Object::Gateway(object) => Some(object),
            _ => None,
        });
        gateways.collect()
    }

    fn route(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        self.get(kind, namespace, name).filter(|_| kind.is_route())
    }

    fn service_of(&self, namespace: &str, name: &str) -> Result<Definition, NoDefinition> {
        let object = self.get(Kind::Service, namespace, name);
        let found = object.map_or_else(Vec::new, |object| self.services(object));
        found.into_iter().next().ok_or(NoDefinition::Missing)
    }

    fn entry_of(&self, namespace: &str, name: &str) -> Result<Vec<Definition>, NoDefinition> {
        let object = self.get(Kind::ServiceEntry, namespace, name);
        object
            .map(|object| self.services(object))
            .ok_or(NoDefinition::Missing)
    }

    fn hostname(&self, _: &str, hostname: &str) -> Option<Definition> {
        let mut all = self.objects.values().flat_map(|object| self.services(object));
        all.find(|found| *found.service.hostname == *hostname)
    }

    fn grants(&self, namespace: &str) -> Vec<&ReferenceGrant> {
        let grants = self.objects.iter().filter_map(|(key, object)| match object {
            Object::ReferenceGrant(object) if &*key.namespace == namespace => Some(object),
            _ => None,
        });
        grants.collect()
    }

    fn certificates(&self, kind: &str, namespace: &str, name: &str) -> Option<Str> {
        match self.get(Kind::find(kind, "")?, namespace, name)? {
            Object::ConfigMap(object) => object.data.get("ca.crt").cloned(),
            Object::Secret(object) => Some(object.certificates.clone()),
            _ => None,
        }
    }

    fn waypoints_of(&self, service: &NamespacedHostname) -> Vec<Str> {
        let binding = self.binding(service);
        binding
            .named()
            .map(|waypoint| waypoint.to_string().into())
            .collect()
    }

    fn is_bound(&self, service: &NamespacedHostname) -> bool {
        self.binding(service).is_bound()
    }

    fn node_addresses(&self) -> Vec<IpAddr> {
        Vec::new()
    }
}
