//! The node agent: enrols pods, owns their rules, routes and listening sockets, and serves the in-pod protocol.
//!
//! One agent per node decides nothing about who is enrolled, that is the control plane's; it makes it so. It never
//! carries a payload byte. Its promises: **no leak** (an enrolled pod's TCP never bypasses the proxy while agent or
//! proxy is dead, starting or replaced), **no harm** (joining and leaving break no connection, old or new), **no lie**
//! (a pod's state is what the kernel says now).
//!
//! ```text
//! control plane ──▶ pods ──▶ fleet ──▶ one task per pod (enroll) ──▶ capture: rules, routes, conntrack, sysctl
//!                                            │
//!                                            └──▶ zds hub ──▶ node proxies (namespace + listeners)
//! ```
//!
//! # When the agent ends
//! On SIGTERM it leaves everything as it is: rules, routes, and the listeners, of which the proxy holds copies. A new
//! agent finds each pod again through the control plane's description, takes the listeners back from the proxy, and
//! verifies what the kernel has. `--cleanup-on-exit` takes every pod out of the mesh first.
//!
//! What a pod is asked to hold is a value, made by a pure function:
//!
//! ```
//! use tulle_agent::rules::nft::render;
//! use tulle_agent::rules::plan::{Variant, capture};
//!
//! let table = capture(&Variant::default());
//! assert!(render(&table).contains("redirect to :15001"));
//! ```

mod admin;
pub mod app;
pub mod board;
pub mod capture;
pub mod cgroup;
pub mod cni;
pub mod config;
pub mod conntrack;
pub mod enroll;
pub mod error;
pub mod events;
pub mod fleet;
#[cfg(feature = "testing")]
pub mod fuzz;
pub mod grace;
mod holder;
pub mod host;
pub mod install;
pub mod locate;
pub mod mark;
pub mod metrics;
mod netlink;
pub mod netns;
pub mod pods;
pub mod probe;
pub mod records;
pub mod repair;
pub mod resolver;
pub mod routes;
pub mod rules;
pub mod sock_diag;
pub mod sockets;
pub mod sysctl;
pub mod variant;
pub mod zds;

pub use app::{Error, run};
pub use config::Config;

use tulle_runtime::exit::Exit;
use tulle_runtime::{limits, signal, telemetry};

/// Threads of the agent: it waits more than it works.
const WORKER_THREADS: usize = 2;

/// Does what the command asks, as a process of its own.
#[must_use]
pub fn main_of(command: config::Command) -> Exit {
    match (command.other, command.config) {
        (Some(config::Other::Guard(guard)), _) => guard_from_boot(&guard.state_dir),
        (None, Some(config)) => main(config),
        (None, None) => {
            eprintln!("tulle agent: the node is not named; give --node or NODE_NAME");
            Exit::Usage
        }
    }
}

/// Loads the table that keeps pods mute, and ends.
fn guard_from_boot(state: &std::path::Path) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let loaded = match runtime {
        Ok(runtime) => runtime
            .block_on(host::boot::load(state))
            .map_err(anyhow::Error::from),
        Err(error) => Err(error.into()),
    };
    match loaded {
        Ok(0) => eprintln!("tulle agent guard: no ranges of pods are known yet; nothing is guarded"),
        Ok(ranges) => eprintln!(
            "tulle agent guard: {ranges} ranges of pods stay mute until the agent has looked at them"
        ),
        Err(error) => {
            eprintln!("tulle agent guard: {error:#}");
            return Exit::Failed;
        }
    }
    Exit::Ok
}

/// Runs the agent as a process of its own.
#[must_use]
pub fn main(config: Config) -> Exit {
    let logs = match telemetry::init(config.log_format, &config.log_level) {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("tulle agent: {error}");
            return Exit::Usage;
        }
    };
    if config.uninstall_cni {
        return match config.installation().uninstall() {
            Ok(()) => Exit::Ok,
            Err(error) => {
                tracing::error!(%error, "the CNI plugin cannot be taken away");
                Exit::Failed
            }
        };
    }
    limits::apply();
    limits::give_way_to_traffic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build();
    let ran = match runtime {
        Ok(runtime) => runtime
            .block_on(run(config, signal::shutdown(), Some(&logs)))
            .map_err(anyhow::Error::from),
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "agent cannot run");
            Exit::Failed
        }
    }
}
