//! Peers that ask for what they may not have, or are not who they should be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_integration::hbone::{certificate, identity, open, open_over};
use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, connect, gets_through, spawn};
use tulle_integration::{TestMesh, manifest};
use tulle_linux::NetNs;
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

/// What a workload must not reach by recursion or over loopback.
const PROXY_PORTS: [u16; 5] = [15000, 15001, 15006, 15008, 15080];

/// How long an answer that must not come is waited for.
const NO_ANSWER: Duration = Duration::from_secs(3);

/// What comes back of a request over plain TCP; nothing from a port that is closed, mute, or only speaks TLS.
async fn answer_of(from: &NetNs, to: SocketAddr) -> Option<Vec<u8>> {
    const TLS_ALERT: u8 = 21;
    let asked = async {
        let mut stream = connect(from, to).await.ok()?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        // One byte of it is enough.
        let mut answer = vec![0; 200];
        let length = stream.read(&mut answer).await.ok()?;
        answer.truncate(length);
        Some(answer)
    };
    let answer = tokio::time::timeout(NO_ANSWER, asked).await.ok()??;
    (!answer.is_empty() && answer[0] != TLS_ALERT).then_some(answer)
}

/// The addresses of a workload, its node and loopback, in both families.
fn addresses_around(mesh: &TestMesh, node: &str, pod: &Pod) -> [IpAddr; 6] {
    let node = mesh.world.node(node).unwrap();
    [
        node.ipv4().into(),
        node.ipv6().into(),
        pod.ipv4().into(),
        pod.ipv6().into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f33_no_way_leads_to_a_port_of_the_proxy() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let db = mesh.pod("n2", "db").await;
    let stranger = mesh.stranger("n2", "stranger").await;
    mesh.start().await;
    mesh.captured(&[&web, &job, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let here = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    // Each way carries something, or that nothing comes back would mean nothing.
    for (from, to) in [(&web, &echo), (&job, &here), (&stranger, &echo)] {
        assert!(
            answer_of(from.namespace(), to.address()).await.is_some(),
            "{}",
            mesh.logs()
        );
    }
    let mut cells = Vec::new();
    for port in PROXY_PORTS {
        for address in addresses_around(&mesh, "n1", &web) {
            cells.push(("captured, around itself", &web, SocketAddr::new(address, port)));
        }
        for address in [db.ipv4().into(), db.ipv6().into()] {
            cells.push(("captured, to another node", &web, SocketAddr::new(address, port)));
            cells.push(("plain, from outside", &stranger, SocketAddr::new(address, port)));
        }
        for address in [web.ipv4().into(), web.ipv6().into()] {
            cells.push(("captured, to its neighbour", &job, SocketAddr::new(address, port)));
        }
        let node = mesh.world.node("n2").unwrap();
        for address in [node.ipv4().into(), node.ipv6().into()] {
            cells.push(("plain, to the node", &stranger, SocketAddr::new(address, port)));
        }
    }
    let asked = cells.iter().map(|(way, from, to)| async move {
        let answer = answer_of(from.namespace(), *to).await?;
        Some(format!("{way}: {to}: {}", String::from_utf8_lossy(&answer)))
    });
    let answered: Vec<_> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    eprintln!(
        "F33 {} cells over plain TCP, accepted={}",
        cells.len(),
        answered.len()
    );
    assert_eq!(answered, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f33_no_tunnel_leads_to_the_proxy_to_loopback_or_to_another_workload() {
    let (mesh, web, db) = TestMesh::pair().await;
    let caller = mesh.world.node("n1").unwrap().namespace().clone();
    let own = certificate(&mesh, "n1", &identity("web")).unwrap();
    let _echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let _loopback = Echo::start(db.namespace(), Ipv4Addr::LOCALHOST, 8081).await;
    let _other = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    let mut authorities = Vec::new();
    for address in addresses_around(&mesh, "n2", &db) {
        let ports = PROXY_PORTS.map(|port| SocketAddr::new(address, port).to_string());
        authorities.extend(ports);
    }
    let node = mesh.world.node("n2").unwrap();
    for foreign in [
        format!("{}:8080", web.ipv4()),
        format!("[{}]:8080", web.ipv6()),
        format!("{}:15020", node.ipv4()),
        "127.0.0.1:8081".to_owned(),
        "[::1]:8081".to_owned(),
        format!("[::ffff:{}]:15001", db.ipv4()),
        "[::ffff:127.0.0.1]:8081".to_owned(),
        "0.0.0.0:8081".to_owned(),
        "[::]:8081".to_owned(),
        "localhost:8081".to_owned(),
        "localhost:15000".to_owned(),
        "169.254.169.254:80".to_owned(),
        "kubernetes.default.svc.cluster.local:443".to_owned(),
    ] {
        authorities.push(foreign);
    }
    let mut opened = Vec::new();
    for authority in &authorities {
        let answer = open(&caller, &own, &identity("db"), port(&db, 15008), authority).await;
        let (status, reason) = answer.unwrap_or_else(|error| panic!("{authority}: {error}\n{}", mesh.logs()));
        if status == 200 {
            opened.push(format!("{authority}: {reason:?}"));
        }
    }
    eprintln!(
        "F33 {} cells by tunnel, accepted={}",
        authorities.len(),
        opened.len()
    );
    assert_eq!(opened, Vec::<String>::new());
    let answer = open(
        &caller,
        &own,
        &identity("db"),
        port(&db, 15008),
        &format!("{}:8080", db.ipv4()),
    )
    .await;
    assert_eq!(answer.unwrap().0, 200, "its own port is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f33_who_calls_is_in_the_certificate_whatever_address_it_comes_from() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &job, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    mesh.apply(
        "allow",
        &manifest::policy("only-web", "db", "ALLOW", &manifest::from_account("web")),
    );
    let in_force = eventually(async || !gets_through(job.namespace(), echo.address()).await).await;
    assert!(in_force, "{}", mesh.logs());
    let certificates = ["web", "job"].map(|account| certificate(&mesh, "n1", &identity(account)).unwrap());
    let authority = format!("{}:8080", db.ipv4());
    let host = mesh.world.node("n1").unwrap().namespace().clone();
    for from in [web.namespace(), job.namespace(), &host] {
        let tunnel = async |own| {
            let socket = connect_marked(from, port(&db, 15008)).await;
            open_over(socket, own, &identity("db"), &authority).await.unwrap()
        };
        assert_eq!(tunnel(&certificates[0]).await.0, 200, "the certificate of web");
        let (status, code) = tunnel(&certificates[1]).await;
        assert_eq!((status, code.as_deref()), (401, Some("T0413")), "that of job");
    }
}

/// Connects as a proxy would, past the packet rules of the namespace.
async fn connect_marked(from: &NetNs, to: SocketAddr) -> tokio::net::TcpStream {
    let open = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = from.run_async(open).await.unwrap().unwrap();
    socket.set_mark(0x539).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    socket.connect(to).await.unwrap()
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
