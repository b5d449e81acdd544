//! A pod's task from its first word to its last, with a scripted proxy and a real kernel.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tulle_agent::board::Board;
use tulle_agent::capture::Capture;
use tulle_agent::enroll::Goal;
use tulle_agent::enroll::task::{self, Shared, Timing, Wanted};
use tulle_agent::grace::Grace;
use tulle_agent::host::Host;
use tulle_agent::metrics::{Metrics, RepairLabels};
use tulle_agent::pods::Pod;
use tulle_agent::probe::Probes;
use tulle_agent::repair::Check;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::{self, ProxyMark, Variant};
use tulle_agent::variant::{Existing, MarkGuard, Settings, Wishes};
use tulle_agent::zds::Hub;
use tulle_linux::NetNs;
use tulle_proto::convert::zds::{Answer, Request, Sockets};
use tulle_runtime::metrics::Registry;
use tulle_runtime::tasks;

use crate::backends::with_each_backend;
use crate::pod::{PATIENCE, POD, World, assert_alive};
use crate::proxy::Proxy;

with_each_backend! {
    a_running_pod_joins_and_leaves_without_losing_a_connection,
    a_leaving_pod_is_cut_at_the_deadline_and_goes_on_where_it_is_wanted_again,
    without_a_proxy_a_pod_is_not_captured_and_says_why,
    listeners_and_rules_survive_a_restart_of_the_agent,
    what_a_pod_changes_of_its_capture_is_put_back_and_counted,
    a_listener_that_was_closed_is_found_and_opened_again,
    a_pod_that_gets_ipv6_later_is_captured_over_it_too,
    a_deleted_pod_keeps_its_rules_and_nothing_is_held_for_it,
    rules_of_an_earlier_run_are_removed_from_a_pod_that_is_not_wanted,
}

/// How long captured connections of a leaving pod go on here.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);

/// An agent for the one pod of a world.
struct Agent {
    shared: Shared,
    wanted: watch::Sender<Wanted>,
    server: tokio::task::JoinHandle<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    async fn start(world: &World, backend: Backend, goal: Goal) -> Self {
        let hub = Hub::new();
        let path = world.folder.path().join("zds.sock");
        let server = tasks::spawn("zds", tulle_agent::zds::serve(&path, hub.clone()).unwrap());
        let metrics = Metrics::register(&Registry::new());
        let shared = Shared {
            capture: Capture::new(backend.rules(), ProxyMark::WellKnown),
            hub: hub.clone(),
            board: Board::new(metrics.clone()),
            metrics,
            resolver_dir: world.folder.path().into(),
            locator: world.locator(),
            grace: Grace::default(),
            probes: Probes::default(),
            settings: Settings {
                dns: false,
                mark: ProxyMark::WellKnown,
                mark_guard: MarkGuard::Off,
                existing: Existing::Keep,
            },
            host: Host::take_over(Backend::Netlink.rules(), NetNs::create().unwrap())
                .await
                .unwrap(),
            joins: Arc::new(Semaphore::new(1)),
            timing: Timing {
                verify_interval: Duration::from_millis(100),
                leave_notice: Duration::ZERO,
                leave_deadline: LEAVE_DEADLINE,
            },
        };
        hub.keep(&"u1".into());
        hub.complete();
        let (wanted, receiver) = watch::channel(Wanted {
            pod: web(),
            goal,
            at_once: false,
            fresh: false,
        });
        let task = tasks::spawn("pod", task::run(shared.clone(), receiver));
        Self {
            shared,
            wanted,
            server,
            task,
        }
    }

    fn aim(&self, goal: Goal) {
        self.wanted.send_modify(|wanted| wanted.goal = goal);
    }

    async fn until(&self, state: &str) {
        let reached = async {
            loop {
                let entries = self.shared.board.entries();
                match entries.first() {
                    Some(entry) if entry.state == state => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let entries = || self.shared.board.entries();
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("not {state}: {:?}", entries()));
    }

    fn repairs(&self, check: Check) -> u64 {
        self.shared
            .metrics
            .repairs
            .get_or_create_owned(&RepairLabels { check })
            .get()
    }

    /// Ends without a word, as a killed process does: whatever it held is closed.
    async fn kill(self) {
        self.task.abort();
        self.server.abort();
        let _ = self.task.await;
        let _ = self.server.await;
        self.shared.hub.forget(&"u1".into());
    }
}

fn web() -> Pod {
    Pod {
        uid: "u1".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        addresses: vec![IpAddr::V4(POD)],
        process: Some("netns:web".parse().unwrap()),
        enrolled: true,
        wishes: Wishes::default(),
    }
}

async fn connect(world: &World, generation: &str) -> Proxy {
    Proxy::connect(&world.folder.path().join("zds.sock"), Some(generation)).await
}

/// Lets a proxy take the pod; returns its copies of the listeners.
async fn take(proxy: &Proxy) -> (Sockets, Vec<std::os::fd::OwnedFd>) {
    let (added, mut fds) = proxy.added().await;
    proxy.accept().await;
    fds.remove(0);
    (added.sockets.unwrap(), fds)
}

async fn a_running_pod_joins_and_leaves_without_losing_a_connection(backend: Backend) {
    let Some(world) = World::new("a_running_pod_joins_and_leaves_without_losing_a_connection") else {
        return;
    };
    let server = world.serve(8080);
    let mut old = world.dial(8080).unwrap();
    let (mut old_server, _) = server.accept().unwrap();

    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    assert_eq!(proxy.snapshot().await[0].0, Request::Keep { uid: "u1".into() });
    let (_, copies) = take(&proxy).await;
    agent.until("In").await;
    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));
    assert_alive(&mut old, &mut old_server);

    let (mut caller, mut captured) = capture_one(&world, &copies[1]);
    agent.aim(Goal::Released);
    assert_eq!(proxy.request().await.0, Request::HandOver { uid: "u1".into() });
    drop(copies);
    proxy.accept().await;
    assert_alive(&mut caller, &mut captured);
    let (mut new, (mut new_server, _)) = (world.dial(8080).unwrap(), server.accept().unwrap());
    assert_alive(&mut new, &mut new_server);
    assert_eq!(agent.shared.board.entries()[0].state, "Leaving");
    drop((caller, captured));
    assert_eq!(proxy.request().await.0, Request::Delete { uid: "u1".into() });
    proxy.accept().await;
    agent.until("Out").await;
    assert_eq!(world.output("nft", "list ruleset"), "");
    assert_alive(&mut old, &mut old_server);
    let sockets = tulle_agent::sock_diag::marked_sockets(&world.pod, ProxyMark::WellKnown)
        .await
        .unwrap();
    assert!(sockets.is_empty(), "{sockets:?}");
}

async fn a_leaving_pod_is_cut_at_the_deadline_and_goes_on_where_it_is_wanted_again(backend: Backend) {
    let Some(world) = World::new("a_leaving_pod_is_cut_at_the_deadline_and_goes_on_where_it_is_wanted_again")
    else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    let (_, copies) = take(&proxy).await;
    agent.until("In").await;
    let (mut caller, mut captured) = capture_one(&world, &copies[1]);
    agent.aim(Goal::Released);
    assert_eq!(proxy.request().await.0, Request::HandOver { uid: "u1".into() });
    drop(copies);
    proxy.accept().await;
    agent.aim(Goal::Captured);
    let (_, copies) = take(&proxy).await;
    agent.until("In").await;
    assert_alive(&mut caller, &mut captured);
    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));

    agent.aim(Goal::Released);
    assert_eq!(proxy.request().await.0, Request::HandOver { uid: "u1".into() });
    drop(copies);
    proxy.accept().await;
    let left = tokio::time::Instant::now();
    assert_eq!(proxy.request().await.0, Request::Delete { uid: "u1".into() });
    assert!(left.elapsed() >= LEAVE_DEADLINE / 2, "not before the deadline");
    drop((caller, captured));
    proxy.accept().await;
    agent.until("Out").await;
}

/// A connection from outside that a proxy with a copy of the listener has taken.
fn capture_one(world: &World, inbound: &std::os::fd::OwnedFd) -> (std::net::TcpStream, std::net::TcpStream) {
    let caller = world.dial(8080).expect("captured");
    let inbound = std::net::TcpListener::from(inbound.try_clone().unwrap());
    inbound.set_nonblocking(false).unwrap();
    (caller, inbound.accept().unwrap().0)
}

async fn without_a_proxy_a_pod_is_not_captured_and_says_why(backend: Backend) {
    let Some(world) = World::new("without_a_proxy_a_pod_is_not_captured_and_says_why") else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    agent.until("Retry").await;
    assert_eq!(world.output("nft", "list ruleset"), "");
    let error = agent.shared.board.entries().remove(0).error.unwrap();
    assert_eq!((error.code, error.token), ("T0108", "proxy_not_connected"));

    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    take(&proxy).await;
    agent.until("In").await;
    assert!(agent.shared.board.entries().remove(0).error.is_none());
    let events = agent.shared.board.events();
    let told: Vec<_> = events.iter().map(|event| (event.reason, &*event.name)).collect();
    assert_eq!(told, [("proxy_not_connected", "web"), ("captured", "web")]);
    assert!(events[0].count >= 1 && events[0].message.contains("start the node proxy"));
}

async fn listeners_and_rules_survive_a_restart_of_the_agent(backend: Backend) {
    let Some(world) = World::new("listeners_and_rules_survive_a_restart_of_the_agent") else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    let (sockets, copies) = take(&proxy).await;
    agent.until("In").await;
    agent.kill().await;
    proxy.ended().await;

    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));
    world.dial(15008).expect("the proxy's copy still listens");

    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    assert_eq!(proxy.snapshot().await[0].0, Request::Keep { uid: "u1".into() });
    assert_eq!(
        proxy.request().await.0,
        Request::ReturnSockets { uid: "u1".into() }
    );
    let fds: Vec<_> = copies.iter().map(std::os::fd::AsFd::as_fd).collect();
    proxy
        .answer(
            &Answer {
                error: None,
                sockets: Some(sockets),
            },
            &fds,
        )
        .await;
    let (_, again) = take(&proxy).await;
    agent.until("In").await;
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(
        again.iter().map(inode).collect::<Vec<_>>(),
        copies.iter().map(inode).collect::<Vec<_>>()
    );
}

async fn what_a_pod_changes_of_its_capture_is_put_back_and_counted(backend: Backend) {
    let Some(world) = World::new("what_a_pod_changes_of_its_capture_is_put_back_and_counted") else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    take(&proxy).await;
    agent.until("In").await;
    for (check, program, change) in [
        (Check::rules, "nft", "delete table inet tulle"),
        (Check::routes, "ip", "route flush table 100"),
        (
            Check::tcp_loose,
            "sysctl",
            "-w net.netfilter.nf_conntrack_tcp_loose=1",
        ),
    ] {
        world.output(program, change);
        let repaired = async {
            while agent.repairs(check) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, repaired)
            .await
            .expect("repaired in time");
    }
    agent.until("Degraded").await;
    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));
}

async fn a_deleted_pod_keeps_its_rules_and_nothing_is_held_for_it(backend: Backend) {
    let Some(world) = World::new("a_deleted_pod_keeps_its_rules_and_nothing_is_held_for_it") else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    let (_, copies) = take(&proxy).await;
    agent.until("In").await;
    agent.aim(Goal::Forgotten);
    assert_eq!(proxy.request().await.0, Request::Delete { uid: "u1".into() });
    drop(copies);
    proxy.accept().await;
    tokio::time::timeout(PATIENCE, agent.task)
        .await
        .expect("the task ends")
        .unwrap();
    assert!(agent.shared.board.entries().is_empty());
    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));
    assert!(
        tulle_agent::sock_diag::marked_sockets(&world.pod, ProxyMark::WellKnown)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn rules_of_an_earlier_run_are_removed_from_a_pod_that_is_not_wanted(backend: Backend) {
    let Some(world) = World::new("rules_of_an_earlier_run_are_removed_from_a_pod_that_is_not_wanted") else {
        return;
    };
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture
        .install(
            &world.located().await,
            &plan::capture(&Variant::default()),
            Existing::Keep,
        )
        .await
        .unwrap();
    let agent = Agent::start(&world, backend, Goal::Released).await;
    agent.until("Out").await;
    assert_eq!(world.output("nft", "list ruleset"), "");
}

async fn a_listener_that_was_closed_is_found_and_opened_again(backend: Backend) {
    let Some(world) = World::new("a_listener_that_was_closed_is_found_and_opened_again") else {
        return;
    };
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    let (_, copies) = take(&proxy).await;
    agent.until("In").await;
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    let before: Vec<_> = copies.iter().map(inode).collect();
    socket2::SockRef::from(&copies[1])
        .shutdown(std::net::Shutdown::Both)
        .unwrap();

    assert_eq!(proxy.request().await.0, Request::HandOver { uid: "u1".into() });
    drop(copies);
    proxy.accept().await;
    let (_, copies) = take(&proxy).await;
    let after: Vec<_> = copies.iter().map(inode).collect();
    assert_eq!(
        (after[0], after[2]),
        (before[0], before[2]),
        "kept with their queues"
    );
    assert_ne!(after[1], before[1]);
    assert_eq!(agent.repairs(Check::listeners), 1);
    let mut caller = world.dial(8080).expect("captured again");
    let inbound = std::net::TcpListener::from(copies[1].try_clone().unwrap());
    inbound.set_nonblocking(false).unwrap();
    let (mut captured, _) = inbound.accept().unwrap();
    assert_alive(&mut caller, &mut captured);
    agent.until("In").await;
}

async fn a_pod_that_gets_ipv6_later_is_captured_over_it_too(backend: Backend) {
    let Some(world) = World::new("a_pod_that_gets_ipv6_later_is_captured_over_it_too") else {
        return;
    };
    world.switch_ipv6(false);
    let agent = Agent::start(&world, backend, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    take(&proxy).await;
    agent.until("In").await;
    let present = async |ipv6| tulle_agent::routes::present(&world.pod, ipv6).await.unwrap();
    assert_eq!((present(false).await, present(true).await), (true, false));

    world.switch_ipv6(true);
    let routed = async {
        while !present(true).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, routed)
        .await
        .expect("routed in time");
    for check in [Check::listeners, Check::routes, Check::rules] {
        assert_eq!(agent.repairs(check), 0, "{check} is no deviation of the pod's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_pod_with_redirects_of_legacy_iptables_is_not_captured_and_says_why() {
    let Some(world) = World::new("a_running_pod_with_redirects_of_legacy_iptables") else {
        return;
    };
    let redirect = "-t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001";
    if !world.succeeds("iptables-legacy", redirect) {
        eprintln!("skipped: this machine has no legacy iptables");
        return;
    }
    let agent = Agent::start(&world, Backend::Netlink, Goal::Captured).await;
    let proxy = connect(&world, "1").await;
    proxy.snapshot().await;
    agent.until("Retry").await;
    let error = agent.shared.board.entries().remove(0).error.unwrap();
    assert_eq!((error.code, error.token), ("T0109", "foreign_rules"));
    assert!(error.message.contains("legacy"), "{}", error.message);
    assert_eq!(
        world.output("nft", "list ruleset"),
        "",
        "nothing of ours stands beside it"
    );
}
