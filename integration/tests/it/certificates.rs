//! Certificates are renewed, and peers refused, while connections are open.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tulle_integration::TestMesh;
use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, Pinned, assert_echo, gets_through};
use tulle_world::Component;

/// A refused peer's connections are closed within this time.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// Runs a command of the mesh's own, as its operator would.
pub(crate) fn tulle(mesh: &TestMesh, arguments: &[&str]) -> String {
    let folders = mesh.mesh.folders();
    let output = Command::new(&folders.binary)
        .args(arguments)
        .env("TULLE_RUN_DIR", &folders.run)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}{complaint}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_loses_open_connections_within_two_seconds_and_nobody_else_does() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let db = mesh.pod("n2", "db").await;
    let near = mesh.pod("n1", "near").await;
    mesh.start().await;
    mesh.captured(&[&web, &job, &db, &near]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let beside = Echo::start(near.namespace(), near.ipv4(), 8080).await;
    let denied = Pinned::open(web.namespace(), echo.address(), 5).await;
    let denied_here = Pinned::open(web.namespace(), beside.address(), 5).await;
    let others = Pinned::open(job.namespace(), echo.address(), 5).await;

    let web_id = "spiffe://cluster.local/ns/app/sa/web";
    let said = Instant::now();
    let list = tulle(&mesh, &["ca", "deny", web_id, "--reason", "stolen key"]);
    assert!(list.contains(web_id) && list.contains("stolen key"), "{list}");
    let all = eventually(async || denied.lost() == 5 && denied_here.lost() == 5).await;
    let took = said.elapsed();
    assert!(
        all,
        "{} and {} of 5 ended\n{}",
        denied.lost(),
        denied_here.lost(),
        mesh.logs()
    );
    assert!(took <= CLOSED_WITHIN, "{took:?}");
    assert!(!gets_through(web.namespace(), echo.address()).await);
    assert!(!gets_through(web.namespace(), beside.address()).await);
    assert_echo(job.namespace(), echo.address()).await;
    assert_eq!(others.lost(), 0);
    let counted = async || mesh.metric("n1", &["tulle_denied_total", "T0516"]).await >= 1.0;
    assert!(
        eventually(counted).await,
        "the refusal has its reason\n{}",
        mesh.logs()
    );

    tulle(&mesh, &["ca", "allow", web_id]);
    let again = eventually(async || gets_through(web.namespace(), echo.address()).await).await;
    assert!(again, "{}", mesh.logs());
}

/// When the certificate of an account ends, as the proxy of a node says.
async fn not_after(mesh: &TestMesh, node: &str, account: &str) -> f64 {
    let identity = format!("identity=\"spiffe://cluster.local/ns/app/sa/{account}\"");
    mesh.metric(node, &["tulle_cert_not_after_seconds{", &identity])
        .await
}

/// Takes a minute: the authority issues for no less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_and_end_without_a_dropped_stream() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh.set_environment("SECRET_TTL", "60s");
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let open = Pinned::open(web.namespace(), echo.address(), 5).await;
    let (first_web, first_db) = (
        not_after(&mesh, "n1", "web").await,
        not_after(&mesh, "n2", "db").await,
    );
    assert!(first_web > 0.0 && first_db > 0.0);
    let ended = || {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        now.as_secs_f64() > first_web.max(first_db) + 1.0
    };
    // Streams outlive both first certificates, and calls go on all the while.
    let mut calls = 0;
    while !ended() {
        assert_echo(web.namespace(), echo.address()).await;
        calls += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(not_after(&mesh, "n1", "web").await > first_web, "{}", mesh.logs());
    assert!(not_after(&mesh, "n2", "db").await > first_db);
    assert_eq!(open.lost(), 0, "after {calls} calls\n{}", mesh.logs());
    let seen = open.echoes();
    assert!(
        eventually(async || open.echoes() > seen + 10).await,
        "they still carry"
    );
    assert_eq!(
        mesh.log(&Component::Ztunnel("n1".into()))
            .matches("T0513")
            .count(),
        0
    );
}
