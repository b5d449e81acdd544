//! Names, workloads, services, policies and the pure decisions made on them.
//!
//! Nothing here does I/O, reads a clock or knows a wire format: the same functions serve the proxies, their
//! tests, the fuzzers, the benchmarks and `tulle explain`.

pub mod authz;
pub mod enrolment;
pub mod filter;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod gateway;
pub mod identity;
pub mod inbound;
pub mod mesh;
pub mod name;
pub mod network;
pub mod policy;
pub mod reason;
pub mod request;
pub mod route;
pub mod service;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trust;
pub mod upstream;
pub mod waypoint;
pub mod workload;

pub use authz::{Connection, Verdict};
pub use identity::Identity;
pub use inbound::Authority;
pub use mesh::{Changes, Mesh, MeshUpdate, PolicySet, Snapshot};
pub use name::{NamespacedHostname, NamespacedName, Str, WorkloadUid};
pub use network::NetworkAddress;
pub use reason::Reason;
pub use request::RequestHead;
pub use service::Service;
pub use trust::Trust;
pub use upstream::{Endpoint, NoUpstream, Upstream};
pub use workload::Workload;
