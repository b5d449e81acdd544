//! Names: shared text, and the (namespace, name) pairs that mesh objects are called by.

use std::fmt;
use std::sync::Arc;

/// Immutable shared text. Cloning costs one reference count; names are cloned on every connection.
pub type Str = Arc<str>;

/// A namespaced object name, written `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NamespacedName {
    /// Namespace of the object.
    pub namespace: Str,
    /// Name of the object within its namespace.
    pub name: Str,
}

impl NamespacedName {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The key of a service: its fully qualified host name within a namespace, written `<namespace>/<hostname>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NamespacedHostname {
    /// Namespace that defines the service.
    pub namespace: Str,
    /// Fully qualified domain name.
    pub hostname: Str,
}

impl NamespacedHostname {
    /// Joins a namespace and a host name.
    pub fn new(namespace: impl Into<Str>, hostname: impl Into<Str>) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// The opaque, unique name of a workload. It is also the resource name on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(pub Str);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for WorkloadUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}
