//! The less usual ways through the mesh: host names, SOCKS5, other networks, a machine without an agent; and how many
//! connections a workload may have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tulle_agent::rules::nft;
use tulle_agent::rules::plan::{Variant, capture};
use tulle_identity::WorkloadCertificate;
use tulle_integration::hbone::certificate;
use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, assert_echo, connect, gets_through, spawn};
use tulle_integration::{TestMesh, manifest, names};
use tulle_linux::NetNs;
use tulle_model::Identity;
use tulle_transport::hbone::{ConnectResponse, Settings, server};
use tulle_world::{CONTROL, Component, Pod, Process};

const TUNNELLED: [&str; 3] = [
    "istio_tcp_connections_opened_total",
    "reporter=\"destination\"",
    "mutual_tls",
];

async fn listen(namespace: &NetNs, at: SocketAddr) -> TcpListener {
    let listener = namespace.run_async(move || std::net::TcpListener::bind(at));
    let listener = listener.await.unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_has_a_host_name_only_is_asked_for_by_the_pods_own_name_server() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let server = mesh.stranger("n2", "server").await;
    let backend = mesh.stranger("n2", "backend").await;
    names::serve_as(&server, backend.ipv4());
    names::resolve_by(&mesh, &web, &server);
    mesh.apply(
        "external",
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: ext\n  namespace: app\nspec:\n  \
         hosts: [api.example.com]\n  addresses: [240.240.0.9]\n  location: MESH_EXTERNAL\n  resolution: DNS\n  ports:\n  \
         - number: 80\n    name: tcp\n    protocol: TCP\n    targetPort: 8080\n  endpoints:\n  - address: backend.example.com\n",
    );
    mesh.start().await;
    mesh.captured(&[&web]).await;
    let echo = Echo::start(backend.namespace(), backend.ipv4(), 8080).await;
    assert_echo(web.namespace(), "240.240.0.9:80".parse().unwrap()).await;
    assert_eq!(echo.peers().len(), 1);
    let looked_up = ["istio_on_demand_dns_total", "backend.example.com"];
    assert_eq!(mesh.metric("n1", &looked_up).await, 1.0, "{}", mesh.logs());
}

/// Requests of SOCKS5 for port 80 of a name, and for an address.
fn asking_for(name: &[u8], address: SocketAddr) -> [Vec<u8>; 2] {
    let IpAddr::V4(ip) = address.ip() else {
        panic!("{address} is IPv6");
    };
    let length = u8::try_from(name.len()).unwrap();
    [
        [&[5, 1, 0, 3, length][..], name, &[0, 80]].concat(),
        [&[5, 1, 0, 1][..], &ip.octets(), &address.port().to_be_bytes()].concat(),
    ]
}

/// A connection that the proxy on loopback was asked for, by SOCKS5.
async fn ask_proxy(namespace: &NetNs, request: &[u8]) -> TcpStream {
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, 15080));
    let mut stream = connect(namespace, proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[1], 0, "{request:?}");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_asks_for_its_proxy_is_led_like_a_captured_one() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh.set_environment("UNSTABLE_ENABLE_SOCKS5", "true");
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let vip: IpAddr = "10.96.0.50".parse().unwrap();
    mesh.apply("db-service", &manifest::service("db", &[vip], &[(80, 8080)]));
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    for request in asking_for(b"db.app.svc.cluster.local", echo.address()) {
        exchange(&mut ask_proxy(web.namespace(), &request).await)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}", mesh.logs()));
    }
    assert_eq!(
        echo.peers()[0].ip(),
        IpAddr::V4(web.ipv4()),
        "the pod is the client"
    );
    assert_eq!(mesh.metric("n2", &TUNNELLED).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_has_no_more_connections_than_it_may_and_others_do_not_notice() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh
        .set_node_environment("n1", "TULLE_MAX_CONNECTIONS_PER_WORKLOAD", "3");
    let web = mesh.pod("n1", "web").await;
    let other = mesh.pod("n1", "other").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &other, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(web.namespace(), echo.address()).await.unwrap();
        exchange(&mut stream).await.unwrap();
        open.push(stream);
    }
    assert!(
        !gets_through(web.namespace(), echo.address()).await,
        "one too many"
    );
    assert_echo(other.namespace(), echo.address()).await;
    let counted = async || {
        mesh.metric("n1", &["tulle_denied_total", "T0515", "outbound"])
            .await
            >= 1.0
    };
    assert!(eventually(counted).await);
    for stream in &mut open {
        exchange(stream).await.expect("open ones live on");
    }
    open.pop();
    let again = eventually(async || gets_through(web.namespace(), echo.address()).await).await;
    assert!(again, "the place is free again\n{}", mesh.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_address_is_kept_unless_that_is_switched_off() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh.set_node_environment("n1", "ENABLE_ORIG_SRC", "true");
    mesh.mesh.set_node_environment("n2", "ENABLE_ORIG_SRC", "false");
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let at_db = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let at_web = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    assert_echo(web.namespace(), at_db.address()).await;
    assert_echo(db.namespace(), at_web.address()).await;
    assert_eq!(at_web.peers()[0].ip(), IpAddr::V4(db.ipv4()), "kept");
    assert_eq!(
        at_db.peers()[0].ip(),
        IpAddr::V4(db.ipv4()),
        "the proxy's own, in the pod"
    );
}

/// A gateway of another network inside of a pod: it ends tunnels, and passes what is in them on to `to` unread.
async fn gateway(at: &Pod, own: Arc<WorkloadCertificate>, to: SocketAddr) -> Arc<Mutex<Vec<String>>> {
    let listener = listen(at.namespace(), SocketAddr::new(at.ipv4().into(), 15008)).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, namespace) = (Arc::clone(&asked), at.namespace().clone());
    spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let accepted = server::accept(socket, own.server_config(), &Settings::server()).await;
            let Ok(mut accepted) = accepted else { continue };
            let (seen, namespace) = (Arc::clone(&seen), namespace.clone());
            spawn(async move {
                while let Some(incoming) = accepted.connection.accept().await {
                    seen.lock().push(incoming.request().unwrap().authority.clone());
                    let mut near = incoming.accept(&ConnectResponse::default()).unwrap();
                    let mut far = connect(&namespace, to).await.unwrap();
                    spawn(async move {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    });
                }
            });
        }
    });
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_another_network_is_reached_through_its_gateway_which_reads_nothing() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let entry = mesh.pod_in("infra", "n2", "entry", "gw").await;
    // What a control plane that spans both networks would tell each of them.
    let service = |vip: &str| {
        format!(
            "services:\n- {{name: db, namespace: app, hostname: db.app.svc.cluster.local, vips: [{vip}], \
             ports: {{80: 8080}}, subjectAltNames: [\"spiffe://cluster.local/ns/app/sa/db\"]}}\n"
        )
    };
    let of = |pod: &Pod| {
        format!(
            "uid: {0}, name: {0}, namespace: app, serviceAccount: {0}, protocol: HBONE, workloadIps: [{1}]",
            pod.name(),
            pod.ipv4()
        )
    };
    let gateway_of_west = format!(
        "networkGateway: {{destination: west/{}, hboneMtlsPort: 15008}}",
        entry.ipv4()
    );
    let here = format!(
        "workloads:\n- {{{}}}\n\
         - {{uid: far, name: far, namespace: app, protocol: HBONE, network: west, {gateway_of_west}, \
            services: {{app/db.app.svc.cluster.local: {{}}}}}}\n\
         - {{uid: entry, name: entry, namespace: infra, serviceAccount: gw, protocol: HBONE, network: west, \
            workloadIps: [{}]}}\n{}",
        of(&web),
        entry.ipv4(),
        service("/10.96.0.70"),
    );
    let there = format!(
        "workloads:\n- {{{}, network: west, services: {{app/db.app.svc.cluster.local: {{80: 8080}}}}}}\n{}",
        of(&db),
        service("west/10.96.0.70"),
    );
    for (node, network, told) in [("n1", "", here), ("n2", "west", there)] {
        let file = mesh.folder().join(format!("{node}.yaml"));
        std::fs::write(&file, told).unwrap();
        mesh.mesh
            .set_node_environment(node, "LOCAL_XDS_PATH", file.to_str().unwrap());
        mesh.mesh.set_node_environment(node, "XDS_ADDRESS", "");
        mesh.mesh.set_node_environment(node, "NETWORK", network);
    }
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let own = certificate(&mesh, "n2", &Identity::new("cluster.local", "infra", "gw")).unwrap();
    let asked = gateway(&entry, own, SocketAddr::new(db.ipv4().into(), 15008)).await;
    let _echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let vip = "10.96.0.70:80".parse().unwrap();
    if !gets_through(web.namespace(), vip).await {
        panic!("{}", mesh.logs());
    }
    assert_echo(web.namespace(), vip).await;
    assert_eq!(
        asked.lock().clone(),
        ["db.app.svc.cluster.local:80", "db.app.svc.cluster.local:80"]
    );
    let proven = "source_principal=\"spiffe://cluster.local/ns/app/sa/web\"";
    let opened = [TUNNELLED[0], TUNNELLED[1], proven];
    assert_eq!(
        mesh.metric("n2", &opened).await,
        2.0,
        "the inner tunnel proves the caller\n{}",
        mesh.logs()
    );
}

/// A token of a service account, and the file with the key of its issuer.
fn service_account_token(mesh: &TestMesh, account: &str) -> (String, String) {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let keys = serde_json::json!({"keys": [{"kty": "EC", "crv": "P-256", "x": encoded(x), "y": encoded(y)}]});
    let file = mesh.folder().join("keys.json");
    std::fs::write(&file, keys.to_string()).unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let claims = serde_json::json!({
        "iss": "https://issuer.example", "sub": format!("system:serviceaccount:app:{account}"),
        "aud": "istio-ca", "exp": now.as_secs() + 3600,
    });
    let signed = format!(
        "{}.{}",
        encoded(br#"{"alg":"ES256"}"#),
        encoded(claims.to_string().as_bytes())
    );
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    let token = format!("{signed}.{}", encoded(signature.as_ref()));
    (token, format!("https://issuer.example={}", file.display()))
}

fn run(namespace: &NetNs, program: &str, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    let status = namespace.spawn(command).unwrap().wait().unwrap();
    assert!(status.success(), "{program} {arguments}: {status}");
}

/// The rules that an agent would have put in place. They catch what goes to the control plane, too: only the mark of the
/// proxy's own connections tells them from the machine's.
fn capture_by_hand(machine: &Pod, folder: &std::path::Path) {
    let rules = folder.join("machine.nft");
    std::fs::write(&rules, nft::render(&capture(&Variant::default()))).unwrap();
    run(
        machine.namespace(),
        "/usr/sbin/nft",
        &format!("-f {}", rules.display()),
    );
    for arguments in [
        "route replace local 0.0.0.0/0 dev lo table 100",
        "rule add fwmark 0x111/0xfff pref 32764 lookup 100",
    ] {
        run(machine.namespace(), "/usr/sbin/ip", arguments);
    }
}

/// A proxy for a machine alone, under the machine's own token: all it knows and has comes from the control plane.
fn proxy_of_a_machine(mesh: &TestMesh, machine: &Pod, token: &str, variables: &[(&str, &str)]) -> Process {
    let token_file = mesh.folder().join("machine.token");
    std::fs::write(&token_file, token).unwrap();
    let folders = mesh.mesh.folders().clone();
    let own_run = mesh.folder().join("machine-run");
    std::fs::create_dir(&own_run).unwrap();
    let control = format!("https://{}:15012", mesh.world.node(CONTROL).unwrap().ipv4());
    let mut command = folders.command("machine", &["ztunnel"]).unwrap();
    command
        .env("PROXY_MODE", "dedicated")
        .env("PROXY_WORKLOAD_INFO", "app/machine/machine")
        .env("PACKET_MARK", "1337")
        .env("XDS_ADDRESS", &control)
        .env("CA_ADDRESS", &control)
        .env("XDS_ROOT_CA", folders.state.join("ca/root-cert.pem"))
        .env("CA_ROOT_CA", folders.state.join("ca/root-cert.pem"))
        .env("AUTH_TOKEN", &token_file)
        .env("TULLE_RUN_DIR", &own_run)
        .env("RUST_LOG", "info")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped());
    machine.spawn("machine", command).unwrap()
}

/// A running mesh with `db` on n2, and a machine that is a workload of the mesh, on a node that has no agent; with the
/// machine's token.
async fn with_machine() -> (TestMesh, Pod, Pod, String) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let db = mesh.pod("n2", "db").await;
    let machine = mesh.stranger("n1", "machine").await;
    mesh.apply(
        "machine",
        &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: machine\n  namespace: app\n  \
             annotations:\n    tulle.dev/node: m1\nspec:\n  address: {}\n  serviceAccount: machine\n  \
             labels: {{app: machine}}\n",
            machine.ipv4()
        ),
    );
    let (token, issuer) = service_account_token(&mesh, "machine");
    mesh.mesh.set_control_arguments(&["--jwt-issuer", &issuer]);
    mesh.start().await;
    mesh.captured(&[&db]).await;
    (mesh, db, machine, token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_traffic_nothing_captures_reaches_the_mesh_by_asking_its_proxy() {
    let (mesh, db, machine, token) = with_machine().await;
    let vip: IpAddr = "10.96.0.50".parse().unwrap();
    mesh.apply("db-service", &manifest::service("db", &[vip], &[(80, 8080)]));
    // The machine's proxy is told of it with all else, before it answers anybody.
    mesh.known("n2", "services", "db", "/name", json!("db")).await;
    let _proxy = proxy_of_a_machine(&mesh, &machine, &token, &[("UNSTABLE_ENABLE_SOCKS5", "true")]);
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, 15080));
    let listens = eventually(async || connect(machine.namespace(), proxy).await.is_ok()).await;
    assert!(listens, "{}", mesh.logs());
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    for request in asking_for(b"db.app.svc.cluster.local", echo.address()) {
        let mut stream = ask_proxy(machine.namespace(), &request).await;
        let exchanged = exchange(&mut stream).await;
        assert!(exchanged.is_ok(), "{exchanged:?}\n{}", mesh.logs());
    }
    let proven = "source_principal=\"spiffe://cluster.local/ns/app/sa/machine\"";
    assert_eq!(
        mesh.metric("n2", &[TUNNELLED[0], TUNNELLED[1], proven]).await,
        2.0
    );
    let seen: Vec<_> = echo.peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(seen, [IpAddr::V4(machine.ipv4()); 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_an_agent_takes_part_by_a_proxy_and_a_token_of_its_own() {
    let (mesh, db, machine, token) = with_machine().await;
    capture_by_hand(&machine, mesh.folder());
    let _proxy = proxy_of_a_machine(&mesh, &machine, &token, &[]);
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let reached = eventually(async || gets_through(machine.namespace(), echo.address()).await).await;
    assert!(reached, "{}", mesh.logs());
    let proven = "source_principal=\"spiffe://cluster.local/ns/app/sa/machine\"";
    let tunnelled = async || mesh.metric("n2", &[TUNNELLED[0], TUNNELLED[1], proven]).await >= 1.0;
    assert!(
        eventually(tunnelled).await,
        "by tunnel, under its own identity\n{}",
        mesh.logs()
    );

    let own = Echo::start(machine.namespace(), machine.ipv4(), 8080).await;
    let reached = eventually(async || gets_through(db.namespace(), own.address()).await).await;
    assert!(
        reached,
        "{}\n{}",
        mesh.log(&Component::Ztunnel("n2".into())),
        mesh.logs()
    );
    assert_eq!(own.peers().last().unwrap().ip(), IpAddr::V4(db.ipv4()));
    let to_it = "destination_principal=\"spiffe://cluster.local/ns/app/sa/machine\"";
    let tunnelled = async || {
        mesh.metric("n2", &[TUNNELLED[0], "reporter=\"source\"", to_it])
            .await
            >= 1.0
    };
    assert!(
        eventually(tunnelled).await,
        "by tunnel in the other direction, too"
    );

    // What it may not be asked for it hears from the control plane, and from nobody's file.
    mesh.apply(
        "deny",
        &manifest::policy("no-db", "machine", "DENY", &manifest::from_account("db")),
    );
    let refused = eventually(async || !gets_through(db.namespace(), own.address()).await).await;
    assert!(refused, "{}", mesh.logs());
    // What was open when the policy came ended otherwise.
    let counted = eventually(async || {
        let passed = gets_through(db.namespace(), own.address()).await;
        !passed && mesh.metric("n2", &["tulle_refused_total", "T0412"]).await >= 1.0
    });
    assert!(counted.await, "by its policy\n{}", mesh.logs());
}
