//! Pods that have addresses of one family only.

use std::net::{IpAddr, SocketAddr};

use tulle_integration::traffic::{Echo, assert_echo, connect, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::{Component, Pod};

/// Two pods of one family on two nodes, in both directions, by address and by service, and from outside of the mesh.
async fn of_one_family(ipv4: bool) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod_of_one_family("n1", "web", ipv4).await;
    let db = mesh.pod_of_one_family("n2", "db", ipv4).await;
    let both = mesh.pod("n2", "both").await;
    let stranger = mesh.stranger("n1", "stranger").await;
    let address = |pod: &Pod| {
        if ipv4 {
            IpAddr::V4(pod.ipv4())
        } else {
            IpAddr::V6(pod.ipv6())
        }
    };
    let vip: IpAddr = if ipv4 { "10.96.0.50" } else { "fd00:96::50" }.parse().unwrap();
    mesh.apply("db-service", &manifest::service("db", &[vip], &[(80, 8080)]));
    mesh.start().await;
    mesh.captured(&[&web, &db, &both]).await;

    let at_db = Echo::start(db.namespace(), address(&db), 8080).await;
    let at_web = Echo::start(web.namespace(), address(&web), 8080).await;
    let at_both = Echo::start(both.namespace(), address(&both), 8080).await;
    for (from, to) in [
        (&web, at_db.address()),
        (&web, SocketAddr::new(vip, 80)),
        (&web, at_both.address()),
        (&db, at_web.address()),
        (&both, at_db.address()),
    ] {
        assert_echo(from.namespace(), to).await;
    }
    assert_eq!(
        at_db.peers()[0].ip(),
        address(&web),
        "the client's own address is kept"
    );
    let tunnelled = [
        "istio_tcp_connections_opened_total",
        "reporter=\"destination\"",
        "mutual_tls",
    ];
    assert_eq!(
        mesh.metric("n2", &tunnelled).await,
        4.0,
        "by tunnel\n{}",
        mesh.logs()
    );
    assert_echo(stranger.namespace(), at_db.address()).await;

    // It is captured as a whole: what it lacks neither leaks nor holds anything up.
    mesh.apply("strict", &manifest::strict());
    let refused = async || !gets_through(stranger.namespace(), at_db.address()).await;
    assert!(
        tulle_integration::mesh::eventually(refused).await,
        "{}",
        mesh.logs()
    );
    let other = if ipv4 {
        IpAddr::V6(both.ipv6())
    } else {
        IpAddr::V4(both.ipv4())
    };
    assert!(
        connect(web.namespace(), SocketAddr::new(other, 8080))
            .await
            .is_err()
    );
    let repairs = mesh.text(&Component::Agent("n1".into()), "/metrics").await;
    let repaired = repairs
        .lines()
        .find(|line| line.starts_with("tulle_capture_repairs_total{"));
    assert_eq!(repaired, None, "nothing that cannot be there is missed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_without_ipv6_are_captured_and_reached() {
    of_one_family(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_without_ipv4_are_captured_and_reached() {
    of_one_family(false).await;
}
