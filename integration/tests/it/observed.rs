//! What an operator sees of a node from outside: the lines of connections, its series, whether it is ready.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tulle_integration::mesh::eventually;
use tulle_integration::programs::{output_of, run};
use tulle_integration::traffic::{Echo, assert_echo, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::Component;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 95);

/// The lines that a node wrote about connections that ended.
fn lines(mesh: &TestMesh, node: &str) -> Vec<Value> {
    let log = mesh.log(&Component::Ztunnel(node.to_owned()));
    let all = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|line| line["target"] == "access" && line["message"] == "connection complete")
        .collect()
}

/// Waits for the first line of a node for which something holds, and compares some of its fields.
async fn assert_line(mesh: &TestMesh, node: &str, which: impl Fn(&Value) -> bool, expected: &Value) {
    let mut found = None;
    let written = eventually(async || {
        found = lines(mesh, node).into_iter().find(&which);
        found.is_some()
    });
    assert!(written.await, "no such line at {node}\n{}", mesh.logs());
    let found = found.unwrap();
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&found[field], value, "{field} of {found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_end_of_a_connection_and_of_its_refusal_is_a_line_at_its_node() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    mesh.environment("LOG_FORMAT", "json");
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let service = manifest::service("db", &[IpAddr::V4(ADDRESS)], &[(80, 8080)]);
    mesh.apply("db-service", &service);
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    let to = SocketAddr::from((ADDRESS, 80));
    assert_echo(web.namespace(), to).await;
    let of_both = json!({
        "level": "INFO",
        "src.workload": "web",
        "src.namespace": "app",
        "src.identity": "spiffe://cluster.local/ns/app/sa/web",
        "dst.hbone_addr": echo.address().to_string(),
        "dst.service": "db.app.svc.cluster.local",
        "dst.workload": "db",
        "dst.namespace": "app",
        "dst.identity": "spiffe://cluster.local/ns/app/sa/db",
        "bytes_sent": 14,
        "bytes_recv": 14,
        "error": null,
    });
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        assert_line(&mesh, node, |line| line["direction"] == direction, &of_both).await;
    }

    let deny = manifest::policy("no-web", "db", "DENY", &manifest::from_account("web"));
    mesh.apply("deny", &deny);
    let refused = eventually(async || !gets_through(web.namespace(), to).await);
    assert!(refused.await, "{}", mesh.logs());
    // That one may have been let in and ended when the policy came, which is another reason.
    assert!(!gets_through(web.namespace(), to).await);
    let of_refusal = json!({
        "level": "ERROR",
        "src.workload": "web",
        "dst.workload": "db",
        "policy": "app/no-web",
    });
    for node in ["n1", "n2"] {
        let denied = |line: &Value| line["reason"] == "T0412 policy_denied";
        assert_line(&mesh, node, denied, &of_refusal).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scraper_and_a_probe_reach_the_series_and_the_readiness_of_a_node_and_nothing_else() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let scraper = mesh.stranger("n2", "scraper").await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(web.namespace(), echo.address()).await;
    let node = mesh.world.node("n1").unwrap().ipv4();
    let get = |page: &str| {
        let url = format!("http://{node}:{page}");
        output_of(&scraper, "curl", &["--silent", "--fail", "--max-time", "5", &url])
    };
    for page in ["15020/metrics", "15020/stats/prometheus"] {
        let series = get(page);
        let opened = series
            .lines()
            .find(|line| line.starts_with("istio_tcp_connections_opened_total{"));
        let opened = opened.unwrap_or_else(|| panic!("{series}"));
        assert!(
            opened.contains("source_workload=\"web\"") && opened.contains("destination_workload=\"db\""),
            "{opened}"
        );
    }
    assert_eq!(get("15021/healthz/ready").trim(), "ready");
    let admin = format!("http://{node}:15000/config_dump");
    let (reached, said) = run(&scraper, "curl", &["--silent", "--max-time", "5", &admin]);
    assert!(!reached, "only the node itself asks for what it knows: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scraper_in_the_mesh_reads_a_nodes_series_through_a_tunnel_that_leads_nowhere_else() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    for (name, value) in [
        ("POD_NAME", "proxy-2"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
    ] {
        mesh.mesh.set_node_environment("n2", name, value);
    }
    let scraper = mesh.pod("n1", "scraper").await;
    let node = mesh.world.node("n2").unwrap().ipv4();
    let proxy = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: proxy-2\n  \
         namespace: istio-system\n  annotations:\n    tulle.dev/node: n2\nspec:\n  address: {node}\n  \
         serviceAccount: ztunnel\n  labels:\n    networking.istio.io/tunnel: http\n"
    );
    mesh.apply("proxy", &proxy);
    mesh.start().await;
    mesh.captured(&[&scraper]).await;
    mesh.known("n1", "workloads", "proxy-2", "/tunnelProtocol", json!("HBONE"))
        .await;

    let get = |page: &str| {
        let url = format!("http://{node}:{page}");
        run(&scraper, "curl", &["--silent", "--fail", "--max-time", "5", &url])
    };
    let (read, series) = get("15020/metrics");
    assert!(
        read && series.contains("istio_build{"),
        "{series}\n{}",
        mesh.logs()
    );
    let proven = "destination_principal=\"spiffe://cluster.local/ns/istio-system/sa/ztunnel\"";
    let opened = [
        "istio_tcp_connections_opened_total",
        "reporter=\"source\"",
        proven,
    ];
    assert_eq!(mesh.metric("n1", &opened).await, 1.0, "{}", mesh.logs());
    let (read, said) = get("15021/healthz/ready");
    assert!(!read, "{said}");
    let wrong = async || mesh.metric("n1", &["tulle_refused_total", "T0418"]).await >= 1.0;
    assert!(eventually(wrong).await, "{}", mesh.logs());
}
