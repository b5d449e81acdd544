//! The node proxy: captures the traffic of a node's pods and carries it in HBONE tunnels.
//!
//! It owns no protocol above CONNECT and works without Kubernetes: which pods to serve comes from the node's agent,
//! what is known of the mesh from the control plane, certificates from its authority.
//!
//! ```text
//! app ── inpod ── fleet ── proxy ─┬─ outbound: identify → plan → connect ──────────┬─ carry: copy → record
//!                                 └─ inbound:  authenticate → authorize → connect ─┘
//! ```
//!
//! Configuration comes from ztunnel's environment variables:
//!
//! ```
//! use tulle_runtime::config::MapEnv;
//! use tulle_ztunnel::config::{Config, ProxyMode};
//!
//! let env = MapEnv::from([("NODE_NAME", "n1"), ("XDS_ADDRESS", "https://control-plane:15012")]);
//! let config = Config::from_env(&env).expect("every value can be used");
//! assert_eq!(config.mode, ProxyMode::Shared);
//! ```

pub mod accept;
pub mod admin;
pub mod app;
pub mod carry;
pub mod config;
pub mod connections;
pub mod dedicated;
pub mod dial;
pub mod dns;
pub mod error;
pub mod events;
pub mod fleet;
pub mod held;
pub mod inbound;
pub mod inpod;
pub mod metrics;
pub mod on_demand;
pub mod outbound;
pub mod plaintext;
pub mod pod;
pub mod proxy;
pub mod record;
pub mod revocation;
pub mod same_node;
pub mod shed;
pub mod sockets;
pub mod socks5;
pub mod supervise;

pub use app::{App, run, run_process};
pub use config::Config;
