//! An unmodified ztunnel of Istio under our control plane, through a storm of changes, reconnects and restarts.
//!
//! Runs when `TULLE_PEER_ZTUNNEL` names its binary; docs/interop.md says what is configured for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tulle_runtime::config::{Env as _, ProcessEnv};
use tulle_runtime::http_client;
use tulle_world::Component;

use super::operator::within;
use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::mesh::PATIENCE;
use crate::traffic::{Echo, gets_through};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "PEER",
    100,
    "an unmodified ztunnel of Istio through 10,000 changes, reconnects and restarts",
    peer,
)];

/// Workloads of the storm, each in a file of its own.
const WORKLOADS: usize = 500;
/// Changes of the storm.
const CHANGES: usize = 10_000;
/// Changes a second.
const RATE: u32 = 200;

/// What the storm left of each workload: its version, or nothing when it was taken away.
type Truth = BTreeMap<String, String>;

/// Workloads of the storm as a dump of either make shows them, with their version.
fn held(dump: &Value) -> Truth {
    let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
    let of = |workload: &Value| {
        let name = workload["name"].as_str()?;
        let version = workload["canonicalRevision"].as_str()?;
        name.starts_with("storm-")
            .then(|| (name.to_owned(), version.to_owned()))
    };
    workloads.iter().filter_map(of).collect()
}

/// What the foreign ztunnel says on its admin port, which only its own node reaches.
async fn their_dump(mesh: &TestMesh) -> Value {
    let namespace = mesh.world.node("theirs").unwrap().namespace().clone();
    let address = SocketAddr::from(([127, 0, 0, 1], 15000));
    let stream = namespace
        .run_async(move || std::net::TcpStream::connect(address))
        .await
        .unwrap();
    let Ok(stream) = stream else {
        return Value::Null;
    };
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let answer = http_client::get(stream, "localhost", "/config_dump", http::HeaderMap::new()).await;
    answer
        .ok()
        .and_then(|answer| serde_json::from_slice(answer.body()).ok())
        .unwrap_or_default()
}

/// Writes change `number`: a new version of a workload, or, each seventh time, no workload.
fn write_change(mesh: &TestMesh, number: usize, truth: &mut Truth) {
    // 263 is prime to the number of workloads: neighbours in time are none in name.
    let index = number * 263 % WORKLOADS;
    let (name, version) = (format!("storm-{index}"), format!("v{number}"));
    if number % 7 == 6 && truth.remove(&name).is_some() {
        mesh.remove(&name);
        return;
    }
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: storm}}\nspec: \
         {{address: 12.7.{}.{}, serviceAccount: storm, labels: {{app: storm, version: {version}}}}}\n",
        index / 250,
        index % 250
    );
    mesh.apply(&name, &text);
    truth.insert(name, version);
}

fn peer(scale: Scale) -> Run {
    Box::pin(async move {
        match ProcessEnv.var("TULLE_PEER_ZTUNNEL").map(PathBuf::from) {
            Some(binary) => storm(scale, &binary).await,
            None => Figure::skipped("PEER", "TULLE_PEER_ZTUNNEL does not name a ztunnel binary"),
        }
    })
}

async fn storm(scale: Scale, binary: &Path) -> Figure {
    let changes = scale.pick(CHANGES / 10, CHANGES);
    let mut mesh = TestMesh::new(&["ours", "theirs"]).await;
    let web = mesh.pod("ours", "web").await;
    let db = mesh.pod("theirs", "db").await;
    mesh.start_with_foreign_ztunnel("theirs", binary).await;
    // From the first restart on, every stream ends after some seconds and the proxy comes back.
    mesh.mesh.set_control_arguments(&["--max-stream-age", "5s"]);
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
    let before = gets_through(web.namespace(), echo.address()).await;
    let (mut truth, mut restarts) = (Truth::new(), [0, 0]);
    let begun = Instant::now();
    for number in 0..changes {
        let due = Duration::from_secs(1) / RATE * u32::try_from(number).expect("a count");
        tokio::time::sleep_until(begun + due).await;
        write_change(&mesh, number, &mut truth);
        if number > 0 && number % (changes / 10) == 0 {
            disturb(&mut mesh, number * 10 / changes, &mut restarts).await;
        }
    }
    let stormed = begun.elapsed();
    let at_theirs = within(PATIENCE, async || held(&their_dump(&mesh).await) == truth).await;
    let ours = Component::Ztunnel("ours".to_owned());
    let at_ours = within(PATIENCE, async || {
        held(&mesh.ask(&ours, "/config_dump").await) == truth
    })
    .await;
    let streams = mesh
        .log(&Component::Ztunnel("theirs".into()))
        .matches("Stream established")
        .count();
    let after = gets_through(web.namespace(), echo.address()).await;
    let differing = difference(&held(&their_dump(&mesh).await), &truth);
    Figure::new("PEER")
        .with("changes", changes)
        .with("storm", format!("{:.0}s", stormed.as_secs_f64()))
        .with("control_plane_restarts", restarts[0])
        .with("their_restarts", restarts[1])
        .with("their_streams", streams)
        .with("workloads_left", truth.len())
        .none("differing", differing.len() as u64)
        .within("theirs_in_sync", at_theirs.unwrap_or(Duration::MAX), PATIENCE)
        .within("ours_in_sync", at_ours.unwrap_or(Duration::MAX), PATIENCE)
        .expect(
            "traffic",
            format!("{before},{after}"),
            before && after,
            "before and after",
        )
        .noting(differing)
}

/// At each tenth of the storm something happens: the control plane is killed, their proxy is, or nothing.
async fn disturb(mesh: &mut TestMesh, tenth: usize, restarts: &mut [usize; 2]) {
    match tenth % 3 {
        0 => {
            mesh.mesh.kill(&Component::Control).unwrap();
            mesh.mesh.start_control(&mesh.world).await.unwrap();
            restarts[0] += 1;
        }
        1 => {
            mesh.mesh.kill(&Component::Ztunnel("theirs".into())).unwrap();
            mesh.mesh.start_ztunnel(&mesh.world, "theirs").unwrap();
            mesh.mesh
                .wait_ready_at(&mesh.world, "theirs", 15021)
                .await
                .unwrap();
            restarts[1] += 1;
        }
        _ => {}
    }
}

/// Some of what differs.
fn difference(held: &Truth, truth: &Truth) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = held.keys().chain(truth.keys()).collect();
    let differs = names
        .into_iter()
        .filter(|name| held.get(*name) != truth.get(*name));
    let shown = differs.map(|name| format!("{name}: {:?} instead of {:?}", held.get(name), truth.get(name)));
    shown.take(10).collect()
}
