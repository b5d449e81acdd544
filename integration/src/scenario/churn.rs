//! A large mesh that changes all the time, under load: nothing is missed, and nobody notices.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use prost::Message as _;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tulle_proto::ADDRESS_TYPE;
use tulle_proto::discovery::Resource;
use tulle_proto::workload::{Address, address};
use tulle_world::{CONTROL, Component};

use super::operator::within;
use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::ads::{self, Stream};
use crate::load::Plan;
use crate::mesh::eventually;
use crate::traffic::{Echo, gets_through};
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F21",
    240,
    "10,000 workloads, 500 changes a second for a minute, then 5,000 policies at once",
    f21,
)];

/// Time from a change to the proxy that has it.
const PROPAGATION_MAX: Duration = Duration::from_secs(1);
/// Workloads of one file.
const PER_FILE: usize = 500;
/// Workloads that change, each in a file of its own.
const CHANGING: usize = 100;
/// What the ports begin after that policies close, one in each version.
const CLOSED_FIRST: u16 = 9_000;
/// How long the last change may take before it counts as missed.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// A workload that nobody runs, at an address that tells its version.
fn entry(index: usize, version: usize) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: other-{index}\n  namespace: \
         other\nspec:\n  address: 12.{}.{}.{}\n  serviceAccount: other\n  labels:\n    app: other\n    version: \
         v{version}\n",
        index / 62_500,
        (index / 250) % 250,
        index % 250
    )
}

fn change(mesh: &TestMesh, index: usize, version: usize) {
    mesh.apply(&format!("changing-{index}"), &entry(index, version));
}

/// The port that the last of the policies closes in a version; nothing else is asked for there.
fn closed_by(version: usize) -> u16 {
    CLOSED_FIRST + u16::try_from(version).expect("a version")
}

/// Policies of the mesh's namespace. They refuse callers that there are not, and the last of them, which is told last, closes
/// a port.
fn policies(count: usize, version: usize) -> String {
    let mut text = String::new();
    let mut policy = |name: &str, rule: &str| {
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
             {}}}\nspec: {{selector: {{matchLabels: {{app: db}}}}, action: DENY, rules: [{rule}]}}\n",
            manifest::NAMESPACE
        );
    };
    for index in 1..count {
        let caller = format!("cluster.local/ns/none/sa/v{version}-{index}");
        policy(
            &format!("p{index}"),
            &format!("{{from: [{{source: {{principals: [{caller}]}}}}]}}"),
        );
    }
    let port = closed_by(version);
    policy(
        "plast",
        &format!("{{to: [{{operation: {{ports: ['{port}']}}}}]}}"),
    );
    text
}

async fn dump(mesh: &TestMesh, node: &str) -> Value {
    mesh.ask(&Component::Ztunnel(node.to_owned()), "/config_dump")
        .await
}

/// Version by number of the changing workloads that a proxy has.
async fn versions(mesh: &TestMesh, node: &str) -> BTreeMap<usize, usize> {
    let dump = dump(mesh, node).await;
    let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
    let version = |workload: &Value| {
        let index = workload["name"]
            .as_str()?
            .strip_prefix("other-")?
            .parse::<usize>()
            .ok()?;
        let version = workload["canonicalRevision"]
            .as_str()?
            .strip_prefix('v')?
            .parse()
            .ok()?;
        (index < CHANGING).then_some((index, version))
    };
    workloads.iter().filter_map(version).collect()
}

fn f21(scale: Scale) -> Run {
    Box::pin(async move {
        let (count, rate, time, rules) = scale.pick((1_000, 100, 5, 500), (10_000, 500, 60, 5_000));
        let mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.apply("others", &manifest::namespace("other", false));
        for index in 0..CHANGING {
            change(&mesh, index, 0);
        }
        let others: Vec<usize> = (CHANGING..count).collect();
        for (number, some) in others.chunks(PER_FILE).enumerate() {
            let text: String = some.iter().map(|index| entry(*index, 0)).collect();
            mesh.apply(&format!("others-{number}"), &text);
        }
        let stage = Stage::of(mesh, scale, scale.pick(Plan::light(), Plan::l1())).await;
        let quiet = stage.quiet().await;
        let storm = storm(&stage, rate, time).await;
        let missed = missed(&stage.mesh, &storm.newest).await;
        let (mut lags, during) = (storm.lags, storm.during);
        lags.sort_unstable();
        let p99 = lags
            .get(lags.len().saturating_sub(1) * 99 / 100)
            .copied()
            .unwrap_or(Duration::MAX);
        let first = Policies::new(&stage, rules, 1).await.apply().await;
        let next = Policies::new(&stage, rules, 2).await;
        let begun = Instant::now();
        let replaced = next.apply().await;
        stage.after().await;
        let policies = stage.load.report(begun, Instant::now());
        Figure::new("F21")
            .with("workloads", count)
            .with("changes_per_s", format!("{:.0}", storm.rate))
            .with("samples", lags.len())
            .with_time(
                "propagation_p50",
                lags.get(lags.len() / 2).copied().unwrap_or(Duration::MAX),
            )
            .within("propagation_p99", p99, PROPAGATION_MAX)
            .none("missed", missed)
            .losses(&stage.load, &[&quiet[0], &quiet[1], &during, &policies])
            .latency([&quiet[0], &quiet[1]], &during)
            .with("policies", rules)
            .with_time("policies_first", first.took)
            .within("policies_replaced", replaced.took, PROPAGATION_MAX)
            .none("policies_lacking", first.lacking + replaced.lacking)
            .unaffected(
                "policies_p99",
                quiet[0].requests.p99.max(quiet[1].requests.p99),
                policies.requests.p99,
            )
    })
}

/// What came of the changes.
struct Storm {
    /// From due to heard, of every change, those that a newer one overtook included.
    lags: Vec<Duration>,
    newest: BTreeMap<usize, usize>,
    during: crate::load::Report,
    rate: f64,
}

/// Which version of which workload was heard when.
type Heard = (usize, usize, Instant);

/// Follows all addresses as the proxy of n1 does, in its namespace, on a thread of its own that ends with the process.
fn listen(mesh: &TestMesh) -> mpsc::UnboundedReceiver<Heard> {
    let control = mesh.world.node(CONTROL).unwrap().ipv4();
    let folders = mesh.mesh.folders();
    let token = tulle_xds::token::create(&folders.state, "n1").unwrap();
    let (address, root) = (
        format!("https://{control}:15012"),
        folders.state.join("ca/root-cert.pem"),
    );
    let namespace = mesh.world.node("n1").unwrap().namespace().clone();
    let (tell, heard) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let mut stream = Stream::open(
                    &ads::node_config(&address, &root, &token),
                    &ads::first("n1", ADDRESS_TYPE),
                )
                .await?;
                loop {
                    let raw = stream.next(usize::MAX).await?;
                    stream.accept(raw.head()).await?;
                    let now = Instant::now();
                    for resource in raw.decode().resources {
                        let Some((index, version)) = changed(&resource) else {
                            continue;
                        };
                        if tell.send((index, version, now)).is_err() {
                            return Ok::<(), String>(());
                        }
                    }
                }
            })
        };
        // It ends when the control plane does, or when nobody listens any more.
        let _ = namespace.run(follow);
    });
    heard
}

/// The number and version of a changing workload.
fn changed(resource: &Resource) -> Option<(usize, usize)> {
    let index = resource
        .name
        .rsplit_once("/other-")?
        .1
        .parse()
        .ok()
        .filter(|index| *index < CHANGING)?;
    let body = &resource.resource.as_ref()?.value;
    let address = Address::decode(&**body).ok()?;
    match address.r#type? {
        address::Type::Workload(workload) => Some((
            index,
            workload.canonical_revision.strip_prefix('v')?.parse().ok()?,
        )),
        address::Type::Service(_) => None,
    }
}

/// Changes workloads at a rate, and hears meanwhile what a node is told of them.
async fn storm(stage: &Stage, rate: usize, seconds: usize) -> Storm {
    let mut heard = listen(&stage.mesh);
    let begun = Instant::now();
    let apart = Duration::from_secs(1) / u32::try_from(rate).expect("a rate");
    let due = |number: usize| begun + apart * u32::try_from(number).expect("a count");
    let (total, mut newest) = (rate * seconds, BTreeMap::new());
    for number in 0..total {
        tokio::time::sleep_until(due(number)).await;
        let (index, version) = (number % CHANGING, number / CHANGING + 1);
        change(&stage.mesh, index, version);
        newest.insert(index, version);
    }
    let written = begun.elapsed();
    // Change `number` is version `number / CHANGING + 1` of workload `number % CHANGING`.
    let (mut lags, mut seen) = (Vec::new(), BTreeMap::new());
    let settled = Instant::now() + SETTLE_MAX;
    while seen != newest {
        let Ok(Some((index, version, at))) = tokio::time::timeout_at(settled, heard.recv()).await else {
            break;
        };
        let before = seen.get(&index).copied().unwrap_or(0);
        for passed in before + 1..=version {
            lags.push(at.saturating_duration_since(due((passed - 1) * CHANGING + index)));
        }
        if version > before {
            seen.insert(index, version);
        }
    }
    Storm {
        lags,
        newest,
        during: stage.load.report(begun, Instant::now()),
        rate: total as f64 / written.as_secs_f64(),
    }
}

/// Workloads that a proxy does not have in their newest form.
async fn missed(mesh: &TestMesh, newest: &BTreeMap<usize, usize>) -> u64 {
    let mut missed = 0;
    for node in ["n1", "n2"] {
        let mut lacking = newest.len();
        within(SETTLE_MAX, async || {
            let found = versions(mesh, node).await;
            lacking = newest
                .iter()
                .filter(|(index, version)| found.get(index) != Some(version))
                .count();
            lacking == 0
        })
        .await;
        missed += lacking;
    }
    missed as u64
}

/// A version of all policies, and what tells that it is in force.
struct Policies<'a> {
    stage: &'a Stage,
    count: usize,
    version: usize,
    /// What the last of them closes.
    echo: Echo,
}

/// How a version of all policies came into force.
struct InForce {
    /// Time from its file to the first call that the last of it refused.
    took: Duration,
    /// Those of it that n2's proxy did not have at once after that.
    lacking: u64,
}

impl<'a> Policies<'a> {
    /// Ready to be written, once calls come through to what is to be closed.
    async fn new(stage: &'a Stage, count: usize, version: usize) -> Self {
        let echo = Echo::start(stage.db.namespace(), stage.db.ipv4(), closed_by(version)).await;
        let new = Self {
            stage,
            count,
            version,
            echo,
        };
        assert!(eventually(async || new.is_open().await).await);
        new
    }

    async fn is_open(&self) -> bool {
        gets_through(self.stage.web.namespace(), self.echo.address()).await
    }

    /// Writes all of them, and waits until calls are refused: that costs the proxy a connection now and then, where to look
    /// for them in its configuration would cost it more than to take them.
    async fn apply(&self) -> InForce {
        let mesh = &self.stage.mesh;
        mesh.apply("policies", &policies(self.count, self.version));
        let took = within(SETTLE_MAX, async || !self.is_open().await).await;
        let dump = mesh
            .text(&Component::Ztunnel("n2".to_owned()), "/config_dump")
            .await;
        let caller = format!("cluster.local/ns/none/sa/v{}-", self.version);
        let others = dump.matches(&caller);
        InForce {
            took: took.unwrap_or(Duration::MAX),
            lacking: (self.count - 1).saturating_sub(others.count()) as u64,
        }
    }
}
