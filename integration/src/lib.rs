//! Tests of the whole mesh in real network namespaces, and the helpers they share.
//!
//! A [`TestMesh`] is a world of nodes and pods with the components of Tulle as real processes. Traffic comes from
//! sockets that the test opens inside of pods, or from real clients and servers that run there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::missing_panics_doc, reason = "a test fails by panicking")]

pub mod ads;
pub mod bench;
pub mod binary;
pub mod containerd;
pub mod crowd;
pub mod faults;
pub mod hbone;
pub mod http;
pub mod impostor;
pub mod load;
pub mod manifest;
pub mod mesh;
pub mod mutants;
pub mod names;
pub mod programs;
pub mod scenario;
pub mod storm;
pub mod traffic;
pub mod upgrade;

pub use mesh::TestMesh;
