//! Where the files of a mesh are, and what its components are called.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the files of a mesh are.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The `tulle` binary.
    pub binary: PathBuf,
    /// Objects of the user.
    pub config: PathBuf,
    /// State of the control plane.
    pub state: PathBuf,
    /// Logs, one file per process.
    pub logs: PathBuf,
    /// Admin sockets.
    pub run: PathBuf,
}

impl Folders {
    /// Makes the folders below `root`.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn create(binary: PathBuf, root: &Path) -> io::Result<Self> {
        let folder = |name: &str| root.join(name);
        let folders = Self {
            binary,
            config: folder("config"),
            state: folder("state"),
            logs: folder("logs"),
            run: folder("run"),
        };
        for folder in [&folders.config, &folders.state, &folders.logs, &folders.run] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(folders)
    }

    /// Where a process writes its log.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// A command that runs the `tulle` binary, ends with this process and appends to its log.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn command(&self, name: &str, arguments: &[&str]) -> io::Result<Command> {
        let mut command = Command::new(&self.binary);
        let log = File::options().create(true).append(true).open(self.log(name))?;
        command
            .args(arguments)
            .env("TULLE_EXIT_WITH_STDIN", "true")
            .env("TULLE_RUN_DIR", &self.run);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Where the agent of a node keeps what must outlive a boot.
    #[must_use]
    pub fn agent_state(&self, node: &str) -> PathBuf {
        self.state.join(format!("agent-{node}"))
    }

    /// The admin socket of a component.
    #[must_use]
    pub fn socket(&self, component: &Component) -> PathBuf {
        self.run.join(format!("{}.sock", component.name()))
    }
}

/// A component of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The control plane.
    Control,
    /// The agent of a node.
    Agent(String),
    /// The proxy of a node.
    Ztunnel(String),
    /// A waypoint, by its gateway.
    Waypoint {
        /// Namespace of the gateway.
        namespace: String,
        /// Name of the gateway.
        gateway: String,
    },
}

impl Component {
    /// The waypoint of a gateway.
    #[must_use]
    pub fn waypoint(namespace: &str, gateway: &str) -> Self {
        Self::Waypoint {
            namespace: namespace.to_owned(),
            gateway: gateway.to_owned(),
        }
    }

    /// Name of its process, log and socket.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Control => "xds".to_owned(),
            Self::Agent(node) => format!("agent-{node}"),
            Self::Ztunnel(node) => format!("ztunnel-{node}"),
            Self::Waypoint { namespace, gateway } => format!("waypoint-{namespace}.{gateway}"),
        }
    }
}
