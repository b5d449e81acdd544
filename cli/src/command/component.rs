//! `tulle xds`, `tulle agent`, `tulle ztunnel`, `tulle waypoint`: one component as its own process.

use std::ffi::OsString;

use clap::Subcommand;
use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;
use tulle_runtime::parent;

/// The variables that a node without Kubernetes sets; the reference has all of them.
const ZTUNNEL_HELP: &str = "\
Environment (ztunnel's names; docs/reference/config.md has all of them):
  NODE_NAME             own node
  PROXY_MODE            shared (all pods of the node, through the agent) or dedicated [shared]
  PROXY_WORKLOAD_INFO   dedicated mode: NAMESPACE/NAME/SERVICE_ACCOUNT
  INPOD_UDS             socket of the agent [/var/run/ztunnel/ztunnel.sock]
  XDS_ADDRESS           control plane, https://HOST:PORT; empty: none
  CA_ADDRESS            certificate authority, https://HOST:PORT
  XDS_ROOT_CA           root of the control plane: path or PEM text (likewise CA_ROOT_CA)
  AUTH_TOKEN            file with the node's token, or the token itself
  LOCAL_XDS_PATH        workloads, services and policies from this YAML file instead
  TULLE_RUN_DIR         folder of the admin socket [/run/tulle]
  RUST_LOG, LOG_FORMAT  log filter [info]; text or json [text]

Exit codes: 0 ended when asked to; 1 failed while running; 64 a variable has a bad value.";

/// A component of the mesh.
#[derive(Debug, Subcommand)]
pub(crate) enum Component {
    /// Run the control plane: configuration from a folder, delta ADS, certificate authority
    Xds(Box<tulle_xds::Config>),
    /// Run the node agent: enrols this node's pods and owns their packet rules and sockets
    Agent(Box<tulle_agent::config::Command>),
    /// Answer a container runtime as its CNI plugin: ask the agent of this node about a pod that starts or ends
    ///
    /// Container runtimes start it with CNI_COMMAND and more in the environment and the network configuration on
    /// standard input. `tulle agent --install-cni` puts it in its place.
    Cni,
    /// Run the node proxy; it takes ztunnel's environment variables
    #[command(after_help = ZTUNNEL_HELP)]
    Ztunnel(Ztunnel),
}

/// How the node proxy runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Ztunnel {
    /// Run generations of the proxy as children: SIGHUP starts the next one from the binary on disk, the last one keeps
    /// its connections until they end
    #[arg(long)]
    supervise: bool,
}

/// A proxy as a process of its own, which takes its settings from the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    Ztunnel,
    Waypoint,
}

impl Proxy {
    /// The proxy that `arguments`, without the program's name, ask for and say nothing else about, which is how a mesh
    /// starts them, and a supervisor its generations. Such a process has no use for the command line: to describe every
    /// command of it touches 2 MiB of the program that would stay resident.
    pub(crate) fn alone(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let name = arguments.next()?;
        let proxy = match name.to_str()? {
            "ztunnel" => Self::Ztunnel,
            "waypoint" => Self::Waypoint,
            _ => return None,
        };
        arguments.next().is_none().then_some(proxy)
    }

    /// Runs it as this process.
    pub(crate) fn run(self) -> Exit {
        watch_parent();
        self.serve()
    }

    fn serve(self) -> Exit {
        match self {
            Self::Ztunnel => tulle_ztunnel::run_process(&ProcessEnv),
            Self::Waypoint => tulle_waypoint::run_process(&ProcessEnv),
        }
    }
}

/// A local mesh must not outlive the command that started it, however that ended.
fn watch_parent() {
    parent::watch(&ProcessEnv);
}

pub(crate) fn run(component: Component) -> Exit {
    watch_parent();
    match component {
        Component::Xds(config) => tulle_xds::main(*config),
        Component::Agent(command) => tulle_agent::main_of(*command),
        // The variable that makes it one is missing, which is what it says.
        Component::Cni => tulle_agent::cni::plugin::main(&ProcessEnv),
        Component::Ztunnel(Ztunnel { supervise: true }) => {
            tulle_ztunnel::supervise::run_process(&ProcessEnv, vec!["ztunnel".into()])
        }
        Component::Ztunnel(Ztunnel { supervise: false }) => Proxy::Ztunnel.serve(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(arguments: &[&str]) -> Option<Proxy> {
        Proxy::alone(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_proxy_is_asked_for_by_its_bare_name() {
        assert_eq!(alone(&["ztunnel"]), Some(Proxy::Ztunnel));
        assert_eq!(alone(&["waypoint"]), Some(Proxy::Waypoint));
    }

    #[test]
    fn whatever_says_more_or_names_no_proxy_is_read_as_a_command_line() {
        let said: [&[&str]; 7] = [
            &[],
            &["ztunnel", "--supervise"],
            &["ztunnel", "--help"],
            &["waypoint", "list"],
            &["--help", "waypoint"],
            &["xds"],
            &["Waypoint"],
        ];
        for arguments in said {
            assert_eq!(alone(arguments), None, "{arguments:?}");
        }
    }
}
