//! What keeps a process healthy: configuration layers, drain, readiness, tasks, admin, metrics, logs.
//!
//! This crate knows nothing of meshes. A program composes it like this:
//!
//! ```
//! use tulle_runtime::{config, drain, metrics::Registry, ready::Ready, tasks};
//! use std::time::Duration;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let env = config::MapEnv::from([("DEADLINE", "1s")]);
//! let mut values = config::Collector::new(&env);
//! let deadline = values.duration("DEADLINE", Duration::from_secs(5));
//! values.finish().expect("every value can be used");
//!
//! let (trigger, watcher) = drain::new();
//! let metrics = Registry::for_process("example").seal();
//! let ready = Ready::new();
//! let starting = ready.register("first answer");
//! let guard = watcher.guard();
//! tasks::spawn("worker", async move {
//!     drop(starting);
//!     watcher.signaled().await;
//!     drop(guard);
//! });
//! assert_eq!(trigger.drain_and_wait(deadline).await, 0);
//! assert!(ready.pending().is_empty());
//! assert!(metrics.encode().contains("istio_build"));
//! # });
//! ```

pub mod admin;
pub mod backoff;
pub mod build_info;
pub mod config;
pub mod drain;
pub mod exit;
pub mod http_client;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod parent;
pub mod ready;
pub mod signal;
pub mod socket_file;
pub mod tasks;
pub mod telemetry;
pub mod usage;
