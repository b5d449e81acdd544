//! Which waypoint is in front of what: two that share a service, one of workloads, and one of another make.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use tulle_integration::TestMesh;
use tulle_integration::manifest::{self, NAMESPACE};
use tulle_integration::programs::{nginx, output_of};
use tulle_integration::traffic::{Echo, assert_echo};
use tulle_world::Pod;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 90);

/// The address of the waypoint of something, in what a node proxy knows.
const AT_ADDRESS: &str = "/waypoint/destination/address/address";

fn service() -> String {
    manifest::service("db", &[IpAddr::V4(ADDRESS)], &[(80, 8080)])
}

/// The service behind two waypoints, the second with this share in percent.
fn shared(percent: u8) -> String {
    let both = format!(
        "  labels:\n    istio.io/use-waypoint: first\n    istio.io/use-waypoint-canary: second\n  \
         annotations:\n    istio.io/use-waypoint-canary-weight: \"{percent}\"\n"
    );
    manifest::with_metadata(&service(), "db", &both)
}

/// By whom the server was called in these calls.
async fn callers(mesh: &TestMesh, web: &Pod, to: SocketAddr, calls: usize, server: &Echo) -> Vec<IpAddr> {
    let before = server.peers().len();
    for _ in 0..calls {
        assert_echo(web.namespace(), to).await;
    }
    let callers: Vec<_> = server.peers()[before..].iter().map(SocketAddr::ip).collect();
    assert_eq!(callers.len(), calls, "{}", mesh.logs());
    callers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_waypoint_takes_its_share_of_a_service_and_nothing_goes_around_both() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    mesh.apply("service", &shared(0));
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let server = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let first = mesh.start_waypoint("n2", NAMESPACE, "first").await;
    let second = mesh.start_waypoint("n2", NAMESPACE, "second").await;

    let to = SocketAddr::from((ADDRESS, 80));
    for (percent, of_second) in [(0, 0..=0), (25, 3..=60), (100, 100..=100)] {
        mesh.apply("service", &shared(percent));
        mesh.known(
            "n1",
            "services",
            "db",
            "/weightedWaypoints/1/weight",
            json!(percent),
        )
        .await;
        let callers = callers(&mesh, &web, to, 100, &server).await;
        let by = |waypoint: &Pod| {
            callers
                .iter()
                .filter(|caller| **caller == waypoint.ipv4())
                .count()
        };
        assert_eq!(by(&first) + by(&second), 100, "every call by one of the two");
        // A quarter of 100 is out of this range once in 5,000,000,000 times.
        assert!(of_second.contains(&by(&second)), "{percent} %: {}", by(&second));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_of_workloads_is_in_front_of_their_addresses_and_not_of_their_services() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let bound = manifest::workload(NAMESPACE, &db, "db");
    let uses = "  labels:\n    istio.io/use-waypoint: way\n";
    mesh.write(&db, manifest::with_metadata(&bound, "db", uses));
    let gateway = manifest::gateway(NAMESPACE, "way");
    let of_workloads = "  labels:\n    istio.io/waypoint-for: workload\n";
    mesh.apply(
        "gateway-way",
        &manifest::with_metadata(&gateway, "way", of_workloads),
    );
    mesh.apply("service", &service());
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let server = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let way = mesh.start_instance("n2", NAMESPACE, "way").await;
    mesh.known("n1", "workloads", "db", AT_ADDRESS, json!(way.ipv4()))
        .await;

    let by_address = callers(&mesh, &web, server.address(), 5, &server).await;
    assert_eq!(by_address, [IpAddr::V4(way.ipv4()); 5]);
    let by_service = callers(&mesh, &web, SocketAddr::from((ADDRESS, 80)), 5, &server).await;
    assert_eq!(by_service, [IpAddr::V4(web.ipv4()); 5]);
}

/// A waypoint that takes traffic behind the PROXY protocol, and its instance: an ordinary pod of an enrolled namespace.
fn of_another_make(pod: &Pod) -> String {
    let binding = "  annotations:\n    ambient.istio.io/waypoint-inbound-binding: PROXY/15088\n";
    let gateway = manifest::with_metadata(&manifest::gateway(NAMESPACE, "other"), "other", binding)
        .replace("port: 15008, protocol: HBONE", "port: 15088, protocol: PROXY");
    let labels = "  labels:\n    gateway.networking.k8s.io/gateway-name: other\n    \
                  gateway.istio.io/managed: other.example\n";
    let instance = manifest::workload(NAMESPACE, pod, "other");
    gateway + &manifest::with_metadata(&instance, pod.name(), labels)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waypoint_of_another_make_is_told_of_the_client_and_the_service_by_the_proxy_protocol() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let other = mesh.stranger("n2", "other-1").await;
    mesh.apply("other", &of_another_make(&other));
    let uses = "  labels:\n    istio.io/use-waypoint: other\n";
    mesh.apply("service", &manifest::with_metadata(&service(), "db", uses));
    mesh.start().await;
    mesh.captured(&[&web, &db, &other]).await;
    let server = "listen 15088 proxy_protocol; location / { return 200 \
                  \"$proxy_protocol_addr asks $proxy_protocol_server_addr:$proxy_protocol_server_port by $remote_addr\"; }";
    let _nginx = nginx(&other, &mesh.folder().join("nginx"), 15088, server).await;
    mesh.known("n1", "services", "db", AT_ADDRESS, json!(other.ipv4()))
        .await;

    let url = format!("http://{ADDRESS}/");
    let said = output_of(
        &web,
        "curl",
        &["--silent", "--show-error", "--max-time", "10", &url],
    );
    assert_eq!(
        said,
        format!("{} asks {ADDRESS}:80 by 127.0.0.1", web.ipv4()),
        "{}",
        mesh.logs()
    );
}
