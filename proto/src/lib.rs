//! Wire messages, generated from .proto files, and conversions to and from the model.
//!
//! The generated modules are what travels; [`convert`] is the only door between them and the model:
//!
//! ```
//! use prost::Message;
//! use tulle_proto::{Resource, decode_address, resource_name, workload};
//!
//! let wire = workload::Workload { uid: "Kubernetes//Pod/shop/web".into(), ..Default::default() };
//! let body = workload::Address { r#type: Some(workload::address::Type::Workload(wire)) }.encode_to_vec();
//! let Resource::Workload(web) = decode_address("Kubernetes//Pod/shop/web", &body)? else { panic!() };
//! assert_eq!(web.service_account.as_ref(), "default");
//! # Ok::<(), tulle_proto::Malformed>(())
//! ```

pub mod convert;
#[cfg(feature = "testing")]
pub mod fuzz;
pub mod names;
pub mod otlp;
pub mod resume;
mod strict;
pub mod stub;

#[allow(
    missing_docs,
    unnameable_types,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::nursery,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}

pub use generated::envoy::config::core::v3 as core;
pub use generated::envoy::service::auth::v3 as ext_authz;
pub use generated::envoy::service::discovery::v3 as discovery;
pub use generated::envoy::service::ratelimit::v3 as rate_limit;
pub use generated::google::rpc as rpc_status;
pub use generated::istio::security;
pub use generated::istio::v1::auth as ca;
pub use generated::istio::workload;
pub use generated::istio::workload::zds;
pub use generated::runtime::v1 as cri;
pub use generated::tulle::ca::v1 as node_ca;
pub use generated::tulle::mesh::v1 as mesh;
pub use generated::tulle::waypoint::v1 as waypoint;

pub use convert::waypoint::{
    decode_policy, decode_route, decode_waypoint, encode_policy, encode_route, encode_waypoint,
};
pub use convert::{
    Cause, Malformed, Resource, decode_address, decode_authorization, decode_trust, decode_workload,
    encode_address, encode_authorization, encode_trust,
};
pub use names::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, POLICY_TYPE, ROUTE_TYPE, TRUST_TYPE, WAYPOINT_TYPE, WORKLOAD_TYPE,
    aliases, resource_name,
};
