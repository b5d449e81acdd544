//! Every object in force, and the reverse indices by which a change finds what it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_k8s::api::meta::{Labels, selects};
use tulle_k8s::api::security::MtlsMode;
use tulle_k8s::api::{
    AuthorizationPolicy, EndpointSlice, Namespace, Node, PeerAuthentication, Pod, Service, ServiceEntry,
    WorkloadEntry,
};
use tulle_k8s::document::documents;
use tulle_k8s::object::{Reading, read_mesh};
use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::condition::{ACCEPTED, Condition};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::Str;

use super::index::{self, Index, IndexKey};

/// Name of the ConfigMap with settings of the mesh, in the root namespace.
const SETTINGS: &str = "tulle";

/// Objects from which on a map that was filled in order is packed.
const PACKED_MIN: usize = 1_000;
/// The kinds that workloads come from.
pub(super) const SOURCES: [Kind; 4] = [
    Kind::Pod,
    Kind::EndpointSlice,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
];

/// The objects and their indices. Owned by the one writer.
#[derive(Debug, Clone)]
pub struct World {
    /// As the flags say.
    flags: MeshConfig,
    /// With what objects say.
    mesh: MeshConfig,
    objects: BTreeMap<Key, Arc<Object>>,
    index: Index,
    /// Objects that came since the maps were packed.
    fresh: usize,
}

/// Defines a getter that knows its kind.
macro_rules! getters {
    ($($getter:ident $kind:ident;)*) => {
        $(
            #[doc = concat!("The ", stringify!($kind), " of this name.")]
            #[must_use]
            pub fn $getter(&self, namespace: &str, name: &str) -> Option<&$kind> {
                match self.get(&Key::new(Kind::$kind, namespace, name))? {
                    Object::$kind(object) => Some(object),
                    _ => None,
                }
            }
        )*
    };
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(mut mesh: MeshConfig) -> Self {
        // Policies of the whole mesh live in the root namespace; what runs there is never captured.
        mesh.enrolment
            .excluded_namespaces
            .insert(mesh.root_namespace.clone());
        Self {
            flags: mesh.clone(),
            mesh,
            objects: BTreeMap::new(),
            index: Index::default(),
            fresh: 0,
        }
    }

    /// The mesh's settings.
    #[must_use]
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// The object of this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key).map(AsRef::as_ref)
    }

    /// Every object, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        self.objects.iter()
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Adds, replaces or removes an object.
    pub fn set(&mut self, key: &Key, object: Option<Arc<Object>>) {
        let old = match object.clone() {
            Some(new) => self.objects.insert(key.clone(), new),
            None => self.objects.remove(key),
        };
        for entry in old.iter().flat_map(|old| index::keys(old, &self.mesh)) {
            self.index.remove(&entry, key);
        }
        for entry in object.iter().flat_map(|new| index::keys(new, &self.mesh)) {
            self.index.insert(entry, key.clone());
        }
        self.fresh += usize::from(object.is_some());
        if self.is_settings(key) {
            // Nothing that indices hang on can be changed by settings.
            self.mesh = self.settled().0;
        }
    }

    /// Whether an object holds settings of the mesh.
    #[must_use]
    pub fn is_settings(&self, key: &Key) -> bool {
        key.kind == Kind::Mesh
            || (key.kind == Kind::ConfigMap
                && &*key.name == SETTINGS
                && key.namespace == self.flags.root_namespace)
    }

    /// The mesh as flags and settings have it, and what is said of the settings. A file goes before a ConfigMap.
    #[must_use]
    pub fn settled(&self) -> (MeshConfig, Option<(Key, Vec<Condition>)>) {
        let file = self.of_kind(Kind::Mesh).next();
        if let Some((key, Object::Mesh(object))) = file {
            let (mesh, mut conditions) = self.flags.with(&object.settings);
            if let Some(unreadable) = &object.unreadable {
                let message = format!(
                    "{}; mutual TLS is required until it is corrected",
                    unreadable.cause
                );
                conditions = vec![Condition::fails(ACCEPTED, "Invalid", message)];
            }
            return (mesh, Some((key.clone(), conditions)));
        }
        let key = Key::new(Kind::ConfigMap, self.flags.root_namespace.clone(), SETTINGS);
        let Some(Object::ConfigMap(object)) = self.get(&key) else {
            return (self.flags.clone(), None);
        };
        let Some(text) = object.data.get("mesh") else {
            return (self.flags.clone(), None);
        };
        let (mesh, conditions) = self.read_settings(text);
        (mesh, Some((key, conditions)))
    }

    /// Settings that stand in a value of a ConfigMap. Those that cannot be read require mutual TLS.
    fn read_settings(&self, text: &str) -> (MeshConfig, Vec<Condition>) {
        let document = documents(text).into_iter().next();
        let read = match document {
            None => return (self.flags.clone(), Vec::new()),
            Some(Ok(node)) => read_mesh(&node),
            Some(Err(fault)) => return self.refused(&fault.to_string()),
        };
        match read {
            Reading::Good { object, .. } => match &*object {
                Object::Mesh(object) => self.flags.with(&object.settings),
                _ => (self.flags.clone(), Vec::new()),
            },
            Reading::Bad { faults, .. } => {
                let causes: Vec<String> = faults.iter().map(ToString::to_string).collect();
                self.refused(&causes.join("; "))
            }
            Reading::Skipped(unread) => self.refused(&unread.fault.to_string()),
            Reading::Unknown { fault, .. } => self.refused(&fault.to_string()),
        }
    }

    fn refused(&self, cause: &str) -> (MeshConfig, Vec<Condition>) {
        let mut mesh = self.flags.clone();
        mesh.mtls_mode = MtlsMode::Strict;
        let message = format!("{cause}; mutual TLS is required until it is corrected");
        (mesh, vec![Condition::fails(ACCEPTED, "Invalid", message)])
    }

    /// The keys found under an index entry.
    pub fn lookup<'a>(&'a self, entry: &IndexKey) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.index.get(entry)
    }

    /// The objects of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Object)> {
        self.from(Key::new(kind, "", ""))
            .take_while(move |(key, _)| key.kind == kind)
    }

    /// The objects of a kind in a namespace.
    pub fn of_kind_in<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Object)> {
        let first = Key::new(kind, namespace, "");
        self.from(first)
            .take_while(move |(key, _)| key.kind == kind && &*key.namespace == namespace)
    }

    fn from(&self, first: Key) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects
            .range(first..)
            .map(|(key, object)| (key, object.as_ref()))
    }

    getters! {
        service Service;
        pod Pod;
        endpoint_slice EndpointSlice;
        service_entry ServiceEntry;
        workload_entry WorkloadEntry;
        authorization_policy AuthorizationPolicy;
        peer_authentication PeerAuthentication;
    }

    /// A namespace's object.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        match self.get(&Key::new(Kind::Namespace, "", name))? {
            Object::Namespace(object) => Some(object),
            _ => None,
        }
    }

    /// A node's object.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        match self.get(&Key::new(Kind::Node, "", name))? {
            Object::Node(object) => Some(object),
            _ => None,
        }
    }

    /// The network of what names none.
    #[must_use]
    pub fn network(&self) -> Str {
        self.mesh
            .default_network(self.namespace(&self.mesh.root_namespace))
    }

    /// The objects of a kind in a namespace whose selector matches these labels.
    pub fn selecting(&self, kind: Kind, namespace: &str, labels: &Labels) -> Vec<(&Key, &Object)> {
        let mut found: BTreeMap<&Key, &Object> = BTreeMap::new();
        for (name, value) in labels {
            let entry = IndexKey::selector(namespace, name, value);
            for key in self.lookup(&entry).filter(|key| key.kind == kind) {
                let Some(object) = self.get(key) else { continue };
                if index::selector(object).is_some_and(|selector| selects(selector, labels)) {
                    found.insert(key, object);
                }
            }
        }
        found.into_iter().collect()
    }

    /// The sources of workloads in a namespace that a selector may select.
    pub fn selected(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &Key> {
        let first = selector.iter().next();
        let entry = first.map(|(name, value)| IndexKey::label(namespace, name, value));
        entry.into_iter().flat_map(|entry| self.index.get(&entry))
    }

    /// The sources of workloads in a namespace.
    pub fn workloads_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Key> {
        SOURCES
            .into_iter()
            .flat_map(move |kind| self.of_kind_in(kind, namespace))
            .map(|(key, _)| key)
    }

    /// Gives back what maps take that were filled in order, once that is much: their nodes are only half full.
    pub(super) fn pack(&mut self) {
        if std::mem::take(&mut self.fresh) >= PACKED_MIN {
            self.objects = std::mem::take(&mut self.objects).into_iter().collect();
            self.index.pack();
        }
    }
}
