//! A control plane as a process on loopback, over a folder as large as wanted.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tulle_identity::{AuthenticatedChannel, ChannelConfig};
use tulle_model::Identity;
use tulle_runtime::http_client;
use tulle_runtime::usage::{self, Memory, Process};
use tulle_world::{Component, Folders};

use crate::ads;

/// Pods of one service.
const REPLICAS: usize = 10;
/// Namespaces that all are spread over.
const NAMESPACES: usize = 10;
/// Objects of one file.
const OBJECTS_PER_FILE: usize = 1_000;
/// Pods with a file of their own, so that a change of one writes no other.
pub(super) const CHANGING: usize = 100;
/// First number of the addresses of the first series of changes; the pods' own begin with 10.
const ERA_FIRST: u8 = 11;
/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(180);

/// How large a mesh is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub pods: usize,
    pub nodes: usize,
}

impl Size {
    pub(super) fn services(self) -> usize {
        self.pods / REPLICAS
    }

    /// Workloads and services: what each stream is told.
    pub(super) fn addresses(self) -> usize {
        self.pods + self.services()
    }

    /// An identity that is placed on a node.
    pub(super) fn identity_on(self, node: usize) -> Identity {
        let service = (node % self.nodes) / REPLICAS;
        Identity::new(
            "cluster.local",
            format!("ns{}", service % NAMESPACES),
            format!("s{service}"),
        )
    }
}

/// The name of a node.
pub(super) fn node(index: usize) -> String {
    format!("n{index}")
}

/// A pod at its own address, or at the one of a change.
pub(super) fn pod(size: Size, index: usize, address: Option<String>) -> String {
    let service = index / REPLICAS;
    let (namespace, node) = (service % NAMESPACES, index % size.nodes);
    let own = || {
        format!(
            "10.{}.{}.{}",
            100 + index / 62_500,
            (index / 250) % 250,
            index % 250
        )
    };
    let address = address.unwrap_or_else(own);
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: s{service}-{index}, namespace: ns{namespace}, uid: u{index}, \
         labels: {{app: s{service}}}}}\nspec: {{nodeName: n{node}, serviceAccountName: s{service}}}\nstatus: {{phase: \
         Running, podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

fn service(index: usize) -> String {
    let (namespace, high, low) = (index % NAMESPACES, index / 250, index % 250);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{index}, namespace: ns{namespace}}}\nspec: {{selector: \
         {{app: s{index}}}, clusterIPs: [10.96.{high}.{low}], ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    )
}

/// The files of the folder.
#[derive(Debug, Clone)]
pub(super) struct Manifests {
    folder: PathBuf,
    size: Size,
}

impl Manifests {
    fn write(&self, name: &str, text: &str) {
        let path = self.folder.join(format!("{name}.yaml"));
        let draft = path.with_extension("yaml~");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, path).unwrap();
    }

    fn write_all(&self, name: &str, objects: impl Iterator<Item = String>) {
        let objects: Vec<String> = objects.collect();
        for (number, some) in objects.chunks(OBJECTS_PER_FILE).enumerate() {
            self.write(&format!("{name}-{number}"), &some.concat());
        }
    }

    /// Writes one of the changing pods anew.
    pub(super) fn change(&self, index: usize, address: Option<String>) {
        self.write(&format!("changing-{index}"), &pod(self.size, index, address));
    }
}

/// The process and its files. It ends with the value.
#[derive(Debug)]
pub(super) struct Plane {
    pub size: Size,
    child: Option<Child>,
    port: u16,
    folders: Folders,
    eras: AtomicU8,
    /// Declared last: the files outlive the process.
    _files: TempDir,
}

impl Plane {
    /// Writes the folder; nothing runs yet.
    pub(super) fn prepare(size: Size) -> Self {
        let files = tempfile::tempdir().unwrap();
        let folders = Folders::create(crate::binary::tulle(), files.path()).unwrap();
        let plane = Self {
            size,
            child: None,
            port: free_port(),
            folders,
            eras: AtomicU8::new(0),
            _files: files,
        };
        let (manifests, mut text) = (plane.manifests(), String::new());
        for namespace in 0..NAMESPACES {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{namespace}, labels: \
                 {{istio.io/dataplane-mode: ambient}}}}\n"
            );
        }
        manifests.write("namespaces", &text);
        manifests.write_all("services", (0..size.services()).map(service));
        for index in 0..CHANGING {
            manifests.change(index, None);
        }
        manifests.write_all("pods", (CHANGING..size.pods).map(|index| pod(size, index, None)));
        plane
    }

    /// The files, for whoever changes them.
    pub(super) fn manifests(&self) -> Manifests {
        Manifests {
            folder: self.folders.config.clone(),
            size: self.size,
        }
    }

    /// Where the addresses of a new series of changes begin: none of them was there before.
    pub(super) fn era(&self) -> u8 {
        ERA_FIRST + self.eras.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts the process and gives the time until it said that it was ready.
    pub(super) async fn start(&mut self) -> Duration {
        let [config, state] =
            [&self.folders.config, &self.folders.state].map(|path| path.display().to_string());
        let listen = format!("127.0.0.1:{}", self.port);
        let arguments = [
            "xds",
            "--config-dir",
            &config,
            "--state-dir",
            &state,
            "--listen",
            &listen,
            "--metrics-address",
            "127.0.0.1:0",
            "--readiness-address",
            "127.0.0.1:0",
            "--max-stream-age",
            "0s",
            "--log-level",
            "warn",
        ];
        let mut command = self.folders.command("xds", &arguments).unwrap();
        let started = Instant::now();
        self.child = Some(command.spawn().unwrap());
        while !self
            .page("/healthz/ready")
            .await
            .is_some_and(|(is_well, _)| is_well)
        {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "{ended:?}\n{}", self.log());
            assert!(started.elapsed() < START_MAX, "not ready\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }

    /// Kills the process.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A page of the operator's socket, and whether it says that all is well.
    async fn page(&self, path: &str) -> Option<(bool, String)> {
        let stream = UnixStream::connect(self.folders.socket(&Component::Control))
            .await
            .ok()?;
        let answer = http_client::get(stream, "localhost", path, http::HeaderMap::new())
            .await
            .ok()?;
        Some((
            answer.status().is_success(),
            String::from_utf8_lossy(answer.body()).into_owned(),
        ))
    }

    /// Memory of the process, in MiB.
    pub(super) fn memory_mib(&self, which: Memory) -> f64 {
        let bytes = usage::memory(self.process(), which);
        bytes.map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20))
    }

    /// Processor time that the process has used.
    pub(super) fn cpu(&self) -> Duration {
        usage::cpu(self.process()).unwrap_or_default()
    }

    fn process(&self) -> Process {
        Process::Id(self.child.as_ref().expect("it runs").id())
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        self.address_at(self.port)
    }

    /// The same behind another port of this machine.
    pub(super) fn address_at(&self, port: u16) -> String {
        format!("https://127.0.0.1:{port}")
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folders.state.join("ca/root-cert.pem")
    }

    /// A credential of a node.
    pub(super) fn token(&self, node: &str) -> String {
        tulle_xds::token::create(&self.folders.state, node).unwrap()
    }

    /// How a node connects.
    pub(super) fn config_of(&self, node: &str) -> ChannelConfig {
        ads::node_config(&self.address(), &self.root(), &self.token(node))
    }

    /// A channel of a node's own.
    pub(super) fn channel(&self, node: &str) -> AuthenticatedChannel {
        ads::channel(&self.address(), &self.root(), &self.token(node))
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folders.log("xds")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has now; it is taken again at once.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
