//! The control plane goes away, by itself or behind a partition, and comes back.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tulle_runtime::usage;
use tulle_world::{CONTROL, Component};

use super::stage::{PORT, Stage};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::faults::{Blackhole, Direction};
use crate::load::{Load, Plan};
use crate::manifest;
use crate::mesh::eventually;
use crate::traffic::{Echo, gets_through};

/// A control plane that is cut off without a word is missed once it has not answered a ping: after 30 s one is sent, 10 s
/// are given for it.
const MISSED_AFTER: Duration = Duration::from_secs(42);
/// How long after a partition has healed everything may take to be as before.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F01",
        140,
        "the control plane ends by SIGTERM and by SIGKILL, and is back after 30 s",
        f01,
    ),
    scenario(
        "F02",
        720,
        "the control plane is away for longer than certificates live, while the authority is not",
        f02,
    ),
    scenario(
        "F09",
        860,
        "a node is cut off from the control plane for 10 min, then from another node",
        f09,
    ),
];

fn f01(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let [first, second] = stage.quiet().await;
        let away = scale.pick(Duration::from_secs(3), Duration::from_secs(30));
        let mut reports = Vec::new();
        for kill in [false, true] {
            if kill {
                stage.mesh.mesh.kill(&Component::Control).unwrap();
            } else {
                stage.mesh.mesh.stop(&Component::Control).await.unwrap();
            }
            reports.push(stage.load.observe(away).await);
            let from = Instant::now();
            stage.mesh.mesh.start_control(&stage.mesh.world).await.unwrap();
            stage.after().await;
            reports.push(stage.load.report(from, Instant::now()));
        }
        let worst = reports.iter().max_by_key(|report| report.requests.p99).unwrap();
        Figure::new("F01")
            .losses(&stage.load, &reports.iter().collect::<Vec<_>>())
            .latency([&first, &second], worst)
    })
}

/// Time until a policy that is written now is in force for callers on n1.
async fn time_to_force(stage: &Stage) -> Duration {
    let written = Instant::now();
    stage.mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    let (from, to) = (stage.web.namespace(), stage.echo.address());
    assert!(
        eventually(async || !gets_through(from, to).await).await,
        "the policy never came into force\n{}",
        stage.mesh.logs()
    );
    written.elapsed()
}

/// The authority is reached at another address of the server than the configuration, so that one can be cut off alone.
fn f02(scale: Scale) -> Run {
    Box::pin(async move {
        let seconds = Duration::from_secs;
        let (away, lifetime) = scale.pick((seconds(45), seconds(30)), (seconds(600), seconds(480)));
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        let control = mesh.world.node(CONTROL).unwrap();
        let (configuration, authority) = (control.ipv4(), control.ipv6());
        mesh.environment("CA_ADDRESS", &format!("https://[{authority}]:15012"));
        mesh.environment("SECRET_TTL", &format!("{}s", lifetime.as_secs()));
        let stage = Stage::of(mesh, scale, scale.pick(Plan::light(), Plan::l1())).await;
        let [first, second] = stage.quiet().await;
        let control = stage.mesh.world.node(CONTROL).unwrap();
        let cut = Blackhole::new(control.namespace(), &[configuration.into()], Direction::Both);
        let from = Instant::now();
        let without = stage.load.observe(away).await;
        let heard = age(&stage, "n2").await;
        let real = from.elapsed();
        let issued = stage
            .mesh
            .metric("n2", &["tulle_cert_fetches_total", "issued"])
            .await;
        // A control plane is missed at the latest when it has not answered pings for so long.
        let true_age = heard <= real + seconds(1) && heard + MISSED_AFTER >= real;
        let figure = Figure::new("F02")
            .with("away", format!("{}s", away.as_secs()))
            .with("lifetime", format!("{}s", lifetime.as_secs()))
            .losses(&stage.load, &[&first, &second, &without])
            .latency([&first, &second], &without)
            .expect("issued_meanwhile", issued, issued > 1.0, "> 1")
            .expect(
                "config_age",
                format!("{:.1}s", heard.as_secs_f64()),
                true_age,
                "the time away",
            );
        drop(cut);
        figure.with_time("recovered", time_to_force(&stage).await)
    })
}

/// How old a node proxy says its configuration is.
async fn age(stage: &Stage, node: &str) -> Duration {
    Duration::from_secs_f64(stage.mesh.metric(node, &["tulle_config_age_seconds "]).await)
}

fn f09(scale: Scale) -> Run {
    Box::pin(async move {
        let stage = Stage::new(scale).await;
        let [first, second] = stage.quiet().await;
        let away = scale.pick(Duration::from_secs(10), Duration::from_secs(600));
        let control = stage.mesh.world.node(CONTROL).unwrap();
        let node = stage.mesh.world.node("n2").unwrap();
        let addresses: [IpAddr; 2] = [node.ipv4().into(), node.ipv6().into()];
        let cut = Blackhole::new(control.namespace(), &addresses, Direction::Both);
        let without = stage.load.observe(away).await;
        let figure = Figure::new("F09")
            .losses(&stage.load, &[&first, &second, &without])
            .latency([&first, &second], &without);
        drop(cut);
        let figure = figure.within("recovered", time_to_force(&stage).await, HEALED_WITHIN);
        drop(stage);
        between_nodes(scale, figure).await
    })
}

/// Two of three nodes are cut off from each other, while callers go on to try; the third has its load from both.
async fn between_nodes(scale: Scale, figure: Figure) -> Figure {
    let (mut mesh, [web, near, far]) = TestMesh::three().await;
    let lost = Echo::start(near.namespace(), near.ipv4(), PORT).await;
    let kept = Echo::start(far.namespace(), far.ipv4(), PORT).await;
    assert!(
        gets_through(web.namespace(), lost.address()).await,
        "{}",
        mesh.logs()
    );
    let to = [kept.address()];
    let load = Load::start(web.namespace(), &to, scale.pick(Plan::light(), Plan::l1())).await;
    let other = Load::start(near.namespace(), &to, Plan::light()).await;
    let half = scale.window() / 2;
    let before = busy(&mut mesh);
    let quiet = [load.observe(half).await, load.observe(half).await];
    let cost_quiet = (busy(&mut mesh) - before) / scale.window().as_secs_f64();
    let node = mesh.world.node("n2").unwrap();
    let addresses: [IpAddr; 2] = [web.ipv4().into(), web.ipv6().into()];
    let cut = Blackhole::new(node.namespace(), &addresses, Direction::Both);
    let callers = Plan {
        connects_per_second: 5,
        requests_per_second: 0,
        pinned: 0,
        bulk_bytes_per_second: 0,
        ..Plan::light()
    };
    let callers = Load::start(web.namespace(), &[lost.address()], callers).await;
    let (began, away) = (
        Instant::now(),
        scale.pick(Duration::from_secs(12), Duration::from_secs(60)),
    );
    let before = busy(&mut mesh);
    let without = load.observe(away).await;
    let cost_apart = (busy(&mut mesh) - before) / away.as_secs_f64();
    let packets = cut.packets();
    let beside = other.report(began, Instant::now());
    let tried = callers.report(began, Instant::now()).connects;
    drop(cut);
    let healed = Instant::now();
    let back = eventually(async || gets_through(web.namespace(), lost.address()).await).await;
    let recovered = if back { healed.elapsed() } else { Duration::MAX };
    let failed = [&load, &other]
        .map(|load| load.established().1)
        .iter()
        .sum::<u64>()
        + (without.connects.failed + beside.connects.failed) as u64;
    figure
        .with("nodes_apart", format!("{}s", away.as_secs()))
        .expect("got_through_apart", tried.ok, tried.ok == 0, "0")
        .none("errors_on_other_paths", failed)
        .unaffected(
            "p99_of_other_paths",
            quiet[0].requests.p99.max(quiet[1].requests.p99),
            without.requests.p99,
        )
        // What the proxies do about it: none may take to storming those it cannot reach.
        .with(
            "packets_into_the_cut_per_s",
            format!("{:.0}", packets as f64 / away.as_secs_f64()),
        )
        .with("cpu_of_proxies_quiet", format!("{:.1}%", cost_quiet * 100.0))
        .with("cpu_of_proxies_apart", format!("{:.1}%", cost_apart * 100.0))
        .within("nodes_recovered", recovered, HEALED_WITHIN)
        .noting(load.failures())
        .noting(other.failures())
}

/// Seconds of a processor that all node proxies have used so far.
fn busy(mesh: &mut TestMesh) -> f64 {
    let used = ["n1", "n2", "n3"].map(|node| {
        let proxy = mesh.mesh.process(&Component::Ztunnel(node.into()));
        let proxy = usage::Process::Id(proxy.expect("it runs").id());
        usage::cpu(proxy).map_or(0.0, |time| time.as_secs_f64())
    });
    used.iter().sum()
}
