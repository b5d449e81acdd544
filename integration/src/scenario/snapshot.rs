//! Node proxies that come back while there is nobody to ask.

use std::time::Duration;

use tokio::time::Instant;
use tulle_world::Component;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::mesh::eventually;
use crate::traffic::{Echo, assert_echo};
use crate::upgrade::{crash_and_recover, supervised_pair};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F36",
    60,
    "node proxies are killed while control plane and authority are away",
    f36,
)];

/// Time until a proxy that was killed serves again from what it had.
const SERVES_WITHIN: Duration = Duration::from_millis(500);
/// What a proxy hears is written down a moment after it changes.
const WRITTEN_AFTER: Duration = Duration::from_millis(2_500);
/// Time between two kills of the same proxy, above what a supervisor takes for a proxy that cannot start.
const APART: Duration = Duration::from_secs(3);

fn f36(scale: Scale) -> Run {
    Box::pin(async move {
        let rounds = scale.pick(2, 10);
        let (mut mesh, web, db) = supervised_pair().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        assert_echo(web.namespace(), echo.address()).await;
        tokio::time::sleep(WRITTEN_AFTER).await;
        mesh.mesh.kill(&Component::Control).unwrap();
        let away = Instant::now();
        let (mut waits, mut notes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for node in ["n1", "n2"] {
                // The first connection after the kill waits for the next process; it must come back whole.
                let wait = crash_and_recover(&mut mesh, node, &web, echo.address()).await;
                waits.push(wait);
                if wait > SERVES_WITHIN {
                    notes.push(format!("{node} was killed, {wait:?}\n{}", mesh.logs()));
                }
                let serving = eventually(async || mesh.mesh.newest_generation(node).await.is_some()).await;
                assert!(serving, "{}", mesh.logs());
                tokio::time::sleep(APART).await;
            }
        }
        waits.sort_unstable();
        let count = |words: &str| -> usize {
            let logs = ["n1", "n2"].map(|node| mesh.log(&Component::Ztunnel(node.into())));
            logs.iter().map(|log| log.matches(words).count()).sum()
        };
        let keys = count("keys of an earlier process taken over");
        let configurations = count("configuration of an earlier process taken over");
        let kills = waits.len();
        Figure::new("F36")
            .with("kills", kills)
            .with("away", format!("{}s", away.elapsed().as_secs()))
            .with_time("served_p50", waits[kills / 2])
            .within("served_after", waits[kills - 1], SERVES_WITHIN)
            .expect("keys_taken_over", keys, keys >= kills, "each time")
            .expect(
                "configurations_taken_over",
                configurations,
                configurations >= kills,
                "each time",
            )
            .noting(notes)
    })
}
