//! `tulle xds`, `tulle agent`, `tulle ztunnel`: one component as its own process.

use clap::Subcommand;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tulle_runtime::config::{Env, ProcessEnv};
use tulle_runtime::exit::Exit;

/// A component of the mesh.
#[derive(Debug, Subcommand)]
pub(crate) enum Component {
    /// Run the control plane: configuration from a folder, delta ADS, certificate authority
    Xds(tulle_xds::Config),
    /// Run the node agent: enrols this node's pods and owns their packet rules and sockets
    Agent(tulle_agent::Config),
    /// Run the node proxy; it takes ztunnel's environment variables
    #[command(after_help = tulle_ztunnel::config::HELP)]
    Ztunnel,
}

pub(crate) fn run(component: Component) -> Exit {
    if ProcessEnv.var("TULLE_EXIT_WITH_STDIN").is_some_and(|value| value == "true") {
        end_with_stdin();
    }
    match component {
        Component::Xds(config) => tulle_xds::main(config),
        Component::Agent(config) => tulle_agent::main(config),
        Component::Ztunnel => tulle_ztunnel::run_process(&ProcessEnv),
    }
}

/// Ends this process when standard input ends: a local mesh must not outlive the command that started it, however
/// that ended.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let mut ignored = Vec::new();
        // End and error mean the same: nobody is there any more.
        let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut ignored);
        let _ = kill(Pid::this(), Signal::SIGTERM);
    });
}
