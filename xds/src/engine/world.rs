//! Every object in force, and the reverse indices by which a change finds what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_k8s::api::meta::{Labels, selects};
use tulle_k8s::api::{
    AuthorizationPolicy, EndpointSlice, Namespace, Node, PeerAuthentication, Pod, Service, ServiceEntry,
    WorkloadEntry,
};
use tulle_k8s::translate::MeshConfig;
use tulle_k8s::{Key, Kind, Object};
use tulle_model::Str;

use super::index::{self, IndexKey};

/// The objects and their indices. Owned by the one writer.
#[derive(Debug, Clone)]
pub struct World {
    mesh: MeshConfig,
    objects: BTreeMap<Key, Arc<Object>>,
    index: BTreeMap<IndexKey, BTreeSet<Key>>,
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
            mesh,
            objects: BTreeMap::new(),
            index: BTreeMap::new(),
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
            if let Some(keys) = self.index.get_mut(&entry) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(&entry);
                }
            }
        }
        for entry in object.iter().flat_map(|new| index::keys(new, &self.mesh)) {
            self.index.entry(entry).or_default().insert(key.clone());
        }
    }

    /// The keys found under an index entry.
    pub fn lookup<'a>(&'a self, entry: &IndexKey) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.index.get(entry).into_iter().flatten()
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
        entry
            .and_then(|entry| self.index.get(&entry))
            .into_iter()
            .flatten()
    }

    /// The sources of workloads in a namespace.
    pub fn workloads_in(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        self.lookup(&IndexKey::Workloads(namespace.into()))
    }
}
