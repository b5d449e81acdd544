//! The components of a mesh as processes in the world: a control plane, and an agent and a node proxy per node.

mod error;
mod folders;
mod ready;
mod start;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::MeshError;
use self::error::file_step;
pub use self::folders::{Component, Folders};
use crate::process::Process;

/// Time a component gets to end by itself.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The running components of a mesh.
#[derive(Debug)]
pub struct Mesh {
    folders: Folders,
    /// Environment that every node proxy gets on top.
    environment: BTreeMap<String, String>,
    /// What the proxy of one node gets on top of that.
    node_environment: BTreeMap<String, BTreeMap<String, String>>,
    /// Node proxies of another make, by node.
    foreign: BTreeMap<String, PathBuf>,
    /// Node proxies run as generations under a supervisor.
    supervised: bool,
    /// Arguments that every agent gets on top.
    agent_arguments: Vec<String>,
    /// Arguments that the control plane gets on top.
    control_arguments: Vec<String>,
    processes: BTreeMap<Component, Process>,
}

impl Mesh {
    /// A mesh of which nothing runs yet.
    #[must_use]
    pub fn new(folders: Folders) -> Self {
        Self {
            folders,
            environment: BTreeMap::new(),
            node_environment: BTreeMap::new(),
            control_arguments: Vec::new(),
            foreign: BTreeMap::new(),
            supervised: false,
            agent_arguments: Vec::new(),
            processes: BTreeMap::new(),
        }
    }

    /// Gives every node proxy that is started from now on a variable.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> Self {
        self.set_environment(name, value);
        self
    }

    /// As [`Self::with_environment`], for a mesh that is there already.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Gives the proxy of one node a variable, from its next start on.
    pub fn set_node_environment(&mut self, node: &str, name: &str, value: &str) {
        let variables = self.node_environment.entry(node.to_owned()).or_default();
        variables.insert(name.to_owned(), value.to_owned());
    }

    /// Gives a control plane that is started from now on these arguments.
    pub fn set_control_arguments(&mut self, arguments: &[&str]) {
        self.control_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// Gives every agent that is started from now on these arguments.
    pub fn set_agent_arguments(&mut self, arguments: &[&str]) {
        self.agent_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// Runs node proxies that are started from now on under a supervisor, which replaces them in place.
    #[must_use]
    pub fn with_supervision(mut self) -> Self {
        self.supervised = true;
        self
    }

    /// What is started from now on is this copy of the `tulle` binary.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.folders.binary = binary;
    }

    /// Lets a node be served by another ztunnel than ours. It has no unix admin socket; see [`Self::wait_ready_at`].
    pub fn set_foreign_ztunnel(&mut self, node: &str, binary: &Path) {
        self.foreign.insert(node.to_owned(), binary.to_owned());
    }

    /// Where its files are.
    #[must_use]
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// Gives a node its credential, which its agent and its proxy find in a file only we may read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_token(&self, node: &str, token: &str) -> Result<(), MeshError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = File::options();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.token_file(node));
        let written = file.and_then(|mut file| file.write_all(token.as_bytes()));
        file_step(format!("write the token of {node}"), written)
    }

    /// Where the agent of a node looks for a container runtime; nobody listens there unless a test lets one.
    #[must_use]
    pub fn cri_socket(&self, node: &str) -> PathBuf {
        self.folders.run.join(format!("{node}.cri"))
    }

    /// Where the agent of a node listens for CNI plugins.
    #[must_use]
    pub fn cni_socket(&self, node: &str) -> PathBuf {
        self.folders.run.join(format!("{node}.cni"))
    }

    fn token_file(&self, node: &str) -> PathBuf {
        self.folders.run.join(format!("{node}.token"))
    }

    /// A running component's process.
    pub fn process(&mut self, component: &Component) -> Option<&mut Process> {
        self.processes.get_mut(component)
    }

    /// Kills a component at once, as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self, component: &Component) -> Result<(), MeshError> {
        if let Some(mut process) = self.processes.remove(component) {
            process.kill()?;
        }
        Ok(())
    }

    /// Asks a component to end and waits for it.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub async fn stop(&mut self, component: &Component) -> Result<(), MeshError> {
        if let Some(mut process) = self.processes.remove(component) {
            process.stop(STOP_GRACE).await?;
        }
        Ok(())
    }

    /// Ends every component, the node proxies first.
    ///
    /// # Errors
    /// When one cannot be signalled or waited for.
    pub async fn stop_all(&mut self) -> Result<(), MeshError> {
        while let Some((_, mut process)) = self.processes.pop_last() {
            process.stop(STOP_GRACE).await?;
        }
        Ok(())
    }
}
