//! A proxy for one workload in a network namespace of its own, as a virtual machine or a process has it: no agent.
//!
//! The other end is a captured pod of a shared proxy. Needs root, `ip` and `nft`; says so where it has none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_linux::NetNs;
use tulle_runtime::config::MapEnv;
use tulle_ztunnel::config::ProcessPorts;
use tulle_ztunnel::{App, Config};

use crate::agent::{Agent, add, snapshot_sent};
use crate::captured::{DB, Pods, WEB, mesh, run};
use crate::world::{SOON, updates};

/// A dedicated proxy for `shop/web` inside of a namespace; it ends with the value.
struct Machine {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<String>>,
}

impl Machine {
    async fn start(netns: &NetNs, ca: Arc<TestCa>) -> Self {
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let netns = netns.clone();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let app = serve(ca).await;
                let _ = ready.send(());
                let _ = ended.await;
                app.node().connections.pass_on();
                let metrics = app.exposition().encode();
                app.stop().await.unwrap();
                metrics
            })
        };
        let thread = thread::spawn(move || netns.run(serve).unwrap());
        timeout(SOON, is_ready).await.unwrap().unwrap();
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// Ends it; what it counted.
    fn stop(mut self) -> String {
        drop(self.end.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

async fn serve(ca: Arc<TestCa>) -> App {
    let run_dir = tempfile::tempdir().unwrap();
    let env = MapEnv::from([
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "shop/web/web"),
        // What its packet rules leave alone.
        ("PACKET_MARK", "1337"),
        ("LOCAL_XDS", &mesh()),
        ("CONNECTION_TERMINATION_DEADLINE", "300ms"),
        ("TULLE_RUN_DIR", run_dir.path().to_str().unwrap()),
    ]);
    let config = Config {
        process_ports: ProcessPorts {
            admin: 0,
            stats: 0,
            readiness: 0,
        },
        ..Config::from_env(&env).unwrap()
    };
    let authority = Arc::new(FakeCa::new(ca, Clock::system()));
    App::start(config, None, Some(authority), &Handle::current())
        .await
        .unwrap()
}

async fn assert_answers(pods: &Pods, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    let connected = pods
        .web
        .run_async(move || std::net::TcpStream::connect_timeout(&to, SOON));
    let stream = connected.await.unwrap().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    let mut seen = [0; 15];
    timeout(SOON, stream.read_exact(&mut seen))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&seen).trim(),
        WEB,
        "the application sees its client"
    );
}

async fn check(prepare: &str) {
    let pods = match Pods::make() {
        Ok(pods) => pods,
        Err(error) => {
            eprintln!("skipped: captured pods cannot be made here: {error}");
            return;
        }
    };
    run(&pods.web, prepare).unwrap();
    let agent = Agent::start().await;
    agent.app.node().mesh.apply(updates(&mesh()));
    pods.application().await;
    agent.assert_done(add("db", &[]), &[pods.db.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    let machine = Machine::start(&pods.web, Arc::clone(&agent.ca)).await;

    assert_answers(&pods, &format!("{DB}:8080")).await;
    assert_answers(&pods, "10.78.0.1:80").await;

    let metrics = machine.stop();
    let mutual = metrics
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total") && line.contains("mutual_tls"));
    assert_eq!(mutual.count(), 2, "by address and by service: {metrics}");
    agent.app.node().connections.pass_on();
    let there = agent.app.exposition().encode();
    assert!(
        there.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/web\""),
        "the other proxy has seen its identity: {there}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_has_a_proxy_of_its_own_and_no_agent() {
    check("true").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_ipv6_is_served_too() {
    check("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1 || echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6").await;
}
