//! A real container runtime on a node of the world: containerd and runc, with the plugins of Debian and ours chained
//! behind them. Pods come from its CRI, as a kubelet would make them.

mod image;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tulle_agent::locate::cri;
use tulle_linux::NetNs;
use tulle_proto::cri as wire;
use tulle_world::{Process, World};

use crate::mesh::eventually;

/// What must be on the machine, with the Debian package that has it.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("/bin/busybox", "busybox-static"),
];
/// Plugins before ours.
const PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];
/// How long killed processes may keep their control groups.
const CLEAN_WAIT: Duration = Duration::from_secs(2);
/// Last octet of the first pod's address.
const FIRST_POD: u8 = 100;

/// A container runtime on a node. It ends, with all it started, with the value.
#[derive(Debug)]
pub struct Containerd {
    node: String,
    namespace: NetNs,
    number: u8,
    folder: PathBuf,
    socket: PathBuf,
    process: Option<Process>,
    started: u8,
    namespaces: Vec<PathBuf>,
}

/// A pod's sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub id: String,
    /// Where its network namespace is.
    pub path: PathBuf,
    /// Its network namespace.
    pub netns: NetNs,
    /// Its address.
    pub address: IpAddr,
    /// How long its start took.
    pub took: Duration,
}

/// A pod that is to be started.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The name server that its containers are to ask, if not the node's.
    pub name_server: Option<IpAddr>,
}

impl Order {
    /// A pod with a uid of its own.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id()),
            name_server: None,
        }
    }

    /// The same, with a name server of its own.
    #[must_use]
    pub fn asking(self, name_server: IpAddr) -> Self {
        Self {
            name_server: Some(name_server),
            ..self
        }
    }

    /// As a manifest: recognised by its uid, at the address it will get.
    #[must_use]
    pub fn manifest(&self, node: &str, address: IpAddr) -> String {
        let Self {
            namespace, name, uid, ..
        } = self;
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  \
             namespace: {namespace}\n  annotations:\n    tulle.dev/node: {node}\n    tulle.dev/process: pod:{uid}\n\
             spec:\n  address: {address}\n  serviceAccount: {name}\n  labels:\n    app: {name}\n"
        )
    }
}

/// Why no container runtime can be started here, if so. Where it must be (CI=true) that is a failure.
#[must_use]
pub fn is_missing(test: &str) -> bool {
    let Some(reason) = missing() else { return false };
    #[allow(clippy::disallowed_methods, reason = "a test has no configuration layers")]
    let must_run = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!must_run, "{test} must run here, but {reason}");
    // The harness keeps what `eprintln` writes to itself.
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("skipped: {test}: {reason}\n"),
    );
    true
}

fn missing() -> Option<String> {
    let all_of_them = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !nix::unistd::geteuid().is_root() || !all_of_them.contains("4294967295") {
        return Some("a container runtime needs root outside of user namespaces".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/cgroup.procs").exists() && !Path::new("/sys/fs/cgroup/memory").exists() {
        return Some("no control groups are mounted at /sys/fs/cgroup".to_owned());
    }
    let absent = PROGRAMS.iter().find(|(program, _)| !Path::new(program).exists());
    absent.map(|(program, package)| format!("{program} is not there; apt-get install {package}"))
}

impl Containerd {
    /// Prepares a runtime for a node that will listen at `socket`; it does not run yet.
    #[must_use]
    pub fn prepare(world: &World, node: &str, folder: &Path, socket: &Path) -> Self {
        let described = world.node(node).unwrap();
        let this = Self {
            node: node.to_owned(),
            namespace: described.namespace().clone(),
            number: described.ipv4().octets()[3],
            folder: folder.join(format!("containerd-{node}")),
            socket: socket.to_owned(),
            process: None,
            started: 0,
            namespaces: Vec::new(),
        };
        for part in ["bin", "net.d", "logs"] {
            fs::create_dir_all(this.folder.join(part)).unwrap();
        }
        for plugin in PLUGINS {
            symlink(
                Path::new("/usr/lib/cni").join(plugin),
                this.bin_dir().join(plugin),
            )
            .unwrap();
        }
        this.write_list();
        fs::write(this.folder.join("config.toml"), this.config()).unwrap();
        this
    }

    /// Folder of plugins.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Folder of network configurations.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// Writes the network's list as its own installer would: without us.
    pub fn write_list(&self) {
        let (folder, number) = (self.folder.display(), self.number);
        let list = format!(
            r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{{"type": "ptp", "ipMasq": false, "ipam": {{
                "type": "host-local", "dataDir": "{folder}/ipam",
                "ranges": [[{{"subnet": "10.11.{number}.0/24", "rangeStart": "10.11.{number}.{FIRST_POD}"}}]],
                "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
        );
        fs::write(self.conf_dir().join("10-pods.conflist"), list).unwrap();
    }

    /// Whether our plugin is chained.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        let list = fs::read_to_string(self.conf_dir().join("10-pods.conflist")).unwrap_or_default();
        list.contains("tulle-cni") && self.bin_dir().join("tulle-cni").is_file()
    }

    fn config(&self) -> String {
        let (folder, socket) = (self.folder.display(), self.socket.display());
        format!(
            r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
grpc = {{ address = "{socket}" }}
plugins."io.containerd.internal.v1.opt" = {{ path = "{folder}/opt" }}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  cni = {{ bin_dir = "{folder}/bin", conf_dir = "{folder}/net.d" }}
  containerd = {{ snapshotter = "native" }}
"#,
            image = image::NAME
        )
    }

    /// Starts it and waits until it answers.
    pub async fn start(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("containerd.log"))
            .unwrap();
        let mut command = Command::new("/usr/bin/containerd");
        command.arg("-c").arg(self.folder.join("config.toml"));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(Process::spawn("containerd", &self.namespace, command).unwrap());
        let mut client = cri::client(&self.socket);
        let answers = eventually(async || client.version(wire::VersionRequest::default()).await.is_ok());
        assert!(answers.await, "containerd does not answer\n{}", self.log());
        image::import(&self.folder, &self.socket);
    }

    /// Kills it at once; what it started goes on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
        }
    }

    /// The address that the next pod will get.
    #[must_use]
    pub fn next_address(&self) -> IpAddr {
        Ipv4Addr::new(10, 11, self.number, FIRST_POD + self.started).into()
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// What the runtime says.
    pub async fn run(&mut self, order: &Order) -> Result<Sandbox, String> {
        self.started += 1;
        let config = wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: order.name.clone(),
                uid: order.uid.clone(),
                namespace: order.namespace.clone(),
                attempt: 0,
            }),
            hostname: order.name.clone(),
            log_directory: self.folder.join("logs").display().to_string(),
            dns_config: order.name_server.map(|server| wire::DnsConfig {
                servers: vec![server.to_string()],
                options: vec!["ndots:5".to_owned()],
                ..Default::default()
            }),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod{}", self.groups(), order.uid),
            }),
            ..Default::default()
        };
        let request = wire::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let mut client = cri::client(&self.socket);
        let began = Instant::now();
        let ran = client.run_pod_sandbox(request).await;
        let took = began.elapsed();
        let id = ran
            .map_err(|status| status.message().to_owned())?
            .into_inner()
            .pod_sandbox_id;
        let request = wire::PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: true,
        };
        let status = client.pod_sandbox_status(request).await.unwrap().into_inner();
        let path = cri::netns_path(status.info["info"].as_bytes()).unwrap();
        self.namespaces.push(path.clone());
        Ok(Sandbox {
            id,
            netns: NetNs::open(&path).unwrap(),
            path,
            address: status.status.unwrap().network.unwrap().ip.parse().unwrap(),
            took,
        })
    }

    /// Ends a pod, as the kubelet does: what it is told more than once it does once.
    ///
    /// # Errors
    /// What the runtime says.
    pub async fn stop(&self, sandbox: &str) -> Result<(), String> {
        let mut client = cri::client(&self.socket);
        let pod_sandbox_id = sandbox.to_owned();
        let request = wire::StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        let stopped = client.stop_pod_sandbox(request).await;
        stopped.map_err(|status| status.message().to_owned())?;
        let request = wire::RemovePodSandboxRequest { pod_sandbox_id };
        let removed = client.remove_pod_sandbox(request).await;
        removed.map(|_| ()).map_err(|status| status.message().to_owned())
    }

    /// Ids of the sandboxes that the runtime has.
    pub async fn sandboxes(&self) -> Vec<String> {
        let mut client = cri::client(&self.socket);
        let listed = client
            .list_pod_sandbox(wire::ListPodSandboxRequest::default())
            .await;
        listed
            .unwrap()
            .into_inner()
            .items
            .into_iter()
            .map(|sandbox| sandbox.id)
            .collect()
    }

    /// Names of the node's interfaces, loopback left out.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let names = || {
            let all = nix::net::if_::if_nameindex().unwrap();
            all.iter()
                .map(|entry| entry.name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        };
        let names = self.namespace.run(names).unwrap();
        names.into_iter().filter(|name| name != "lo").collect()
    }

    /// The end of its log, for a test that fails.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!(
            "── containerd-{}\n{}\n",
            self.node,
            lines[lines.len().saturating_sub(25)..].join("\n")
        )
    }

    fn groups(&self) -> String {
        format!("/tulle-test-{}-{}", std::process::id(), self.node)
    }

    /// Kills what the runtime started: shims say on their command lines whose they are, pods are their children.
    fn kill_started(&self) {
        let ours = self.socket.as_os_str().as_encoded_bytes();
        for pid in pids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let is_shim = line.split(|byte| *byte == 0).any(|argument| argument == ours);
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if is_shim || groups.contains(&self.groups()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Takes away what would outlast the test: mounts below the folder, names of namespaces, control groups.
    fn clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = self.folder.display().to_string();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| point.starts_with(&below)) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        for name in &self.namespaces {
            let _ = nix::mount::umount2(name, nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_file(name);
        }
        let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let roots = controllers
            .map(|entry| entry.path())
            .chain([PathBuf::from("/sys/fs/cgroup")]);
        for root in roots {
            let group = root.join(self.groups().trim_start_matches('/'));
            let deadline = Instant::now() + CLEAN_WAIT;
            while group.exists() && Instant::now() < deadline {
                remove_groups(&group);
                // A group goes only after the last process in it has; nothing tells when.
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    }
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Control groups are removed from the innermost outwards; what is in them is not files.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process = None;
        self.kill_started();
        self.clean();
    }
}
