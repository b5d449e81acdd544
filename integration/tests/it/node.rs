//! What a node's own tables keep: probes reach captured pods, nobody forges them, and pods that should be captured and
//! are not yet stay mute.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tulle_integration::mesh::eventually;
use tulle_integration::traffic::{Echo, assert_echo, gets_through, spawn};
use tulle_integration::{TestMesh, manifest};
use tulle_linux::NetNs;
use tulle_world::Component;

/// The source of probes.
const PROBE: &str = "169.254.7.127";

fn node(mesh: &TestMesh, name: &str) -> NetNs {
    mesh.world.node(name).unwrap().namespace().clone()
}

/// What a program prints in a namespace.
fn run(namespace: &NetNs, mut command: Command) -> String {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = namespace.spawn(command).unwrap().wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &error
}

fn nft(namespace: &NetNs, arguments: &str) -> String {
    let mut command = Command::new("nft");
    command
        .args(arguments.split(' '))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    run(namespace, command)
}

/// Packets that a rule with this text has counted.
pub(crate) fn counted(namespace: &NetNs, table: &str, rule: &str) -> u64 {
    let listing = nft(namespace, &format!("list table inet {table}"));
    let rules = listing.lines().filter(|line| line.contains(rule));
    let packets = rules.filter_map(|line| {
        line.split("packets ")
            .nth(1)?
            .split(' ')
            .next()?
            .parse::<u64>()
            .ok()
    });
    packets.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_of_the_node_pass_under_strict_mutual_tls_and_nobody_forges_them() {
    let (mesh, web, db) = TestMesh::pair().await;
    mesh.apply("strict", &manifest::strict());
    let stranger = node(&mesh, "n1");
    let v4 = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let v6 = Echo::start(db.namespace(), db.ipv6(), 8080).await;
    let refused = eventually(async || !gets_through(&stranger, v4.address()).await).await;
    assert!(refused, "another node is a plain caller\n{}", mesh.logs());

    let kubelet = node(&mesh, "n2");
    for echo in [&v4, &v6] {
        assert_echo(&kubelet, echo.address()).await;
    }
    assert_eq!(v4.peers().last().unwrap().ip(), PROBE.parse::<IpAddr>().unwrap());
    assert_echo(web.namespace(), v4.address()).await;

    // A pod that gives itself the probes' address gets no packet past its node.
    let forger = db.namespace().clone();
    let mut address = Command::new("/usr/sbin/ip");
    address.args(["addr", "add", &format!("{PROBE}/32"), "dev", "lo"]);
    run(&forger, address);
    let before = counted(&kubelet, "tulle-host", &format!("ip saddr {PROBE}"));
    let target = SocketAddr::new(web.ipv4().into(), 9);
    forger
        .run(move || {
            let socket = std::net::UdpSocket::bind((PROBE, 0)).unwrap();
            socket.send_to(b"forged", target).unwrap();
        })
        .unwrap();
    let dropped =
        eventually(async || counted(&kubelet, "tulle-host", &format!("ip saddr {PROBE}")) > before).await;
    assert!(dropped, "{}", nft(&kubelet, "list table inet tulle-host"));

    // A table that something removed comes back with all of its elements, when the agent looks again.
    let held = nft(&kubelet, "list set inet tulle-host probe4");
    assert!(held.contains(&db.ipv4().to_string()), "{held}");
}

/// Loads the guard as the unit does that runs before the container runtime, with ranges that an earlier run saved.
pub(crate) fn guard_after_a_boot(mesh: &TestMesh, host: &NetNs) {
    const RANGES: &str = r#"["10.11.1.0/24","fd00:11:0:1::/64"]"#;
    let state = mesh.mesh.folders().agent_state("n1");
    std::fs::create_dir_all(&state).unwrap();
    let saved = format!(r#"{{"bootId":"before","ranges":{RANGES}}}"#);
    std::fs::write(state.join("guard.json"), saved).unwrap();
    let mut guard = Command::new(&mesh.mesh.folders().binary);
    guard
        .args(["agent", "guard", "--boot", "--state-dir"])
        .arg(&state);
    let said = run(host, guard);
    assert!(said.contains("2 ranges"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f28_pods_that_run_before_the_agent_send_nothing_past_the_proxy() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let host = node(&mesh, "n1");
    guard_after_a_boot(&mesh, &host);

    // The pods of the node come first, and talk at once.
    let web = mesh.pod("n1", "web").await;
    let plain = mesh.pod_in("outside", "n1", "plain", "plain").await;
    let outside = mesh.stranger("n2", "outside").await;
    let servers = [
        Echo::start(outside.namespace(), outside.ipv4(), 8080).await,
        Echo::start(outside.namespace(), outside.ipv6(), 8080).await,
    ];
    let own = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    let through = Arc::new(AtomicU64::new(0));
    let mut callers = Vec::new();
    for to in [servers[0].address(), servers[1].address()] {
        let (from, through) = (web.namespace().clone(), Arc::clone(&through));
        callers.push(spawn(async move {
            while gets_nowhere(&from, to).await {}
            through.fetch_add(1, Ordering::Relaxed);
        }));
    }
    let dropped = async || counted(&host, "tulle-guard", "drop") >= 4;
    assert!(
        eventually(dropped).await,
        "{}",
        nft(&host, "list table inet tulle-guard")
    );
    assert_eq!(through.load(Ordering::Relaxed), 0, "no caller got through");
    assert!(
        gets_nowhere(outside.namespace(), own.address()).await,
        "nor is the pod reached"
    );
    assert!(servers.iter().all(|server| server.peers().is_empty()));

    // Once it is captured it is served, by the proxy; a pod that is none of ours speaks freely.
    mesh.start().await;
    mesh.captured(&[&web]).await;
    mesh.left(&[&plain]).await;
    assert_echo(web.namespace(), servers[0].address()).await;
    assert_echo(plain.namespace(), servers[1].address()).await;
    for caller in callers {
        tokio::time::timeout(Duration::from_secs(20), caller)
            .await
            .expect("every caller gets through in the end")
            .unwrap();
    }
    let opened = [
        "istio_tcp_connections_opened_total",
        "reporter=\"source\"",
        "source_workload=\"web\"",
    ];
    let seen: usize = servers.iter().map(|server| server.peers().len()).sum();
    let counted_by_proxy = mesh.metric("n1", &opened).await;
    assert!(
        counted_by_proxy >= (seen - 1) as f64,
        "{seen} callers, {counted_by_proxy} of them by the proxy"
    );
    let waits =
        eventually(async || !nft(&host, "list set inet tulle-guard wait4").contains("elements")).await;
    assert!(
        waits,
        "nothing waits any more: {}",
        nft(&host, "list table inet tulle-guard")
    );
}

/// A connection is not made in a short time.
pub(crate) async fn gets_nowhere(from: &NetNs, to: SocketAddr) -> bool {
    const SHORT: Duration = Duration::from_millis(300);
    let dial = move || std::net::TcpStream::connect_timeout(&to, SHORT).is_err();
    from.run_async(dial).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_without_proxy_and_agent_nothing_passes_by() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let outside = mesh.stranger("n2", "outside").await;
    let far = Echo::start(outside.namespace(), outside.ipv4(), 8080).await;
    let own = Echo::start(web.namespace(), web.ipv4(), 8080).await;
    assert_echo(web.namespace(), far.address()).await;
    let before = (far.peers().len(), own.peers().len());
    mesh.mesh.kill(&Component::Agent("n1".into())).unwrap();
    mesh.mesh.kill(&Component::Ztunnel("n1".into())).unwrap();
    for _ in 0..20 {
        assert!(
            !gets_through(web.namespace(), far.address()).await,
            "refused, not passed by"
        );
        assert!(gets_nowhere(outside.namespace(), own.address()).await || own.peers().len() == before.1);
    }
    assert_eq!((far.peers().len(), own.peers().len()), before);
    mesh.mesh.start_agent(&mesh.world, "n1").unwrap();
    mesh.mesh.start_ztunnel(&mesh.world, "n1").unwrap();
    mesh.mesh
        .wait_ready(&Component::Agent("n1".into()))
        .await
        .unwrap();
    mesh.captured(&[&web, &db]).await;
    assert_echo(web.namespace(), far.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_capture_works_under_strict_reverse_paths() {
    let (_mesh, web, db) = TestMesh::pair().await;
    for pod in [&web, &db] {
        for interface in ["all", "lo"] {
            let mut command = Command::new("/usr/sbin/sysctl");
            command.args(["-w", &format!("net.ipv4.conf.{interface}.rp_filter=1")]);
            run(pod.namespace(), command);
        }
    }
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    assert_eq!(echo.peers()[0].ip(), IpAddr::V4(web.ipv4()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_of_a_workload_choose_how_it_is_captured() {
    let mut mesh = TestMesh::new(&["n1"]).await;
    let web = mesh
        .annotated_pod(
            "n1",
            "web",
            &[("ambient.istio.io/bypass-inbound-capture", "true")],
        )
        .await;
    let db = mesh
        .annotated_pod("n1", "db", &[("ambient.istio.io/dns-capture", "false")])
        .await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let rules = |pod: &tulle_world::Pod| nft(pod.namespace(), "list table inet tulle");
    assert!(!rules(&web).contains("redirect to :15006") && rules(&web).contains("redirect to :15053"));
    assert!(rules(&db).contains("redirect to :15006") && !rules(&db).contains(":15053"));
    // A changed annotation changes the rules, and nothing else.
    mesh.annotate(&db, &[]);
    let changed = eventually(async || rules(&db).contains("redirect to :15053")).await;
    assert!(changed, "{}\n{}", rules(&db), mesh.logs());
}

/// A connection of an application that gives its packets this mark, as CAP_NET_RAW lets it.
async fn dial_marked(from: &NetNs, to: SocketAddr, mark: u32) -> std::net::TcpStream {
    let dial = move || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_mark(mark)?;
        socket.connect(&to.into())?;
        std::io::Result::Ok(socket.into())
    };
    from.run_async(dial).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_secret_mark_the_proxy_works_and_the_well_known_one_opens_no_way_past_it() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.mesh.set_agent_arguments(&["--mark-guard", "random"]);
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let outside = mesh.stranger("n2", "outside").await;
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let plain = Echo::start(outside.namespace(), outside.ipv6(), 8080).await;
    let by_proxy = ["istio_tcp_connections_opened_total", "reporter=\"source\""];
    assert_echo(web.namespace(), echo.address()).await;
    assert_echo(web.namespace(), plain.address()).await;
    assert_echo(outside.namespace(), echo.address()).await;
    assert_eq!(mesh.metric("n1", &by_proxy).await, 2.0, "{}", mesh.logs());

    const WELL_KNOWN: u32 = 0x539;
    let forged = dial_marked(web.namespace(), plain.address(), WELL_KNOWN).await;
    let captured = async || mesh.metric("n1", &by_proxy).await >= 3.0;
    assert!(
        eventually(captured).await,
        "the forged mark escapes\n{}",
        mesh.logs()
    );
    drop(forged);

    // The listeners carry the mark; a proxy that comes later takes it over from them.
    mesh.mesh.kill(&Component::Ztunnel("n1".into())).unwrap();
    mesh.mesh.start_ztunnel(&mesh.world, "n1").unwrap();
    mesh.mesh
        .wait_ready(&Component::Ztunnel("n1".into()))
        .await
        .unwrap();
    assert_echo(web.namespace(), echo.address()).await;
    assert_echo(web.namespace(), plain.address()).await;
}
