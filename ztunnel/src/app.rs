//! The process: everything is built here, in order, and ended here.

mod metrics_tunnel;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tulle_identity::ca::{CaClient, GrpcCa, GrpcCaOptions, Impersonation};
use tulle_identity::{ChannelError, Clock, ControlPlane, KeyExchange, SecretManager, TrustStore, channel};
use tulle_model::Mesh;
use tulle_runtime::admin::AdminError;
use tulle_runtime::config::Env;
use tulle_runtime::drain::{self, DrainTrigger, DrainWatcher};
use tulle_runtime::exit::Exit;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::Ready;
use tulle_runtime::telemetry::{self, LogFormat, LogHandle, TelemetryError};
use tulle_runtime::{limits, signal, tasks};
use tulle_transport::hbone::held;
use tulle_xds_client::local::{Local, LocalError, LocalSource};
use tulle_xds_client::{Client, MeshState, NodeInfo, Options};

use crate::admin::Pages;
use crate::config::{CertificateAuthority, Config, LocalXds, Ports, ProxyMode};
use crate::connections::{Connections, run_rejudge};
use crate::dedicated::Dedicated;
use crate::fleet::{Fleet, FleetView};
use crate::held::Held;
use crate::inpod;
use crate::metrics::exported::Exported;
use crate::plaintext::Plaintext;
use crate::pod::{Node, PacketMark, Pod};
use crate::revocation;
use crate::shed::Pressures;

/// How often the bytes of open connections are passed on to their series, and replaced snapshots freed.
const PASS_ON: Duration = Duration::from_secs(1);

/// How often series that nobody touches are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How often buffers are looked for that nobody needed meanwhile.
const TRIM: Duration = Duration::from_secs(10);

/// How long the last pages and log lines may take at the end.
const END_WAIT: Duration = Duration::from_secs(1);

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A runtime cannot be made.
    #[error("cannot start threads: {0}")]
    Runtime(#[source] std::io::Error),
    /// A page cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The control plane's address, roots or headers cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The local configuration cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Logging cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The listeners of a dedicated proxy cannot be opened.
    #[error("cannot listen for the workload: {0}")]
    Listen(#[source] std::io::Error),
    /// The task that serves pods ended.
    #[error("the task that serves pods panicked")]
    Panicked,
}

/// Runs the node proxy as this process, configured by its environment.
pub fn run_process(env: &dyn Env) -> Exit {
    let config = match Config::from_env(env) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    let format = if config.log.json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let log = match telemetry::init(format, &config.log.filter) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    limits::apply();
    let outcome = run(config, log.clone());
    if let Err(error) = &outcome {
        tracing::error!(%error, "the node proxy cannot run");
    }
    log.flush();
    if outcome.is_ok() { Exit::Ok } else { Exit::Failed }
}

/// Runs until SIGTERM, SIGINT or `/quitquitquit`, and drains.
///
/// Two runtimes: this thread serves pages, configuration and certificates; worker threads carry traffic, so that
/// neither waits for the other.
///
/// # Errors
/// When something that the process needs cannot be had.
pub fn run(config: Config, log: LogHandle) -> Result<(), Error> {
    let workers = worker_runtime(config.worker_threads)?;
    // From here on: the workers have started.
    limits::give_way_to_traffic();
    let control = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let outcome = control.block_on(async {
        let app = App::start(config, Some(log), None, workers.handle()).await?;
        let quit = app.quit();
        let cause = tokio::select! {
            cause = signal::shutdown() => cause,
            () = quit.notified() => "/quitquitquit",
        };
        tracing::info!(cause, "draining");
        app.stop_until(signal::shutdown()).await
    });
    workers.shutdown_timeout(END_WAIT);
    outcome
}

fn worker_runtime(threads: usize) -> Result<Runtime, Error> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("ztunnel-worker")
        .enable_all()
        .build()
        .map_err(Error::Runtime)
}

/// A running node proxy.
#[derive(Debug)]
pub struct App {
    node: Arc<Node>,
    ready: Ready,
    exposition: Exposition,
    drain: DrainTrigger,
    quit: Arc<Notify>,
    serving: Serving,
    pages: Vec<JoinHandle<()>>,
    addresses: Addresses,
}

/// The task that serves pods.
#[derive(Debug)]
struct Serving {
    /// Ends with the number of connections that were cut.
    task: JoinHandle<usize>,
    /// What dumps show.
    view: FleetView,
    /// The workload of a dedicated proxy that carries, and its listeners.
    dedicated: Option<(Arc<Pod>, Ports)>,
}

/// Where the pages of a running process are; with port 0 configured, tests look here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Addresses {
    /// Admin on IPv4 loopback.
    pub admin: Option<SocketAddr>,
    /// Metrics.
    pub stats: Option<SocketAddr>,
    /// Readiness.
    pub readiness: Option<SocketAddr>,
    /// Metrics behind mutual TLS.
    pub tunnel: Option<SocketAddr>,
}

impl App {
    /// Builds everything and starts it. Traffic is carried on `workers`; `ca` replaces the configured authority.
    ///
    /// # Errors
    /// When something that the process needs cannot be had.
    pub async fn start(
        config: Config,
        log: Option<LogHandle>,
        ca: Option<Arc<dyn CaClient>>,
        workers: &Handle,
    ) -> Result<Self, Error> {
        log_effective(&config);
        let ready = Ready::new();
        let (drain, watcher) = drain::new();
        let mesh = MeshState::new(Mesh::new());
        let exported = Exported::register(&mesh);
        let (exposition, configuration) = (exported.exposition.clone(), exported.configuration.clone());
        let ca = ca.map_or_else(|| authority(&config), Ok)?;
        let held = Held::found(&config.supervision);
        let ca = held.authority(ca);
        let node = Arc::new(node(config, exported, mesh, ca));
        follow_configuration(&node, configuration, &ready, &watcher, &held)?;
        workers.spawn_named("rejudge", rejudge(&node));
        follow_trust(&node, &watcher, workers);
        tasks::spawn("shed", shed(Arc::clone(&node), watcher.clone()));
        tasks::spawn("sweep-mesh", sweep(node.mesh.mesh.clone(), watcher.clone()));
        workers.spawn_named("pass-on-bytes", pass_on(Arc::clone(&node), watcher.clone()));
        let serving = serve_pods(&node, &ready, &watcher, workers).await?;
        let quit = Arc::new(Notify::new());
        let pages = Pages {
            node: Arc::clone(&node),
            fleet: serving.view.clone(),
            ready: ready.clone(),
            exposition: exposition.clone(),
            log,
            quit: Arc::clone(&quit),
        };
        held.keep(&ready, &watcher);
        let (pages, addresses) = pages::serve(&node.config, &pages, &watcher, workers).await?;
        Ok(Self {
            node,
            ready,
            exposition,
            drain,
            quit,
            serving,
            pages,
            addresses,
        })
    }

    /// Notified when an operator asks the process to end.
    #[must_use]
    pub fn quit(&self) -> Arc<Notify> {
        Arc::clone(&self.quit)
    }

    /// What all pods share.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Whether it is ready, and what it waits for.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What is counted.
    #[must_use]
    pub fn exposition(&self) -> &Exposition {
        &self.exposition
    }

    /// The workload of a dedicated proxy that carries, and the ports its listeners are bound to.
    #[must_use]
    pub fn dedicated(&self) -> Option<(Arc<Pod>, Ports)> {
        self.serving.dedicated.clone()
    }

    /// Where its pages are.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Not ready any more; stops accepting, waits for what is open up to the deadline, resets the rest.
    ///
    /// # Errors
    /// When pods were no longer served because of a fault.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop_until(std::future::pending()).await
    }

    /// As [`Self::stop`], but waits no longer than until `hurry` ends and says why.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub async fn stop_until(self, hurry: impl Future<Output = &'static str>) -> Result<(), Error> {
        let draining = self.ready.register("draining");
        self.drain.start(drain::DrainMode::Graceful);
        let mut serving = self.serving.task;
        let ended = tokio::select! {
            ended = &mut serving => ended,
            cause = hurry => {
                tracing::info!(cause, "told to end again: resetting what is open");
                self.drain.start(drain::DrainMode::Immediate);
                serving.await
            }
        };
        let remaining = ended.map_err(|_| Error::Panicked)?;
        tracing::info!(reset = remaining, "drained");
        self.drain.wait(Duration::ZERO).await;
        let ended = futures_util::future::join_all(self.pages);
        // A page that does not end in time ends with the process.
        let _ = tokio::time::timeout(END_WAIT, ended).await;
        drop(draining);
        Ok(())
    }
}

/// Spawning on another runtime, still supervised.
trait SpawnNamed {
    fn spawn_named<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static;
}

impl SpawnNamed for Handle {
    fn spawn_named<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let _inside = self.enter();
        tasks::spawn(name, future)
    }
}

fn log_effective(config: &Config) {
    let text = serde_json::to_string(config).unwrap_or_else(|error| error.to_string());
    tracing::info!(
        version = tulle_runtime::build_info::tag(),
        config = text,
        "starting"
    );
    for variable in &config.without_effect {
        tracing::warn!(variable, "has no effect");
    }
}

fn node(config: Config, exported: Exported, mesh: MeshState, ca: Arc<dyn CaClient>) -> Node {
    let metrics = exported.metrics;
    #[cfg(feature = "otlp")]
    let metrics = crate::metrics::Metrics {
        exporter: crate::record::otlp::Exporter::of(&config, metrics.lines_dropped.clone()),
        ..metrics
    };
    let key_exchange = if config.post_quantum_only {
        KeyExchange::PostQuantumOnly
    } else {
        KeyExchange::Standard
    };
    let trust = TrustStore::new(config.crl.stale, Clock::system());
    if let Some(path) = &config.crl.path {
        trust.load_file(path);
    }
    let options = tulle_identity::Options {
        key_exchange,
        trust: trust.clone(),
        ..tulle_identity::Options::default()
    };
    Node {
        mark: PacketMark::default(),
        secrets: SecretManager::new(ca, options, exported.certificates),
        trust,
        connections: Connections::new(metrics.clone()),
        plaintext: Plaintext::default(),
        shedder: exported.shedder,
        locals: exported.locals,
        metrics,
        mesh,
        config,
    }
}

fn authority(config: &Config) -> Result<Arc<dyn CaClient>, Error> {
    match &config.ca {
        CertificateAuthority::Server(server) => Ok(Arc::new(grpc_authority(config, server)?)),
        #[cfg(feature = "testing")]
        CertificateAuthority::Fake => Ok(fake_authority()),
    }
}

fn grpc_authority(config: &Config, server: &ControlPlane) -> Result<GrpcCa, Error> {
    let options = GrpcCaOptions {
        ttl: config.secret_ttl,
        impersonation: match config.mode {
            ProxyMode::Shared => Impersonation::Workload,
            ProxyMode::Dedicated(_) => Impersonation::Own,
        },
        ..GrpcCaOptions::default()
    };
    let channel = channel::authenticated(
        &server
            .channel_config(&config.cluster_id)
            .marked(config.packet_mark),
    )?;
    Ok(GrpcCa::new(channel, options))
}

#[cfg(feature = "testing")]
fn fake_authority() -> Arc<dyn CaClient> {
    use tulle_identity::testing::{Clock, FakeCa, TestCa};
    Arc::new(FakeCa::new(Arc::new(TestCa::new()), Clock::system()))
}

/// Starts what keeps the mesh up to date: a local source, the control plane, or both.
fn follow_configuration(
    node: &Node,
    metrics: tulle_xds_client::Metrics,
    ready: &Ready,
    drain: &DrainWatcher,
    held: &Held,
) -> Result<(), Error> {
    let config = &node.config;
    if let Some(local) = &config.local_xds {
        let source = match local {
            LocalXds::Path(path) => LocalSource::File(path.clone()),
            LocalXds::Text(text) => LocalSource::Text(text.clone()),
        };
        let local = Local::load(source, node.mesh.clone())?;
        tasks::spawn("local-configuration", local.run(drain.clone()));
    }
    if let Some(server) = &config.xds {
        let channel = channel::authenticated(
            &server
                .channel_config(&config.cluster_id)
                .marked(config.packet_mark),
        )?;
        let client = Client::new(client_options(config), node.mesh.clone(), metrics, ready);
        tasks::spawn("xds-client", held.client(client).run(channel, drain.clone()));
    }
    Ok(())
}

fn client_options(config: &Config) -> Options {
    Options {
        on_demand: config.on_demand,
        ..Options::new(node_info(config))
    }
}

fn node_info(config: &Config) -> NodeInfo {
    let mut metadata = config.node_metadata.clone();
    for (name, own) in [
        ("CLUSTER_ID", &*config.cluster_id),
        ("NETWORK", &*config.network),
        ("SERVICE_ACCOUNT", &*config.process.service_account),
    ] {
        // What this proxy goes by is told, whatever else is said of it.
        if !own.is_empty() || !metadata.contains_key(name) {
            metadata.insert(name.to_owned(), own.into());
        }
    }
    NodeInfo {
        name: config.process.pod_name.clone(),
        namespace: config.process.pod_namespace.clone(),
        node_name: config.node.to_string(),
        instance_ips: config.process.instance_ip.into_iter().collect(),
        metadata,
        build_version: tulle_runtime::build_info::tag(),
        ..NodeInfo::default()
    }
}

/// Keeps what is believed up to date, and closes what is open to those who no longer are.
fn follow_trust(node: &Arc<Node>, drain: &DrainWatcher, workers: &Handle) {
    workers.spawn_named("trust", revocation::follow(node));
    workers.spawn_named("revocation", revocation::walk(Arc::clone(node), drain.clone()));
    if let Some(path) = node.config.crl.path.clone() {
        tasks::spawn("revocation-lists", node.trust.clone().follow_file(path));
    }
}

fn rejudge(node: &Node) -> impl Future<Output = ()> + Send + use<> {
    run_rejudge(
        node.connections.clone(),
        node.mesh.clone(),
        node.config.policy_wait,
    )
}

/// On the control runtime, which traffic does not keep busy.
async fn shed(node: Arc<Node>, drain: DrainWatcher) {
    let pressures = || {
        let now = Pressures::now();
        held::set_budget(now.readers(held::bytes()));
        now
    };
    node.shedder.run(pressures, drain).await;
}

/// Frees what was read while it was replaced: on the control runtime, where nothing that is carried waits for it.
async fn sweep(mesh: Mesh, drain: DrainWatcher) {
    let mut ticks = tokio::time::interval(PASS_ON);
    loop {
        tokio::select! {
            () = drain.over() => return,
            _ = ticks.tick() => mesh.sweep(),
        }
    }
}

async fn pass_on(node: Arc<Node>, drain: DrainWatcher) {
    let mut ticks = tokio::time::interval(PASS_ON);
    let mut sweeps = tokio::time::interval(SWEEP);
    let mut trims = tokio::time::interval(TRIM);
    loop {
        tokio::select! {
            () = drain.over() => return,
            _ = ticks.tick() => node.connections.pass_on(),
            _ = sweeps.tick() => node.metrics.expire(node.config.metric_ttl),
            _ = trims.tick() => tulle_transport::copy::trim_buffers(),
        }
        if drain.is_draining() {
            let open = i64::try_from(node.connections.len()).unwrap_or(i64::MAX);
            node.metrics.drain_remaining.set(open);
        }
    }
}

/// Starts to serve pods, until the process drains.
async fn serve_pods(
    node: &Arc<Node>,
    ready: &Ready,
    drain: &DrainWatcher,
    workers: &Handle,
) -> Result<Serving, Error> {
    match node.config.mode.clone() {
        ProxyMode::Shared => Ok(serve_fleet(node, ready, drain, workers)),
        ProxyMode::Dedicated(name) => {
            let started = ready.register("proxy");
            let opening = workers.spawn_named("open-listeners", Dedicated::open(Arc::clone(node), name));
            let dedicated = opening
                .await
                .map_err(|_| Error::Panicked)?
                .map_err(Error::Listen)?;
            let ports = dedicated.sockets().ports().map_err(Error::Listen)?;
            Ok(Serving {
                dedicated: ports.map(|ports| (Arc::clone(dedicated.pod()), ports)),
                task: workers.spawn_named("dedicated", dedicated.run(started, drain.clone())),
                view: FleetView::default(),
            })
        }
    }
}

fn serve_fleet(node: &Arc<Node>, ready: &Ready, drain: &DrainWatcher, workers: &Handle) -> Serving {
    let mut fleet = Fleet::new(Arc::clone(node), ready.clone());
    let view = fleet.view();
    let snapshot = ready.register("the agent's snapshot");
    let mut follower = inpod::Follower::new(node.config.inpod.socket.clone());
    let (deadline, drain) = (node.config.drain_deadline, drain.clone());
    let serving = async move {
        follower.follow(&mut fleet, snapshot, &drain).await;
        follower.linger(fleet, deadline, &drain).await
    };
    Serving {
        task: workers.spawn_named("fleet", serving),
        view,
        dedicated: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_runtime::config::MapEnv;

    #[test]
    fn a_node_tells_its_metadata_but_never_another_cluster() {
        let env = MapEnv::from([
            ("CLUSTER_ID", "west"),
            ("ISTIO_META_ZONE", "a"),
            ("ISTIO_META_NETWORK", "n2"),
            ("PROXY_CONFIG", "proxyMetadata: {CLUSTER_ID: east}"),
        ]);
        let told = node_info(&Config::from_env(&env).unwrap()).metadata;
        assert_eq!(told["CLUSTER_ID"], "west");
        assert_eq!(told["ZONE"], "a");
        assert_eq!(told["NETWORK"], "n2", "nothing else is known of it");
    }
}
