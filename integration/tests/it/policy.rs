//! Policies decide new connections and open ones.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tulle_integration::mesh::{PATIENCE, eventually};
use tulle_integration::traffic::{Echo, Pinned, assert_echo, connect, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::Component;

/// A policy must hold within this time of being written.
const IN_FORCE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f24_a_deny_policy_ends_open_connections_of_its_edge_and_no_others() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &job, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let denied = Pinned::open(web.namespace(), echo.address(), 5).await;
    let allowed = Pinned::open(job.namespace(), echo.address(), 5).await;

    let written = Instant::now();
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    assert!(
        eventually(async || denied.lost() == 5).await,
        "{} of 5 ended\n{}",
        denied.lost(),
        mesh.logs()
    );
    assert!(
        written.elapsed() <= IN_FORCE_MAX,
        "the policy took {:?}",
        written.elapsed()
    );
    assert!(
        !gets_through(web.namespace(), echo.address()).await,
        "new connections are refused, too"
    );
    assert_echo(job.namespace(), echo.address()).await;
    assert_eq!(allowed.lost(), 0, "other edges are untouched");

    // The caller's side knows why.
    let counted =
        eventually(async || mesh.metric("n1", &["tulle_refused_total", "T0412"]).await >= 1.0).await;
    assert!(counted, "the caller's proxy counts the refusal");
    let logged = || mesh.log(&Component::Ztunnel("n1".into()));
    assert!(
        eventually(async || logged().contains("app/no-web")).await,
        "the caller's proxy names the policy"
    );

    mesh.remove("deny");
    let again = eventually(async || gets_through(web.namespace(), echo.address()).await).await;
    assert!(again, "without the policy the edge is open again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_connection_is_judged_again_like_any_other() {
    let (mesh, web, db) = TestMesh::pair().await;
    let address = SocketAddr::new(db.ipv4().into(), 8080);
    let listen = move || std::net::TcpListener::bind(address);
    let listener = db.namespace().run_async(listen).await.unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut client = connect(web.namespace(), address).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x', "the answer is under way");

    let written = Instant::now();
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    let ended = timeout(PATIENCE, client.read_u8()).await.expect("it is cut");
    assert!(written.elapsed() <= IN_FORCE_MAX, "{:?}", written.elapsed());
    assert_eq!(
        ended.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
    let refused = eventually(async || server.write_all(b"y").await.is_err()).await;
    assert!(refused, "the server hears of it, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allow_policy_refuses_everyone_it_does_not_name() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let db = mesh.pod("n2", "db").await;
    let stranger = mesh.stranger("n1", "stranger").await;
    mesh.start().await;
    mesh.captured(&[&web, &job, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let other_account = Pinned::open(job.namespace(), echo.address(), 3).await;
    let plain = Pinned::open(stranger.namespace(), echo.address(), 3).await;
    let named = Pinned::open(web.namespace(), echo.address(), 3).await;

    mesh.apply(
        "allow",
        &manifest::policy("only-web", "db", "ALLOW", &manifest::from_account("web")),
    );
    let ended = eventually(async || other_account.lost() == 3 && plain.lost() == 3).await;
    assert!(
        ended,
        "open: {} and {} of 3 ended\n{}",
        other_account.lost(),
        plain.lost(),
        mesh.logs()
    );
    assert!(!gets_through(job.namespace(), echo.address()).await);
    assert!(!gets_through(stranger.namespace(), echo.address()).await);
    assert_echo(web.namespace(), echo.address()).await;
    assert_eq!(named.lost(), 0);
    let counted =
        eventually(async || mesh.metric("n1", &["tulle_refused_total", "T0413"]).await >= 1.0).await;
    assert!(counted, "the caller's proxy counts no_allow_matched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_cannot_be_evaluated_here_denies_what_it_selects() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let other = mesh.pod("n2", "other").await;
    mesh.start().await;
    mesh.captured(&[&web, &db, &other]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let beside = Echo::start(other.namespace(), other.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;

    // Paths mean nothing to a node proxy: the attribute counts as true, so the rule denies all it selects.
    let rules = "  - to:\n    - operation:\n        paths: [/admin]\n";
    mesh.apply("paths", &manifest::policy("no-admin", "db", "DENY", rules));
    let refused = eventually(async || !gets_through(web.namespace(), echo.address()).await).await;
    assert!(refused, "the policy denies what it selects\n{}", mesh.logs());
    assert_echo(web.namespace(), beside.address()).await;
    let status = mesh.text(&Component::Control, "/status").await;
    assert!(
        status.contains("no-admin"),
        "the status names the policy: {status}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_on_trial_is_counted_and_told_and_refuses_nobody() {
    let (mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let deny = manifest::policy("no-web", "db", "DENY", &manifest::from_account("web"));
    let on_trial = "  annotations:\n    istio.io/dry-run: \"true\"\n";
    mesh.apply("deny", &manifest::with_metadata(&deny, "no-web", on_trial));
    let would = eventually(async || {
        assert_echo(web.namespace(), echo.address()).await;
        mesh.metric("n2", &["tulle_would_deny_total", "T0412"]).await >= 1.0
    });
    assert!(would.await, "{}", mesh.logs());
    let told = || mesh.log(&Component::Ztunnel("n2".into()));
    assert!(
        eventually(async || told().contains("a dry-run policy would deny")).await,
        "{}",
        told()
    );
    let pinned = Pinned::open(web.namespace(), echo.address(), 2).await;
    assert_eq!(mesh.metric("n2", &["tulle_denied_total"]).await, 0.0);

    mesh.apply("deny", &deny);
    assert!(
        eventually(async || pinned.lost() == 2).await,
        "in earnest\n{}",
        mesh.logs()
    );
    assert!(!gets_through(web.namespace(), echo.address()).await);
}
