//! The agent, built whole and read top to bottom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tulle_identity::channel::{self, AuthenticatedChannel, ChannelConfig, RootSource, TokenSource};
use tulle_linux::NetNs;
use tulle_model::{Mesh, Str};
use tulle_runtime::admin::{self, Listen, Listener};
use tulle_runtime::drain::{self, DrainWatcher};
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_runtime::telemetry::LogHandle;
use tulle_xds_client::{Client, MeshState, NodeInfo, NodeKind, Options, ResourceType};

use crate::board::Board;
use crate::capture::Capture;
use crate::cni::{self, desk::Desk};
use crate::config::{Config, Port};
use crate::enroll::task::{PROXY_GRACE, Shared, Timing};
use crate::fleet::{self, Fleet};
use crate::grace::Grace;
use crate::host::{self, Host};
use crate::locate::Locator;
use crate::mark;
use crate::metrics::{self, Metrics};
use crate::probe::Probes;
use crate::records::Records;
use crate::rules::Backend;
use crate::variant::Settings;
use crate::zds::{self, Hub, Proxies};

/// Pods that join at a time.
const JOINS_MAX: usize = 16;
/// How long taking every pod out of the mesh may take at the end.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open admin requests may take at the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// How often captured connections are reset while no proxy is there to take them.
const RESET_INTERVAL: Duration = Duration::from_millis(100);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A page cannot be served.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// Node proxies cannot be served.
    #[error(transparent)]
    Zds(#[from] zds::ZdsError),
    /// The control plane cannot be talked to.
    #[error(transparent)]
    Channel(#[from] channel::ChannelError),
    /// The node's own packet rules cannot be read.
    #[error(transparent)]
    Host(#[from] crate::error::CaptureError),
    /// The secret mark can be neither read nor written.
    #[error("cannot keep the mark of the node proxy's packets in {}: {source}", folder.display())]
    Mark {
        /// The folder of it.
        folder: PathBuf,
        /// What was said.
        source: std::io::Error,
    },
    /// Plugins cannot be served.
    #[error(transparent)]
    Cni(#[from] cni::server::SocketError),
    /// What is known of pods from before cannot be read.
    #[error("cannot use the folder of records {}: {source}", path.display())]
    Records {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node's own network namespace cannot be looked at.
    #[error("cannot open the node's own network namespace: {0}")]
    OwnNetns(#[source] std::io::Error),
}

/// Runs the agent until `shutdown` ends.
///
/// Rules, listeners and pods stay as they are, unless the configuration asks for a clean end.
///
/// # Errors
/// When something it needs to start is missing or taken.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = &'static str>,
    logs: Option<&LogHandle>,
) -> Result<(), Error> {
    let ready = Ready::new();
    let (trigger, draining) = drain::new();
    let hub = Hub::new();
    let state = MeshState::new(Mesh::new());
    let (metrics, configuration, exposition) = metrics::export(&state);
    let board = Board::new(metrics.clone());

    let pages = admin::Router::new().merge(crate::admin::router(
        config.node.as_str().into(),
        board.clone(),
        hub.clone(),
        &exposition,
        &ready,
        logs,
    ));
    serve_pages(&config, pages, &exposition, &ready, &draining).await?;

    let options = Options {
        types: vec![ResourceType::Address],
        ..Options::new(node_info(&config))
    };
    let client = Client::new(options, state.clone(), configuration, &ready);
    tasks::spawn(
        "xds-client",
        client.run(control_plane(&config, &draining)?, draining.clone()),
    );

    let grace = Grace::default();
    tasks::spawn("zds", zds::serve(&config.inpod_uds, hub.clone())?);
    tasks::spawn(
        "proxy-watch",
        watch_proxies(hub.clone(), grace.clone(), ready.clone(), metrics.clone()),
    );
    tasks::spawn("reset-waiting", reset_waiting(hub.clone(), metrics.clone()));

    let reconciling = ready.register("first reconcile");
    let shared = shared(&config, hub.clone(), board.clone(), grace, metrics.clone()).await?;
    let host = shared.host.clone();
    host::look_at_node(&host, &board, &config.state_dir, &config.pod_range).await;
    tasks::spawn("host-watch", host::watch(host.clone(), metrics));
    let mut fleet = Fleet::new(shared.clone());
    let node: Str = config.node.as_str().into();
    serve_plugins(&config, shared, &state)?;
    let first_look = || {
        hub.complete();
        tasks::spawn("first-reconcile", async move {
            board.until_settled().await;
            host.first_look_is_done();
            if let Err(error) = host.settle().await {
                tracing::warn!(%error, "the node's own tables cannot be changed");
            }
            drop(reconciling);
        });
    };
    tracing::info!(%node, version = tulle_runtime::build_info::tag(), "agent started");
    let signal = tokio::select! {
        signal = shutdown => signal,
        () = fleet::follow(&mut fleet, &state, &node, first_look) => "the configuration's end",
    };
    end(signal, config.cleanup_on_exit, &mut fleet).await;
    trigger.drain_and_wait(DRAIN_DEADLINE).await;
    Ok(())
}

async fn end(signal: &'static str, cleanup: bool, fleet: &mut Fleet) {
    if !cleanup {
        tracing::info!(signal, "agent ends; pods stay captured, their proxy goes on");
        return;
    }
    tracing::info!(signal, "agent ends; taking every pod out of the mesh");
    if tokio::time::timeout(CLEANUP_TIMEOUT, fleet.release_all())
        .await
        .is_err()
    {
        tracing::error!("some pods could not be taken out of the mesh in time; see the log above");
    }
    if let Err(error) = fleet.host().remove().await {
        tracing::error!(%error, "the node's own tables cannot be removed");
    }
}

/// Answers CNI plugins, and keeps the plugin in its place if that is wanted.
fn serve_plugins(config: &Config, shared: Shared, state: &MeshState) -> Result<(), Error> {
    if let Some(socket) = config.cni_socket.path() {
        let desk = Desk {
            shared,
            state: state.clone(),
            node: config.node.as_str().into(),
            state_dir: config.state_dir.clone(),
            undescribed: config.undescribed_pods,
        };
        tasks::spawn("cni-notes", desk.clone().take_up_notes());
        tasks::spawn("cni", cni::server::serve(cni::server::open(socket)?, desk));
    }
    if config.install_cni {
        tasks::spawn("cni-install", config.installation().keep());
    }
    Ok(())
}

async fn shared(
    config: &Config,
    hub: Hub,
    board: Board,
    grace: Grace,
    metrics: Metrics,
) -> Result<Shared, Error> {
    let folder = config.state_dir.join("pods");
    let records = Records::load(&folder).map_err(|source| Error::Records { path: folder, source })?;
    let netns = NetNs::current().map_err(Error::OwnNetns)?;
    let mark = mark::of_node(config.mark_guard, &config.run_dir, &config.node);
    let mark = mark.map_err(|source| Error::Mark {
        folder: config.run_dir.clone(),
        source,
    })?;
    Ok(Shared {
        capture: Capture::new(config.rules.rules(), mark),
        hub,
        board,
        metrics,
        resolver_dir: config.resolver_dir.as_path().into(),
        locator: Locator::new(
            &config.netns_dir,
            netns.inode(),
            records,
            config.cri_socket().as_deref(),
        ),
        grace,
        probes: Probes::default(),
        settings: Settings {
            dns: config.dns_capture,
            mark,
            mark_guard: config.mark_guard,
            existing: config.existing_connections,
        },
        // The node's tables hold sets that are read back, which only this backend does.
        host: Host::take_over(Backend::Netlink.rules(), netns).await?,
        joins: Arc::new(Semaphore::new(JOINS_MAX)),
        timing: Timing {
            leave_deadline: Duration::from_secs(config.leave_deadline),
            ..Timing::default()
        },
    })
}

fn node_info(config: &Config) -> NodeInfo {
    let metadata = [("CLUSTER_ID".to_owned(), config.cluster_id.as_str().into())];
    NodeInfo {
        kind: NodeKind::Agent,
        name: format!("agent-{}", config.node),
        namespace: "tulle-system".to_owned(),
        node_name: config.node.clone(),
        metadata: metadata.into(),
        build_version: tulle_runtime::build_info::tag(),
        ..NodeInfo::default()
    }
}

/// The way to the control plane. A node's certificate is renewed by its agent, for the other programs too.
fn control_plane(config: &Config, drain: &DrainWatcher) -> Result<AuthenticatedChannel, Error> {
    let channel = ChannelConfig {
        address: config.xds_address.clone(),
        root: RootSource::from_setting(&config.xds_root_ca),
        server_name: None,
        token: TokenSource::in_file(&config.token_file),
        headers: Vec::new(),
        cluster_id: Some(config.cluster_id.clone()),
        mark: None,
    };
    let authenticated = channel::authenticated(&channel)?;
    if let Some(folder) = channel.token.node_folder() {
        tasks::spawn(
            "node certificate",
            channel::node::keep_fresh(channel, folder, drain.clone()),
        );
    }
    Ok(authenticated)
}

async fn serve_pages(
    config: &Config,
    pages: admin::Router,
    exposition: &Exposition,
    ready: &Ready,
    draining: &DrainWatcher,
) -> Result<(), Error> {
    let socket = Listen::Unix(config.run_dir.join(format!("agent-{}.sock", config.node)));
    let listener = Listener::bind(&socket).await?;
    tasks::spawn(
        "admin-socket",
        admin::serve(listener, pages.clone(), draining.clone()),
    );
    if let Port::On(port) = config.admin_port {
        let listener = Listener::bind(&Listen::Tcp((Ipv4Addr::LOCALHOST, port).into())).await?;
        tasks::spawn("admin", admin::serve(listener, pages, draining.clone()));
    }
    for (port, pages) in [
        (config.metrics_port, admin::metrics(exposition)),
        (config.readiness_port, admin::readiness(ready)),
    ] {
        if let Port::On(port) = port {
            tasks::spawn(
                "pages",
                admin::serve_open(bind_any(port).await?, pages, draining.clone()),
            );
        }
    }
    Ok(())
}

/// Both families if the node has both.
async fn bind_any(port: u16) -> Result<Listener, admin::AdminError> {
    let at = |address: IpAddr| Listen::Tcp(SocketAddr::new(address, port));
    match Listener::bind(&at(Ipv6Addr::UNSPECIFIED.into())).await {
        Ok(listener) => Ok(listener),
        Err(_) => Listener::bind(&at(Ipv4Addr::UNSPECIFIED.into())).await,
    }
}

/// Not ready while no proxy has been connected for some time: every new pod would be refused.
async fn watch_proxies(hub: Hub, grace: Grace, ready: Ready, metrics: Metrics) {
    let mut proxies = hub.watch();
    let mut blocked = Some(ready.register("node proxy"));
    loop {
        let connected = {
            let proxies = proxies.borrow_and_update();
            grace.note(&proxies);
            proxies.connected.len()
        };
        metrics.proxies.set(i64::try_from(connected).unwrap_or(i64::MAX));
        if connected > 0 {
            blocked = None;
        } else if blocked.is_none() && is_alone_for_long(&mut proxies).await {
            blocked = Some(ready.register("node proxy"));
        } else if blocked.is_none() {
            continue;
        }
        if proxies.changed().await.is_err() {
            return;
        }
    }
}

/// Connections that were captured and that no proxy takes end with an error instead of a hang.
async fn reset_waiting(hub: Hub, metrics: Metrics) {
    let mut proxies = hub.watch();
    loop {
        if !proxies.borrow_and_update().connected.is_empty() {
            if proxies.changed().await.is_err() {
                return;
            }
            continue;
        }
        if !is_alone_for_long(&mut proxies).await {
            continue;
        }
        let listeners = hub
            .announcements()
            .into_iter()
            .filter_map(|pod| pod.listeners.clone());
        let reset: usize = listeners.map(|listeners| listeners.reset_waiting()).sum();
        metrics.resets.inc_by(reset as u64);
        tokio::time::sleep(RESET_INTERVAL).await;
    }
}

/// Waits for the grace without a proxy to pass; false if one connects before.
async fn is_alone_for_long(proxies: &mut watch::Receiver<Proxies>) -> bool {
    let since = proxies.borrow().alone_since;
    let connected = proxies.wait_for(|proxies| !proxies.connected.is_empty());
    tokio::time::timeout_at(since + PROXY_GRACE, connected)
        .await
        .is_err()
        && Instant::now() >= since + PROXY_GRACE
}
