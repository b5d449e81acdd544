//! Pods join and leave the mesh while they talk.

use std::time::Duration;

use tokio::time::Instant;
use tulle_world::Pod;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::load::{Load, Plan};
use crate::traffic::Echo;
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F30",
    240,
    "pods are enrolled and released 20 times under load",
    f30,
)];

/// From the change of a label to the last pod that it means.
const CAPTURED_WITHIN: Duration = Duration::from_secs(1);

fn f30(scale: Scale) -> Run {
    Box::pin(async move {
        let cycles = scale.pick(2, 20);
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, false));
        let web = mesh.pod("n1", "web").await;
        let db = mesh.pod("n2", "db").await;
        mesh.start().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let load = Load::start(web.namespace(), &[echo.address()], Plan::light()).await;
        let started = Instant::now();
        let pods: [&Pod; 2] = [&web, &db];
        let (mut captured_lost, mut captured_within) = (0, Duration::ZERO);
        for _ in 0..cycles {
            let enrolled = Instant::now();
            mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, true));
            mesh.captured(&pods).await;
            captured_within = captured_within.max(enrolled.elapsed());
            let inside = Load::start(
                web.namespace(),
                &[echo.address()],
                Plan {
                    pinned: 20,
                    ..Plan::light()
                },
            )
            .await;
            inside.observe(Duration::from_secs(1)).await;
            mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, false));
            inside.observe(Duration::from_secs(5)).await;
            captured_lost += inside.established().1;
            drop(inside);
            mesh.left(&pods).await;
        }
        let whole = load.report(started, Instant::now());
        Figure::new("F30")
            .with("cycles", cycles)
            .losses(&load, &[&whole])
            .none("captured_lost", captured_lost)
            .within("captured_within", captured_within, CAPTURED_WITHIN)
    })
}
