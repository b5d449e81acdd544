//! Delta-ADS client session, its gRPC driver, and configuration from a local file.
//!
//! [`session`] decides: what a stream opens with, what a response changes, how it is answered. [`stream`] carries
//! that over gRPC, and [`MeshState`] is what the rest of a proxy sees of it: the mesh, and a wake-up when it
//! changed. [`local`] feeds the same state from a file.
//!
//! ```
//! use tulle_model::Mesh;
//! use tulle_xds_client::MeshState;
//! use tulle_xds_client::local::{Local, LocalSource};
//!
//! let state = MeshState::new(Mesh::new());
//! let text = "workloads: [{name: web, namespace: shop, workloadIps: [10.0.0.1], protocol: HBONE}]";
//! Local::load(LocalSource::Text(text.into()), state.clone())?;
//! assert!(state.synced());
//! assert_eq!(state.snapshot().workloads().count(), 1);
//! # Ok::<(), tulle_xds_client::local::LocalError>(())
//! ```

pub mod keep;
pub mod local;
pub mod metrics;
pub mod node;
pub mod on_demand;
pub mod resource;
pub mod session;
pub mod state;
pub mod status;
pub mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use keep::{Keeper, Kept};
pub use metrics::Metrics;
pub use node::{NodeInfo, NodeKind};
pub use resource::ResourceType;
pub use session::Session;
pub use state::{ChangeStream, MeshState};
pub use status::Status;
pub use stream::{Client, Options};
