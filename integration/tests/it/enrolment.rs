//! Pods join and leave while they talk.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_integration::mesh::eventually;
use tulle_integration::storm::Storm;
use tulle_integration::traffic::{Echo, Pinned, assert_echo};
use tulle_integration::{TestMesh, manifest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_pods_join_and_leave_in_a_storm_without_a_failed_or_broken_connection() {
    const CYCLES: usize = 3;
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, false));
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let near = mesh.pod("n1", "near").await;
    let v4 = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let v6 = Echo::start(db.namespace(), db.ipv6(), 8080).await;
    let beside = Echo::start(near.namespace(), near.ipv4(), 8080).await;
    let targets: [SocketAddr; 3] = [v4.address(), v6.address(), beside.address()];
    let old = Pinned::open(web.namespace(), v4.address(), 5).await;
    mesh.start().await;
    let storm = Storm::start(web.namespace(), &targets, 12);

    for _ in 0..CYCLES {
        mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, true));
        mesh.captured(&[&web, &db, &near]).await;
        let captured = Pinned::open(web.namespace(), v4.address(), 10).await;
        let seen = storm.done();
        assert!(
            eventually(async || storm.done() > seen + 200).await,
            "the storm goes on while enrolled"
        );
        mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, false));
        // New connections pass the proxy by already, while those that it carries go on to their own end.
        assert!(
            eventually(async || mesh.state(&web).await == "Leaving").await,
            "{}",
            mesh.logs()
        );
        let (seen, echoes) = (storm.done(), captured.echoes());
        let both = async || storm.done() > seen + 200 && captured.echoes() > echoes + 200;
        assert!(
            eventually(both).await,
            "new and captured connections go on while pods leave"
        );
        assert_eq!(captured.lost(), 0, "{}", mesh.logs());
        drop(captured);
        mesh.left(&[&web, &db, &near]).await;
    }
    let outcome = storm.end().await;
    assert_eq!(
        outcome.failed,
        0,
        "of {}: {:#?}\n{}",
        outcome.done,
        outcome.failures,
        mesh.logs()
    );
    assert_eq!(old.lost(), 0, "connections of before the mesh are still open");
    assert!(old.echoes() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_left_has_no_rule_of_ours() {
    let mut mesh = TestMesh::new(&["n1"]).await;
    let web = mesh.pod("n1", "web").await;
    mesh.start().await;
    mesh.captured(&[&web]).await;
    let rules = || {
        let mut command = std::process::Command::new("nft");
        command
            .args(["list", "ruleset"])
            .stdout(std::process::Stdio::piped());
        let child = web.namespace().spawn(command).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert!(rules().contains("table inet tulle"), "{}", rules());
    mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, false));
    mesh.left(&[&web]).await;
    assert_eq!(rules(), "", "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_something_removed_come_back() {
    let (mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    let mut command = std::process::Command::new("nft");
    command.args(["delete", "table", "inet", "tulle"]);
    assert!(web.namespace().spawn(command).unwrap().wait().unwrap().success());
    // The agent looks again every 30 s ± 20 %.
    let repaired = async {
        let agent = tulle_world::Component::Agent("n1".into());
        while !mesh
            .text(&agent, "/metrics")
            .await
            .lines()
            .any(|line| line.starts_with("tulle_capture_repairs_total") && !line.ends_with(" 0"))
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(45), repaired)
            .await
            .is_ok(),
        "{}",
        mesh.logs()
    );
    assert_echo(web.namespace(), echo.address()).await;
}
