//! The whole control plane, from a folder of manifests to the mesh of a real client, over TLS on loopback.

#![allow(clippy::unwrap_used, reason = "a test ends at what goes wrong")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tulle_identity::ca::{CaClient, CaError, GrpcCa, GrpcCaOptions};
use tulle_identity::channel::authenticated;
use tulle_identity::{AuthenticatedChannel, ChannelConfig, RootSource, TokenSource};
use tulle_model::{Mesh, NetworkAddress};
use tulle_runtime::drain;
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_xds::{Config, Error};
use tulle_xds_client::metrics::Metrics;
use tulle_xds_client::node::NodeInfo;
use tulle_xds_client::on_demand::address_key;
use tulle_xds_client::state::MeshState;
use tulle_xds_client::stream::{Client, Options};

#[path = "process/authority.rs"]
mod authority;
#[path = "process/replica.rs"]
mod replica;
#[path = "process/scope.rs"]
mod scope;
#[path = "process/secrets.rs"]
mod secrets;

/// Longer than anything here takes, shorter than a stuck test.
const PATIENCE: Duration = Duration::from_secs(20);

const NAMESPACE: &str = "
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    istio.io/dataplane-mode: ambient
";

const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-all
  namespace: shop
spec:
  action: DENY
  rules:
  - to:
    - operation:
        ports: [\"9080\"]
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  selector:
    app: web
  clusterIPs: [10.96.0.1]
  ports:
  - port: 80
    targetPort: 8080
";

fn entry(name: &str, node: &str, address: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: shop
  annotations:
    tulle.dev/node: {node}
    tulle.dev/process: netns:{name}
spec:
  address: {address}
  serviceAccount: {name}
  labels:
    app: {name}
"
    )
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

struct Process {
    folder: tempfile::TempDir,
    address: SocketAddr,
    stop: Option<oneshot::Sender<&'static str>>,
    running: JoinHandle<Result<(), Error>>,
}

/// A port that is free now. Another program could take it; then the test says so.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        Self::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (config, state, run) = (path("config"), path("state"), path("run"));
        Self::run_with(&run, &["--config-dir", &config, "--state-dir", &state], folder)
    }

    fn run_with(run_dir: &str, arguments: &[&str], folder: tempfile::TempDir) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = address.to_string();
        let usual = [
            "xds",
            "--run-dir",
            run_dir,
            "--listen",
            &listen,
            "--metrics-address",
            "127.0.0.1:0",
            "--readiness-address",
            "127.0.0.1:0",
        ];
        let cli = Cli::parse_from(usual.iter().chain(arguments));
        let (stop, stopped) = oneshot::channel();
        let running = tasks::spawn("control plane", async move {
            tulle_xds::run(cli.config, async { stopped.await.unwrap_or("dropped") }).await
        });
        Self {
            folder,
            address,
            stop: Some(stop),
            running,
        }
    }

    async fn stop(mut self) -> tempfile::TempDir {
        self.stop.take().expect("stopped once").send("test").unwrap();
        timeout(PATIENCE, self.running)
            .await
            .expect("an end in time")
            .unwrap()
            .unwrap();
        self.folder
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.folder.path().join("config"), name, text);
    }

    async fn ready(&self) {
        until(async || {
            self.status()
                .await
                .is_some_and(|status| status["pending"] == Value::Array(vec![]))
        })
        .await;
    }

    /// The whole answer to a command.
    async fn post(&self, path: &str, json: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join("run/xds.sock"))
            .await
            .ok()?;
        let length = json.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{json}"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join("run/xds.sock"))
            .await
            .ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }

    async fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.get("/status").await?).ok()
    }

    fn channel(&self, token: &str) -> AuthenticatedChannel {
        self.channel_to(self.address, token)
    }

    /// A channel to a server that is proven by the root of this one's state folder.
    fn channel_to(&self, address: SocketAddr, token: &str) -> AuthenticatedChannel {
        channel(&self.state(), address, token)
    }
}

/// A channel to a server that is proven by the root of a state folder.
fn channel(state: &Path, address: SocketAddr, token: &str) -> AuthenticatedChannel {
    let config = ChannelConfig {
        address: format!("https://localhost:{}", address.port()).parse().unwrap(),
        root: RootSource::File(state.join("ca/root-cert.pem")),
        server_name: Some("istiod.istio-system.svc".to_owned()),
        token: TokenSource::Literal(token.to_owned()),
        headers: Vec::new(),
        cluster_id: Some("Kubernetes".to_owned()),
        mark: None,
    };
    authenticated(&config).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}~"));
    fs::write(&new, text).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

async fn until(mut what: impl AsyncFnMut() -> bool) {
    timeout(PATIENCE, async {
        while !what().await {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it comes true in time");
}

/// A real client of a node, and the mesh it holds.
fn follow(process: &Process, node: &str, token: &str) -> (MeshState, drain::DrainTrigger) {
    follow_as(process, node, token, false)
}

fn follow_as(
    process: &Process,
    node: &str,
    token: &str,
    on_demand: bool,
) -> (MeshState, drain::DrainTrigger) {
    follow_over(process.channel(token), node, on_demand)
}

fn follow_over(
    channel: AuthenticatedChannel,
    node: &str,
    on_demand: bool,
) -> (MeshState, drain::DrainTrigger) {
    let state = MeshState::new(Mesh::new());
    let info = NodeInfo {
        name: "ztunnel".to_owned(),
        namespace: "istio-system".to_owned(),
        node_name: node.to_owned(),
        ..NodeInfo::default()
    };
    let options = Options {
        on_demand,
        ..Options::new(info)
    };
    let client = Client::new(options, state.clone(), Metrics::default(), &Ready::new());
    let (trigger, watcher) = drain::new();
    tasks::spawn("client", client.run(channel, watcher));
    (state, trigger)
}

async fn pages_hold_what_is_served(process: &Process) {
    let explained = process
        .get("/debug/explain?object=Service/shop/web")
        .await
        .expect("an explanation");
    assert!(explained.contains("\"summary\":\"acked 1/1\""), "{explained}");
    assert!(explained.contains("\"file\":\"service.yaml\""), "{explained}");
    assert!(explained.contains("\"rule\":\"waypoint\""), "{explained}");
    for (page, holds) in [
        ("/debug/ambientz", "10.96.0.1"),
        ("/debug/authorizationz", "shop/deny-all"),
        ("/debug/ca", "\"phase\":\"stable\""),
        ("/debug/clusterz", "Kubernetes"),
        ("/debug/connections", "\"behind\":0"),
        ("/debug/history", "\"generation\":1"),
        ("/debug/mesh", "istio-system"),
        ("/debug/resources", "shop/web.shop.svc.cluster.local"),
        ("/debug/syncz", "synced"),
        ("/debug/world", "service.yaml"),
        ("/status", "\"denied\":0"),
    ] {
        let text = process.get(page).await.expect(page);
        assert!(text.contains(holds), "{holds} in {page}: {text}");
    }
    let metrics = process.get("/metrics").await.expect("metrics");
    for line in [
        "pilot_inbound_updates{type=\"WorkloadEntry\"} 3",
        "pilot_proxy_convergence_time_count",
        "tulle_xds_resume_total{outcome=\"fresh\"} 3",
        "tulle_xds_stream_lag_changes 0",
        "tulle_xds_stream_lag_seconds 0.0",
        "tulle_xds_turn_seconds_count",
        "pilot_xds 1",
        "tulle_xds_resources{type=\"address\"} 2",
        "tulle_xds_source_synced{kind=\"folder\"} 1",
        "tulle_xds_source_lag_seconds{kind=\"AuthorizationPolicy\"} ",
        "tulle_xds_relists_total{kind=\"folder\",reason=\"start\"} 1",
        "tulle_xds_relists_total{kind=\"folder\",reason=\"event\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_the_mesh_of_a_client_and_follows_its_edits() {
    let process = Process::start();
    process.write("namespace.yaml", NAMESPACE);
    process.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    process.write("service.yaml", SERVICE);
    process.ready().await;
    let token = tulle_xds::token::create(&process.state(), "n1").unwrap();
    let (state, _client) = follow(&process, "n1", &token);
    until(async || state.snapshot().workloads().count() == 1).await;

    process.write("db.yaml", &entry("db", "n2", "10.0.0.2"));
    until(async || state.snapshot().workloads().count() == 2).await;
    process.write("deny.yaml", DENY);
    until(async || state.snapshot().policies().count() == 1).await;
    fs::remove_file(process.folder.path().join("config/db.yaml")).unwrap();
    until(async || state.snapshot().workloads().count() == 1).await;

    let status = process.status().await.expect("a status");
    let client = &status["clients"][0];
    assert_eq!(
        (&client["node"], &client["kind"]),
        (&"n1".into(), &"ztunnel".into())
    );
    let sync = status["sync"].as_array().expect("a list");
    let entries = sync
        .iter()
        .find(|one| one["kind"] == "WorkloadEntry")
        .expect("there are some");
    assert_eq!(
        (&entries["objects"], &entries["synced"]),
        (&1.into(), &true.into())
    );
    assert!(entries["lagMs"].is_number(), "{entries}");
    let dump = process
        .get("/debug/config_dump?type=Authorization")
        .await
        .expect("a dump");
    assert!(dump.contains("shop/deny-all"), "{dump}");
    let dump = process
        .get("/debug/config_dump?name=shop/web.shop.svc.cluster.local")
        .await
        .expect("a dump");
    assert!(dump.contains("\"10.96.0.1\""), "{dump}");
    let dump = process
        .get("/debug/config_dump?type=Address&name=/10.0.0.1")
        .await
        .expect("a dump");
    assert!(
        dump.contains("\"shop/web.shop.svc.cluster.local\":{\"80\":8080}"),
        "{dump}"
    );
    pages_hold_what_is_served(&process).await;
    process.stop().await;
}

/// The cut that holds what was written, and how many clients have accepted that.
async fn looked(process: &Process) -> (u64, Value) {
    let answer = process.post("/config/look", "{}").await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let cut = serde_json::from_str::<Value>(body).unwrap()["cut"]
        .as_u64()
        .unwrap();
    let page = process
        .get(&format!("/debug/clusterz?cut={cut}"))
        .await
        .expect("a page");
    (cut, serde_json::from_str(&page).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_has_accepted_by_a_look_holds_what_was_written_before() {
    let process = Process::start();
    process.write("namespace.yaml", NAMESPACE);
    process.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    process.ready().await;
    let token = tulle_xds::token::create(&process.state(), "n1").unwrap();
    let (state, _client) = follow(&process, "n1", &token);
    until(async || state.synced()).await;
    for number in 1..=5 {
        let name = format!("deny-{number}");
        process.write(&format!("{name}.yaml"), &DENY.replace("deny-all", &name));
        let (cut, _) = looked(&process).await;
        let page = format!("/debug/clusterz?cut={cut}");
        until(async || {
            process
                .get(&page)
                .await
                .unwrap()
                .contains("\"summary\":\"acked 1/1\"")
        })
        .await;
        assert_eq!(state.snapshot().policies().count(), number);
    }
    process.write("deny-5.yaml", "kind: [broken\n");
    let (_, page) = looked(&process).await;
    assert_eq!(
        (&page["refused"], &page["stale"]),
        (&1.into(), &1.into()),
        "{page}"
    );
    process.stop().await;
}

/// What a client that asks by name holds, by the names of the workloads.
fn held(state: &MeshState) -> Vec<String> {
    let snapshot = state.snapshot();
    let mut names: Vec<String> = snapshot
        .workloads()
        .map(|workload| workload.name.to_string())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_by_name_holds_its_own_node_and_what_goes_with_what_it_asked_for() {
    let process = Process::start();
    process.write("namespace.yaml", NAMESPACE);
    process.write("local.yaml", &entry("local", "n1", "10.0.0.1"));
    process.write("web.yaml", &entry("web", "n2", "10.0.0.2"));
    process.write("db.yaml", &entry("db", "n2", "10.0.0.3"));
    process.write("service.yaml", SERVICE);
    process.ready().await;
    let token = tulle_xds::token::create(&process.state(), "n1").unwrap();
    let (state, _client) = follow_as(&process, "n1", &token, true);
    until(async || state.synced() && held(&state) == ["local"]).await;

    let vip = NetworkAddress::new("", "10.96.0.1".parse().unwrap());
    let found = state
        .look_up(|| address_key(&vip), |mesh| mesh.service_by_vip("shop", &vip))
        .await;
    assert_eq!(found.unwrap().name.as_ref(), "web");
    assert_eq!(
        held(&state),
        ["local", "web"],
        "endpoints come along, and nothing else"
    );

    let none = NetworkAddress::new("", "10.96.0.77".parse().unwrap());
    assert!(
        state
            .look_up(|| address_key(&none), |mesh| mesh.service_by_vip("shop", &none))
            .await
            .is_none()
    );

    // A new endpoint of what was asked for, one of the node, and one of neither.
    let more = entry("web", "n3", "10.0.0.4").replace("  name: web", "  name: web-2");
    process.write("more.yaml", &more);
    process.write("local-2.yaml", &entry("local-2", "n1", "10.0.0.5"));
    process.write("other.yaml", &entry("other", "n3", "10.0.0.6"));
    until(async || held(&state) == ["local", "local-2", "web", "web-2"]).await;
    fs::remove_file(process.folder.path().join("config/web.yaml")).unwrap();
    until(async || held(&state) == ["local", "local-2", "web-2"]).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_with_a_broken_file_is_not_ready_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    fs::create_dir(&config).unwrap();
    write(&config, "web.yaml", &entry("web", "n1", "10.0.0.1"));
    write(&config, "deny.yaml", "kind: [broken\n");
    let process = Process::start_in(folder);
    let named = async || {
        let status = process.status().await.unwrap_or_default();
        status["source"]["problems"][0]["file"] == "deny.yaml"
    };
    until(named).await;
    let status = process.status().await.expect("a status");
    assert_eq!(
        (&status["synced"], status["pending"].as_array().map(Vec::len)),
        (&false.into(), Some(2)),
        "{status}"
    );
    process.write("deny.yaml", DENY);
    process.ready().await;
    process.write("deny.yaml", "kind: [broken\n");
    looked(&process).await;
    // What it was is on record: that is in force, at once.
    let process = Process::start_in(process.stop().await);
    process.ready().await;
    let world = process.get("/debug/world").await.expect("a page");
    assert!(world.contains("deny-all"), "{world}");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_the_policies_of_its_own_workloads_only() {
    let process = Process::start();
    process.write("namespace.yaml", NAMESPACE);
    process.write("web.yaml", &entry("web", "n1", "10.0.0.1"));
    process.write("deny.yaml", DENY);
    process.ready().await;
    let token = |node: &str| tulle_xds::token::create(&process.state(), node).unwrap();
    let (first, _one) = follow(&process, "n1", &token("n1"));
    let (second, _other) = follow(&process, "n2", &token("n2"));
    until(async || first.synced() && second.synced()).await;
    assert_eq!(first.snapshot().policies().count(), 1);
    assert_eq!(
        (
            second.snapshot().policies().count(),
            second.snapshot().workloads().count()
        ),
        (0, 1)
    );
    process.write("db.yaml", &entry("db", "n2", "10.0.0.2"));
    until(async || second.snapshot().policies().count() == 1).await;
    process.stop().await;
}
