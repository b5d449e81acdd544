//! The waypoint: the L7 proxy of the services and workloads that are bound to it.
//!
//! It takes HBONE tunnels from node proxies, reads the requests in them, decides, and opens tunnels to endpoints under
//! its own identity. What it stands in front of, and under which rules, comes from the control plane alone.
//!
//! ```text
//! listener ── front ── detect ─┬─ http: hygiene → route → filters in order → upstream: pick → connect → answer
//!                              └─ tcp, tls: route → authorize → upstream
//! ```

pub mod clock;
pub mod filter;
pub mod http;
pub mod policy;
pub mod telemetry;
pub mod upstream;
