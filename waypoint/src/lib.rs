//! The waypoint: the L7 proxy of the services and workloads that are bound to it.
//!
//! It takes HBONE tunnels from node proxies, reads the requests in them, decides, and opens tunnels to endpoints under
//! its own identity. What it stands in front of, and under which rules, comes from the control plane alone.
//!
//! ```text
//! listener ── front ── detect ─┬─ http: hygiene → route → filters in order → upstream: pick → connect → answer
//!                              └─ tcp, tls: route → authorize → upstream
//! ```

pub mod admin;
pub mod app;
pub mod buffers;
pub mod clock;
pub mod config;
pub mod context;
pub mod detect;
pub mod filter;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod policy;
pub mod snapshot;
mod spare;
pub mod tcp;
pub mod telemetry;
pub mod upstream;
mod watched;

pub use app::{App, run_process};
pub use config::Config;
pub use context::Waypoint;
