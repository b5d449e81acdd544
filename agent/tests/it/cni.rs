//! Pods that start and end as a container runtime does it: the real plugin against the real desk, a scripted proxy,
//! and a real namespace.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tulle_agent::board::Board;
use tulle_agent::capture::Capture;
use tulle_agent::cni::call::{Refusal, code};
use tulle_agent::cni::desk::{Desk, Undescribed};
use tulle_agent::cni::{plugin, server};
use tulle_agent::enroll::task::{Shared, Timing};
use tulle_agent::fleet::{self, Fleet};
use tulle_agent::grace::Grace;
use tulle_agent::host::Host;
use tulle_agent::metrics::Metrics;
use tulle_agent::probe::Probes;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::ProxyMark;
use tulle_agent::variant::{Existing, MarkGuard, Settings};
use tulle_agent::zds::Hub;
use tulle_linux::NetNs;
use tulle_model::{Mesh, MeshUpdate, Str};
use tulle_proto::convert::zds::Request;
use tulle_runtime::config::MapEnv;
use tulle_runtime::metrics::Registry;
use tulle_runtime::tasks;
use tulle_xds_client::MeshState;
use tulle_xds_client::local::{Local, LocalConfig, LocalSource};

use crate::pod::{PATIENCE, POD, World, run};
use crate::proxy::Proxy;

/// What the plugins before made.
const BEFORE: &str =
    r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24","gateway":"10.9.0.1"}],"dns":{}}"#;

/// An agent that knows what is described, and whom a plugin can ask.
struct Node {
    world: World,
    /// Where the node's own tables are.
    host: NetNs,
    desk: Desk,
    _local: Local,
}

impl Node {
    async fn start(test: &str, undescribed: Undescribed) -> Option<Self> {
        let world = World::new(test)?;
        let hub = Hub::new();
        let zds = tulle_agent::zds::serve(&world.folder.path().join("zds.sock"), hub.clone()).unwrap();
        tasks::spawn("zds", zds);
        let state = MeshState::new(Mesh::new());
        let local = Local::load(LocalSource::Text("workloads: []".into()), state.clone()).unwrap();
        let host = NetNs::create().unwrap();
        let desk = Desk {
            shared: shared(&world, host.clone(), hub.clone()).await,
            state: state.clone(),
            node: "n1".into(),
            state_dir: world.folder.path().into(),
            undescribed,
        };
        let (mut fleet, follower) = (Fleet::new(desk.shared.clone()), hub.clone());
        tasks::spawn("fleet", async move {
            fleet::follow(&mut fleet, &state, "n1", || follower.complete()).await;
        });
        let (grace, mut proxies) = (desk.shared.grace.clone(), hub.watch());
        tasks::spawn("grace", async move {
            while proxies.changed().await.is_ok() {
                grace.note(&proxies.borrow_and_update());
            }
        });
        let socket = server::open(&world.folder.path().join("cni.sock")).unwrap();
        tasks::spawn("cni", server::serve(socket, desk.clone()));
        Some(Self {
            world,
            host,
            desk,
            _local: local,
        })
    }

    fn describe(&self, protocol: &str, address: IpAddr) {
        let text = format!(
            "workloads:\n- uid: u1\n  name: web\n  namespace: shop\n  serviceAccount: web\n  node: n1\n  \
             workloadIps: [{address}]\n  protocol: {protocol}\n  extensions: {{tulle.dev/process: 'pod:p1'}}\n"
        );
        let described = LocalConfig::parse("test", &text).unwrap();
        self.desk.state.apply(described.updates());
    }

    async fn proxy(&self, generation: Option<&str>) -> Proxy {
        let proxy = Proxy::connect(&self.world.folder.path().join("zds.sock"), generation).await;
        proxy.snapshot().await;
        let mut proxies = self.desk.shared.hub.watch();
        let connected = proxies.wait_for(|proxies| !proxies.connected.is_empty());
        tokio::time::timeout(PATIENCE, connected).await.unwrap().unwrap();
        proxy
    }

    /// Lets a proxy end, and waits until the agent knows.
    async fn lose(&self, proxy: Proxy) {
        drop(proxy);
        let mut proxies = self.desk.shared.hub.watch();
        let alone = proxies.wait_for(|proxies| proxies.connected.is_empty());
        tokio::time::timeout(PATIENCE, alone).await.unwrap().unwrap();
    }

    /// Asks as a runtime would.
    async fn call(&self, verb: &str, container: &str, netns: Option<PathBuf>) -> Result<String, Refusal> {
        let folder = self.world.folder.path().display();
        let input = format!(
            r#"{{"cniVersion":"1.0.0","name":"net","type":"tulle-cni","socket":"{folder}/cni.sock",
                "stateDir":"{folder}","prevResult":{BEFORE}}}"#
        );
        let env = MapEnv::default()
            .with("CNI_COMMAND", verb)
            .with("CNI_CONTAINERID", container)
            .with("CNI_IFNAME", "eth0")
            .with("CNI_NETNS", &netns.unwrap_or_default().display().to_string())
            .with(
                "CNI_ARGS",
                "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=p1",
            );
        tokio::task::spawn_blocking(move || plugin::answer(&env, input.as_bytes()))
            .await
            .unwrap()
    }

    async fn add(&self) -> Result<String, Refusal> {
        self.call("ADD", "c1", Some(self.netns())).await
    }

    fn netns(&self) -> PathBuf {
        self.world.folder.path().join("web")
    }

    fn rules(&self) -> String {
        self.world.output("nft", "list ruleset")
    }

    /// What waits, mute, until it is captured.
    fn waiting(&self) -> String {
        let tables = run(&self.host, "nft", "list tables");
        if tables.contains("tulle-guard") {
            run(&self.host, "nft", "list set inet tulle-guard wait4")
        } else {
            String::new()
        }
    }

    fn records(&self) -> usize {
        self.desk.shared.locator.records().all().len()
    }
}

async fn shared(world: &World, host: NetNs, hub: Hub) -> Shared {
    let metrics = Metrics::register(&Registry::new());
    Shared {
        capture: Capture::new(Backend::Netlink.rules(), ProxyMark::WellKnown),
        hub,
        board: Board::new(metrics.clone()),
        metrics,
        locator: world.locator(),
        resolver_dir: world.folder.path().into(),
        grace: Grace::default(),
        probes: Probes::default(),
        settings: Settings {
            dns: false,
            mark: ProxyMark::WellKnown,
            mark_guard: MarkGuard::Off,
            existing: Existing::Keep,
        },
        host: Host::take_over(Backend::Netlink.rules(), host).await.unwrap(),
        joins: Arc::new(Semaphore::new(16)),
        timing: Timing {
            leave_notice: Duration::from_millis(1),
            ..Timing::default()
        },
    }
}

/// Accepts whatever it is told, and tells what that was.
async fn accept(proxy: &Proxy) -> Request {
    let (request, _fds) = proxy.request().await;
    proxy.accept().await;
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_starts_captured_is_checked_and_ends() {
    let Some(node) = Node::start("a_pod_starts_captured_is_checked_and_ends", Undescribed::Refuse).await
    else {
        return;
    };
    node.describe("HBONE", POD.into());
    let proxy = node.proxy(Some("1")).await;
    let (added, request) = tokio::join!(node.add(), accept(&proxy));
    assert_eq!(added.unwrap(), BEFORE, "passed on as it came");
    assert!(matches!(request, Request::Add(_)));
    assert!(node.rules().contains("redirect to :15001"));
    assert_eq!(node.records(), 1);
    assert_eq!(node.call("STATUS", "", None).await.unwrap(), "");
    assert_eq!(node.call("CHECK", "c1", Some(node.netns())).await.unwrap(), "");

    node.world.output("nft", "delete table inet tulle");
    let refusal = node.call("CHECK", "c1", Some(node.netns())).await.unwrap_err();
    assert!(
        refusal.msg.ends_with("(T0105, capture_rules_missing)"),
        "{refusal}"
    );

    let (deleted, request) = tokio::join!(node.call("DEL", "c1", Some(node.netns())), accept(&proxy));
    assert_eq!(deleted.unwrap(), "");
    assert_eq!(request, Request::Delete { uid: "u1".into() });
    assert_eq!(node.records(), 0);
    assert_eq!(node.call("DEL", "c1", None).await.unwrap(), "", "it comes twice");
}

/// Whether the pod's rules are still there after the proxies were told of its end, once the agent has looked.
async fn rules_after_the_end(node: &Node, proxy: &Proxy) -> bool {
    node.describe("HBONE", POD.into());
    let (added, _) = tokio::join!(node.add(), accept(proxy));
    added.unwrap();
    assert!(node.rules().contains("redirect to :15001"));
    // A pod in phase Succeeded or Failed is described no more; its sandbox stands.
    let gone = MeshUpdate::RemoveWorkload("u1".into());
    node.desk.state.apply(vec![gone]);
    let (request, _fds) = proxy.request().await;
    assert_eq!(request, Request::Delete { uid: "u1".into() });
    assert!(
        node.rules().contains("redirect to :15001"),
        "proxies are told before the rules go"
    );
    proxy.accept().await;
    let forgotten = async {
        while node
            .desk
            .shared
            .board
            .entries()
            .iter()
            .any(|pod| pod.uid.as_ref() == "u1")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    node.rules().contains("redirect to :15001")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_done_its_work_is_taken_from_the_proxy_and_then_from_its_rules() {
    let test = "a_pod_that_has_done_its_work";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let proxy = node.proxy(Some("1")).await;
    assert!(!rules_after_the_end(&node, &proxy).await);
    assert_eq!(node.call("DEL", "c1", Some(node.netns())).await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_in_which_something_runs_keeps_its_rules_whatever_is_said_of_it() {
    let test = "a_pod_in_which_something_runs";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let proxy = node.proxy(Some("1")).await;
    let mut sleep = std::process::Command::new("sleep");
    sleep.arg("1000");
    let mut running = node.world.pod.spawn(sleep).unwrap();
    let kept = rules_after_the_end(&node, &proxy).await;
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_starts_is_mute_from_the_plugins_call_until_it_is_captured() {
    let Some(node) = Node::start("a_pod_that_starts_is_mute", Undescribed::Refuse).await else {
        return;
    };
    node.describe("HBONE", POD.into());
    let proxy = node.proxy(Some("1")).await;
    // Described, and not started yet: there is nothing to keep mute.
    let watched = async {
        let (_added, fds) = proxy.added().await;
        let waiting = node.waiting();
        proxy.accept().await;
        (waiting, fds)
    };
    let (added, (waiting, _held)) = tokio::join!(node.add(), watched);
    added.unwrap();
    assert!(
        waiting.contains(&POD.to_string()),
        "before it is captured: {waiting:?}"
    );
    assert!(node.rules().contains("redirect to :15001"));
    let freed = async {
        while node.waiting().contains(&POD.to_string()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed)
        .await
        .expect("once it is captured it may speak");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_not_enrolled_starts_untouched() {
    let Some(node) = Node::start("a_pod_that_is_not_enrolled_starts_untouched", Undescribed::Refuse).await
    else {
        return;
    };
    node.describe("TCP", POD.into());
    assert_eq!(node.add().await.unwrap(), BEFORE);
    assert_eq!(node.rules(), "");
    assert_eq!(node.call("CHECK", "c1", Some(node.netns())).await.unwrap(), "");
    // Later it is enrolled, and found by the record of its start.
    let proxy = node.proxy(Some("1")).await;
    node.describe("HBONE", POD.into());
    let (added, _) = proxy.added().await;
    proxy.accept().await;
    assert_eq!(&*added.uid, "u1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_nobody_describes_is_refused_unless_it_may_start() {
    let test = "a_pod_that_nobody_describes_is_refused_unless_it_may_start";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let refusal = node.add().await.unwrap_err();
    assert_eq!(refusal.code, code::REFUSED);
    assert!(
        refusal.msg.contains("describes no such pod on node n1"),
        "{refusal}"
    );
    assert!(refusal.msg.ends_with("(T0112, enrolment_unknown)"), "{refusal}");
    assert_eq!((node.records(), node.rules().as_str()), (0, ""));
    let lenient = Node::start(test, Undescribed::LeaveAlone).await.unwrap();
    assert_eq!(lenient.add().await.unwrap(), BEFORE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_plain_proxy_a_pod_is_refused_at_once_and_the_cause_is_said() {
    let test = "without_a_plain_proxy_a_pod_is_refused_at_once_and_the_cause_is_said";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let proxy = node.proxy(None).await;
    node.lose(proxy).await;
    node.describe("HBONE", POD.into());
    let refusal = node.add().await.unwrap_err();
    let said = "tulle: pod shop/web is enrolled, but no node proxy is connected on node n1 for ";
    assert!(refusal.msg.starts_with(said), "{refusal}");
    assert!(refusal.msg.ends_with("(T0108, proxy_not_connected)"), "{refusal}");
    assert_eq!((node.records(), node.rules().as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_proxy_is_replaced_pods_start_and_the_next_one_gets_them() {
    let test = "while_a_proxy_is_replaced_pods_start_and_the_next_one_gets_them";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let proxy = node.proxy(Some("1")).await;
    node.lose(proxy).await;
    node.describe("HBONE", POD.into());
    assert_eq!(node.add().await.unwrap(), BEFORE);
    assert!(node.rules().contains("redirect to :15001"));
    node.world
        .dial(15008)
        .expect("the agent's listener takes the connection");
    let next = Proxy::connect(&node.world.folder.path().join("zds.sock"), Some("2")).await;
    let (added, fds) = next.added().await;
    assert_eq!(added.sockets.expect("with listeners").kinds.len() + 1, fds.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_on_a_port_of_capture_keeps_its_pod_from_starting() {
    let test = "an_application_on_a_port_of_capture_keeps_its_pod_from_starting";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    let _server = node.world.serve(15001);
    node.describe("HBONE", POD.into());
    let _proxy = node.proxy(Some("1")).await;
    let refusal = node.add().await.unwrap_err();
    let holder = format!("(pid {})", std::process::id());
    assert!(refusal.msg.contains("port 15001 is taken by "), "{refusal}");
    assert!(refusal.msg.contains(&holder), "the process is named: {refusal}");
    assert!(refusal.msg.ends_with("(T0104, port_taken)"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_not_the_pods_is_refused() {
    let Some(node) = Node::start("a_namespace_that_is_not_the_pods_is_refused", Undescribed::Refuse).await
    else {
        return;
    };
    node.describe("HBONE", "10.9.0.99".parse().unwrap());
    let _proxy = node.proxy(Some("1")).await;
    let refusal = node.add().await.unwrap_err();
    assert!(refusal.msg.ends_with("(T0103, netns_mismatch)"), "{refusal}");
    let host = PathBuf::from("/proc/self/ns/net");
    let refusal = node.call("ADD", "c2", Some(host)).await.unwrap_err();
    assert!(refusal.msg.ends_with("(T0103, netns_mismatch)"), "{refusal}");
    let nowhere = PathBuf::from("/run/netns/of-nobody");
    let refusal = node.call("ADD", "c3", Some(nowhere)).await.unwrap_err();
    assert!(refusal.msg.ends_with("(T0102, netns_not_found)"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_that_their_runtime_knows_no_more_are_forgotten() {
    let test = "sandboxes_that_their_runtime_knows_no_more_are_forgotten";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    node.describe("TCP", POD.into());
    node.add().await.unwrap();
    assert_eq!(node.call("GC", "", None).await.unwrap(), "");
    assert_eq!(node.records(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_ended_while_the_agent_was_away_is_forgotten() {
    let test = "a_pod_that_ended_while_the_agent_was_away_is_forgotten";
    let Some(node) = Node::start(test, Undescribed::Refuse).await else {
        return;
    };
    node.describe("TCP", POD.into());
    node.add().await.unwrap();
    std::fs::remove_file(node.world.folder.path().join("cni.sock")).unwrap();
    assert_eq!(node.call("DEL", "c1", None).await.unwrap(), "");
    assert_eq!(node.records(), 1);
    tasks::spawn("notes", node.desk.clone().take_up_notes());
    let forgotten = async {
        while node.records() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten)
        .await
        .expect("the note is taken up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_is_found_by_its_processes() {
    let Some(world) = World::new("a_running_pod_is_found_by_its_processes") else {
        return;
    };
    let mut command = std::process::Command::new("sleep");
    command.arg("600").env("PATH", "/usr/bin:/bin");
    let mut process = world.pod.spawn(command).unwrap();
    let proc_dir = world.folder.path().join("proc");
    let shown = proc_dir.join(process.id().to_string());
    std::fs::create_dir_all(shown.join("ns")).unwrap();
    let uid: Str = "8c5f4d2e-9f0b-4a67-9d6e-0b1c2d3e4f50".into();
    std::fs::write(shown.join("cgroup"), format!("0::/kubepods/pod{uid}/c1\n")).unwrap();
    for name in ["stat", "ns/net"] {
        std::os::unix::fs::symlink(format!("/proc/{}/{name}", process.id()), shown.join(name)).unwrap();
    }
    let host = NetNs::current().unwrap().inode();
    let found = tulle_agent::locate::scan::find(&proc_dir, &uid, host);
    let (found, path) = found.expect("the process");
    assert_eq!(found.pid, process.id());
    assert_eq!(NetNs::open(&path).unwrap(), world.pod);
    assert_eq!(
        tulle_agent::locate::scan::find(&proc_dir, &uid, world.pod.inode()),
        None
    );
    process.kill().unwrap();
    process.wait().unwrap();
}
