//! A waypoint on threads of its own, in front of one service: a route that matches a header, tries again on 503, and
//! gives ten seconds.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_identity::{SecretManager, TrustStore};
use tulle_model::route::{Retry, Route, Timeouts};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix, service, service_key, workload};
use tulle_model::waypoint::{Front, FrontOf, Scope, Settings, Waypoint as Told};
use tulle_model::{Identity, Mesh, MeshUpdate};
use tulle_runtime::config::MapEnv;
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::metrics::Registry;
use tulle_waypoint::Config;
use tulle_waypoint::context::{Parts, Waypoint};
use tulle_waypoint::listener;
use tulle_waypoint::metrics::Metrics;
use tulle_waypoint::upstream::dial::{Connecting, Network, Resolving, Socket};
use tulle_xds_client::MeshState;

use super::{KIND, Site, Version, address, listen, threads};

/// What its threads are called.
pub(super) const THREADS: &str = "waypoint";
/// What clients ask for.
pub(super) const VIP: &str = "10.96.0.1:80";
/// Where its endpoint is said to be.
const ENDPOINT: &str = "10.0.0.7:15008";
/// The service, as routes name it.
const WEB: &str = "shop/web.shop.svc.cluster.local";

/// Who it is in the mesh.
pub(super) fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "way")
}

/// Loopback in the place of pods.
#[derive(Debug)]
struct Loopback(HashMap<SocketAddr, SocketAddr>);

impl Network for Loopback {
    fn connect(&self, to: SocketAddr) -> Connecting<'_> {
        let to = self.0.get(&to).copied();
        Box::pin(async move {
            let stream = TcpStream::connect(to.ok_or(io::ErrorKind::ConnectionRefused)?).await?;
            stream.set_nodelay(true)?;
            Ok(Socket::Tcp(stream))
        })
    }

    fn resolve<'a>(&'a self, _: &'a str) -> Resolving<'a> {
        Box::pin(async { Ok(Vec::<IpAddr>::new()) })
    }
}

/// A waypoint that serves.
#[derive(Debug)]
pub struct Fronting {
    /// Where it takes tunnels.
    pub address: SocketAddr,
    /// What it shares.
    pub waypoint: Arc<Waypoint>,
    mesh: MeshState,
    _drain: DrainTrigger,
    runtime: Runtime,
}

impl Fronting {
    /// Starts it.
    #[must_use]
    pub fn start(ca: &Arc<TestCa>, endpoint: SocketAddr, version: Version) -> Self {
        let pod = (ENDPOINT.parse().expect("an address"), endpoint);
        Self::over(ca, [pod], updates(version))
    }

    /// Starts one that knows these things; pods are said to be at one address and are at another.
    #[must_use]
    pub fn over(
        ca: &Arc<TestCa>,
        pods: impl IntoIterator<Item = (SocketAddr, SocketAddr)>,
        updates: Vec<MeshUpdate>,
    ) -> Self {
        Self::with(threads(THREADS), ca, pods.into_iter().collect(), updates, |_| {})
    }

    /// Starts one that is set like this.
    #[must_use]
    pub fn tuned(
        ca: &Arc<TestCa>,
        endpoint: SocketAddr,
        version: Version,
        tune: impl FnOnce(&mut Config),
    ) -> Self {
        let pods = HashMap::from([(ENDPOINT.parse().expect("an address"), endpoint)]);
        Self::with(threads(THREADS), ca, pods, updates(version), tune)
    }

    /// Starts one on this runtime, in front of the servers of a site.
    #[must_use]
    pub fn on(runtime: Runtime, site: &Site, version: Version) -> Self {
        let pod = (ENDPOINT.parse().expect("an address"), site.tunnel);
        Self::with(runtime, &site.ca, HashMap::from([pod]), updates(version), |_| {})
    }

    fn with(
        runtime: Runtime,
        ca: &Arc<TestCa>,
        pods: HashMap<SocketAddr, SocketAddr>,
        updates: Vec<MeshUpdate>,
        tune: impl FnOnce(&mut Config),
    ) -> Self {
        let env = MapEnv::from([("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "way")]);
        let mut config = Config::from_env(&env).expect("an identity is all it needs");
        tune(&mut config);
        let mesh = MeshState::new(Mesh::new());
        mesh.apply(updates);
        let (drain, watcher) = drain::new();
        let authority = Arc::new(FakeCa::new(Arc::clone(ca), Clock::system()));
        let trust = TrustStore::default();
        let options = tulle_identity::Options {
            trust: trust.clone(),
            ..tulle_identity::Options::default()
        };
        let (waypoint, address) = runtime.block_on(async {
            let waypoint = Waypoint::start(Parts {
                config,
                mesh: mesh.clone(),
                secrets: SecretManager::new(authority, options, tulle_identity::Metrics::default()),
                trust,
                network: Arc::new(Loopback(pods)),
                metrics: Metrics::register(&Registry::new()),
                log: None,
                drain: watcher,
            });
            let listener = listen().await;
            let address = address(&listener);
            drop(runtime.spawn(listener::accept(Arc::clone(&waypoint), listener)));
            (waypoint, address)
        });
        Self {
            address,
            waypoint,
            mesh,
            _drain: drain,
            runtime,
        }
    }

    /// Runs something on its threads.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Changes what the control plane says, and waits until requests are decided by it. How long that took.
    pub fn apply(&self, updates: Vec<MeshUpdate>) -> Duration {
        let mut moved = self.waypoint.view.subscribe();
        let started = Instant::now();
        let changed = !self.mesh.apply(updates).is_empty();
        if changed {
            let _ = self.runtime.block_on(moved.changed());
        }
        started.elapsed()
    }
}

/// The rule that requests of the benchmark take.
#[must_use]
pub(super) fn rule() -> Route {
    Route {
        retry: Some(Retry {
            attempts: Some(1),
            codes: vec![503],
            ..Retry::default()
        }),
        timeouts: Timeouts {
            request: Some(Duration::from_secs(10)),
            backend_request: None,
        },
        ..http_route("shop/web")
            .on(prefix("/").header(KIND.0, KIND.1))
            .under(WEB)
            .to(WEB, 80, 1)
    }
}

fn updates(version: Version) -> Vec<MeshUpdate> {
    let endpoint = workload("shop/web-1").sa("web").ip("10.0.0.7").hbone();
    let mut updates = rule_front(version);
    updates.push(endpoint.serves("shop/web").into());
    updates
}

/// The service, its front and its rule, without endpoints.
#[must_use]
pub(super) fn rule_front(version: Version) -> Vec<MeshUpdate> {
    let mut web = service("shop/web").vip("10.96.0.1").port(80, 8080).build();
    let protocol = match version {
        Version::One => AppProtocol::Http11,
        Version::Two => AppProtocol::Http2,
    };
    if let Some(port) = web.ports.get_mut(&80) {
        port.app_protocol = protocol;
    }
    vec![
        MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings())))),
        MeshUpdate::Service(Arc::new(web)),
        front("shop/web"),
        MeshUpdate::Route(Arc::new(rule())),
    ]
}

/// A front for a service.
#[must_use]
pub(super) fn front(service: &str) -> MeshUpdate {
    let front = Front {
        waypoint: "shop/way".into(),
        object: FrontOf::Service(service_key(service)),
        required_policies: Vec::new(),
        required_routes: Vec::new(),
        client_namespaces: Vec::new(),
        draining: false,
    };
    MeshUpdate::Waypoint(Arc::new(Told::Front(front)))
}

fn settings() -> Settings {
    Settings {
        class: "tulle-waypoint".into(),
        scope: Scope::All,
        ..Settings::new("shop", "way")
    }
}
