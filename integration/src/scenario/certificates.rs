//! The certificate authority is away while every certificate of a node falls due for renewal.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_identity::ca::{CaClient, CaFuture};
use tulle_identity::channel::{self, ChannelConfig, RootSource, TokenSource};
use tulle_identity::manager::{CertificateState, Options};
use tulle_identity::{GrpcCa, GrpcCaOptions, SecretManager};
use tulle_model::Identity;
use tulle_world::{CONTROL, Component};

use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::hbone::identity;
use crate::manifest::NAMESPACE;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F03",
    320,
    "the authority is killed while 2,000 certificates fall due for renewal",
    f03,
)];

/// Requests per second that a returning authority may get from one node.
const RATE_MAX: usize = 50;

/// How the run is timed: an outage between `down` and `up`, counted from the first issue of all.
struct Timing {
    identities: usize,
    lifetime: Duration,
    down: Duration,
    up: Duration,
}

fn f03(scale: Scale) -> Run {
    let seconds = Duration::from_secs;
    let timing = scale.pick(
        Timing {
            identities: 200,
            lifetime: seconds(60),
            down: seconds(20),
            up: seconds(40),
        },
        Timing {
            identities: 2_000,
            lifetime: seconds(300),
            down: seconds(120),
            up: seconds(220),
        },
    );
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1"]).await;
        let accounts: Vec<_> = (0..timing.identities)
            .map(|index| format!("app-{index}"))
            .collect();
        mesh.apply("workloads", &entries(&accounts));
        mesh.mesh.start_control(&mesh.world).await.unwrap();
        let token = tulle_xds::token::create(&mesh.mesh.folders().state, "n1").unwrap();
        mesh.mesh.set_token("n1", &token).unwrap();
        let wanted: Vec<_> = accounts.iter().map(|account| identity(account)).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let manager = node(&mesh, timing.lifetime, wanted, Arc::clone(&asked)).await;
        let valid = || count(&manager, CertificateState::Valid);
        until(Duration::from_secs(200), || valid() == timing.identities).await;
        let issued = Instant::now();
        let first = newest(&manager);
        tokio::time::sleep_until(issued + timing.down).await;
        mesh.mesh.kill(&Component::Control).unwrap();
        tokio::time::sleep_until(issued + timing.up).await;
        let lowest = valid();
        let back = Instant::now();
        mesh.mesh.start_control(&mesh.world).await.unwrap();
        until(Duration::from_secs(90), || {
            renewed(&manager, first) == timing.identities
        })
        .await;
        let all_renewed = back.elapsed();
        let expired = timing.identities - lowest.min(valid());
        let peak = peak_per_second(&asked.lock(), back);
        Figure::new("F03")
            .with("identities", timing.identities)
            .with("outage", format!("{}s", (timing.up - timing.down).as_secs()))
            .none("expired", expired as u64)
            .within("all_renewed", all_renewed, Duration::from_secs(60))
            .expect("peak_csr_per_s", peak, peak <= RATE_MAX, "≤ 50")
    })
}

/// Workloads that are placed on n1; nothing needs to run behind them.
fn entries(accounts: &[String]) -> String {
    let entry = |(index, account): (usize, &String)| {
        let (high, low) = (index / 250, index % 250 + 1);
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {account}\n  \
             namespace: {NAMESPACE}\n  annotations:\n    tulle.dev/node: n1\nspec:\n  address: 10.77.{high}.{low}\n  \
             serviceAccount: {account}\n"
        )
    };
    accounts.iter().enumerate().map(entry).collect()
}

/// The certificates of a node proxy, kept by the code that a node proxy runs, on a thread inside of n1.
async fn node(
    mesh: &TestMesh,
    ttl: Duration,
    wanted: Vec<Identity>,
    asked: Arc<Mutex<Vec<Instant>>>,
) -> SecretManager {
    let control = mesh.world.node(CONTROL).unwrap().ipv4();
    let config = ChannelConfig {
        address: format!("https://{control}:15012").parse().unwrap(),
        root: RootSource::File(mesh.mesh.folders().state.join("ca/root-cert.pem")),
        server_name: None,
        token: TokenSource::File(mesh.mesh.folders().run.join("n1.token")),
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let namespace = mesh.world.node("n1").unwrap().namespace().clone();
    let (give, take) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let options = GrpcCaOptions {
                    ttl,
                    ..GrpcCaOptions::default()
                };
                let ca = GrpcCa::new(channel::authenticated(&config).unwrap(), options);
                let metrics = tulle_identity::Metrics::register(&tulle_runtime::metrics::Registry::default());
                let manager =
                    SecretManager::new(Arc::new(Counting { ca, asked }), Options::default(), metrics);
                for identity in &wanted {
                    manager.retain(identity);
                }
                give.send(manager).ok();
                // The thread ends with the process.
                std::future::pending::<()>().await;
            });
        };
        namespace.run(run).unwrap();
    });
    take.await.expect("the thread hands its certificates over")
}

/// Notes when it is asked.
#[derive(Debug)]
struct Counting {
    ca: GrpcCa,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl CaClient for Counting {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> CaFuture<'a> {
        self.asked.lock().push(Instant::now());
        self.ca.fetch(identity)
    }
}

fn count(manager: &SecretManager, state: CertificateState) -> usize {
    manager.list().iter().filter(|line| line.state == state).count()
}

/// The highest number that a certificate has so far.
fn newest(manager: &SecretManager) -> u64 {
    manager
        .list()
        .iter()
        .filter_map(|line| line.version)
        .max()
        .unwrap_or(0)
}

fn renewed(manager: &SecretManager, than: u64) -> usize {
    let newer = |version: Option<u64>| version.is_some_and(|version| version > than);
    manager.list().iter().filter(|line| newer(line.version)).count()
}

/// The most requests within any second from `since` on.
fn peak_per_second(asked: &[Instant], since: Instant) -> usize {
    let later: Vec<_> = asked.iter().filter(|at| **at >= since).collect();
    let within = |from: &&Instant| {
        let end = **from + Duration::from_secs(1);
        later.iter().filter(|at| ***at >= **from && ***at < end).count()
    };
    later.iter().map(within).max().unwrap_or(0)
}

async fn until(patience: Duration, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
