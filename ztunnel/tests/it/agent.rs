//! In-pod mode against an agent that is played by the test. Needs network namespaces; says so where it has none.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_linux::NetNs;
use tulle_linux::seqpacket::{SeqPacket, SeqPacketListener};
use tulle_proto::zds;
use tulle_proto::zds::sockets::Kind;
use tulle_proto::zds::workload_request::Payload;
use tulle_runtime::config::MapEnv;
use tulle_ztunnel::config::ProcessPorts;
use tulle_ztunnel::{App, Config};

use crate::world::{SOON, updates};

const PORTS: [u16; 3] = [15001, 15006, 15008];

/// What they are for.
pub(crate) const KINDS: [Kind; 3] = [Kind::Outbound, Kind::InboundPlain, Kind::InboundHbone];

/// A proxy in shared mode and the agent it follows.
pub(crate) struct Agent {
    pub(crate) app: App,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) authority: FakeCa,
    pub(crate) listener: SeqPacketListener,
    pub(crate) proxy: SeqPacket,
    pub(crate) folder: tempfile::TempDir,
}

/// A new namespace, or none where the kernel or the user has none to give.
pub(crate) fn namespace() -> Option<NetNs> {
    match NetNs::create() {
        Ok(netns) => Some(netns),
        Err(error) => {
            eprintln!("skipped: network namespaces cannot be made here: {error}");
            None
        }
    }
}

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further variables set.
    async fn start_with(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("ztunnel.sock");
        let listener = SeqPacketListener::bind(&socket).unwrap();
        let mut env = MapEnv::from([
            ("INPOD_UDS", socket.to_str().unwrap()),
            ("LOCAL_XDS", "workloads: []"),
            ("TULLE_RUN_DIR", folder.path().to_str().unwrap()),
        ]);
        for (name, value) in variables {
            env = env.with(name, value);
        }
        let config = Config {
            process_ports: ProcessPorts {
                admin: 0,
                stats: 0,
                readiness: 0,
            },
            ..Config::from_env(&env).unwrap()
        };
        let ca = Arc::new(TestCa::new());
        let authority = FakeCa::new(Arc::clone(&ca), Clock::system());
        let app = App::start(
            config,
            None,
            Some(Arc::new(authority.clone())),
            &Handle::current(),
        )
        .await
        .unwrap();
        let proxy = accept(&listener).await;
        Self {
            app,
            ca,
            authority,
            listener,
            proxy,
            folder,
        }
    }

    /// Sends a request; what comes back is the error of the Ack, and its sockets.
    pub(crate) async fn ask(
        &self,
        payload: Payload,
        fds: &[BorrowedFd<'_>],
    ) -> (String, Vec<Kind>, Vec<OwnedFd>) {
        self.send(payload, fds).await;
        timeout(SOON, self.answer()).await.unwrap()
    }

    /// Sends a request.
    pub(crate) async fn send(&self, payload: Payload, fds: &[BorrowedFd<'_>]) {
        let request = zds::WorkloadRequest {
            payload: Some(payload),
        };
        self.proxy.send(&request.encode_to_vec(), fds).await.unwrap();
    }

    /// Waits for the answer: the error of the Ack, and its sockets.
    pub(crate) async fn answer(&self) -> (String, Vec<Kind>, Vec<OwnedFd>) {
        let mut buffer = [0; 1024];
        let received = self.proxy.recv(&mut buffer).await.unwrap();
        let response = zds::WorkloadResponse::decode(&buffer[..received.len]).unwrap();
        let Some(zds::workload_response::Payload::Ack(ack)) = response.payload else {
            panic!("an Ack")
        };
        let kinds = ack
            .sockets
            .map(|sockets| sockets.kinds().collect())
            .unwrap_or_default();
        (ack.error, kinds, received.fds)
    }

    pub(crate) async fn assert_done(&self, payload: Payload, fds: &[BorrowedFd<'_>]) {
        let (error, _, _) = self.ask(payload, fds).await;
        assert_eq!(error, "");
    }

    async fn reconnected(&mut self) {
        self.proxy = accept(&self.listener).await;
    }

    fn pods(&self) -> usize {
        let metrics = self.app.exposition().encode();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("workload_manager_active_proxy_count "));
        line.unwrap().parse().unwrap()
    }
}

async fn accept(listener: &SeqPacketListener) -> SeqPacket {
    let proxy = timeout(SOON, listener.accept())
        .await
        .expect("the proxy dials")
        .unwrap();
    let mut buffer = [0; 64];
    let received = timeout(SOON, proxy.recv(&mut buffer)).await.unwrap().unwrap();
    let hello = zds::ZdsHello::decode(&buffer[..received.len]).unwrap();
    assert_eq!(hello.version(), zds::Version::V1);
    assert!(hello.abilities.unwrap().sockets);
    proxy
}

pub(crate) fn add(uid: &str, kinds: &[Kind]) -> Payload {
    Payload::Add(zds::AddWorkload {
        uid: uid.to_owned(),
        workload_info: Some(zds::WorkloadInfo {
            name: uid.to_owned(),
            namespace: "shop".to_owned(),
            service_account: uid.to_owned(),
        }),
        sockets: (!kinds.is_empty()).then(|| zds::Sockets {
            kinds: kinds.iter().map(|kind| i32::from(*kind)).collect(),
            mark: 0,
        }),
        ..zds::AddWorkload::default()
    })
}

pub(crate) fn del(uid: &str) -> Payload {
    Payload::Del(zds::DelWorkload { uid: uid.to_owned() })
}

fn keep(uid: &str) -> Payload {
    Payload::Keep(zds::KeepWorkload { uid: uid.to_owned() })
}

pub(crate) fn snapshot_sent() -> Payload {
    Payload::SnapshotSent(zds::SnapshotSent::default())
}

/// The listeners of an agent that opens them itself.
pub(crate) fn listeners(netns: &NetNs) -> [TcpListener; 3] {
    netns
        .run(|| PORTS.map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()))
        .unwrap()
}

/// The descriptors that go with such an agent's request.
pub(crate) fn with_listeners<'a>(netns: &'a NetNs, opened: &'a [TcpListener; 3]) -> Vec<BorrowedFd<'a>> {
    std::iter::once(netns.fd())
        .chain(opened.iter().map(AsFd::as_fd))
        .collect()
}

/// Whether all ports of the proxy are taken inside of a namespace.
pub(crate) fn listens(netns: &NetNs) -> bool {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    netns.run(move || !PORTS.iter().any(free)).unwrap()
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, reached)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_served_from_add_to_del() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    assert_eq!(agent.app.ready().pending(), ["the agent's snapshot"]);
    agent.assert_done(add("a", &[]), &[netns.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    assert!(listens(&netns));
    assert!(agent.app.ready().is_ready());
    agent.assert_done(add("a", &[]), &[netns.fd()]).await;
    assert_eq!(
        agent.pods(),
        1,
        "the same uid in the same namespace is nothing new"
    );
    agent.assert_done(del("a"), &[]).await;
    agent.assert_done(del("never heard of"), &[]).await;
    until("the listeners are closed", || !listens(&netns)).await;
    assert_eq!(agent.pods(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_another_namespace_under_a_known_uid_replaces_its_proxy() {
    let (Some(old), Some(new)) = (namespace(), namespace()) else {
        return;
    };
    let agent = Agent::start().await;
    agent.assert_done(add("a", &[]), &[old.fd()]).await;
    agent.assert_done(add("a", &[]), &[new.fd()]).await;
    assert!(listens(&new));
    until("the old listeners are closed", || !listens(&old)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_not_mentioned_after_a_reconnect_is_dropped() {
    let (Some(kept), Some(dropped)) = (namespace(), namespace()) else {
        return;
    };
    let mut agent = Agent::start().await;
    agent.assert_done(add("kept", &[]), &[kept.fd()]).await;
    agent.assert_done(add("dropped", &[]), &[dropped.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let (error, _, _) = agent.ask(keep("kept"), &[]).await;
    assert!(error.contains("before snapshot_sent"), "{error}");
    agent.reconnected().await;
    assert!(
        listens(&kept) && listens(&dropped),
        "a lost connection changes nothing"
    );
    agent.assert_done(keep("kept"), &[]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    until("the forgotten pod is dropped", || !listens(&dropped)).await;
    assert!(listens(&kept));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_violation_is_answered_and_ends_the_connection() {
    let mut agent = Agent::start().await;
    let (error, _, _) = agent.ask(add("a", &[]), &[]).await;
    assert!(error.contains("descriptors"), "{error}");
    agent.reconnected().await;
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let (error, _, _) = agent.ask(add("a", &[]), &[file.as_fd()]).await;
    assert!(error.contains("no network namespace"), "{error}");
    agent.reconnected().await;
    assert_eq!(agent.pods(), 0);
    assert!(agent.folder.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_the_application_holds_is_an_error_and_is_tried_again() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    let taken = netns
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15006)).unwrap())
        .unwrap();
    let (error, _, _) = agent.ask(add("a", &[]), &[netns.fd()]).await;
    assert!(error.contains("cannot be started"), "{error}");
    assert!(
        agent
            .app
            .ready()
            .pending()
            .iter()
            .any(|pending| pending.contains("proxy of a"))
    );
    drop(taken);
    let again = Duration::from_secs(30);
    let started = async {
        while !listens(&netns) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(again, started).await.expect("tried again every 5 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_the_agent_are_used_given_back_and_handed_over() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    let opened = listeners(&netns);
    let fds = with_listeners(&netns, &opened);
    agent.assert_done(add("a", &KINDS), &fds).await;
    let uid = "a".to_owned();
    let (error, returned, copies) = agent
        .ask(
            Payload::ReturnSockets(zds::ReturnSockets { uid: uid.clone() }),
            &[],
        )
        .await;
    assert_eq!((error.as_str(), &returned[..], copies.len()), ("", &KINDS[..], 3));
    drop((opened, copies));
    assert!(listens(&netns), "the proxy's copies hold the ports");
    agent
        .assert_done(Payload::HandOver(zds::HandOver { uid }), &[])
        .await;
    until("the proxy's copies are closed", || !listens(&netns)).await;
}

/// The value of one of the proxy's own series.
fn series(agent: &Agent, name: &str) -> usize {
    let metrics = agent.app.exposition().encode();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_account_under_a_known_uid_gets_a_proxy_of_its_own_on_the_same_listeners() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    agent.assert_done(add("a", &[]), &[netns.fd()]).await;
    let Payload::Add(mut other) = add("a", &[]) else {
        panic!("an add")
    };
    other.workload_info.as_mut().unwrap().service_account = "other".to_owned();
    agent.assert_done(Payload::Add(other), &[netns.fd()]).await;
    assert!(listens(&netns));
    assert_eq!(agent.pods(), 1);
    assert_eq!(series(&agent, "workload_manager_proxies_started_total"), 2);
    assert_eq!(series(&agent, "workload_manager_proxies_stopped_total"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_handed_over_is_accepted_for_again_when_it_is_added_again() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    let opened = listeners(&netns);
    let fds = with_listeners(&netns, &opened);
    agent.assert_done(add("a", &KINDS), &fds).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let uid = "a".to_owned();
    let back = || Payload::ReturnSockets(zds::ReturnSockets { uid: uid.clone() });
    let over = Payload::HandOver(zds::HandOver { uid: uid.clone() });
    agent.assert_done(over, &[]).await;
    let (_, none, _) = agent.ask(back(), &[]).await;
    assert!(none.is_empty(), "its copies are closed");
    agent.assert_done(add("a", &KINDS), &fds).await;
    let (_, all, _) = agent.ask(back(), &[]).await;
    assert_eq!(all, KINDS);
    assert_eq!(
        series(&agent, "workload_manager_proxies_stopped_total"),
        0,
        "what was open lives on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_pod_that_an_earlier_generation_serves_is_taken_once_it_can_be_served() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    let served = || {
        let Payload::Add(mut add) = add("web", &[]) else {
            panic!("an add")
        };
        add.served = true;
        Payload::Add(add)
    };
    let (error, _, _) = agent.ask(served(), &[netns.fd()]).await;
    assert!(error.contains("the generation before serves it on"), "{error}");
    agent.assert_done(snapshot_sent(), &[]).await;
    assert!(!listens(&netns), "nothing is accepted that would have to wait");
    assert_eq!(
        agent.app.ready().pending(),
        ["configuration and certificate of shop/web/web"],
        "the earlier one is not told to end"
    );
    agent.app.node().mesh.apply(updates(
        "workloads: [{uid: w, name: web, namespace: shop, serviceAccount: web, protocol: HBONE, workloadIps: [10.0.0.1]}]",
    ));
    agent.assert_done(served(), &[netns.fd()]).await;
    assert!(listens(&netns));
    assert!(agent.app.ready().is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_drains_leaves_an_agent_that_knows_no_lingering_proxy_alone() {
    let Some(netns) = namespace() else { return };
    let agent = Agent::start().await;
    agent.assert_done(add("a", &[]), &[netns.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let Agent { app, listener, .. } = agent;
    app.stop().await.unwrap();
    let dialled = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(
        dialled.is_err(),
        "an earlier version would take it for the newest"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_carries_nothing_turns_away_what_the_agents_listeners_caught() {
    let Some(netns) = namespace() else { return };
    crate::captured::run(&netns, "ip link set lo up").unwrap();
    let agent = Agent::start_with(&[("ENABLE_PROXY", "false")]).await;
    let opened = listeners(&netns);
    let fds = with_listeners(&netns, &opened);
    agent.assert_done(add("a", &KINDS), &fds).await;
    for port in PORTS {
        let outcome = netns.run(move || {
            let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(SOON))?;
            std::io::Read::read(&mut stream, &mut [0])
        });
        let ended = outcome.unwrap().map_err(|error| error.kind());
        assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset), "port {port}");
    }
}
