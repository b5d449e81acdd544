//! The CNI plugin and what answers it: no pod of the mesh starts before it is captured.
//!
//! ```text
//! container runtime ──env, stdin──▶ plugin (short-lived process) ──JSON, unix socket──▶ server ─▶ desk
//!                   ◀──stdout────                                ◀───────────────────
//! ```
//! The plugin is chained last: it passes on what the plugins before it made, unchanged. All it does is ask the agent.
//! It fails closed: while the agent cannot be asked, or cannot tell whether the pod is enrolled, no pod starts, save
//! those of excluded namespaces. The end of a pod never fails.

pub mod call;
pub mod desk;
pub mod notes;
pub mod plugin;
pub mod protocol;
pub mod server;

/// Where the agent listens for plugins.
pub const SOCKET: &str = "/var/run/tulle/cni.sock";
/// Folder of what must outlast both agent and plugin.
pub const STATE_DIR: &str = "/var/lib/tulle";
/// The plugin's type, which is also its program's name.
pub const PLUGIN: &str = "tulle-cni";
