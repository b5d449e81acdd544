//! The commands and what they share.

mod analyze;
mod ca;
mod codes;
mod completion;
pub(crate) mod component;
mod config;
mod edges;
mod explain;
mod folder;
mod mesh;
mod node;
pub(crate) mod status;
pub(crate) mod up;
mod upgrade;
mod waypoint;
mod waypoint_config;
mod workload;
mod ztunnel_config;

use std::future::Future;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tulle_runtime::exit::Exit;

use self::component::Proxy;
use crate::output::Form;
use crate::running::{RunDir, default_run_dir};

/// An ambient service mesh: encrypted, identified, governed traffic without restarting anything
#[derive(Debug, Parser)]
#[command(name = "tulle", version, max_term_width = 100, infer_subcommands = false)]
#[command(after_help = "Start here:  tulle up --demo\nExplain an error code:  tulle codes T0412")]
pub(crate) struct Tulle {
    #[command(subcommand)]
    command: Command,
}

/// Where the mesh is that a command asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Folder with the components' admin sockets [default: /run/tulle, or /tmp/tulle-UID when not root]
    #[arg(long, global = true, env = "TULLE_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// Options of every command that reads a running mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Reading {
    #[command(flatten)]
    place: Place,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Form,
}

/// The folders of the control plane, for commands that read or write them.
#[derive(Debug, clap::Args)]
pub(crate) struct ControlFolders {
    /// Configuration folder of the control plane
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/etc/tulle/config",
        env = "TULLE_CONFIG_DIR"
    )]
    pub(crate) config_dir: PathBuf,
    /// State folder of the control plane
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/tulle",
        env = "TULLE_STATE_DIR"
    )]
    pub(crate) state_dir: PathBuf,
    #[command(flatten)]
    pub(crate) mesh: mesh::MeshFlags,
}

impl Place {
    pub(crate) fn run_dir(&self) -> RunDir {
        RunDir::new(self.run_dir.clone().unwrap_or_else(default_run_dir))
    }
}

impl Reading {
    pub(crate) fn run_dir(&self) -> RunDir {
        self.place.run_dir()
    }

    pub(crate) fn output(&self) -> Form {
        self.output
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Up),
    Status(status::Status),
    Edges(edges::Edges),
    Explain(explain::Explain),
    ZtunnelConfig(ztunnel_config::ZtunnelConfig),
    Waypoint(waypoint::Waypoint),
    WaypointConfig(waypoint_config::WaypointConfig),
    Workload(workload::Workload),
    Ca(ca::Ca),
    Node(node::Node),
    Analyze(analyze::Analyze),
    Config(config::Config),
    Codes(codes::Codes),
    Completion(completion::Completion),
    #[command(flatten)]
    Component(Box<component::Component>),
    #[command(hide = true)]
    DemoService(crate::demo::service::Args),
    #[command(hide = true)]
    Reference(crate::reference::Reference),
}

/// Runs a command; errors become one line on standard error.
pub(crate) fn run(tulle: Tulle) -> Exit {
    let outcome = match tulle.command {
        Command::Component(component) => return component::run(*component),
        Command::Up(up) => up::run(&up),
        Command::Status(status) => wait_for(status::run(status)),
        Command::Edges(edges) => wait_for(edges::run(edges)),
        Command::Explain(explain) => wait_for(explain::run(explain)),
        Command::ZtunnelConfig(config) => wait_for(ztunnel_config::run(config)),
        Command::Waypoint(waypoint) if waypoint.is_process() => return Proxy::Waypoint.run(),
        Command::Waypoint(waypoint) => wait_for(waypoint::run(waypoint)),
        Command::WaypointConfig(config) => wait_for(waypoint_config::run(config)),
        Command::Workload(workload) => wait_for(workload::run(workload)),
        Command::Ca(ca) => wait_for(ca::run(ca)),
        Command::Node(node) => wait_for(node::run(node)),
        Command::Analyze(command) => wait_for(analyze::run(command)),
        Command::Config(config) => wait_for(config::run(config)),
        Command::Codes(codes) => codes::run(&codes),
        Command::Completion(completion) => Ok(completion::run(&completion)),
        Command::Reference(reference) => Ok(crate::reference::run(&reference)),
        Command::DemoService(args) => {
            wait_for(async { crate::demo::service::run(args).await.map(|()| Exit::Ok) })
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Exit::Failed
    })
}

/// Runs a future to its end on a runtime of this thread.
fn wait_for(future: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
