//! Slim forms of the objects: only the fields that mean something to the mesh.

pub mod core;
pub mod meta;
pub mod networking;
pub mod security;

pub use self::core::{EndpointSlice, Namespace, Node, Pod, Service};
pub use self::meta::Meta;
pub use self::networking::{ServiceEntry, WorkloadEntry};
pub use self::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
