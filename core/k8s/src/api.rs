//! Slim forms of the objects: only the fields that mean something to the mesh.

pub mod core;
pub mod duration;
pub mod gateway;
pub mod labels;
pub mod mesh;
pub mod meta;
pub mod networking;
pub mod route;
pub mod security;
pub mod selector;
pub mod traffic;

pub use self::core::{EndpointSlice, Namespace, Node, Pod, Service};
pub use self::gateway::{Gateway, GatewayClass, ReferenceGrant};
pub use self::mesh::{ConfigMap, Mesh, Secret};
pub use self::meta::Meta;
pub use self::networking::{ServiceEntry, WorkloadEntry};
pub use self::route::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute};
pub use self::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
pub use self::traffic::{BackendTlsPolicy, TrafficPolicy};
