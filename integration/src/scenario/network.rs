//! Peers that vanish without a word, and the traffic that a mesh must leave as it is.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::faults::{Blackhole, Direction};
use crate::load::{Load, Plan};
use crate::traffic::Echo;
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F10",
    60,
    "packets to one of two endpoints vanish, without a reset",
    f10,
)];

/// Address of the service with two endpoints.
const SERVICE: [u8; 4] = [10, 96, 7, 10];

fn f10(scale: Scale) -> Run {
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1", "n2", "n3"]).await;
        let web = mesh.pod("n1", "web").await;
        let near = mesh.pod_in(manifest::NAMESPACE, "n2", "db-a", "db").await;
        let far = mesh.pod_in(manifest::NAMESPACE, "n3", "db-b", "db").await;
        let address = IpAddr::from(SERVICE);
        mesh.apply("service", &manifest::service("db", &[address], &[(80, PORT)]));
        mesh.start().await;
        mesh.captured(&[&web, &near, &far]).await;
        let _first = Echo::start(near.namespace(), near.ipv4(), PORT).await;
        let _second = Echo::start(far.namespace(), far.ipv4(), PORT).await;
        let only_connects = Plan {
            requests_per_second: 0,
            pinned: 0,
            bulk_bytes_per_second: 0,
            ..scale.pick(Plan::light(), Plan::l1())
        };
        let load = Load::start(web.namespace(), &[(address, 80).into()], only_connects).await;
        let quiet = load.observe(scale.window()).await;
        let node = mesh.world.node("n2").unwrap();
        let gone: [IpAddr; 2] = [near.ipv4().into(), near.ipv6().into()];
        let cut = Instant::now();
        let hole = Blackhole::new(node.namespace(), &gone, Direction::To);
        load.observe(Duration::from_secs(20)).await;
        let during = load.report(cut, cut + Duration::from_secs(10));
        let settled = load.report(cut + Duration::from_secs(10), Instant::now());
        drop(hole);
        Figure::new("F10")
            .with(
                "connects",
                quiet.connects.ok + during.connects.ok + settled.connects.ok,
            )
            .none(
                "failed_new",
                (during.connects.failed + settled.connects.failed) as u64,
            )
            .within("longest_wait", during.connects.max, Duration::from_secs(10))
            .with_time("p99_quiet", quiet.connects.p99)
            .unaffected("p99_after_10s", quiet.connects.p99, settled.connects.p99)
            .noting(load.failures())
    })
}
