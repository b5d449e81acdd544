//! Peers that ask for what they may not have, or are not who they should be.

use std::net::SocketAddr;

use tulle_integration::hbone::{certificate, identity, open};
use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, connect, gets_through, spawn};
use tulle_integration::{TestMesh, manifest};
use tulle_transport::hbone::OpenError;
use tulle_world::{Component, Pod};

fn port(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ipv4().into(), port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f33_the_tunnel_port_answers_each_wrong_request_with_its_status() {
    let (mesh, _web, db) = TestMesh::pair().await;
    // The caller is outside of every capture: its packets reach 15008 as they are.
    let caller = mesh.world.node("n1").unwrap().namespace().clone();
    let own = certificate(&mesh, "n1", &identity("web")).unwrap();
    let _echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let ip = db.ipv4();
    let cases = [
        (format!("{ip}:8080"), 200, None),
        (format!("{ip}:8099"), 503, Some("T0501")),
        (format!("{ip}:15001"), 503, Some("T0421")),
        (format!("{ip}:15008"), 503, Some("T0421")),
        (format!("{ip}"), 400, Some("T0420")),
        ("10.99.99.99:8080".to_owned(), 400, Some("T0418")),
        ("nobody.example:8080".to_owned(), 503, None),
    ];
    for (authority, status, code) in cases {
        let answer = open(&caller, &own, &identity("db"), port(&db, 15008), &authority).await;
        let (answered, reason) =
            answer.unwrap_or_else(|error| panic!("{authority}: {error}\n{}", mesh.logs()));
        assert_eq!(answered, status, "{authority}: {reason:?}");
        if code.is_some() {
            assert_eq!(reason.as_deref(), code, "{authority}");
        }
    }
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    let refused = eventually(async || {
        let answer = open(
            &caller,
            &own,
            &identity("db"),
            port(&db, 15008),
            &format!("{ip}:8080"),
        )
        .await;
        answer.unwrap() == (401, Some("T0412".to_owned()))
    });
    assert!(refused.await, "{}", mesh.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tunnel_port_takes_no_method_but_connect() {
    let (mesh, _web, db) = TestMesh::pair().await;
    let caller = mesh.world.node("n1").unwrap().namespace().clone();
    let own = certificate(&mesh, "n1", &identity("web")).unwrap();
    let socket = connect(&caller, port(&db, 15008)).await.unwrap();
    let tls = own.client_config(&[identity("db")]);
    let stream = tulle_identity::tls::connect(tls, socket).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    spawn(connection);
    let request = http::Request::get(format!("https://{}:8080/", db.ipv4()))
        .body(())
        .unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 400);
    let reason = response.headers()["x-tulle-reason"].to_str().unwrap().to_owned();
    assert!(reason.starts_with("T0419"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n01_a_peer_under_another_identity_is_not_believed() {
    let (mesh, _web, db) = TestMesh::pair().await;
    let caller = mesh.world.node("n1").unwrap().namespace().clone();
    let own = certificate(&mesh, "n1", &identity("web")).unwrap();
    let wrong = open(
        &caller,
        &own,
        &identity("vault"),
        port(&db, 15008),
        &format!("{}:8080", db.ipv4()),
    )
    .await;
    let error = wrong.unwrap_err();
    assert!(matches!(error, OpenError::Tls { .. }), "{error:?}");
    assert_eq!(error.reason().code(), "T0512", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_proxy_refuses_an_endpoint_that_presents_another_identity_and_never_falls_back() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let impostor = mesh.stranger("n2", "impostor").await;
    // The mesh is told that "vault" is at this address and speaks HBONE itself.
    let entry = manifest::workload(manifest::NAMESPACE, &impostor, "vault").replace(
        "    app: vault\n",
        "    app: vault\n    networking.istio.io/tunnel: http\n",
    );
    mesh.apply("impostor", &entry);
    // And another workload on that node has an identity that the impostor may really use.
    let thief = mesh.pod("n2", "thief").await;
    mesh.start().await;
    mesh.captured(&[&web, &thief]).await;
    let stolen = certificate(&mesh, "n2", &identity("thief")).unwrap();
    let address = port(&impostor, 15008);
    let listener = impostor
        .namespace()
        .run_async(move || std::net::TcpListener::bind(address))
        .await
        .unwrap()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let server = spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        tulle_identity::tls::accept(stolen.server_config(), socket)
            .await
            .is_ok()
    });
    let plain = Echo::start(impostor.namespace(), impostor.ipv4(), 8080).await;
    assert!(
        !gets_through(web.namespace(), plain.address()).await,
        "the connection is refused"
    );
    assert!(plain.peers().is_empty(), "nothing is sent in plain text instead");
    let _ = server.await;
    let reported = || mesh.log(&Component::Ztunnel("n1".into()));
    assert!(
        eventually(async || reported().contains("T0512")).await,
        "{}",
        reported()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n03_the_authority_issues_only_what_is_placed_on_the_asking_node() {
    let (mesh, _web, _db) = TestMesh::pair().await;
    assert!(certificate(&mesh, "n1", &identity("web")).is_ok());
    for (node, account) in [("n1", "db"), ("n2", "web"), ("n1", "nobody")] {
        let refused = certificate(&mesh, node, &identity(account)).unwrap_err();
        assert!(
            refused.to_string().contains("T0305") || refused.to_string().contains("not_placed_on_node"),
            "{refused}"
        );
    }
    let foreign = tulle_model::Identity::new("elsewhere.example", manifest::NAMESPACE, "web");
    assert!(certificate(&mesh, "n1", &foreign).is_err());
}
