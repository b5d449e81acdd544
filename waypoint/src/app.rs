//! The process: everything is built here, in order, and ended here.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tulle_identity::ca::{CaClient, GrpcCa, GrpcCaOptions};
use tulle_identity::{ChannelError, Clock, Priority, SecretManager, StalePolicy, TrustStore, channel};
use tulle_model::Mesh;
use tulle_model::trust::Trust;
use tulle_runtime::admin::{self, AdminError, Listen, Listener};
use tulle_runtime::config::Env;
use tulle_runtime::drain::{self, DrainMode, DrainTrigger, DrainWatcher};
use tulle_runtime::exit::Exit;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::{BlockReady, Ready};
use tulle_runtime::telemetry::{self, LogFormat, LogHandle, TelemetryError};
use tulle_runtime::{limits, signal, tasks};
use tulle_xds_client::{Client, MeshState, NodeInfo, NodeKind, Options};

use crate::admin::Pages;
use crate::buffers;
use crate::config::Config;
use crate::context::{Parts, Waypoint};
use crate::listener;
use crate::metrics::Exported;
use crate::upstream::dial::OwnNetwork;

/// How long the last pages and log lines may take at the end.
const END_WAIT: Duration = Duration::from_secs(1);
/// Pause before the certificate is asked for again.
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(500);

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A runtime cannot be made.
    #[error("cannot start threads: {0}")]
    Runtime(#[source] std::io::Error),
    /// The socket for tunnels cannot be opened.
    #[error("cannot listen for tunnels on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A page cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The control plane's address, roots or headers cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Logging cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

/// Runs the waypoint as this process, configured by its environment.
pub fn run_process(env: &dyn Env) -> Exit {
    let config = match Config::from_env(env) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    let format = if config.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let log = match telemetry::init(format, &config.log_filter) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    limits::apply();
    let outcome = run(config, log.clone());
    if let Err(error) = &outcome {
        tracing::error!(%error, "the waypoint cannot run");
    }
    log.flush();
    if outcome.is_ok() { Exit::Ok } else { Exit::Failed }
}

/// Runs until SIGTERM, SIGINT or `/quitquitquit`, and drains.
///
/// # Errors
/// When something that the process needs cannot be had.
pub fn run(config: Config, log: LogHandle) -> Result<(), Error> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .thread_name("waypoint")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let outcome = runtime.block_on(async {
        let app = App::start(config, Some(log), None).await?;
        let quit = app.quit();
        let cause = tokio::select! {
            cause = signal::shutdown() => cause,
            () = quit.notified() => "/quitquitquit",
        };
        tracing::info!(cause, "draining");
        app.stop_until(signal::shutdown()).await;
        Ok(())
    });
    runtime.shutdown_timeout(END_WAIT);
    outcome
}

/// A running waypoint.
#[derive(Debug)]
pub struct App {
    waypoint: Arc<Waypoint>,
    ready: Ready,
    exposition: Exposition,
    drain: DrainTrigger,
    quit: Arc<Notify>,
    pages: Vec<JoinHandle<()>>,
    listen: SocketAddr,
}

impl App {
    /// Builds everything and starts it; `ca` replaces the configured authority.
    ///
    /// # Errors
    /// When something that the process needs cannot be had.
    pub async fn start(
        config: Config,
        log: Option<LogHandle>,
        ca: Option<Arc<dyn CaClient>>,
    ) -> Result<Self, Error> {
        log_effective(&config);
        buffers::limit(&config);
        let (ready, (drain, watcher)) = (Ready::new(), drain::new());
        let ca = ca.map_or_else(|| authority(&config), Ok)?;
        let trust = TrustStore::new(StalePolicy::Deny, Clock::system());
        let mesh = MeshState::new(Mesh::new());
        let exported = Exported::register(&mesh);
        let exposition = exported.exposition;
        let options = tulle_identity::Options {
            trust: trust.clone(),
            ..tulle_identity::Options::default()
        };
        let waypoint = Waypoint::start(Parts {
            mesh: mesh.clone(),
            secrets: SecretManager::new(ca, options, exported.certificates),
            trust,
            network: Arc::new(OwnNetwork),
            metrics: exported.metrics,
            log: log.clone(),
            drain: watcher.clone(),
            config,
        });
        follow_configuration(&waypoint, exported.configuration, &ready, &watcher)?;
        drop(tasks::spawn("trust", follow_trust(Arc::clone(&waypoint))));
        drop(tasks::spawn("buffers", buffers::follow(Arc::clone(&waypoint))));
        let certified = ready.register("certificate");
        drop(tasks::spawn(
            "first-certificate",
            certify(Arc::clone(&waypoint), certified),
        ));
        let address = waypoint.config.listen;
        let failed = |source| Error::Listen { address, source };
        let socket = listener::bind(address).map_err(failed)?;
        let listen = socket.local_addr().map_err(failed)?;
        drop(tasks::spawn(
            "listener",
            listener::accept(Arc::clone(&waypoint), socket),
        ));
        let quit = Arc::new(Notify::new());
        let pages = Pages {
            waypoint: Arc::clone(&waypoint),
            ready: ready.clone(),
            exposition: exposition.clone(),
            log,
            quit: Arc::clone(&quit),
        };
        let pages = serve_pages(&waypoint.config, &pages, &watcher).await?;
        Ok(Self {
            waypoint,
            ready,
            exposition,
            drain,
            quit,
            pages,
            listen,
        })
    }

    /// Notified when an operator asks the process to end.
    #[must_use]
    pub fn quit(&self) -> Arc<Notify> {
        Arc::clone(&self.quit)
    }

    /// What everything shares.
    #[must_use]
    pub fn waypoint(&self) -> &Arc<Waypoint> {
        &self.waypoint
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

    /// Where tunnels are taken.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Not ready any more; says goodbye on every connection, waits for what runs up to the deadline, resets the rest.
    pub async fn stop(self) {
        self.stop_until(std::future::pending()).await;
    }

    /// As [`Self::stop`], but waits no longer than until `hurry` ends and says why.
    pub async fn stop_until(self, hurry: impl Future<Output = &'static str>) {
        let draining = self.ready.register("draining");
        self.drain.start(DrainMode::Graceful);
        let settings = self.waypoint.view.load();
        let deadline = settings
            .settings
            .limits
            .drain
            .unwrap_or(self.waypoint.config.drain);
        let watcher = self.drain.watcher();
        tokio::select! {
            () = watcher.idle() => {}
            () = tokio::time::sleep(deadline) => {}
            cause = hurry => tracing::info!(cause, "told to end again: resetting what is open"),
        }
        self.drain.start(DrainMode::Immediate);
        let remaining = self.drain.remaining();
        tracing::info!(reset = remaining, "drained");
        self.drain.wait(END_WAIT).await;
        let ended = futures_util::future::join_all(self.pages);
        // A page that does not end in time ends with the process.
        let _ = tokio::time::timeout(END_WAIT, ended).await;
        drop(draining);
    }
}

fn log_effective(config: &Config) {
    let text = serde_json::to_string(config).unwrap_or_else(|error| error.to_string());
    tracing::info!(
        version = tulle_runtime::build_info::tag(),
        config = text,
        "starting"
    );
}

fn authority(config: &Config) -> Result<Arc<dyn CaClient>, Error> {
    let options = GrpcCaOptions {
        ttl: config.secret_ttl,
        impersonation: config.credential.impersonation(),
        ..GrpcCaOptions::default()
    };
    let channel = channel::authenticated(&config.ca.channel_config(&config.cluster_id))?;
    Ok(Arc::new(GrpcCa::new(channel, options)))
}

fn follow_configuration(
    waypoint: &Waypoint,
    metrics: tulle_xds_client::Metrics,
    ready: &Ready,
    drain: &DrainWatcher,
) -> Result<(), Error> {
    let config = &waypoint.config;
    let channel = channel::authenticated(&config.xds.channel_config(&config.cluster_id))?;
    let options = Options::waypoint(node_info(config));
    let client = Client::new(options, waypoint.mesh.clone(), metrics, ready);
    drop(tasks::spawn("xds-client", client.run(channel, drain.clone())));
    Ok(())
}

fn node_info(config: &Config) -> NodeInfo {
    let mut metadata = config.node_metadata.clone();
    for (name, own) in [
        ("CLUSTER_ID", &*config.cluster_id),
        ("NETWORK", &*config.network),
        ("SERVICE_ACCOUNT", &*config.service_account),
    ] {
        // What this proxy goes by is told, whatever else is said of it.
        if !own.is_empty() || !metadata.contains_key(name) {
            metadata.insert(name.to_owned(), own.into());
        }
    }
    NodeInfo {
        kind: NodeKind::Waypoint,
        name: config.pod_name.to_string(),
        namespace: config.namespace.to_string(),
        node_name: config.node.to_string(),
        instance_ips: config.instance_ip.into_iter().collect(),
        metadata,
        build_version: tulle_runtime::build_info::tag(),
    }
}

/// Hands what the control plane says of trust to those who judge, for as long as the process lives.
async fn follow_trust(waypoint: Arc<Waypoint>) {
    let mut changes = waypoint.mesh.changes();
    loop {
        let pushed: Vec<Arc<Trust>> = waypoint.mesh.snapshot().trusts().cloned().collect();
        waypoint.trust.set_pushed(pushed);
        loop {
            match changes.next().await {
                Some(change) if change.trust || change.everything => break,
                Some(_) => {}
                None => return,
            }
        }
    }
}

/// Readiness waits for the first certificate.
async fn certify(waypoint: Arc<Waypoint>, certified: BlockReady) {
    loop {
        match waypoint
            .secrets
            .fetch(&waypoint.identity, Priority::Waiting)
            .await
        {
            Ok(_) => return drop(certified),
            Err(error) => tracing::warn!(%error, "no certificate yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_PAUSE) => {}
            () = waypoint.drain.over() => return,
        }
    }
}

async fn serve_pages(
    config: &Config,
    pages: &Pages,
    drain: &DrainWatcher,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let mut serving = Vec::new();
    // A namespace has no dot in its name, so the two can be told apart again.
    let name = format!("waypoint-{}.{}.sock", config.namespace, config.gateway);
    match Listener::bind(&Listen::Unix(config.run_dir.join(name))).await {
        Ok(unix) => {
            let page = admin::serve(unix, pages.local(), drain.clone());
            serving.push(tasks::spawn("admin", page));
        }
        Err(error) => tracing::warn!(%error, "`tulle` cannot ask this process"),
    }
    if let Some(port) = config.ports.admin {
        let listener = bind((Ipv4Addr::LOCALHOST, port).into()).await?;
        let page = admin::serve(listener, pages.admin(), drain.clone());
        serving.push(tasks::spawn("admin", page));
    }
    if let Some(port) = config.ports.stats {
        let page = admin::serve_open(
            bind_any(port).await?,
            admin::metrics(&pages.exposition),
            drain.clone(),
        );
        serving.push(tasks::spawn("metrics", page));
    }
    if let Some(port) = config.ports.readiness {
        let page = admin::serve_open(
            bind_any(port).await?,
            admin::readiness(&pages.ready),
            drain.clone(),
        );
        serving.push(tasks::spawn("readiness", page));
    }
    Ok(serving)
}

async fn bind(address: SocketAddr) -> Result<Listener, AdminError> {
    Listener::bind(&Listen::Tcp(address)).await
}

/// A kernel without IPv6 is no reason not to start.
async fn bind_any(port: u16) -> Result<Listener, AdminError> {
    match bind((Ipv6Addr::UNSPECIFIED, port).into()).await {
        Ok(listener) => Ok(listener),
        Err(_) => bind((Ipv4Addr::UNSPECIFIED, port).into()).await,
    }
}
