//! From slim objects to the model: pure functions that never fail and always say what they could not use.

pub mod authorization;
pub mod condition;
pub mod gateway;
pub mod lookup;
pub mod mesh;
pub mod namespace;
pub mod peer_authentication;
pub mod policy;
pub mod ports;
pub mod route;
pub mod service;
pub mod waypoint;
pub mod workload;

pub use mesh::MeshConfig;
