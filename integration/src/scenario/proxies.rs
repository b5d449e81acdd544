//! Node proxies and agents are killed and replaced under load.

use std::time::Duration;

use tulle_world::Component;

use super::stage::{PORT, Stage};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::{Load, Plan, Report};
use crate::traffic::Echo;
use crate::upgrade::{self, upgrade_under_load};

/// The longest time that traffic may stand still while a proxy is replaced.
const GAP_MAX: Duration = Duration::from_millis(50);

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F05",
        150,
        "node proxies are replaced 20 times, in turn on two nodes",
        f05,
    ),
    scenario("F06", 90, "the node proxy is killed and started again", f06),
    scenario("F07", 120, "the agent is killed and started again", f07),
];

/// New connections at a fixed rate, and lasting ones that see as many upgrades as generations may live.
fn f05(scale: Scale) -> Run {
    Box::pin(async move {
        let upgrades = scale.pick(4, 20);
        let (mut mesh, web, db) = upgrade::supervised_pair().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let connects = Plan {
            requests_per_second: 0,
            pinned: 0,
            bulk_bytes_per_second: 0,
            ..scale.pick(Plan::light(), Plan::l1())
        };
        let load = Load::start(web.namespace(), &[echo.address()], connects).await;
        let quiet = load.observe(scale.window()).await;
        let pinned = scale.pick(10, 100);
        let from = tokio::time::Instant::now();
        let held = upgrade::Load { storm: 0, pinned };
        let outcome = upgrade_under_load(&mut mesh, &web, echo.address(), upgrades, held).await;
        let under = load.report(from, tokio::time::Instant::now());
        let refused = quiet.connects.failed + under.connects.failed;
        Figure::new("F05")
            .with("upgrades", outcome.upgrades)
            .none("established_lost", outcome.established_lost)
            .with("messages", outcome.messages)
            .none("refused_new", refused as u64)
            .with("new", under.connects.ok)
            .with_time("longest_quiet", quiet.connects.max)
            .within("gap_max", under.connects.max.max(outcome.longest), GAP_MAX)
            .with_time("slowest_upgrade", outcome.slowest_upgrade)
            .noting(load.failures())
            .noting(outcome.breaks)
    })
}

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
