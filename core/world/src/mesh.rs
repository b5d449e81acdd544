//! The components of a mesh as processes in the world: a control plane, and an agent and a node proxy per node.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tulle_runtime::http_client;

use crate::process::{Process, ProcessError};
use crate::topology::{CONTROL, World, WorldError};

/// Time until a component is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Time a component gets to end by itself.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Lines of its log shown when a component ends by itself.
const LOG_TAIL_LINES: usize = 15;

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

/// A mesh could not be started, or did not stay up.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The world refused.
    #[error(transparent)]
    World(#[from] WorldError),
    /// A process could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file could not be written.
    #[error("cannot {step}: {source}")]
    File {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A component ended by itself.
    #[error("{name} ended ({status}); its log ends:\n{tail}")]
    Ended {
        /// Its name.
        name: String,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// A component did not become ready.
    #[error("{name} is not ready after {timeout:?}; see {log}")]
    NotReady {
        /// Its name.
        name: String,
        /// How long was waited.
        timeout: Duration,
        /// Its log.
        log: PathBuf,
    },
}

fn file_step<T>(step: impl Into<String>, outcome: io::Result<T>) -> Result<T, MeshError> {
    outcome.map_err(|source| MeshError::File {
        step: step.into(),
        source,
    })
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

    /// Lets a node be served by another ztunnel than ours. It has no unix admin socket; see [`Self::wait_ready_at`].
    pub fn set_foreign_ztunnel(&mut self, node: &str, binary: &Path) {
        self.foreign.insert(node.to_owned(), binary.to_owned());
    }

    /// Where its files are.
    #[must_use]
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// Starts the control plane and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start or does not become ready.
    pub async fn start_control(&mut self, world: &World) -> Result<(), MeshError> {
        let control = world.node(CONTROL)?;
        let addresses = format!("{},{}", control.ipv4(), control.ipv6());
        let (config, state) = (
            self.folders.config.display().to_string(),
            self.folders.state.display().to_string(),
        );
        let arguments = [
            "xds",
            "--config-dir",
            &config,
            "--state-dir",
            &state,
            "--xds-san",
            &addresses,
            "--listen",
            "[::]:15012",
        ];
        let further = self.control_arguments.clone();
        let further = further.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.into_iter().chain(further).collect();
        self.start(world, CONTROL, Component::Control, &arguments, &[])?;
        self.wait_ready(&Component::Control).await
    }

    /// Starts the agent of a node, with the node's credential.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, world: &World, node: &str) -> Result<(), MeshError> {
        let place = self.place(world, node)?;
        let netns = world.netns_dir().display().to_string();
        let resolvers = world.resolver_dir().display().to_string();
        let state = self.folders.agent_state(node).display().to_string();
        let arguments = [
            "agent",
            "--node",
            node,
            "--xds-address",
            &place.url,
            "--xds-root-ca",
            &place.root,
            "--token-file",
            &place.token,
            "--inpod-uds",
            &place.inpod,
            "--netns-dir",
            &netns,
            "--resolver-dir",
            &resolvers,
            "--state-dir",
            &state,
            "--cni-socket",
            &place.cni,
            "--cri-socket",
            &place.cri,
        ];
        let further = self.agent_arguments.clone();
        let further = further.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.into_iter().chain(further).collect();
        self.start(world, node, Component::Agent(node.to_owned()), &arguments, &[])
    }

    /// Starts the proxy of a node, with the node's credential.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ztunnel(&mut self, world: &World, node: &str) -> Result<(), MeshError> {
        let place = self.place(world, node)?;
        let environment = [
            ("NODE_NAME", node),
            ("INPOD_UDS", &place.inpod),
            ("AUTH_TOKEN", &place.token),
            ("XDS_ADDRESS", &place.url),
            ("CA_ADDRESS", &place.url),
            ("XDS_ROOT_CA", &place.root),
            ("CA_ROOT_CA", &place.root),
            ("ZTUNNEL_WORKER_THREADS", "2"),
        ];
        self.start(
            world,
            node,
            Component::Ztunnel(node.to_owned()),
            if self.supervised {
                &["ztunnel", "--supervise"]
            } else {
                &["ztunnel"]
            },
            &environment,
        )
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

    fn place(&self, world: &World, node: &str) -> Result<Place, MeshError> {
        Ok(Place {
            url: format!("https://{}:15012", world.node(CONTROL)?.ipv4()),
            root: self.folders.state.join("ca/root-cert.pem").display().to_string(),
            token: self.token_file(node).display().to_string(),
            cri: self.cri_socket(node).display().to_string(),
            cni: self.cni_socket(node).display().to_string(),
            inpod: self.folders.run.join(format!("{node}.zds")).display().to_string(),
        })
    }

    /// Starts the waypoint of a gateway in a pod of its own, whose service account is called like the gateway. It shows
    /// the credential of the pod's node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_waypoint(
        &mut self,
        world: &World,
        pod: &str,
        namespace: &str,
        gateway: &str,
    ) -> Result<(), MeshError> {
        let process = self.spawn_waypoint(world, pod, namespace, gateway, &[])?;
        self.processes
            .insert(Component::waypoint(namespace, gateway), process);
        Ok(())
    }

    /// As [`Self::start_waypoint`], with variables of its own, for those who look after the process themselves.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_waypoint(
        &self,
        world: &World,
        pod: &str,
        namespace: &str,
        gateway: &str,
        environment: &[(&str, &str)],
    ) -> Result<Process, MeshError> {
        let pod = world.pod(pod)?;
        let place = self.place(world, pod.node())?;
        let name = Component::waypoint(namespace, gateway).name();
        let command = self.folders.command(&name, &["waypoint"]);
        let mut command = file_step(format!("log for {name}"), command)?;
        let address = pod.ipv4().to_string();
        command.envs([
            ("POD_NAMESPACE", namespace),
            ("SERVICE_ACCOUNT", gateway),
            ("TULLE_WAYPOINT", gateway),
            ("POD_NAME", pod.name()),
            ("INSTANCE_IP", &address),
            ("NODE_NAME", pod.node()),
            ("TULLE_CREDENTIAL", "node"),
            ("AUTH_TOKEN", &place.token),
            ("XDS_ADDRESS", &place.url),
            ("CA_ADDRESS", &place.url),
            ("XDS_ROOT_CA", &place.root),
            ("CA_ROOT_CA", &place.root),
        ]);
        command.envs(&self.environment);
        command.envs(environment.iter().copied());
        Ok(pod.spawn(&name, command)?)
    }

    fn start(
        &mut self,
        world: &World,
        node: &str,
        component: Component,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<(), MeshError> {
        let name = component.name();
        let mut command = file_step(format!("log for {name}"), self.folders.command(&name, arguments))?;
        command.envs(environment.iter().copied());
        if matches!(component, Component::Ztunnel(_)) {
            command.envs(&self.environment);
            command.envs(self.node_environment.get(node).into_iter().flatten());
            if let Some(binary) = self.foreign.get(node) {
                command = foreign(binary, &command, &self.folders.log(&name))?;
            }
        }
        let process = world.node(node)?.spawn(&name, command)?;
        self.processes.insert(component, process);
        Ok(())
    }

    /// Waits until a component says that it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn wait_ready(&mut self, component: &Component) -> Result<(), MeshError> {
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        while !is_ready(&self.folders.socket(component)).await {
            self.ensure_running()?;
            if tokio::time::Instant::now() >= deadline {
                let name = component.name();
                return Err(MeshError::NotReady {
                    log: self.folders.log(&name),
                    name,
                    timeout: READY_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until a readiness port inside of a node answers.
    ///
    /// # Errors
    /// When a component ends, or it does not answer in time.
    pub async fn wait_ready_at(&mut self, world: &World, node: &str, port: u16) -> Result<(), MeshError> {
        let namespace = world.node(node)?.namespace().clone();
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        loop {
            self.ensure_running()?;
            let connected = namespace
                .run_async(move || std::net::TcpStream::connect(address))
                .await;
            if let Ok(Ok(stream)) = connected
                && stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = tokio::net::TcpStream::from_std(stream)
                && answers_ready(stream).await
            {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let name = format!("ztunnel-{node}");
                return Err(MeshError::NotReady {
                    log: self.folders.log(&name),
                    name,
                    timeout: READY_TIMEOUT,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Fails with the end of its log if a component has ended by itself.
    ///
    /// # Errors
    /// When one has.
    pub fn ensure_running(&mut self) -> Result<(), MeshError> {
        for process in self.processes.values_mut() {
            if let Some(status) = process.ended()? {
                let name = process.name().to_owned();
                let log = std::fs::read_to_string(self.folders.log(&name)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
                return Err(MeshError::Ended { name, status, tail });
            }
        }
        Ok(())
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

/// What a component of a node needs to know.
struct Place {
    url: String,
    root: String,
    token: String,
    inpod: String,
    cni: String,
    cri: String,
}

/// The same environment and log for a binary of another make, which does not watch standard input.
fn foreign(binary: &Path, ours: &Command, log: &Path) -> Result<Command, MeshError> {
    let log = file_step(
        "log for a foreign ztunnel",
        File::options().create(true).append(true).open(log),
    )?;
    let mut command = Command::new(binary);
    command
        .stdin(Stdio::null())
        .stdout(file_step("share a log", log.try_clone())?)
        .stderr(log);
    for (name, value) in ours.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Ok(command)
}

async fn is_ready(socket: &Path) -> bool {
    match UnixStream::connect(socket).await {
        Ok(stream) => answers_ready(stream).await,
        Err(_) => false,
    }
}

async fn answers_ready<S>(stream: S) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let answer = http_client::get(stream, "localhost", "/healthz/ready", http::HeaderMap::new()).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}
