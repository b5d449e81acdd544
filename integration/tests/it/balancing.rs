//! Which endpoint of a service answers: by capacity, by how near it is, by health. Each server counts its callers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use tulle_integration::TestMesh;
use tulle_integration::manifest::{self, NAMESPACE};
use tulle_integration::traffic::{Echo, gets_through, shares, spawn};
use tulle_world::Pod;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

/// The same endpoints under another service.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 81);

/// What a health check writes.
const UNHEALTHY: &str = "status:\n  conditions:\n  - {type: Healthy, status: \"False\"}\n";

/// A running mesh with a caller on n1.
struct Balanced {
    mesh: TestMesh,
    web: Pod,
    pods: Vec<Pod>,
    servers: Vec<Echo>,
}

impl Balanced {
    /// An endpoint `db-0`, `db-1`… on each of these nodes; n1 and n2 are in zone a, n3 is in b.
    async fn start(nodes: &[&str]) -> Self {
        let mut mesh = TestMesh::new(&["n1", "n2", "n3"]).await;
        let web = mesh.pod("n1", "web").await;
        let mut pods = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            pods.push(mesh.pod_in(NAMESPACE, node, &format!("db-{index}"), "db").await);
        }
        let zones = [("n1", "a"), ("n2", "a"), ("n3", "b")].map(|(node, zone)| manifest::node(node, zone));
        mesh.apply("nodes", &zones.concat());
        mesh.apply("service", &service(""));
        mesh.start().await;
        let all: Vec<_> = pods.iter().chain([&web]).collect();
        mesh.captured(&all).await;
        let mut servers = Vec::new();
        for pod in &pods {
            servers.push(Echo::start(pod.namespace(), pod.ipv4(), 8080).await);
        }
        Self {
            mesh,
            web,
            pods,
            servers,
        }
    }

    /// Writes what else the specification of the service says, and waits until the caller's proxy has this mode.
    async fn set_service(&self, more: &str, mode: &str) {
        self.mesh.apply("service", &service(more));
        self.mesh
            .known("n1", "services", "db", "/loadBalancing/mode", json!(mode))
            .await;
    }

    /// Writes what else the manifest of an endpoint says, and waits until the caller's proxy has a value of it.
    async fn set(&mut self, index: usize, more: &str, field: &str, value: serde_json::Value) {
        let pod = &self.pods[index];
        self.mesh
            .write(pod, manifest::workload(NAMESPACE, pod, "db") + more);
        self.mesh.known("n1", "workloads", pod.name(), field, value).await;
    }

    async fn set_capacity(&mut self, index: usize, weight: u32) {
        let more = format!("  weight: {weight}\n");
        self.set(index, &more, "/capacity", json!(weight)).await;
    }

    async fn fails(&mut self, index: usize) {
        self.set(index, UNHEALTHY, "/status", json!("UNHEALTHY")).await;
    }

    async fn recovers(&mut self, index: usize) {
        self.set(index, "", "/status", json!("HEALTHY")).await;
    }

    /// How many of 100 calls each endpoint answers.
    async fn shares(&self) -> Vec<usize> {
        shares(self.web.namespace(), at(ADDRESS), 100, &self.servers).await
    }

    /// Nobody answers, for want of an endpoint that may.
    async fn assert_refused(&self) {
        let refusals = async || {
            self.mesh
                .metric("n1", &["tulle_denied_total", "T0506", "outbound"])
                .await
        };
        let before = refusals().await;
        assert!(!gets_through(self.web.namespace(), at(ADDRESS)).await);
        assert_eq!(refusals().await, before + 1.0, "{}", self.mesh.logs());
    }
}

fn at(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, 80))
}

fn service(more: &str) -> String {
    manifest::service("db", &[IpAddr::V4(ADDRESS)], &[(80, 8080)]) + more
}

/// One of two that share 100 calls evenly answers fewer, or more, once in 2,000,000,000,000 times.
fn is_half(share: usize) -> bool {
    (16..=84).contains(&share)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_answer_by_their_capacity_and_those_without_never() {
    let mut balanced = Balanced::start(&["n1", "n2", "n2"]).await;
    balanced.set_capacity(1, 9).await;
    balanced.set_capacity(2, 0).await;
    let shares = balanced.shares().await;
    // A tenth of 100 is more than 36 as seldom as that.
    assert!(shares[0] <= 36 && shares[1] >= 64 && shares[2] == 0, "{shares:?}");

    balanced.set_capacity(1, 1).await;
    let shares = balanced.shares().await;
    assert!(is_half(shares[0]) && is_half(shares[1]), "{shares:?}");

    balanced.set_capacity(0, 0).await;
    assert_eq!(balanced.shares().await, [0, 100, 0]);
    balanced.set_capacity(1, 0).await;
    balanced.assert_refused().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_endpoints_answer_and_the_next_when_none_of_them_is_healthy() {
    let mut balanced = Balanced::start(&["n1", "n2", "n3"]).await;
    let shares = balanced.shares().await;
    assert!(shares.iter().all(|share| *share >= 5), "near and far: {shares:?}");

    balanced
        .set_service("  trafficDistribution: PreferSameZone\n", "FAILOVER")
        .await;
    let shares = balanced.shares().await;
    assert!(
        is_half(shares[0]) && is_half(shares[1]) && shares[2] == 0,
        "{shares:?}"
    );

    balanced
        .set_service("  trafficDistribution: PreferSameNode\n", "FAILOVER")
        .await;
    let only_here = "/loadBalancing/routingPreference/4";
    balanced
        .mesh
        .known("n1", "services", "db", only_here, json!("NODE"))
        .await;
    assert_eq!(balanced.shares().await, [100, 0, 0], "of the same node");
    balanced.fails(0).await;
    assert_eq!(balanced.shares().await, [0, 100, 0], "of the same zone");
    balanced.fails(1).await;
    assert_eq!(balanced.shares().await, [0, 0, 100], "of another zone");
    balanced.fails(2).await;
    balanced.assert_refused().await;
    balanced.recovers(1).await;
    assert_eq!(balanced.shares().await, [0, 100, 0], "as soon as it is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_stay_on_its_node_is_refused_rather_than_sent_elsewhere() {
    let mut balanced = Balanced::start(&["n1", "n2"]).await;
    balanced
        .set_service("  internalTrafficPolicy: Local\n", "STRICT")
        .await;
    assert_eq!(balanced.shares().await, [100, 0]);
    balanced.fails(0).await;
    balanced.assert_refused().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhealthy_endpoint_answers_only_for_a_service_that_publishes_it() {
    let mut balanced = Balanced::start(&["n1", "n2"]).await;
    let every = manifest::service("every", &[IpAddr::V4(OTHER)], &[(80, 8080)])
        .replace("    app: every\n", "    app: db\n")
        + "  publishNotReadyAddresses: true\n";
    balanced.mesh.apply("every", &every);
    balanced
        .mesh
        .known("n1", "services", "every", "/endpoints/1/status", json!("HEALTHY"))
        .await;
    balanced.fails(1).await;
    assert_eq!(balanced.shares().await, [100, 0]);
    let web = balanced.web.namespace();
    let published = shares(web, at(OTHER), 100, &balanced.servers).await;
    assert!(published.iter().all(|share| is_half(*share)), "{published:?}");

    balanced.fails(0).await;
    balanced.assert_refused().await;
    let published = shares(balanced.web.namespace(), at(OTHER), 100, &balanced.servers).await;
    assert!(published.iter().all(|share| is_half(*share)), "{published:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_and_still_described_costs_no_call() {
    let mut balanced = Balanced::start(&["n2", "n3"]).await;
    balanced.mesh.world.remove_pod("db-1").await.unwrap();
    // All at once: what one learns comes too late for the others.
    let web = balanced.web.namespace();
    let calls = (0..20).map(|_| {
        let namespace = web.clone();
        spawn(async move { gets_through(&namespace, at(ADDRESS)).await })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        assert!(call.await.unwrap(), "{}", balanced.mesh.logs());
    }
    assert_eq!(balanced.servers[0].peers().len(), 20);
    let failed = balanced
        .mesh
        .metric("n1", &["istio_tcp_connections_failed_total"])
        .await;
    assert_eq!(failed, 0.0, "none of them is a failure");
}
