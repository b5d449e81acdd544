//! Node proxies replaced under load, and what that costs: nothing, or a figure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_linux::NetNs;
use tulle_world::{Mesh, Pod};

use crate::TestMesh;
use crate::mesh::{PATIENCE, eventually};
use crate::storm::Storm;
use crate::traffic::{call, connect, spawn};

/// How often a pinned connection exchanges a message.
const BEAT: Duration = Duration::from_millis(20);

/// Failures kept with their text.
const FAILURES_KEPT: usize = 8;

/// A running mesh of two nodes whose proxies are supervised, with a captured pod on each: `web` on n1, `db` on n2.
pub async fn supervised_pair() -> (TestMesh, Pod, Pod) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh = Mesh::new(mesh.mesh.folders().clone())
        .with_environment("RUST_LOG", "info,tulle_ztunnel=debug")
        .with_environment("CONNECTION_TERMINATION_DEADLINE", "60s")
        .with_environment("TULLE_SUPERVISE_SETTLE", "500ms")
        .with_supervision();
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    for node in ["n1", "n2"] {
        let serving = eventually(async || mesh.mesh.newest_generation(node).await.is_some()).await;
        assert!(serving, "{}", mesh.logs());
    }
    (mesh, web, db)
}

/// Lasting connections that exchange numbered messages; a message that is lost, doubled or changed breaks them.
#[derive(Debug)]
pub struct Sequenced {
    shared: Arc<Exchanged>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Exchanged {
    messages: AtomicU64,
    lost: AtomicU64,
    longest_us: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Sequenced {
    /// Opens connections to an echo.
    pub async fn open(namespace: &NetNs, to: SocketAddr, count: usize) -> Self {
        let shared = Arc::new(Exchanged::default());
        let mut tasks = Vec::new();
        for _ in 0..count {
            let stream = connect(namespace, to)
                .await
                .unwrap_or_else(|error| panic!("pinning {to}: {error}"));
            let shared = Arc::clone(&shared);
            tasks.push(spawn(async move {
                let failure = converse(stream, &shared).await;
                shared.lost.fetch_add(1, Ordering::Relaxed);
                let mut kept = shared.failures.lock();
                if kept.len() < FAILURES_KEPT {
                    kept.push(failure);
                }
            }));
        }
        Self { shared, tasks }
    }

    /// Connections that broke.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// How some of them broke.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }

    /// Messages that came back.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.shared.messages.load(Ordering::Relaxed)
    }

    /// The longest time one message took to come back.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.load(Ordering::Relaxed))
    }

    /// Closes them, in order.
    pub fn close(&self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Drop for Sequenced {
    fn drop(&mut self) {
        self.close();
    }
}

/// Exchanges numbers until something is wrong; says what.
async fn converse(mut stream: TcpStream, shared: &Exchanged) -> String {
    for number in 0_u64.. {
        let sent = Instant::now();
        let mut answer = [0; 8];
        let exchange = async {
            stream.write_all(&number.to_be_bytes()).await?;
            stream.read_exact(&mut answer).await
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(_)) if answer == number.to_be_bytes() => {}
            Ok(Ok(_)) => return format!("{answer:?} came back for {number}"),
            Ok(Err(error)) => return format!("message {number}: {error}"),
            Err(_) => return format!("message {number}: no answer"),
        }
        let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.longest_us.fetch_max(took, Ordering::Relaxed);
        shared.messages.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT).await;
    }
    "every number was used".to_owned()
}

/// What upgrades under load came to.
#[derive(Debug)]
pub struct Outcome {
    /// Upgrades done.
    pub upgrades: usize,
    /// New connections that came back whole.
    pub calls: u64,
    /// New connections that did not.
    pub refused: u64,
    /// How some of them ended.
    pub failures: Vec<String>,
    /// Lasting connections that broke.
    pub established_lost: u64,
    /// How some of them broke.
    pub breaks: Vec<String>,
    /// Messages of lasting connections.
    pub messages: u64,
    /// The longest time one of those took.
    pub longest: Duration,
    /// The longest time from the call for an upgrade to its readiness.
    pub slowest_upgrade: Duration,
}

/// How much load there is during upgrades.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Workers that open one connection after the other; none where another load runs beside.
    pub storm: usize,
    /// Lasting connections, opened anew after each upgrade on top of those that are there: no more than this per round.
    pub pinned: usize,
}

/// Replaces the proxies of both nodes `n` times in turn, under a storm of new connections and with lasting ones that are
/// opened before and between the upgrades.
pub async fn upgrade_under_load(
    mesh: &mut TestMesh,
    from: &Pod,
    to: SocketAddr,
    n: usize,
    load: Load,
) -> Outcome {
    let mut pinned = vec![Sequenced::open(from.namespace(), to, load.pinned).await];
    let storm = Storm::start(from.namespace(), &[to], load.storm);
    let mut slowest = Duration::ZERO;
    for round in 0..n {
        let node = ["n1", "n2"][round % 2];
        let started = Instant::now();
        mesh.mesh.upgrade_ztunnel(node).await.unwrap();
        slowest = slowest.max(started.elapsed());
        let seen = storm.done();
        let flowed = load.storm == 0 || eventually(async || storm.done() > seen + 100).await;
        assert!(flowed, "traffic flows after upgrade {round}\n{}", mesh.logs());
        pinned.push(Sequenced::open(from.namespace(), to, load.pinned).await);
        // At most three generations live on a node, the fourth cuts the oldest: connections last two of its upgrades.
        let oldest = pinned.len().saturating_sub(4);
        for done in pinned.drain(..oldest) {
            assert_eq!(done.lost(), 0, "{:?}\n{}", done.failures(), mesh.logs());
            done.close();
        }
        let next = ["n1", "n2"][(round + 1) % 2];
        let room = eventually(async || mesh.mesh.generations(next).await.len() < 3).await;
        assert!(room, "a generation without connections ends\n{}", mesh.logs());
    }
    let storm = storm.end().await;
    Outcome {
        upgrades: n,
        calls: storm.done,
        refused: storm.failed,
        failures: storm.failures,
        established_lost: pinned.iter().map(Sequenced::lost).sum(),
        breaks: pinned.iter().flat_map(Sequenced::failures).collect(),
        messages: pinned.iter().map(Sequenced::messages).sum(),
        longest: pinned.iter().map(Sequenced::longest).max().unwrap_or_default(),
        slowest_upgrade: slowest,
    }
}

/// Kills the newest generation of a node's proxy and tells how long a new connection waited until it was served.
pub async fn crash_and_recover(mesh: &mut TestMesh, node: &str, from: &Pod, to: SocketAddr) -> Duration {
    mesh.mesh.crash_ztunnel(node).await.unwrap();
    let started = Instant::now();
    let answer = call(from.namespace(), to, b"after the crash").await;
    let waited = started.elapsed();
    assert_eq!(
        answer.unwrap_or_else(|error| panic!("a new connection failed: {error}\n{}", mesh.logs())),
        b"after the crash"
    );
    waited
}
