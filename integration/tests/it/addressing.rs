//! Which service an address or a name means: ranges, services without an address, and who may see what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use tulle_integration::TestMesh;
use tulle_integration::hbone::{certificate, identity, open};
use tulle_integration::manifest::{self, NAMESPACE, service_entry};
use tulle_integration::mesh::eventually;
use tulle_integration::names::{OUTSIDE, ask_all, ask_v6, resolve_by, serve};
use tulle_integration::traffic::{Echo, assert_echo, gets_through, shares};
use tulle_model::Identity;
use tulle_world::{Component, Pod};

/// Another enrolled namespace.
const SHOP: &str = "shop";

/// The address of the waypoint of something, in what a node proxy knows.
const AT_ADDRESS: &str = "/waypoint/destination/address/address";

/// Nobody lives here, so that only capture can answer.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 80)
}

/// A world with a caller on n1 in [`NAMESPACE`], in [`SHOP`] and in a third namespace, and servers on n2 of these
/// namespaces and names.
async fn three_namespaces(servers: &[(&str, &str)]) -> (TestMesh, [Pod; 3], Vec<Pod>) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    for name in [SHOP, "third"] {
        mesh.apply(name, &manifest::namespace(name, true));
    }
    let callers = [
        mesh.pod("n1", "web").await,
        mesh.pod_in(SHOP, "n1", "buyer", "buyer").await,
        mesh.pod_in("third", "n1", "other", "other").await,
    ];
    let mut pods = Vec::new();
    for (namespace, name) in servers {
        pods.push(mesh.pod_in(namespace, "n2", name, name).await);
    }
    (mesh, callers, pods)
}

/// Starts the mesh, and servers at port 8080.
async fn start(mesh: &mut TestMesh, callers: &[Pod], servers: &[Pod]) -> Vec<Echo> {
    mesh.start().await;
    let all: Vec<_> = callers.iter().chain(servers).collect();
    mesh.captured(&all).await;
    let mut echoes = Vec::new();
    for server in servers {
        echoes.push(Echo::start(server.namespace(), server.ipv4(), 8080).await);
    }
    echoes
}

/// The server that answers a call.
async fn answering(mesh: &TestMesh, from: &Pod, address: &str, pods: &[Pod], servers: &[Echo]) -> String {
    if !gets_through(from.namespace(), at(address)).await {
        panic!("{address} from {}\n{}", from.name(), mesh.logs());
    }
    let answered = shares(from.namespace(), at(address), 5, servers).await;
    let index = answered.iter().position(|calls| *calls == 5);
    let index = index.unwrap_or_else(|| panic!("{address} from {}: {answered:?}", from.name()));
    pods[index].name().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_several_ranges_means_the_own_namespaces_and_then_the_smallest() {
    let places = [
        (NAMESPACE, "wide"),
        (NAMESPACE, "narrow"),
        (NAMESPACE, "exact"),
        (SHOP, "own"),
    ];
    let (mut mesh, callers, pods) = three_namespaces(&places).await;
    let entries = [
        service_entry(NAMESPACE, "wide", "240.200.0.0/16", "wide"),
        service_entry(SHOP, "own", "240.200.4.0/22", "own"),
        service_entry(NAMESPACE, "narrow", "240.200.7.0/24", "narrow"),
        service_entry(NAMESPACE, "exact", "240.200.7.9", "exact"),
    ];
    mesh.apply("ranges", &entries.concat());
    let servers = start(&mut mesh, &callers, &pods).await;
    // As callers of `app`, of `shop` and of neither see them.
    let means = [
        ("240.200.3.255", ["wide", "wide", "wide"]),
        ("240.200.4.0", ["wide", "own", "own"]),
        ("240.200.7.1", ["narrow", "own", "narrow"]),
        ("240.200.7.9", ["exact", "exact", "exact"]),
        ("240.200.8.0", ["wide", "wide", "wide"]),
    ];
    for (address, expected) in means {
        for (from, expected) in callers.iter().zip(expected) {
            let answered = answering(&mesh, from, address, &pods, &servers).await;
            assert_eq!(answered, expected, "{address} from {}", from.name());
        }
    }

    // Without the smaller ones the larger ones hold.
    mesh.apply("ranges", &entries[..2].concat());
    let gone = async || {
        let dump = mesh.ask(&Component::Ztunnel("n1".into()), "/config_dump").await;
        let services = dump["services"].as_array().cloned().unwrap_or_default();
        services.len() == 2
    };
    assert!(eventually(gone).await, "{}", mesh.logs());
    for (from, expected) in callers.iter().zip(["wide", "own", "own"]) {
        let answered = answering(&mesh, from, "240.200.7.9", &pods, &servers).await;
        assert_eq!(answered, expected, "from {}", from.name());
    }
}

/// A service without an address of its own.
fn headless(more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: db\n  namespace: {NAMESPACE}\nspec:\n  \
         clusterIP: None\n  selector:\n    app: db\n  ports:\n  - {{name: tcp, port: 8080, targetPort: 8080}}\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_headless_services_name_means_its_healthy_endpoints_and_each_is_reached_by_its_own_address() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let mut pods = Vec::new();
    for (node, name) in [("n1", "db-0"), ("n2", "db-1"), ("n2", "db-2")] {
        pods.push(mesh.pod_in(NAMESPACE, node, name, "db").await);
    }
    let failing = "status:\n  conditions:\n  - {type: Healthy, status: \"False\"}\n";
    mesh.write(&pods[2], manifest::workload(NAMESPACE, &pods[2], "db") + failing);
    mesh.apply("db-service", &headless(""));
    let callers = [web];
    let servers = start(&mut mesh, &callers, &pods).await;
    let web = callers[0].namespace();
    let mut addresses: Vec<_> = pods.iter().map(|pod| IpAddr::V4(pod.ipv4())).collect();
    addresses.sort();

    for name in ["db.app.svc.cluster.local", "db.app.svc", "db"] {
        let mut healthy = [&pods[0], &pods[1]].map(|pod| IpAddr::V4(pod.ipv4()));
        healthy.sort();
        assert_eq!(ask_all(web, RESOLVER, name), healthy, "{name}\n{}", mesh.logs());
    }
    for (index, server) in servers.iter().take(2).enumerate() {
        let answered = shares(web, server.address(), 3, &servers).await;
        assert_eq!(answered[index], 3, "each is the one that was asked for");
    }
    let tunnelled = [
        "istio_tcp_connections_opened_total",
        "reporter=\"destination\"",
        "mutual_tls",
    ];
    for node in ["n1", "n2"] {
        assert_eq!(mesh.metric(node, &tunnelled).await, 3.0, "{node}");
    }

    mesh.apply("db-service", &headless("  publishNotReadyAddresses: true\n"));
    let name = "db.app.svc.cluster.local";
    let published = eventually(async || ask_all(web, RESOLVER, name) == addresses);
    assert!(published.await, "{}", mesh.logs());
    assert_echo(web, servers[2].address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_its_namespace_keeps_to_itself_is_neither_address_nor_name_to_others() {
    let (mut mesh, callers, pods) = three_namespaces(&[(NAMESPACE, "db")]).await;
    let [web, buyer, _] = &callers;
    let outside = mesh.stranger("n2", "outside").await;
    let resolver = mesh.stranger("n2", "nameserver").await;
    serve(&resolver);
    for caller in [web, buyer] {
        resolve_by(&mesh, caller, &resolver);
    }
    // Whoever does not see the service reaches whoever has its address.
    let address = outside.ipv4();
    let private = service_entry(NAMESPACE, "private", &address.to_string(), "db");
    let kept = private.clone() + "  exportTo: [\".\"]\n";
    mesh.apply("private", &kept);
    let servers = start(&mut mesh, &callers, &pods).await;
    let passed_by = Echo::start(outside.namespace(), address, 80).await;
    let name = "private.example.com";

    let called = async |caller: &Pod| {
        assert_echo(caller.namespace(), passed_by.address()).await;
        (servers[0].peers().len(), passed_by.peers().len())
    };
    assert_eq!(called(web).await, (1, 0));
    assert_eq!(ask_all(web.namespace(), RESOLVER, name), [IpAddr::V4(address)]);
    assert_eq!(called(buyer).await, (1, 1));
    assert_eq!(ask_all(buyer.namespace(), RESOLVER, name), [IpAddr::V4(OUTSIDE)]);

    let seen_as = async |visibility: &str, entry: &str| {
        mesh.apply("private", entry);
        mesh.known("n1", "services", "private", "/visibility", json!(visibility))
            .await;
    };
    seen_as("PUBLIC", &private).await;
    assert_eq!(called(buyer).await, (2, 1), "seen by all");
    assert_eq!(ask_all(buyer.namespace(), RESOLVER, name), [IpAddr::V4(address)]);
    seen_as("NAMESPACE", &kept).await;
    assert_eq!(called(buyer).await, (2, 2), "withdrawn");
}

/// Calls the address of `listed` and asks for its name: whoever sees it reaches its endpoint, through a waypoint if there is
/// one, and others reach who has the address, and are told what their own resolver says.
async fn seen_by(
    mesh: &TestMesh,
    callers: &[Pod],
    [endpoint, passed_by]: [&Echo; 2],
    expected: [bool; 3],
    waypoint: Option<&Pod>,
) {
    for (caller, sees) in callers.iter().zip(expected) {
        let (from, name) = (caller.namespace(), caller.name());
        let (reached, other) = if sees {
            (endpoint, passed_by)
        } else {
            (passed_by, endpoint)
        };
        let before = [reached, other].map(|echo| echo.peers().len());
        assert_echo(from, passed_by.address()).await;
        let source = IpAddr::V4(waypoint.filter(|_| sees).unwrap_or(caller).ipv4());
        let calls: Vec<_> = reached.peers()[before[0]..].iter().map(SocketAddr::ip).collect();
        assert_eq!(calls, [source], "{name}\n{}", mesh.logs());
        assert_eq!(other.peers().len(), before[1], "{name}");
        let told = if sees {
            passed_by.address().ip()
        } else {
            IpAddr::V4(OUTSIDE)
        };
        assert_eq!(ask_all(from, RESOLVER, "listed.example.com"), [told], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_address_and_name_to_the_namespaces_it_lists_and_to_nobody_else() {
    let (mut mesh, callers, pods) = three_namespaces(&[(NAMESPACE, "db")]).await;
    let outside = mesh.stranger("n2", "outside").await;
    let resolver = mesh.stranger("n2", "nameserver").await;
    serve(&resolver);
    for caller in &callers {
        resolve_by(&mesh, caller, &resolver);
    }
    let address = outside.ipv4();
    let exported = |to: &str| {
        let entry = service_entry(NAMESPACE, "listed", &address.to_string(), "db");
        entry + &format!("  exportTo: [{to}]\n")
    };
    let own_and_shop = exported("\".\", shop");
    mesh.apply("listed", &own_and_shop);
    let servers = start(&mut mesh, &callers, &pods).await;
    let passed_by = Echo::start(outside.namespace(), address, 80).await;

    // As callers of `app`, of `shop` and of a third namespace see it.
    let echoes = [&servers[0], &passed_by];
    seen_by(&mesh, &callers, echoes, [true, true, false], None).await;
    mesh.apply("listed", &exported("third"));
    let listed = json!({"NAMESPACES": ["third"]});
    mesh.known("n1", "services", "listed", "/visibility", listed)
        .await;
    // Its own namespace is not among them.
    seen_by(&mesh, &callers, echoes, [false, false, true], None).await;

    let label = "  labels:\n    istio.io/use-waypoint: way\n";
    mesh.apply("listed", &manifest::with_metadata(&own_and_shop, "listed", label));
    let way = mesh.start_waypoint("n2", NAMESPACE, "way").await;
    mesh.known("n1", "services", "listed", AT_ADDRESS, json!(way.ipv4()))
        .await;
    seen_by(&mesh, &callers, echoes, [true, true, false], Some(&way)).await;
    // Nor does the waypoint itself let anybody else in, whatever the node proxy of the caller believes.
    let node = mesh.world.node("n1").unwrap().namespace();
    let (at, asked) = (SocketAddr::from((way.ipv4(), 15008)), format!("{address}:80"));
    for (account, expected) in [
        (Identity::new("cluster.local", SHOP, "buyer"), (200, None)),
        (
            Identity::new("cluster.local", "third", "other"),
            (401, Some("T0424".to_owned())),
        ),
    ] {
        let own = certificate(&mesh, "n1", &account).unwrap();
        let answered = open(node, &own, &identity("way"), at, &asked).await;
        assert_eq!(answered.unwrap(), expected, "{account}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_services_that_share_a_name_each_namespace_means_its_own_and_others_the_oldest() {
    let places = [(NAMESPACE, "new"), (SHOP, "old")];
    let (mut mesh, callers, pods) = three_namespaces(&places).await;
    // Both are called cache.example.com.
    let entry = |namespace: &str, address: &str, app: &str, year: u16| {
        let created = format!("  creationTimestamp: {year}-01-01T00:00:00Z\n");
        manifest::with_metadata(
            &service_entry(namespace, "cache", address, app),
            "cache",
            &created,
        )
    };
    let entries = [
        entry(NAMESPACE, "240.1.0.1", "new", 2026),
        entry(SHOP, "240.1.0.2", "old", 2025),
    ];
    mesh.apply("caches", &entries.concat());
    let servers = start(&mut mesh, &callers, &pods).await;
    for (caller, address, server) in [
        (&callers[0], "240.1.0.1", "new"),
        (&callers[1], "240.1.0.2", "old"),
        (&callers[2], "240.1.0.2", "old"),
    ] {
        let told = ask_all(caller.namespace(), RESOLVER, "cache.example.com");
        assert_eq!(told, [address.parse::<IpAddr>().unwrap()], "{}", caller.name());
        let answered = answering(&mesh, caller, address, &pods, &servers).await;
        assert_eq!(answered, server, "{}", caller.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_has_the_families_of_its_service_and_a_wildcard_means_all_below_it() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let resolver = mesh.stranger("n2", "nameserver").await;
    serve(&resolver);
    resolve_by(&mesh, &web, &resolver);
    let both = ["10.96.0.97", "fd00:96::97"].map(|address| address.parse::<IpAddr>().unwrap());
    let only_v4 = manifest::service("narrow", &both, &[(80, 8080)]) + "  ipFamilies: [IPv4]\n";
    let wildcard = service_entry(NAMESPACE, "wild", "240.3.0.1", "db")
        .replace("[wild.example.com]", "[\"*.wild.example.com\"]");
    let exact = service_entry(NAMESPACE, "one", "240.3.0.2", "db")
        .replace("[one.example.com]", "[one.wild.example.com]");
    let dual = manifest::service("dual", &both, &[(80, 8080)]);
    mesh.apply("services", &[dual, only_v4, wildcard, exact].concat());
    mesh.start().await;
    mesh.captured(&[&web]).await;
    let web = web.namespace();

    let [v4, v6] = both;
    for (name, of_v6) in [("dual", vec![v6]), ("narrow", vec![])] {
        let name = format!("{name}.app.svc.cluster.local");
        assert_eq!(ask_all(web, RESOLVER, &name), [v4], "{name}");
        assert_eq!(ask_v6(web, RESOLVER, &name), Some((0, of_v6)), "{name}");
    }
    for (name, address) in [
        ("any.wild.example.com", [240, 3, 0, 1]),
        ("far.below.wild.example.com", [240, 3, 0, 1]),
        ("one.wild.example.com", [240, 3, 0, 2]),
        ("wild.example.com", OUTSIDE.octets()),
    ] {
        assert_eq!(ask_all(web, RESOLVER, name), [IpAddr::from(address)], "{name}");
    }
}
