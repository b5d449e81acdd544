//! Node proxies and agents are killed and replaced under load.

use std::time::Duration;

use tulle_world::Component;

use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::Report;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("F06", 90, "the node proxy is killed and started again", f06),
    scenario("F07", 120, "the agent is killed and started again", f07),
];

fn f06(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let [first, second] = stage.quiet().await;
        let proxy = Component::Ztunnel("n1".into());
        let from = tokio::time::Instant::now();
        stage.mesh.mesh.kill(&proxy).unwrap();
        stage.mesh.mesh.start_ztunnel(&stage.mesh.world, "n1").unwrap();
        stage.mesh.mesh.wait_ready(&proxy).await.unwrap();
        let ready = from.elapsed();
        stage.after().await;
        let after = stage.load.report(from, tokio::time::Instant::now());
        let (established, lost) = stage.load.established();
        let failed = first.connects.failed + second.connects.failed + after.connects.failed;
        Figure::new("F06")
            .with("established_ended", format!("{lost}/{established}"))
            .none("refused_new", failed as u64)
            .within("ready_again", ready, Duration::from_secs(1))
            .within(
                "longest_wait",
                after.connects.max,
                ready + Duration::from_millis(300),
            )
            .noting(stage.load.failures())
    })
}

fn f07(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let [first, second] = stage.quiet().await;
        let agent = Component::Agent("n2".into());
        let from = tokio::time::Instant::now();
        let times = scale.pick(3, 20);
        for _ in 0..times {
            stage.mesh.mesh.kill(&agent).unwrap();
            stage.mesh.mesh.start_agent(&stage.mesh.world, "n2").unwrap();
            stage.mesh.mesh.wait_ready(&agent).await.unwrap();
        }
        let during: Report = stage.load.report(from, tokio::time::Instant::now());
        let after = stage.after().await;
        Figure::new("F07")
            .with("restarts", times)
            .losses(&stage.load, &[&first, &second, &during, &after])
            .latency([&first, &second], &during)
    })
}
