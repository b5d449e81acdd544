//! The proxy's own metrics, through the tunnel port of its own pod.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_runtime::config::MapEnv;
use tulle_transport::hbone::{ConnectRequest, HboneStream, OpenError, Refusal, Settings, client};
use tulle_ztunnel::config::{Ports, ProcessPorts};
use tulle_ztunnel::{App, Config};

use crate::pages::request;
use crate::world::{code, echo_application, identity, updates};

const OWN: &str = "workloads:\n- {uid: zt, name: zt-1, namespace: mesh, serviceAccount: zt, \
                   workloadIps: [127.0.0.1], protocol: HBONE}\n";

struct Proxy {
    app: App,
    ca: Arc<TestCa>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let env = MapEnv::from([
            ("POD_NAME", "zt-1"),
            ("POD_NAMESPACE", "mesh"),
            ("SERVICE_ACCOUNT", "zt"),
            ("LOCAL_XDS", OWN),
            ("IPV6_ENABLED", "false"),
            ("INPOD_UDS", folder.path().join("none.sock").to_str().unwrap()),
            ("TULLE_RUN_DIR", folder.path().to_str().unwrap()),
        ]);
        let read = Config::from_env(&env).unwrap();
        let config = Config {
            ports: Ports {
                inbound_hbone: 0,
                ..read.ports
            },
            process_ports: ProcessPorts {
                admin: 0,
                stats: 0,
                readiness: 0,
            },
            packet_mark: None,
            ..read
        };
        let ca = Arc::new(TestCa::new());
        let authority = Arc::new(FakeCa::new(Arc::clone(&ca), Clock::system()));
        let app = App::start(config, None, Some(authority), &Handle::current())
            .await
            .unwrap();
        Self {
            app,
            ca,
            _folder: folder,
        }
    }

    /// What a CONNECT of a scraper to a port of the proxy's address is answered with.
    async fn ask(&self, port: u16) -> Result<HboneStream, Refusal> {
        let tunnel = self.app.addresses().tunnel.expect("a tunnel port is open");
        let socket = TcpStream::connect(("127.0.0.1", tunnel.port())).await.unwrap();
        let certificate = self.ca.certificate(&identity("watch", "prometheus"));
        let tls = certificate.client_config(&[identity("mesh", "zt")]);
        let connection = client::connect(socket, tls, &Settings::client()).await.unwrap();
        let asked = ConnectRequest::new(format!("127.0.0.1:{port}"));
        match connection.open(&asked).await {
            Ok((stream, _)) => Ok(stream),
            Err(OpenError::Refused(refusal)) => Err(refusal),
            Err(other) => panic!("neither opened nor refused: {other}"),
        }
    }

    fn stats_port(&self) -> u16 {
        self.app.addresses().stats.unwrap().port()
    }
}

#[tokio::test]
async fn metrics_are_scraped_through_a_tunnel_to_the_proxys_own_identity() {
    let proxy = Proxy::start().await;
    let stream = proxy.ask(proxy.stats_port()).await.unwrap();
    let answer = request(stream, "GET /stats/prometheus", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("istio_build"),
        "{answer}"
    );
    assert!(
        answer.contains("spiffe://cluster.local/ns/mesh/sa/zt"),
        "its own certificate is among what it reports: {answer}"
    );
}

#[tokio::test]
async fn the_tunnel_leads_nowhere_but_to_the_metrics() {
    let proxy = Proxy::start().await;
    let other = echo_application("127.0.0.1:0").await;
    let admin = proxy.app.addresses().admin.unwrap();
    for port in [other.port(), admin.port()] {
        let refusal = proxy.ask(port).await.unwrap_err();
        assert_eq!((refusal.status, code(&refusal)), (400, "T0418"), "{port}");
    }
}

#[tokio::test]
async fn policies_of_the_proxys_own_pod_hold_for_its_metrics() {
    let proxy = Proxy::start().await;
    proxy.app.node().mesh.apply(updates(
        "policies:\n- {name: only-ops, namespace: mesh, scope: Namespace, action: Allow, \
         rules: [[[{namespaces: [{Exact: ops}]}]]]}\n",
    ));
    let refusal = proxy.ask(proxy.stats_port()).await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (401, "T0413"));
}
