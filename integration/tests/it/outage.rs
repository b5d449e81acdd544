//! Components end and come back while traffic goes on.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_integration::faults::{Blackhole, Direction};
use tulle_integration::mesh::{PATIENCE, eventually};
use tulle_integration::storm::Storm;
use tulle_integration::traffic::{Echo, Pinned, assert_echo, connect, gets_through, spawn};
use tulle_integration::{TestMesh, manifest};
use tulle_world::{CONTROL, Component, Pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f01_a_killed_control_plane_costs_no_connection_and_comes_back() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Pinned::open(web.namespace(), echo.address(), 10).await;
    let storm = Storm::start(web.namespace(), &[echo.address()], 4);
    mesh.mesh.kill(&Component::Control).unwrap();
    let seen = storm.done();
    assert!(
        eventually(async || storm.done() > seen + 100).await,
        "traffic goes on without a control plane"
    );
    mesh.mesh.start_control(&mesh.world).await.unwrap();
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("nobody")),
    );
    let seen = storm.done();
    assert!(eventually(async || storm.done() > seen + 100).await);
    let outcome = storm.end().await;
    assert_eq!(
        outcome.failed,
        0,
        "of {}: {:#?}\n{}",
        outcome.done,
        outcome.failures,
        mesh.logs()
    );
    assert_eq!(pinned.lost(), 0);
    // The proxies are connected again: what is written now arrives.
    mesh.apply(
        "deny",
        &manifest::policy("no-web", "db", "DENY", &manifest::from_account("web")),
    );
    let arrived = eventually(async || !gets_through(web.namespace(), echo.address()).await).await;
    assert!(
        arrived,
        "a policy written after the restart is in force\n{}",
        mesh.logs()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f07_a_killed_agent_costs_no_connection_and_takes_its_sockets_back() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let pinned = Pinned::open(web.namespace(), echo.address(), 10).await;
    let storm = Storm::start(web.namespace(), &[echo.address()], 4);
    for node in ["n1", "n2"] {
        mesh.mesh.kill(&Component::Agent(node.into())).unwrap();
        let seen = storm.done();
        assert!(
            eventually(async || storm.done() > seen + 50).await,
            "traffic goes on without an agent"
        );
        mesh.mesh.start_agent(&mesh.world, node).unwrap();
        mesh.mesh
            .wait_ready(&Component::Agent(node.into()))
            .await
            .unwrap();
    }
    mesh.captured(&[&web, &db]).await;
    let outcome = storm.end().await;
    assert_eq!(
        outcome.failed,
        0,
        "of {}: {:#?}\n{}",
        outcome.done,
        outcome.failures,
        mesh.logs()
    );
    assert_eq!(pinned.lost(), 0, "{}", mesh.logs());
    // The restarted agent enrols new pods as before.
    let late = mesh.pod("n2", "late").await;
    mesh.captured(&[&late]).await;
    let echo = Echo::start(late.namespace(), late.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_a_killed_node_proxy_is_never_bypassed_and_serves_again_when_it_is_back() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    let before = echo.peers().len();
    mesh.mesh.kill(&Component::Ztunnel("n1".into())).unwrap();
    // The agent holds the listening socket, so the connection waits for the next proxy instead of passing by.
    let (namespace, address) = (web.namespace().clone(), echo.address());
    let waiting = spawn(async move { gets_through(&namespace, address).await });
    mesh.mesh.start_ztunnel(&mesh.world, "n1").unwrap();
    mesh.mesh
        .wait_ready(&Component::Ztunnel("n1".into()))
        .await
        .unwrap();
    assert!(
        waiting.await.unwrap(),
        "the waiting connection is served\n{}",
        mesh.logs()
    );
    assert_eq!(echo.peers().len(), before + 1);
    let tunnelled = [
        "istio_tcp_connections_opened_total",
        "reporter=\"destination\"",
        "mutual_tls",
    ];
    assert_eq!(
        mesh.metric("n2", &tunnelled).await,
        2.0,
        "both came through the tunnel"
    );
}

/// Both applications of a connection between two pods; one byte went there and one came back.
async fn conversation(client: &Pod, server: &Pod, port: u16) -> (TcpStream, TcpStream) {
    let address = SocketAddr::new(server.ipv4().into(), port);
    let listen = move || std::net::TcpListener::bind(address);
    let listener = server.namespace().run_async(listen).await.unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let accepting = spawn(async move { listener.accept().await.unwrap().0 });
    let mut near = connect(client.namespace(), address).await.unwrap();
    near.write_all(b">").await.unwrap();
    let mut far = accepting.await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    far.write_all(b"<").await.unwrap();
    near.read_exact(&mut [0]).await.unwrap();
    (near, far)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f06_no_application_takes_a_killed_node_proxy_for_an_orderly_end() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let near = mesh.pod("n1", "near").await;
    let db = mesh.pod("n2", "db").await;
    let stranger = mesh.stranger("n2", "stranger").await;
    mesh.start().await;
    mesh.captured(&[&web, &near, &db]).await;
    let ways = [
        ("out by a tunnel", conversation(&web, &db, 8080).await),
        ("in by a tunnel", conversation(&db, &web, 8080).await),
        ("out in plain text", conversation(&web, &stranger, 8080).await),
        ("in in plain text", conversation(&stranger, &web, 8081).await),
        ("on one node", conversation(&web, &near, 8080).await),
    ];
    let (mut half, mut other) = conversation(&web, &db, 8082).await;
    half.shutdown().await.unwrap();
    assert_eq!(
        other.read(&mut [0]).await.unwrap(),
        0,
        "an orderly half of an end"
    );
    mesh.mesh.kill(&Component::Ztunnel("n1".into())).unwrap();
    for (way, (mut client, mut server)) in ways {
        for (end, stream) in [("client", &mut client), ("server", &mut server)] {
            let read = timeout(PATIENCE, stream.read(&mut [0])).await;
            let kind = read
                .unwrap_or_else(|_| panic!("{way}: the {end} hears nothing"))
                .map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{way}, the {end}");
        }
    }
    let read = timeout(PATIENCE, half.read(&mut [0]))
        .await
        .expect("half-closed: the client hears nothing");
    assert_eq!(
        read.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset),
        "half-closed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_a_node_that_is_cut_off_goes_on_as_it_knows_and_hears_of_the_rest_afterwards() {
    let (mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let (from, to) = (web.namespace(), echo.address());
    assert_echo(from, to).await;
    let (mut near, mut far) = conversation(&web, &db, 8081).await;
    let (control, node) = (mesh.world.node(CONTROL).unwrap(), mesh.world.node("n2").unwrap());
    let cut = Blackhole::new(
        control.namespace(),
        &[node.ipv4().into(), node.ipv6().into()],
        Direction::Both,
    );
    let denied = |name, of, whom| manifest::policy(name, of, "DENY", &manifest::from_account(whom));
    mesh.apply(
        "deny",
        &[denied("no-web", "db", "web"), denied("no-db", "web", "db")].concat(),
    );
    // n1 has heard of its part and refuses; n2 cannot have.
    let at_web = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    let heard = async || !gets_through(db.namespace(), at_web.address()).await;
    assert!(eventually(heard).await, "{}", mesh.logs());
    for _ in 0..20 {
        assert_echo(from, to).await;
    }
    near.write_all(b">").await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    drop(cut);
    let refused = eventually(async || !gets_through(from, to).await).await;
    assert!(refused, "what was missed is in force\n{}", mesh.logs());
    let ended = timeout(PATIENCE, near.read(&mut [0])).await;
    assert_eq!(
        ended
            .expect("open connections, too")
            .map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
    mesh.remove("deny");
    assert!(
        eventually(async || gets_through(from, to).await).await,
        "{}",
        mesh.logs()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f09_nodes_that_are_cut_off_from_each_other_cost_nobody_else_anything() {
    let (mesh, [web, near, far]) = TestMesh::three().await;
    let lost = Echo::start(near.namespace(), near.ipv4(), 8080).await;
    let kept = Echo::start(far.namespace(), far.ipv4(), 8080).await;
    assert_echo(web.namespace(), lost.address()).await;
    assert_echo(web.namespace(), kept.address()).await;
    let (mut pinned, mut other) = conversation(&web, &far, 8081).await;
    let node = mesh.world.node("n2").unwrap();
    let cut = Blackhole::new(node.namespace(), &[web.ipv4().into()], Direction::Both);
    // Somebody waits for the node that is gone, while others go on.
    let (namespace, address) = (web.namespace().clone(), lost.address());
    let waiting = spawn(async move { gets_through(&namespace, address).await });
    for _ in 0..20 {
        assert_echo(web.namespace(), kept.address()).await;
    }
    pinned.write_all(b">").await.unwrap();
    other.read_exact(&mut [0]).await.unwrap();
    drop(cut);
    let healed = eventually(async || gets_through(web.namespace(), lost.address()).await).await;
    assert!(healed, "{}", mesh.logs());
    waiting.await.unwrap();
}
