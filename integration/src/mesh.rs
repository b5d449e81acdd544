//! A mesh under test: nodes and pods, the components as processes, and the folder that configures them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tulle_runtime::http_client;
use tulle_world::{Component, Folders, Mesh, Pod, World};

use crate::manifest::{self, NAMESPACE};
use crate::programs::output_of;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Nodes, pods and components. Everything ends with the value.
#[derive(Debug)]
pub struct TestMesh {
    /// The components; declared first, so that they end before the world does.
    pub mesh: Mesh,
    /// Nodes and pods.
    pub world: World,
    workloads: BTreeMap<String, String>,
    folder: TempDir,
    nodes: Vec<String>,
}

impl TestMesh {
    /// A world whose components are not started yet; [`NAMESPACE`] is enrolled from the start.
    pub async fn new(nodes: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::create(folder.path(), nodes).await.unwrap_or_else(|error| {
            panic!("the kernel tests need root or user namespaces (cargo xtask test arranges that): {error}")
        });
        let folders = Folders::create(crate::binary::tulle(), folder.path()).unwrap();
        let mesh = Mesh::new(folders)
            .with_environment("RUST_LOG", "info,tulle_ztunnel=debug")
            .with_environment("CONNECTION_TERMINATION_DEADLINE", "60s");
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        let this = Self {
            mesh,
            world,
            workloads: BTreeMap::new(),
            folder,
            nodes,
        };
        this.apply("namespace", &manifest::namespace(NAMESPACE, true));
        this
    }

    /// Gives every node proxy that is started from now on a variable.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.mesh.set_environment(name, value);
    }

    /// A running mesh of two nodes with a captured pod on each, `web` on n1 and `db` on n2.
    pub async fn pair() -> (Self, Pod, Pod) {
        let mut mesh = Self::new(&["n1", "n2"]).await;
        let web = mesh.pod("n1", "web").await;
        let db = mesh.pod("n2", "db").await;
        mesh.start().await;
        mesh.captured(&[&web, &db]).await;
        (mesh, web, db)
    }

    /// A running mesh of three nodes with a captured pod on each: `web` on n1, `near` on n2 and `far` on n3.
    pub async fn three() -> (Self, [Pod; 3]) {
        let mut mesh = Self::new(&["n1", "n2", "n3"]).await;
        let pods = [
            mesh.pod("n1", "web").await,
            mesh.pod("n2", "near").await,
            mesh.pod("n3", "far").await,
        ];
        mesh.start().await;
        mesh.captured(&pods.each_ref()).await;
        (mesh, pods)
    }

    /// Starts every component and waits until all are ready.
    pub async fn start(&mut self) {
        self.mesh.start_control(&self.world).await.unwrap();
        for node in self.nodes.clone() {
            self.start_node(&node);
        }
        for node in self.nodes.clone() {
            self.mesh
                .wait_ready(&Component::Agent(node.clone()))
                .await
                .unwrap();
            self.mesh.wait_ready(&Component::Ztunnel(node)).await.unwrap();
        }
    }

    /// Adds a pod with the waypoint of a gateway, which is its service account too, and waits until it is ready. The
    /// gateway is written as a user would write it; the pod, as what starts it would.
    pub async fn start_waypoint(&mut self, node: &str, namespace: &str, gateway: &str) -> Pod {
        self.apply(
            &format!("gateway-{gateway}"),
            &manifest::gateway(namespace, gateway),
        );
        self.start_instance(node, namespace, gateway).await
    }

    /// As [`Self::start_waypoint`], for a gateway that is written already.
    pub async fn start_instance(&mut self, node: &str, namespace: &str, gateway: &str) -> Pod {
        let name = format!("{gateway}-1");
        let pod = self.world.add_pod(node, &name).await.unwrap();
        self.apply(
            &format!("instance-{gateway}"),
            &manifest::instance(namespace, gateway, &pod),
        );
        self.mesh
            .start_waypoint(&self.world, &name, namespace, gateway)
            .unwrap();
        let component = Component::waypoint(namespace, gateway);
        if let Err(error) = self.mesh.wait_ready(&component).await {
            panic!("{error}\n{}", self.logs());
        }
        pod
    }

    /// Starts one node's agent and proxy. Others may run already, and the control plane must.
    pub fn start_node(&mut self, node: &str) {
        let token = tulle_xds::token::create(&self.mesh.folders().state, node).unwrap();
        self.mesh.set_token(node, &token).unwrap();
        self.mesh.start_agent(&self.world, node).unwrap();
        self.mesh.start_ztunnel(&self.world, node).unwrap();
    }

    /// As [`Self::start`], but one node is served by a ztunnel of another make, which binds its sockets itself.
    pub async fn start_with_foreign_ztunnel(&mut self, foreign: &str, binary: &Path) {
        self.start_with_foreign_ztunnels(&[foreign], binary).await;
    }

    /// As [`Self::start_with_foreign_ztunnel`], for several nodes.
    pub async fn start_with_foreign_ztunnels(&mut self, foreign: &[&str], binary: &Path) {
        let folders = self.mesh.folders().clone();
        self.mesh = Mesh::new(folders).with_environment("RUST_LOG", "info");
        for node in foreign {
            self.mesh.set_foreign_ztunnel(node, binary);
        }
        self.mesh.start_control(&self.world).await.unwrap();
        for node in self.nodes.clone() {
            self.start_node(&node);
        }
        for node in self.nodes.clone() {
            if foreign.contains(&node.as_str()) {
                self.mesh.wait_ready_at(&self.world, &node, 15021).await.unwrap();
            } else {
                self.mesh
                    .wait_ready(&Component::Ztunnel(node.clone()))
                    .await
                    .unwrap();
            }
            self.mesh.wait_ready(&Component::Agent(node)).await.unwrap();
        }
    }

    /// Adds a pod to the enrolled namespace; it is captured once the agent is done with it.
    pub async fn pod(&mut self, node: &str, name: &str) -> Pod {
        self.pod_in(NAMESPACE, node, name, name).await
    }

    /// Adds a pod that the mesh knows nothing of.
    pub async fn stranger(&mut self, node: &str, name: &str) -> Pod {
        self.world.add_pod(node, name).await.unwrap()
    }

    /// Adds a pod to a namespace under a service account, which is also its `app`.
    pub async fn pod_in(&mut self, namespace: &str, node: &str, name: &str, account: &str) -> Pod {
        let pod = self.world.add_pod(node, name).await.unwrap();
        self.workloads
            .insert(name.to_owned(), manifest::workload(namespace, &pod, account));
        self.write_workloads();
        pod
    }

    /// Ends a pod and starts another at its address, under another name and account, as a busy node does.
    pub async fn replace_pod(&mut self, old: &Pod, name: &str, account: &str) -> Pod {
        let pod = self.world.replace_pod(old.name(), name).await.unwrap();
        self.workloads.remove(old.name());
        self.workloads
            .insert(name.to_owned(), manifest::workload(NAMESPACE, &pod, account));
        self.write_workloads();
        pod
    }

    /// As [`Self::pod`], but the pod has addresses of one family only, as the node of a cluster of one family gives it.
    pub async fn pod_of_one_family(&mut self, node: &str, name: &str, ipv4: bool) -> Pod {
        let pod = self.world.add_pod(node, name).await.unwrap();
        let address = if ipv4 {
            without_ipv6(&pod);
            IpAddr::V4(pod.ipv4())
        } else {
            without_ipv4(&pod);
            IpAddr::V6(pod.ipv6())
        };
        let written = manifest::workload_at(NAMESPACE, &pod, name, &[address], &[]);
        self.workloads.insert(name.to_owned(), written);
        self.write_workloads();
        pod
    }

    /// As [`Self::pod`], with annotations of its own.
    pub async fn annotated_pod(&mut self, node: &str, name: &str, annotations: &[(&str, &str)]) -> Pod {
        let pod = self.world.add_pod(node, name).await.unwrap();
        self.annotate(&pod, annotations);
        pod
    }

    /// Writes a pod of the enrolled namespace anew, with these annotations.
    pub fn annotate(&mut self, pod: &Pod, annotations: &[(&str, &str)]) {
        let written = manifest::annotated_workload(NAMESPACE, pod, pod.name(), annotations);
        self.workloads.insert(pod.name().to_owned(), written);
        self.write_workloads();
    }

    /// Has the rules of a captured pod replaced, by rules that capture names or by rules that do not, and waits until the
    /// kernel has them.
    pub async fn replace_rules(&mut self, pod: &Pod, names: bool) {
        let without: &[_] = &[("ambient.istio.io/dns-capture", "false")];
        self.annotate(pod, if names { &[] } else { without });
        let replaced = eventually(async || {
            let rules = output_of(pod, "/usr/sbin/nft", &["list", "table", "inet", "tulle"]);
            rules.contains("redirect to :15006") && rules.contains("redirect to :15053") == names
        });
        assert!(
            replaced.await,
            "the rules of {} stay\n{}",
            pod.name(),
            self.logs()
        );
    }

    /// Writes a pod anew, as its user edited it.
    pub fn write(&mut self, pod: &Pod, manifest: String) {
        self.workloads.insert(pod.name().to_owned(), manifest);
        self.write_workloads();
    }

    /// Takes a pod out of the configuration; its world stays.
    pub fn forget(&mut self, pod: &Pod) {
        self.workloads.remove(pod.name());
        self.write_workloads();
    }

    fn write_workloads(&self) {
        let all: Vec<_> = self.workloads.values().map(String::as_str).collect();
        self.apply("workloads", &all.concat());
    }

    /// Writes a file of the configuration folder, whole.
    pub fn apply(&self, name: &str, yaml: &str) {
        let path = self.config_file(name);
        let draft = path.with_extension("yaml~");
        std::fs::write(&draft, yaml)
            .and_then(|()| std::fs::rename(&draft, &path))
            .unwrap();
    }

    /// Removes a file of the configuration folder.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.config_file(name)).unwrap();
    }

    fn config_file(&self, name: &str) -> std::path::PathBuf {
        self.mesh.folders().config.join(format!("{name}.yaml"))
    }

    /// A folder for the files of the test.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the agents say that these pods are captured and verified.
    pub async fn captured(&self, pods: &[&Pod]) {
        for pod in pods {
            self.wait_state(pod, &["In"]).await;
        }
    }

    /// Waits until the agents say that these pods are left alone.
    pub async fn left(&self, pods: &[&Pod]) {
        for pod in pods {
            self.wait_state(pod, &["Out", "Gone", ""]).await;
        }
    }

    /// What a pod's agent says of its state; empty when it does not know the pod.
    pub async fn state(&self, pod: &Pod) -> String {
        let page = self.ask(&Component::Agent(pod.node().to_owned()), "/pods").await;
        let pods = page["pods"].as_array().cloned().unwrap_or_default();
        let found = pods.iter().find(|entry| entry["name"] == pod.name());
        found.map_or_else(String::new, |entry| {
            entry["state"].as_str().unwrap_or_default().to_owned()
        })
    }

    async fn wait_state(&self, pod: &Pod, wanted: &[&str]) {
        let mut state = String::new();
        let reached = eventually(async || {
            state = self.state(pod).await;
            wanted.contains(&state.as_str())
        });
        assert!(
            reached.await,
            "{} is {state:?}, wanted {wanted:?}\n{}",
            pod.name(),
            self.logs()
        );
    }

    /// Asks a component's admin socket.
    pub async fn ask(&self, component: &Component, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.text(component, path).await).unwrap_or(serde_json::Value::Null)
    }

    /// Waits until a node's proxy has a value in what it knows of one of its `workloads` or `services`; `pointer` leads
    /// to the value.
    pub async fn known(&self, node: &str, kind: &str, name: &str, pointer: &str, value: serde_json::Value) {
        let proxy = Component::Ztunnel(node.to_owned());
        let mut known = None;
        let reached = eventually(async || {
            let dump = self.ask(&proxy, "/config_dump").await;
            let all = dump[kind].as_array().into_iter().flatten();
            let mut of_name = all.filter(|one| one["name"] == name);
            known = of_name.next().and_then(|one| one.pointer(pointer).cloned());
            known.as_ref() == Some(&value)
        });
        assert!(
            reached.await,
            "{name} has {known:?} at {pointer}, wanted {value}\n{}",
            self.logs()
        );
    }

    /// A page of a component's admin socket; empty when it does not answer.
    pub async fn text(&self, component: &Component, path: &str) -> String {
        let Ok(stream) = UnixStream::connect(self.mesh.folders().socket(component)).await else {
            return String::new();
        };
        let answer = http_client::get(stream, "localhost", path, http::HeaderMap::new()).await;
        answer
            .map(|answer| String::from_utf8_lossy(answer.body()).into_owned())
            .unwrap_or_default()
    }

    /// The sum of a node proxy's series whose line contains every given text.
    pub async fn metric(&self, node: &str, texts: &[&str]) -> f64 {
        let metrics = self.text(&Component::Ztunnel(node.to_owned()), "/metrics").await;
        let lines = metrics
            .lines()
            .filter(|line| texts.iter().all(|text| line.contains(text)));
        lines
            .filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok())
            .sum()
    }

    /// The log of a component so far.
    #[must_use]
    pub fn log(&self, component: &Component) -> String {
        std::fs::read_to_string(self.mesh.folders().log(&component.name())).unwrap_or_default()
    }

    /// What the lines of node proxies say of connections that did not end well, and how often.
    #[must_use]
    pub fn endings(&self) -> Vec<String> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            for line in self.log(&Component::Ztunnel(node.clone())).lines() {
                let error = line
                    .split_once(" error=\"")
                    .and_then(|(_, rest)| rest.split_once('"'));
                if let Some((error, _)) = error {
                    *counts.entry(format!("{node}: {error}")).or_insert(0_u64) += 1;
                }
            }
        }
        counts
            .into_iter()
            .map(|(what, count)| format!("{count} times at {what}"))
            .collect()
    }

    /// The ends of all logs, for a test that fails.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.mesh.folders().logs).unwrap().flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            text.push_str(&format!("── {}\n{tail}\n", entry.file_name().display()));
        }
        text
    }
}

/// As a kernel that was told so at boot: not even loopback has it.
fn without_ipv6(pod: &Pod) {
    let switched_off = pod.namespace().run(|| {
        ["all", "default", "lo"].map(|what| {
            let setting = format!("/proc/sys/net/ipv6/conf/{what}/disable_ipv6");
            std::fs::write(setting, "1")
        })
    });
    for written in switched_off.unwrap() {
        written.unwrap();
    }
}

/// IPv4 cannot be switched off; the pod has no address of it but on loopback.
fn without_ipv4(pod: &Pod) {
    let mut flush = Command::new("/usr/sbin/ip");
    flush.args(["-4", "addr", "flush", "dev", "eth0"]);
    let status = pod.namespace().spawn(flush).unwrap().wait().unwrap();
    assert!(status.success(), "{status}");
}

/// Tries until something holds, for as long as [`PATIENCE`] lasts.
pub async fn eventually(mut holds: impl AsyncFnMut() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if holds().await {
            return true;
        }
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
