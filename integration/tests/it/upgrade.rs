//! Node proxies are replaced, crash and come back while traffic goes on.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_integration::TestMesh;
use tulle_integration::mesh::{PATIENCE, eventually};
use tulle_integration::storm::Storm;
use tulle_integration::traffic::{Echo, assert_echo, call, connect, gets_through, spawn};
use tulle_integration::upgrade::{
    Load, Outcome, Sequenced, crash_and_recover, supervised_pair, upgrade_under_load,
};
use tulle_runtime::config::{Env, ProcessEnv};
use tulle_world::Component;

/// New connections flow again after a crash, and nothing hangs. How soon is what scenarios F06 and F36 measure.
const RECOVERY: Duration = PATIENCE;

async fn upgrades(n: usize, load: Load) -> (TestMesh, Outcome) {
    let (mut mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let outcome = upgrade_under_load(&mut mesh, &web, echo.address(), n, load).await;
    (mesh, outcome)
}

fn assert_lossless(mesh: &TestMesh, outcome: &Outcome) {
    eprintln!("{outcome:?}");
    assert_eq!(
        outcome.established_lost,
        0,
        "{:?}\n{}",
        outcome.breaks,
        mesh.logs()
    );
    assert_eq!(
        outcome.refused,
        0,
        "of {}: {:?}\n{}",
        outcome.calls,
        outcome.failures,
        mesh.logs()
    );
    assert!(outcome.calls > 100 * outcome.upgrades as u64 && outcome.messages > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_three_upgrades_of_the_node_proxy_cost_no_connection() {
    let load = Load {
        storm: 16,
        pinned: 10,
    };
    let (mesh, outcome) = upgrades(3, load).await;
    assert_lossless(&mesh, &outcome);
}

/// `UPGRADES` of them, 20 if it is not set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; cargo test -p tulle-integration --test it -- --ignored f05"]
async fn f05_twenty_upgrades_of_the_node_proxy_cost_no_connection() {
    let load = Load {
        storm: 64,
        pinned: 50,
    };
    let n = ProcessEnv.var("UPGRADES").map_or(20, |n| n.parse().unwrap());
    let (mesh, outcome) = upgrades(n, load).await;
    assert_lossless(&mesh, &outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_crashed_node_proxy_refuses_nobody_and_is_back_at_once() {
    let (mut mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let mut open = connect(web.namespace(), echo.address()).await.unwrap();
    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut [0]).await.unwrap();
    let storm = Storm::start(web.namespace(), &[echo.address()], 1);
    assert!(eventually(async || storm.done() > 10).await);
    // What is open through it is lost, and both ends see that; a call of the storm may be among it.
    let waited = crash_and_recover(&mut mesh, "n1", &web, echo.address()).await;
    let lost = tokio::time::timeout(RECOVERY, open.read(&mut [0])).await;
    let lost = lost.expect("in time").map_err(|error| error.kind());
    assert_eq!(
        lost,
        Err(std::io::ErrorKind::ConnectionReset),
        "what was open is cut, not finished"
    );
    let outcome = storm.end().await;
    eprintln!("waited {waited:?}; {outcome:?}");
    assert!(waited <= RECOVERY, "{waited:?}\n{}", mesh.logs());
    let refused = |failure: &&String| failure.contains("refused");
    assert_eq!(
        outcome.failures.iter().filter(refused).count(),
        0,
        "{:?}",
        outcome.failures
    );
    assert!(outcome.failed <= 1, "only what was open: {:?}", outcome.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f36_a_crashed_node_proxy_serves_without_control_plane_and_authority() {
    let (mut mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    let held = |node: &str| {
        let log = mesh.log(&Component::Ztunnel(node.into()));
        log.contains("taken over")
    };
    assert!(!held("n1"));
    // Both are written down a moment after they change.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    mesh.mesh.kill(&Component::Control).unwrap();
    for node in ["n1", "n2"] {
        let waited = crash_and_recover(&mut mesh, node, &web, echo.address()).await;
        eprintln!("{node} waited {waited:?}");
        assert!(waited <= RECOVERY, "{node}: {waited:?}\n{}", mesh.logs());
    }
    let log = mesh.log(&Component::Ztunnel("n1".into()));
    assert!(log.contains("keys of an earlier process taken over"), "{log}");
    assert!(
        log.contains("configuration of an earlier process taken over"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_new_generation_that_dies_hands_back_to_the_one_before() {
    let (mut mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Sequenced::open(web.namespace(), echo.address(), 5).await;
    let first = mesh.mesh.newest_generation("n1").await.unwrap().number;
    mesh.mesh.upgrade_ztunnel("n1").await.unwrap();
    // It has just become ready, so the one before has not been told to end.
    let waited = crash_and_recover(&mut mesh, "n1", &web, echo.address()).await;
    assert!(waited <= RECOVERY, "{waited:?}\n{}", mesh.logs());
    // Connections may get through before the supervisor has noticed.
    let is_back = eventually(async || {
        let serving = mesh.mesh.newest_generation("n1").await;
        serving.is_some_and(|serving| serving.number == first)
    });
    assert!(is_back.await, "{}", mesh.logs());
    assert_eq!(pinned.lost(), 0, "{:?}\n{}", pinned.failures(), mesh.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_without_agent_and_proxy_nothing_passes_by() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    mesh.mesh.kill(&Component::Agent("n1".into())).unwrap();
    mesh.mesh.kill(&Component::Ztunnel("n1".into())).unwrap();
    for _ in 0..20 {
        let started = Instant::now();
        assert!(!gets_through(web.namespace(), echo.address()).await);
        assert!(
            started.elapsed() < RECOVERY,
            "refused, not held: nobody listens any more"
        );
    }
    assert_eq!(echo.peers().len(), 1, "nothing reached the server past the proxy");
    mesh.mesh.start_agent(&mesh.world, "n1").unwrap();
    mesh.mesh.start_ztunnel(&mesh.world, "n1").unwrap();
    mesh.mesh
        .wait_ready(&Component::Agent("n1".into()))
        .await
        .unwrap();
    mesh.captured(&[&web]).await;
    assert_echo(web.namespace(), echo.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_an_agent_that_restarts_between_two_generations_leaves_pods_with_the_later_one() {
    let (mut mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Sequenced::open(web.namespace(), echo.address(), 5).await;
    mesh.mesh.upgrade_ztunnel("n1").await.unwrap();
    let draining = eventually(async || {
        let generations = mesh.mesh.generations("n1").await;
        generations.iter().any(|known| known.phase == "draining")
    });
    assert!(draining.await, "{}", mesh.logs());
    mesh.mesh.kill(&Component::Agent("n1".into())).unwrap();
    mesh.mesh.start_agent(&mesh.world, "n1").unwrap();
    mesh.mesh
        .wait_ready(&Component::Agent("n1".into()))
        .await
        .unwrap();
    mesh.captured(&[&web]).await;
    let (namespace, address) = (web.namespace().clone(), echo.address());
    let calls = spawn(async move {
        for _ in 0..50 {
            call(&namespace, address, b"again").await?;
        }
        std::io::Result::Ok(())
    });
    calls.await.unwrap().unwrap();
    assert_eq!(pinned.lost(), 0, "{:?}\n{}", pinned.failures(), mesh.logs());
    // It comes back to the agent after a pause of its own, and not before the later one.
    let log = || mesh.log(&Component::Agent("n1".into()));
    let lingers = eventually(async || log().contains("lingering=true"));
    assert!(lingers.await, "the earlier one hears of pods that end\n{}", log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_upgrades_a_node_by_one_command_that_waits() {
    let (mesh, web, db) = supervised_pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Sequenced::open(web.namespace(), echo.address(), 5).await;
    let before = mesh.mesh.newest_generation("n1").await.unwrap().number;
    let said = crate::certificates::tulle(&mesh, &["node", "upgrade", "--node", "n1", "--output", "json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["schema"], "tulle.node.upgrade/v1");
    let shown = said["items"].as_array().unwrap();
    let newest = shown.iter().find(|one| one["generation"] == before + 1).unwrap();
    assert_eq!(newest["phase"], "serving", "{said}");
    assert_echo(web.namespace(), echo.address()).await;
    assert_eq!(pinned.lost(), 0, "{:?}\n{}", pinned.failures(), mesh.logs());
}
