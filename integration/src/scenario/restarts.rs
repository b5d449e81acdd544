//! Waypoints are replaced and killed under load.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tulle_world::{Component, Pod, Process};

use super::front::{Front, GATEWAY};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::http::HttpLoad;
use crate::load::{Plan, Report};
use crate::manifest;
use crate::mesh::eventually;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F26",
    240,
    "the two instances of a waypoint are replaced in turn, 50 times, then killed in turn",
    f26,
)];

/// How long an instance may take to end once it is told to.
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// One instance of the waypoint; the process is `None` while it is away.
struct Instance {
    pod: Pod,
    process: Option<Process>,
}

impl Instance {
    fn file(&self) -> String {
        format!("instance-{}", self.pod.name())
    }
}

fn f26(scale: Scale) -> Run {
    Box::pin(async move {
        let mut front = Front::new().await;
        let address: IpAddr = [10, 96, 0, 90].into();
        let gateway = manifest::gateway_with_service(manifest::NAMESPACE, GATEWAY, address);
        front.mesh.apply("gateway", &gateway);
        let mut instances = Vec::new();
        for (node, name) in [("n1", "way-1"), ("n2", "way-2")] {
            let pod = front.mesh.world.add_pod(node, name).await.unwrap();
            let mut instance = Instance { pod, process: None };
            join(&front, &mut instance).await;
            instances.push(instance);
        }
        front.until("/load", 200).await;
        let plan = scale.pick(Plan::light(), Plan::l1());
        let load = HttpLoad::start(front.client.namespace(), front.service, plan);
        load.observe(Duration::from_secs(2)).await;
        let quiet = load.observe(scale.window()).await;

        let from = Instant::now();
        let restarts = scale.pick(4, 50);
        let mut slowest = Duration::ZERO;
        for round in 0..restarts {
            let begun = Instant::now();
            replace(&front, &mut instances[round % 2]).await;
            slowest = slowest.max(begun.elapsed());
        }
        load.observe(Duration::from_secs(1)).await;
        let graceful = load.report(from, Instant::now());

        let kills = scale.pick(2, 20);
        let (mut allowed, from) = (0, Instant::now());
        for round in 0..kills {
            let instance = &mut instances[round % 2];
            let (under_way, begun) = (load.in_flight(), load.begun());
            kill(instance);
            tokio::time::sleep(NOTICED_WITHIN).await;
            allowed += under_way + (load.begun() - begun);
            instance.process = Some(front.serve(&instance.pod, GATEWAY).await);
            load.observe(Duration::from_millis(500)).await;
        }
        load.observe(Duration::from_secs(2)).await;
        let killed = load.report(from, Instant::now());
        let lost = failed(&killed);
        Figure::new("F26")
            .with("requests", graceful.requests.ok + graceful.connects.ok)
            .none("failed_quiet", failed(&quiet))
            .with("restarts", restarts)
            .none("failed_graceful", failed(&graceful))
            .with_time("slowest_restart", slowest)
            .with("reopened", load.reopened())
            .with("kills", kills)
            .expect(
                "failed_killed",
                format!("{lost}/{allowed}"),
                lost <= allowed,
                "≤ in flight when killed, or begun before that was noticed",
            )
            .noting(load.failures())
    })
}

fn failed(report: &Report) -> u64 {
    (report.requests.failed + report.connects.failed) as u64
}

/// Says of an instance whether it takes anything new, as readiness does in a cluster. Its identity is placed either way, and
/// what it still sends is that of a waypoint.
async fn told(front: &Front, instance: &Instance, ready: bool) {
    let written = manifest::instance(manifest::NAMESPACE, GATEWAY, &instance.pod);
    let not_ready = "status:\n  conditions:\n  - {type: Healthy, status: \"False\"}\n";
    let written = if ready { written } else { written + not_ready };
    front.mesh.apply(&instance.file(), &written);
    known(front, &instance.pod, ready).await;
}

/// Adds an instance: it takes something once it is ready.
async fn join(front: &Front, instance: &mut Instance) {
    told(front, instance, false).await;
    instance.process = Some(front.serve(&instance.pod, GATEWAY).await);
    told(front, instance, true).await;
}

/// Lets nothing new go to an instance, lets it end, and adds it again: what a rolling update does.
async fn replace(front: &Front, instance: &mut Instance) {
    told(front, instance, false).await;
    let mut process = instance.process.take().expect("it runs");
    process.stop(DRAIN_MAX).await.unwrap();
    drop(process);
    join(front, instance).await;
}

/// Time until the resets of a killed process have reached those who talked to it. Who begins a request until then cannot
/// know.
const NOTICED_WITHIN: Duration = Duration::from_millis(50);

/// Ends an instance at once. It stays an endpoint all the time.
fn kill(instance: &mut Instance) {
    let mut process = instance.process.take().expect("it runs");
    process.kill().unwrap();
}

/// Waits until every node proxy knows of an instance whether it is ready.
async fn known(front: &Front, pod: &Pod, ready: bool) {
    let agreed = eventually(async || {
        for node in ["n1", "n2"] {
            let proxy = Component::Ztunnel(node.to_owned());
            let dump = front.mesh.ask(&proxy, "/config_dump").await;
            let services = dump["services"].as_array().cloned().unwrap_or_default();
            let own = services.iter().find(|one| one["name"] == GATEWAY);
            let endpoints = own.and_then(|own| own["endpoints"].as_array()).cloned();
            let found = endpoints.unwrap_or_default().into_iter().find(|endpoint| {
                let uid = endpoint["workloadUid"].as_str().unwrap_or_default();
                uid.ends_with(&format!("/{}", pod.name()))
            });
            let healthy =
                found.map(|endpoint| endpoint["status"].to_string().eq_ignore_ascii_case("\"healthy\""));
            if healthy != Some(ready) {
                return false;
            }
        }
        true
    });
    assert!(
        agreed.await,
        "the node proxies do not agree on {}\n{}",
        pod.name(),
        front.mesh.logs()
    );
}
