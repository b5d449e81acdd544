//! Identities and policies stay exact while addresses and policies change.

use std::time::Duration;

use tokio::time::Instant;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::mesh::eventually;
use crate::traffic::{Echo, Pinned, call, gets_through};
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "F11",
        30,
        "a pod goes and another identity takes its address at once",
        f11,
    ),
    scenario("F24", 90, "a policy flips over 200 live connections", f24),
];

fn f11(scale: Scale) -> Run {
    Box::pin(async move {
        let rounds = scale.pick(2, 10);
        let (mut mesh, web, mut server) = TestMesh::pair().await;
        // Whoever has the address, only `db` may be reached by `web`, and `db` serves `web` alone.
        mesh.apply(
            "only-db",
            &manifest::policy("nobody", "thief", "DENY", &manifest::from_account("web")),
        );
        let (mut wrong, mut late, mut worst) = (0_u64, 0_u64, Duration::ZERO);
        for round in 0..rounds {
            let account = if round % 2 == 0 { "thief" } else { "db" };
            let echo = Echo::start(server.namespace(), server.ipv4(), PORT).await;
            let _ = gets_through(web.namespace(), echo.address()).await;
            drop(echo);
            server = mesh
                .replace_pod(&server, &format!("server-{round}"), account)
                .await;
            mesh.captured(&[&server]).await;
            let replaced = Instant::now();
            let echo = Echo::start(server.namespace(), server.ipv4(), PORT).await;
            let expected = account == "db";
            let (from, to) = (web.namespace(), echo.address());
            if expected {
                assert!(
                    eventually(async || gets_through(from, to).await).await,
                    "{}",
                    mesh.logs()
                );
                worst = worst.max(replaced.elapsed());
                late += u64::from(replaced.elapsed() > Duration::from_secs(1));
            } else {
                for _ in 0..20 {
                    wrong += u64::from(
                        call(from, to, b"who are you")
                            .await
                            .is_ok_and(|answer| !answer.is_empty()),
                    );
                }
            }
        }
        Figure::new("F11")
            .with("rounds", rounds)
            .none("wrong_identity_accepts", wrong)
            .none("late", late)
            .within("first_success", worst, Duration::from_secs(1))
    })
}

fn f24(scale: Scale) -> Run {
    Box::pin(async move {
        const LIVE: usize = 200;
        let rounds = scale.pick(2, 10);
        let (mesh, web, db) = TestMesh::pair().await;
        let echo = Echo::start(db.namespace(), db.ipv4(), PORT).await;
        let (from, to) = (web.namespace(), echo.address());
        let deny = manifest::policy("flip", "db", "DENY", &manifest::from_account("web"));
        let mut worst = Duration::ZERO;
        for _ in 0..rounds {
            assert!(
                eventually(async || gets_through(from, to).await).await,
                "{}",
                mesh.logs()
            );
            let live = Pinned::open(from, to, LIVE).await;
            let written = Instant::now();
            mesh.apply("flip", &deny);
            assert!(
                eventually(async || live.lost() == LIVE as u64).await,
                "{} of {LIVE} ended\n{}",
                live.lost(),
                mesh.logs()
            );
            worst = worst.max(written.elapsed());
            mesh.remove("flip");
        }
        let flips = flip_quickly(&mesh, &deny, scale.pick(20, 100)).await;
        // The last word was a denial: nothing may pass any more.
        let refused = eventually(async || !gets_through(from, to).await).await;
        let mut passed = 0_u64;
        for _ in 0..50 {
            passed += u64::from(gets_through(from, to).await);
        }
        Figure::new("F24")
            .with("live", LIVE)
            .with("flips", flips)
            .within("written_to_last_byte", worst, Duration::from_secs(1))
            .expect("denied_at_the_end", refused, refused, "true")
            .none("oracle_mismatches", passed)
    })
}

/// Changes a policy every 100 ms and ends with it in force.
async fn flip_quickly(mesh: &TestMesh, deny: &str, flips: usize) -> usize {
    for flip in 0..flips {
        if flip % 2 == 0 {
            mesh.apply("flip", deny);
        } else {
            mesh.remove("flip");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mesh.apply("flip", deny);
    flips
}
