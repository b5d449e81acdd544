//! A dedicated proxy for the workload `shop/web`, an application that echoes, and clients that may tunnel to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_model::{Identity, MeshUpdate};
use tulle_runtime::config::MapEnv;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::tasks;
use tulle_transport::hbone::{
    ClientConnection, ConnectRequest, ConnectResponse, HboneStream, OpenError, Refusal, Settings, client,
};
use tulle_xds_client::local::LocalConfig;
use tulle_ztunnel::config::{Dns, DnsListen, Ports, ProcessPorts};
use tulle_ztunnel::{App, Config};

/// How long anything may take in these tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) app: App,
    pub(crate) ca: Arc<TestCa>,
    /// Where tunnels are accepted.
    pub(crate) hbone: SocketAddr,
    /// Where questions for names are answered.
    pub(crate) names: SocketAddr,
    /// Where the application listens.
    pub(crate) echo: SocketAddr,
    run_dir: tempfile::TempDir,
}

/// An identity of the mesh's trust domain.
pub(crate) fn identity(namespace: &str, service_account: &str) -> Identity {
    Identity::new("cluster.local", namespace, service_account)
}

/// The configuration of a dedicated proxy with free ports.
fn config(workload: &str, local_xds: &str, run_dir: &std::path::Path, variables: &[(&str, &str)]) -> Config {
    let mut env = MapEnv::from([
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", workload),
        ("TULLE_POLICY_WAIT", "300ms"),
        ("CONNECTION_TERMINATION_DEADLINE", "300ms"),
        ("LOCAL_XDS", local_xds),
        ("IPV6_ENABLED", "false"),
        ("TULLE_RUN_DIR", run_dir.to_str().unwrap()),
    ]);
    for (name, value) in variables {
        env = env.with(name, value);
    }
    let read = Config::from_env(&env).unwrap();
    Config {
        dns: Dns {
            listen: Some(DnsListen {
                v4: true,
                v6: false,
                port: free_port(),
            }),
            ..read.dns.clone()
        },
        ports: Ports {
            outbound: free_port(),
            inbound_plain: free_port(),
            inbound_hbone: free_port(),
            socks5: read.ports.socks5.map(|_| free_port()),
        },
        process_ports: ProcessPorts {
            admin: 0,
            stats: 0,
            readiness: 0,
        },
        ..read
    }
}

impl World {
    /// `more` is further YAML of the workload `shop/web-1`, at its level of indentation.
    pub(crate) async fn start(more: &str) -> Self {
        Self::start_with(more, &[]).await
    }

    /// The same, with further variables set.
    pub(crate) async fn start_with(more: &str, variables: &[(&str, &str)]) -> Self {
        let xds = format!(
            "workloads:\n- {{uid: web, name: web-1, namespace: shop, serviceAccount: web, workloadIps: [127.0.0.1], \
             protocol: HBONE, workloadName: web, canonicalName: web, {more}}}\n"
        );
        Self::serve_with("shop/web-1/web", &xds, Arc::new(TestCa::new()), variables).await
    }

    /// A proxy for another workload.
    pub(crate) async fn serve(workload: &str, xds: &str, ca: Arc<TestCa>) -> Self {
        Self::serve_with(workload, xds, ca, &[]).await
    }

    async fn serve_with(workload: &str, xds: &str, ca: Arc<TestCa>, variables: &[(&str, &str)]) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(FakeCa::new(Arc::clone(&ca), Clock::system()));
        let config = config(workload, xds, run_dir.path(), variables);
        let app = App::start(config, None, Some(authority), &Handle::current())
            .await
            .unwrap();
        let (_, ports) = app.dedicated().unwrap();
        let names = app.node().config.dns.listen.unwrap();
        Self {
            names: SocketAddr::from(([127, 0, 0, 1], names.port)),
            hbone: SocketAddr::from(([127, 0, 0, 1], ports.inbound_hbone)),
            echo: echo_application("127.0.0.1:0").await,
            app,
            ca,
            run_dir,
        }
    }

    /// Where the process's unix socket is.
    pub(crate) fn run_dir(&self) -> &std::path::Path {
        self.run_dir.path()
    }

    /// Changes the mesh as a control plane would.
    pub(crate) fn apply(&self, yaml: &str) {
        self.app.node().mesh.apply(updates(yaml));
    }

    /// A tunnel connection of a workload.
    pub(crate) async fn connect_as(&self, who: &Identity) -> Result<ClientConnection, OpenError> {
        let socket = TcpStream::connect(self.hbone).await.unwrap();
        let certificate = self.ca.certificate(who);
        let tls = certificate.client_config(&[identity("shop", "web")]);
        client::connect(socket, tls, &Settings::client()).await
    }

    /// What a CONNECT of `shop/reviews` to `authority` is answered with.
    pub(crate) async fn ask(&self, authority: &str) -> Result<(HboneStream, ConnectResponse), Refusal> {
        let connection = self.connect_as(&identity("shop", "reviews")).await.unwrap();
        match connection.open(&ConnectRequest::new(authority)).await {
            Ok(opened) => Ok(opened),
            Err(OpenError::Refused(refusal)) => Err(refusal),
            Err(other) => panic!("neither opened nor refused: {other}"),
        }
    }

    /// As [`Self::ask`], for the echo application.
    pub(crate) async fn ask_echo(&self) -> Result<(HboneStream, ConnectResponse), Refusal> {
        self.ask(&self.echo.to_string()).await
    }

    /// Waits until a line of the metrics begins so: what ends a connection is seen before it is counted.
    pub(crate) async fn until_counted(&self, series: &str) {
        until_counted(self.app.exposition(), series).await;
    }

    /// The metrics, as text.
    pub(crate) fn metrics(&self) -> String {
        self.app.node().connections.pass_on();
        self.app.exposition().encode()
    }
}

pub(crate) fn updates(yaml: &str) -> Vec<MeshUpdate> {
    LocalConfig::parse("test", yaml).unwrap().updates()
}

/// See [`World::until_counted`].
pub(crate) async fn until_counted(exposition: &Exposition, series: &str) {
    let counted = async {
        while !exposition.encode().lines().any(|line| line.starts_with(series)) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(SOON, counted).await;
    assert!(waited.is_ok(), "{series} is missing in {}", exposition.encode());
}

/// Code of a refusal.
pub(crate) fn code(refusal: &Refusal) -> &str {
    refusal.header.as_ref().unwrap().code()
}

/// Sends, and expects the same back.
pub(crate) async fn assert_echoes(stream: &mut HboneStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, text);
}

/// An application that sends back what it gets.
pub(crate) async fn echo_application(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks::spawn("echo", async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tasks::spawn("echo-connection", async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A port that nobody listens on now, from below those that the kernel gives to connections: these would be taken by
/// other tests before the proxy listens.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 10_000) as u16;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
