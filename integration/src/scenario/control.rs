//! The control plane goes away, by itself or behind a partition, and comes back.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tulle_world::{CONTROL, Component};

use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::faults::{Blackhole, Direction};
use crate::manifest;
use crate::mesh::eventually;
use crate::traffic::gets_through;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F01",
        140,
        "the control plane ends by SIGTERM and by SIGKILL, and is back after 30 s",
        f01,
    ),
    scenario(
        "F09",
        700,
        "a node is cut off from the control plane for 10 min",
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
        figure.within("recovered", time_to_force(&stage).await, Duration::from_secs(2))
    })
}
