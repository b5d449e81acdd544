//! Settings of the agent: flags, some of them environment variables too.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgAction, Args};
use tulle_runtime::telemetry::{DEFAULT_FILTER, LogFormat};

use crate::cni::desk::Undescribed;
use crate::cni::{SOCKET, STATE_DIR};
use crate::enroll::task::LEAVE_DEADLINE;
use crate::install::{Entry, Installation};
use crate::locate::cri::SOCKETS;
use crate::rules::Backend;
use crate::rules::ranges::{InvalidRange, Range};
use crate::variant::{Existing, MarkGuard};

/// What `tulle agent` may be asked.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    /// Something else than running
    #[command(subcommand)]
    pub other: Option<Other>,
    /// How to run
    #[command(flatten)]
    pub config: Option<Config>,
}

/// What an agent's binary does beside running as the agent.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Other {
    /// Keep the pods of this node mute until the agent has looked at them
    ///
    /// Loads a table into the network namespace that it is started in, with the ranges that the last agent was given by
    /// --pod-range, and ends. To be run once per boot, before the container runtime starts.
    Guard(GuardConfig),
}

/// Settings of `tulle agent guard`.
#[derive(Debug, Clone, Args)]
pub struct GuardConfig {
    /// Guard from the boot on; the only way there is
    #[arg(long, required = true)]
    pub boot: bool,
    /// Folder of what outlives a boot
    #[arg(long, default_value = "/var/lib/tulle")]
    pub state_dir: PathBuf,
}

/// Run the node agent: it enrols the pods of this node, owns their packet rules, routes and listening sockets, and
/// hands them to the node proxy.
///
/// When it is stopped it leaves rules and pods as they are, so that a restart breaks nothing; `--cleanup-on-exit`
/// takes everything back first.
#[derive(Debug, Clone, Args)]
// Settings in groups of their own leave this one empty, and an empty group is never seen.
#[group(args = ["node"])]
pub struct Config {
    /// Id of this node, as the control plane knows it
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Address of the control plane
    #[arg(long, env = "XDS_ADDRESS", default_value = "https://localhost:15012")]
    pub xds_address: http::Uri,
    /// What the control plane's certificate must chain to: a file, or PEM text
    #[arg(long, env = "XDS_ROOT_CA", default_value = "/var/run/tulle/root-cert.pem")]
    pub xds_root_ca: String,
    /// File with this node's credential
    #[arg(long, env = "AUTH_TOKEN", default_value = "/var/run/tulle/token")]
    pub token_file: PathBuf,
    /// Id of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Folder of admin sockets; this agent's is `agent-<node>.sock`
    #[arg(long, env = "TULLE_RUN_DIR", default_value = "/run/tulle")]
    pub run_dir: PathBuf,
    /// Socket at which node proxies connect
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub inpod_uds: PathBuf,
    /// Folder of named network namespaces
    #[arg(long, default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// Folder with a resolv.conf per named network namespace: <name>/resolv.conf
    #[arg(long, default_value = "/etc/netns")]
    pub resolver_dir: PathBuf,
    /// Folder of what must outlive agent and boot
    #[arg(long, env = "TULLE_STATE_DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Socket of the container runtime, or `off`; by default the first that is there of containerd's, CRI-O's and k3s'
    #[arg(long)]
    pub cri_socket: Option<Socket>,
    /// Socket at which the CNI plugin asks about new pods, or `off`
    #[arg(long, default_value = SOCKET)]
    pub cni_socket: Socket,
    /// What becomes of new pods that the control plane does not describe
    #[arg(long, value_enum, default_value_t = Undescribed::Refuse)]
    pub undescribed_pods: Undescribed,
    /// Put the CNI plugin in place, and back whenever the primary network's installer takes it away
    #[arg(long, default_value_t = false)]
    pub install_cni: bool,
    /// Take the CNI plugin away, and end
    #[arg(long, default_value_t = false, conflicts_with = "install_cni")]
    pub uninstall_cni: bool,
    /// Folder of CNI programs
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Folder of CNI configuration lists; the plugin is chained into the first by name
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Namespaces whose pods start without being asked about
    #[arg(long, value_delimiter = ',', default_value = "kube-system,tulle-system")]
    pub cni_exclude_namespaces: Vec<String>,
    /// A range that addresses of this node's pods come from, such as 10.0.0.0/24; may be given more than once. Pods of
    /// these ranges stay mute from the next boot on until the agent has looked at them
    #[arg(long, env = "POD_RANGES", value_delimiter = ',', value_parser = pod_range)]
    pub pod_range: Vec<String>,
    /// Ask for names of captured pods through the node proxy; annotation ambient.istio.io/dns-capture of a pod decides
    /// otherwise for it
    #[arg(long, env = "DNS_CAPTURE", action = ArgAction::Set, num_args = 0..=1, default_value = "true", default_missing_value = "true")]
    pub dns_capture: bool,
    /// What happens to a pod's connections that are older than its capture; annotation
    /// tulle.dev/existing-connections of a pod decides otherwise for it
    #[arg(long, value_enum, default_value_t = Existing::Keep)]
    pub existing_connections: Existing,
    /// How long captured connections of a pod that leaves the mesh may go on, in seconds; then they are cut
    #[arg(long, env = "LEAVE_DEADLINE", default_value_t = LEAVE_DEADLINE.as_secs())]
    pub leave_deadline: u64,
    /// Who may carry the node proxy's packet mark, which passes outbound capture
    #[arg(long, value_enum, default_value_t = MarkGuard::Cgroup)]
    pub mark_guard: MarkGuard,
    /// How packet rules get into a pod's namespace
    #[arg(long, value_enum, default_value_t = Backend::Netlink)]
    pub rules: Backend,
    /// Take every pod out of the mesh before ending
    #[arg(long, default_value_t = false)]
    pub cleanup_on_exit: bool,
    /// TCP port of the admin pages on loopback, or `off`; the unix socket is always there
    #[arg(long, default_value = "off")]
    pub admin_port: Port,
    /// Port of /metrics, or `off`
    #[arg(long, default_value = "15024")]
    pub metrics_port: Port,
    /// Port of /healthz/ready, or `off`
    #[arg(long, default_value = "15025")]
    pub readiness_port: Port,
    /// What is logged: a level, or a list of target=level
    #[arg(long, env = "RUST_LOG", default_value = DEFAULT_FILTER)]
    pub log_level: String,
    /// How it is logged: text or json
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Text that is a range, as it was written.
fn pod_range(text: &str) -> Result<String, InvalidRange> {
    text.parse::<Range>().map(|_| text.to_owned())
}

impl Config {
    /// Where the plugin goes, and what its entry says.
    #[must_use]
    pub fn installation(&self) -> Installation {
        let excluded = self.cni_exclude_namespaces.iter();
        Installation {
            bin_dir: self.cni_bin_dir.clone(),
            conf_dir: self.cni_conf_dir.clone(),
            entry: Entry {
                socket: self
                    .cni_socket
                    .path()
                    .unwrap_or_else(|| Path::new(SOCKET))
                    .to_owned(),
                state_dir: self.state_dir.clone(),
                exclude_namespaces: excluded.map(|namespace| namespace.as_str().into()).collect(),
            },
        }
    }

    /// Where the container runtime listens.
    #[must_use]
    pub fn cri_socket(&self) -> Option<PathBuf> {
        match &self.cri_socket {
            Some(socket) => socket.path().map(Path::to_owned),
            None => SOCKETS
                .into_iter()
                .map(PathBuf::from)
                .find(|socket| socket.exists()),
        }
    }
}

/// The path of a socket that may be off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// Not used.
    Off,
    /// Used at this path.
    At(PathBuf),
}

impl Socket {
    /// The path, if it is used.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path),
        }
    }
}

impl FromStr for Socket {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            path => Self::At(path.into()),
        })
    }
}

/// A port that may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Not served.
    Off,
    /// Served at this port.
    On(u16),
}

/// Text that is neither a port nor `off`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a port or `off`")]
pub struct InvalidPort;

impl FromStr for Port {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            port => port.parse().map(Self::On).map_err(|_| InvalidPort),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Backend, Config, Existing, InvalidPort, MarkGuard, PathBuf, Port};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        command: super::Command,
    }

    #[test]
    fn guarding_needs_no_node_and_running_does() {
        let parse = |arguments: &[&str]| Whole::try_parse_from(arguments).map(|whole| whole.command);
        assert!(parse(&["agent", "guard", "--boot"]).unwrap().other.is_some());
        assert!(parse(&["agent", "guard"]).is_err());
        let running = parse(&["agent", "--node", "n1"]).unwrap();
        assert_eq!(running.config.unwrap().node, "n1");
        assert!(parse(&["agent"]).map_or(true, |command| command.config.is_none()));
    }

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn the_node_is_all_that_must_be_given() {
        let config = Command::try_parse_from(["agent", "--node", "n1"]).unwrap().config;
        assert_eq!(config.netns_dir, PathBuf::from("/run/netns"));
        assert_eq!(config.inpod_uds, PathBuf::from("/var/run/ztunnel/ztunnel.sock"));
        assert!(config.dns_capture && !config.cleanup_on_exit);
        assert_eq!(config.mark_guard, MarkGuard::Cgroup);
        assert_eq!(config.existing_connections, Existing::Keep);
        assert_eq!(config.admin_port, Port::Off);
        assert_eq!(config.rules, Backend::Netlink);
    }

    #[test]
    fn rules_may_be_put_in_place_by_nft() {
        let command = Command::try_parse_from(["agent", "--node", "n1", "--rules", "nft"]).unwrap();
        assert_eq!(command.config.rules, Backend::Nft);
        assert!(Command::try_parse_from(["agent", "--node", "n1", "--rules", "iptables"]).is_err());
    }

    #[test]
    fn names_are_captured_unless_it_is_said_otherwise() {
        let parse = |arguments: &[&str]| {
            let all = ["agent", "--node", "n1"].iter().chain(arguments);
            Command::try_parse_from(all).map(|command| command.config)
        };
        assert!(!parse(&["--dns-capture", "false"]).unwrap().dns_capture);
        assert!(parse(&["--dns-capture"]).unwrap().dns_capture);
        assert!(parse(&["--pod-range", "10.0.0.1/24"]).is_err());
        let config = parse(&["--pod-range", "10.0.0.0/24,fd00::/64"]).unwrap();
        assert_eq!(config.pod_range, ["10.0.0.0/24", "fd00::/64"]);
    }

    #[test]
    fn a_port_may_be_off() {
        assert_eq!("off".parse(), Ok(Port::Off));
        assert_eq!("0".parse(), Ok(Port::On(0)));
        assert_eq!("many".parse::<Port>(), Err(InvalidPort));
    }
}
