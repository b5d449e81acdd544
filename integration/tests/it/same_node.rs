//! Two pods of one node talk within its proxy, and nothing else about them changes.

use std::time::{Duration, Instant};

use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, Pinned, assert_echo, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::{Component, Mesh, Pod};

/// A policy must hold within this time of being written.
const IN_FORCE_MAX: Duration = Duration::from_secs(1);

/// A mesh of one node with the captured pods `web` and `db`.
async fn one_node(way: &str) -> (TestMesh, Pod, Pod) {
    let mut mesh = TestMesh::new(&["n1"]).await;
    let folders = mesh.mesh.folders().clone();
    mesh.mesh = Mesh::new(folders)
        .with_environment("RUST_LOG", "info,tulle_ztunnel=debug")
        .with_environment("TULLE_SAME_NODE", way);
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n1", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    (mesh, web, db)
}

async fn opened(mesh: &TestMesh, reporter: &str) -> f64 {
    let reporter = format!("reporter=\"{reporter}\"");
    let texts = [
        "istio_tcp_connections_opened_total",
        &reporter,
        "connection_security_policy=\"mutual_tls\"",
        "source_principal=\"spiffe://cluster.local/ns/app/sa/web\"",
        "destination_principal=\"spiffe://cluster.local/ns/app/sa/db\"",
    ];
    mesh.metric("n1", &texts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_one_node_needs_no_tunnel_and_keeps_both_identities() {
    let (mesh, web, db) = one_node("inprocess").await;
    for address in [std::net::IpAddr::V4(db.ipv4()), db.ipv6().into()] {
        let echo = Echo::start(db.namespace(), address, 8080).await;
        assert_echo(web.namespace(), echo.address()).await;
        let seen: Vec<_> = echo.peers().iter().map(|peer| peer.ip()).collect();
        let client = if address.is_ipv4() {
            web.ipv4().into()
        } else {
            std::net::IpAddr::V6(web.ipv6())
        };
        assert_eq!(seen, [client], "the application sees its client");
    }
    assert_eq!(
        mesh.metric("n1", &["tulle_same_node_connections_total"]).await,
        2.0
    );
    assert_eq!(mesh.metric("n1", &["tulle_tunnels"]).await, 0.0);
    for reporter in ["source", "destination"] {
        assert_eq!(opened(&mesh, reporter).await, 2.0, "{reporter}");
    }
    let both_ends = || {
        let log = mesh.log(&Component::Ztunnel("n1".into()));
        let lines = log.lines().filter(|line| line.contains("connection complete"));
        let ends = |direction: &str| {
            lines
                .clone()
                .filter(|line| line.contains(direction) && line.contains("sa/web") && line.contains("sa/db"))
                .count()
        };
        ends("inbound") == 2 && ends("outbound") == 2
    };
    assert!(
        eventually(async || both_ends()).await,
        "each end writes its line\n{}",
        mesh.logs()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wire_is_taken_where_it_is_asked_for() {
    let (mesh, web, db) = one_node("hbone").await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    assert_eq!(
        mesh.metric("n1", &["tulle_same_node_connections_total"]).await,
        0.0
    );
    assert!(mesh.metric("n1", &["tulle_tunnels"]).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_judges_streams_of_one_node_when_they_begin_and_when_it_changes() {
    let (mesh, web, db) = one_node("inprocess").await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Pinned::open(web.namespace(), echo.address(), 5).await;
    // A captured connect succeeds before its way is known.
    let handed_over = async || mesh.metric("n1", &["tulle_same_node_connections_total"]).await >= 5.0;
    assert!(eventually(handed_over).await, "without a tunnel");

    let written = Instant::now();
    let rules = manifest::from_account("web");
    mesh.apply("deny", &manifest::policy("no-web", "db", "DENY", &rules));
    assert!(
        eventually(async || pinned.lost() == 5).await,
        "{} of 5 ended\n{}",
        pinned.lost(),
        mesh.logs()
    );
    assert!(
        written.elapsed() <= IN_FORCE_MAX,
        "the policy took {:?}",
        written.elapsed()
    );
    assert!(!gets_through(web.namespace(), echo.address()).await);
    for metric in ["tulle_denied_total", "tulle_refused_total"] {
        let counted = eventually(async || mesh.metric("n1", &[metric, "T0412"]).await >= 1.0).await;
        assert!(counted, "{metric}");
    }
    let log = mesh.log(&Component::Ztunnel("n1".into()));
    assert!(log.contains("app/no-web"), "both ends name the policy");

    mesh.remove("deny");
    let again = eventually(async || gets_through(web.namespace(), echo.address()).await).await;
    assert!(again, "without the policy the edge is open again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_goes_ends_the_streams_to_it_at_once() {
    let (mut mesh, web, db) = one_node("inprocess").await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Pinned::open(web.namespace(), echo.address(), 3).await;
    mesh.forget(&db);
    mesh.world.remove_pod("db").await.unwrap();
    assert!(
        eventually(async || pinned.lost() == 3).await,
        "{} of 3 ended\n{}",
        pinned.lost(),
        mesh.logs()
    );
}
