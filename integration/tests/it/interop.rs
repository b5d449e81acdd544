//! A ztunnel of another make, fed by our control plane, beside ours.
//!
//! Runs when `TULLE_PEER_ZTUNNEL` names the binary of an unmodified istio ztunnel; elsewhere it says that it was skipped.
//! What is configured for it stands in docs/interop.md.

use std::path::PathBuf;

use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, Pinned, assert_echo, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_runtime::config::{Env, ProcessEnv};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_ztunnel_carries_traffic_to_and_from_ours_under_our_control_plane() {
    let Some(binary) = ProcessEnv.var("TULLE_PEER_ZTUNNEL").map(PathBuf::from) else {
        eprintln!("skipped: TULLE_PEER_ZTUNNEL does not name a ztunnel binary");
        return;
    };
    let mut mesh = TestMesh::new(&["ours", "theirs"]).await;
    let web = mesh.pod("ours", "web").await;
    let db = mesh.pod("theirs", "db").await;
    mesh.apply(
        "db-service",
        &manifest::service("db", &["10.96.0.70".parse().unwrap()], &[(80, 8080)]),
    );
    mesh.start_with_foreign_ztunnel("theirs", &binary).await;
    mesh.captured(&[&web, &db]).await;
    let at_db = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let at_db_v6 = Echo::start(db.namespace(), db.ipv6(), 8080).await;
    let at_web = Echo::start(web.namespace(), web.ipv4(), 8080).await;

    // Ours to theirs, by address and by service; theirs to ours.
    assert_echo(web.namespace(), at_db.address()).await;
    assert_echo(web.namespace(), at_db_v6.address()).await;
    assert_echo(web.namespace(), "10.96.0.70:80".parse().unwrap()).await;
    assert_echo(db.namespace(), at_web.address()).await;
    let tunnelled = ["istio_tcp_connections_opened_total", "mutual_tls"];
    assert_eq!(
        mesh.metric("ours", &[&tunnelled[..], &["reporter=\"source\""]].concat())
            .await,
        3.0
    );
    assert_eq!(
        mesh.metric("ours", &[&tunnelled[..], &["reporter=\"destination\""]].concat())
            .await,
        1.0
    );

    // Our policies hold at theirs for new connections, and theirs' callers are judged at ours, open connections too.
    // (Theirs judges open connections again when a policy arrives, not when a workload comes to name one.)
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    let refused = eventually(async || !gets_through(web.namespace(), at_db.address()).await).await;
    assert!(refused, "{}", mesh.logs());
    let pinned = Pinned::open(db.namespace(), at_web.address(), 3).await;
    mesh.apply(
        "deny",
        &manifest::policy("no-db", "web", "DENY", &manifest::from_account("db")),
    );
    assert!(
        eventually(async || pinned.lost() == 3).await,
        "{} of 3 ended\n{}",
        pinned.lost(),
        mesh.logs()
    );
    assert!(!gets_through(db.namespace(), at_web.address()).await);
    assert_echo(web.namespace(), at_db.address()).await;
}
