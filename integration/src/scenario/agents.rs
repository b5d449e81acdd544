//! Agents are killed and rules replaced under load.

use std::net::IpAddr;

use tokio::time::Instant;
use tulle_world::Component;

use super::stage::Stage;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::{Load, Plan, Report};
use crate::manifest;
use crate::mesh::eventually;
use crate::traffic::gets_through;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F07",
    180,
    "the agent is killed and started again, and rules are replaced, while an outsider tries to get in",
    f07,
)];

/// New connections of an outsider in each second.
const HAMMERED_PER_SECOND: u32 = 50;

/// The agent is killed and started again, then the rules of the server's pod are replaced over and over; somebody outside of
/// the mesh tries to get in all the time, which mutual TLS forbids.
fn f07(scale: Scale) -> Run {
    Box::pin(async move {
        let mut stage = Stage::new(scale).await;
        let outsider = Outsider::shut_out(&mut stage).await;
        let [first, second] = stage.quiet().await;
        let agent = Component::Agent("n2".into());
        let from = Instant::now();
        let restarts = scale.pick(3, 20);
        for _ in 0..restarts {
            stage.mesh.mesh.kill(&agent).unwrap();
            stage.mesh.mesh.start_agent(&stage.mesh.world, "n2").unwrap();
            stage.mesh.mesh.wait_ready(&agent).await.unwrap();
        }
        let during: Report = stage.load.report(from, Instant::now());
        let from = Instant::now();
        let reloads = scale.pick(20, 200);
        for round in 0..reloads {
            stage.mesh.replace_rules(&stage.db, round % 2 == 1).await;
        }
        let reloading = stage.load.report(from, Instant::now());
        let after = stage.after().await;
        Figure::new("F07")
            .with("restarts", restarts)
            .with("reloads", reloads)
            .with("outsider_tried", outsider.tried())
            .none("outsider_accepted", outsider.accepted(&stage))
            .losses(&stage.load, &[&first, &second, &during, &reloading, &after])
            .latency([&first, &second], &during)
            .with_time("p99_reloading", reloading.requests.p99)
    })
}

/// Somebody outside of the mesh who calls the server in plain text all the time.
struct Outsider {
    calls: Load,
    since: Instant,
    address: IpAddr,
    /// Connections of it that the server had accepted before it was shut out.
    before: usize,
}

impl Outsider {
    async fn shut_out(stage: &mut Stage) -> Self {
        let pod = stage.mesh.stranger("n1", "outsider").await;
        let to = stage.echo.address();
        let open = eventually(async || gets_through(pod.namespace(), to).await);
        assert!(open.await, "without a policy it is let in\n{}", stage.mesh.logs());
        stage.mesh.apply("strict", &manifest::strict());
        let shut = eventually(async || !gets_through(pod.namespace(), to).await);
        assert!(shut.await, "mutual TLS is not asked for\n{}", stage.mesh.logs());
        let plan = Plan {
            requests_per_second: 0,
            connects_per_second: HAMMERED_PER_SECOND,
            pinned: 0,
            bulk_bytes_per_second: 0,
            ..Plan::light()
        };
        let address = pod.ipv4().into();
        Self {
            before: accepted_of(stage, address),
            calls: Load::start(pod.namespace(), &[to], plan).await,
            since: Instant::now(),
            address,
        }
    }

    fn tried(&self) -> usize {
        let calls = self.calls.report(self.since, Instant::now()).connects;
        calls.ok + calls.failed
    }

    /// Connections that the server accepted, whatever came of them.
    fn accepted(&self, stage: &Stage) -> u64 {
        (accepted_of(stage, self.address) - self.before) as u64
    }
}

fn accepted_of(stage: &Stage, address: IpAddr) -> usize {
    let peers = stage.echo.peers();
    peers.iter().filter(|peer| peer.ip() == address).count()
}
