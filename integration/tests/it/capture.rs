//! Who reaches whom, and by which way.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_integration::faults::run;
use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, assert_echo, call, connect, gets_through, spawn};
use tulle_integration::{TestMesh, manifest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolled_pods_reach_each_other_on_one_node_and_across_nodes_by_both_families() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let near = mesh.pod("n1", "near").await;
    let far = mesh.pod("n2", "far").await;
    mesh.start().await;
    mesh.captured(&[&web, &near, &far]).await;
    for server in [&near, &far] {
        for address in [IpAddr::V4(server.ipv4()), IpAddr::V6(server.ipv6())] {
            let echo = Echo::start(server.namespace(), address, 8080).await;
            assert_echo(web.namespace(), echo.address()).await;
            let seen: Vec<_> = echo.peers().iter().map(SocketAddr::ip).collect();
            let own = if address.is_ipv4() {
                IpAddr::V4(web.ipv4())
            } else {
                IpAddr::V6(web.ipv6())
            };
            assert_eq!(seen, [own], "the server sees the client's own address");
        }
    }
    for node in ["n1", "n2"] {
        let tunnelled = [
            "istio_tcp_connections_opened_total",
            "reporter=\"destination\"",
            "connection_security_policy=\"mutual_tls\"",
        ];
        assert_eq!(
            mesh.metric(node, &tunnelled).await,
            2.0,
            "IPv4 and IPv6 to {node}\n{}",
            mesh.logs()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_and_servers_outside_of_the_mesh_are_reached_in_plain_text() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let plain = mesh.pod_in("outside", "n2", "plain", "plain").await;
    let stranger = mesh.stranger("n2", "stranger").await;
    mesh.start().await;
    mesh.captured(&[&web]).await;

    let known = Echo::start(plain.namespace(), plain.ipv4(), 8080).await;
    assert_echo(web.namespace(), known.address()).await;
    let unknown = Echo::start(stranger.namespace(), stranger.ipv4(), 8080).await;
    assert_echo(web.namespace(), unknown.address()).await;

    let inside = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    assert_echo(plain.namespace(), inside.address()).await;
    assert_echo(stranger.namespace(), inside.address()).await;
    let callers: Vec<_> = inside.peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(callers, [IpAddr::V4(plain.ipv4()), IpAddr::V4(stranger.ipv4())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_mutual_tls_refuses_plain_callers_and_serves_enrolled_ones() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let stranger = mesh.stranger("n1", "stranger").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(stranger.namespace(), echo.address()).await;

    mesh.apply("strict", &manifest::strict());
    let refused = eventually(async || !gets_through(stranger.namespace(), echo.address()).await).await;
    assert!(refused, "STRICT refuses plain text\n{}", mesh.logs());
    assert_echo(web.namespace(), echo.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_address_leads_to_the_target_port_of_its_endpoints() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let addresses: [IpAddr; 2] = ["10.96.0.50".parse().unwrap(), "fd00:96::50".parse().unwrap()];
    mesh.apply("db-service", &manifest::service("db", &addresses, &[(80, 8080)]));
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let _v4 = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let _v6 = Echo::start(db.namespace(), db.ipv6(), 8080).await;
    // Nothing but the mesh knows these addresses: without it the packets have nowhere to go.
    for address in addresses {
        assert_echo(web.namespace(), SocketAddr::new(address, 80)).await;
    }
    assert!(
        !gets_through(web.namespace(), SocketAddr::new(addresses[0], 81)).await,
        "the service has no port 81"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_arrives_unchanged_both_ways() {
    const BODY_BYTES: usize = 64 * 1024 * 1024;
    let (_mesh, web, db) = TestMesh::pair().await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;

    let body: Vec<u8> = (0..BODY_BYTES)
        .map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let stream = connect(web.namespace(), echo.address()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sent = body.clone();
    let writer = spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut answer = Vec::with_capacity(BODY_BYTES);
    read.read_to_end(&mut answer).await.unwrap();
    writer.await.unwrap();
    assert!(
        answer == body,
        "{} of {BODY_BYTES} bytes came back, or some were changed",
        answer.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_a_half_closed_connection_goes_on_in_the_other_direction() {
    let (_mesh, web, db) = TestMesh::pair().await;
    let address = SocketAddr::new(db.ipv4().into(), 8080);
    let listener = db
        .namespace()
        .run_async(move || std::net::TcpListener::bind(address))
        .await
        .unwrap()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let server = spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        // The client is done; the server speaks on, in several pieces.
        for piece in [&question[..], b" and", b" a", b" long", b" answer"] {
            stream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut client = connect(web.namespace(), address).await.unwrap();
    client.write_all(b"a question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "a question and a long answer");
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_a_reset_of_the_server_reaches_the_client_as_a_reset() {
    let (_mesh, web, db) = TestMesh::pair().await;
    let address = SocketAddr::new(db.ipv4().into(), 8080);
    let listener = db
        .namespace()
        .run_async(move || std::net::TcpListener::bind(address))
        .await
        .unwrap()
        .unwrap();
    let server = std::thread::spawn(move || {
        use std::io::Read as _;
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        socket2::SockRef::from(&stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    });
    let mut client = connect(web.namespace(), address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let outcome = client.read(&mut [0; 16]).await;
    server.join().unwrap();
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// Pods know nothing of a wire between nodes that is narrower than theirs; tunnels, which cross it, have to be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_gets_narrower_under_open_tunnels_costs_no_byte() {
    let (mesh, web, db) = TestMesh::pair().await;
    let bulk: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let wire = |mtu: &str| {
        for node in ["n1", "n2"] {
            let node = mesh.world.node(node).unwrap();
            run(
                node.namespace(),
                "ip",
                &["link", "set", "dev", "eth0", "mtu", mtu],
            );
        }
    };
    for address in [IpAddr::V4(db.ipv4()), IpAddr::V6(db.ipv6())] {
        let echo = Echo::start(db.namespace(), address, 8080).await;
        assert_echo(web.namespace(), echo.address()).await;
        wire("1300");
        let answer = call(web.namespace(), echo.address(), &bulk).await;
        assert!(
            answer.as_ref().is_ok_and(|answer| *answer == bulk),
            "to {address}: {:?}\n{}",
            answer.map(|answer| answer.len()),
            mesh.logs()
        );
        for (from, to) in [(&web, &db), (&db, &web)] {
            let to = if address.is_ipv4() {
                to.ipv4().to_string()
            } else {
                to.ipv6().to_string()
            };
            let route = run(from.namespace(), "ip", &["route", "get", &to]);
            assert!(
                route.contains("mtu 1300"),
                "{} has not heard: {route}",
                from.name()
            );
        }
        wire("1500");
    }
}
