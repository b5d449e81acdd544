//! Where the pages of this process are served: admin, metrics and readiness.
//!
//! A supervised generation shares its network namespace with the one it takes over from: it waits until the ports are
//! free, and lets go of them when it drains.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tulle_runtime::admin::{self, AdminError, Listen, Listener};
use tulle_runtime::drain::{self, DrainWatcher};
use tulle_runtime::tasks;

use super::metrics_tunnel::{MetricsTunnel, process_pod};
use super::{Addresses, Error, SpawnNamed};
use crate::admin::Pages;
use crate::config::Config;

/// How often a supervised generation looks whether the ports are free.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Serves all pages.
pub(super) async fn serve(
    config: &Config,
    pages: &Pages,
    drain: &DrainWatcher,
    workers: &Handle,
) -> Result<(Vec<JoinHandle<()>>, Addresses), Error> {
    let mut tasks = serve_unix(config, pages, drain).await;
    if !config.supervision.supervised {
        let (ports, addresses) = serve_ports(config, pages, drain, workers).await?;
        tasks.extend(ports);
        return Ok((tasks, addresses));
    }
    let (config, pages) = (config.clone(), pages.clone());
    let (drain, workers) = (drain.clone(), workers.clone());
    tasks.push(tasks::spawn("pages", async move {
        serve_while_newest(&config, &pages, &drain, &workers).await;
    }));
    Ok((tasks, Addresses::default()))
}

/// Waits for the ports, and gives them up when this process drains.
async fn serve_while_newest(config: &Config, pages: &Pages, process: &DrainWatcher, workers: &Handle) {
    let (trigger, watcher) = drain::new();
    let serving = async {
        loop {
            match serve_ports(config, pages, &watcher, workers).await {
                Ok(serving) => return serving,
                Err(error) => tracing::debug!(%error, "an older generation still serves pages"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let (served, _) = tokio::select! {
        served = serving => served,
        _ = process.signaled() => return,
    };
    process.signaled().await;
    trigger.drain_and_wait(Duration::ZERO).await;
    futures_util::future::join_all(served).await;
}

async fn serve_unix(config: &Config, pages: &Pages, drain: &DrainWatcher) -> Vec<JoinHandle<()>> {
    let path = config
        .run_dir
        .join(format!("ztunnel-{}.sock", socket_name(&config.node)));
    match Listener::bind(&Listen::Unix(path)).await {
        Ok(unix) => vec![tasks::spawn(
            "admin",
            admin::serve(unix, pages.local(), drain.clone()),
        )],
        Err(error) => {
            tracing::warn!(%error, "`tulle` cannot ask this process");
            Vec::new()
        }
    }
}

async fn serve_ports(
    config: &Config,
    pages: &Pages,
    drain: &DrainWatcher,
    workers: &Handle,
) -> Result<(Vec<JoinHandle<()>>, Addresses), Error> {
    let ports = config.process_ports;
    let admin = bind((Ipv4Addr::LOCALHOST, ports.admin).into()).await?;
    let stats = bind_any(config.ipv6, ports.stats).await?;
    let (ipv6, port) = (config.ipv6, ports.readiness);
    // Where it is served: a socket belongs to the runtime that it was made on.
    let readiness = workers.spawn_named("bind-readiness", bind_any(ipv6, port));
    let readiness = readiness.await.map_err(|_| Error::Panicked)??;
    let stats_port = stats.local_addr().map_or(ports.stats, |stats| stats.port());
    let tunnel = match process_pod(config) {
        Some(name) => Some(MetricsTunnel::open(&pages.node, name, stats_port, drain, workers).await?),
        None => None,
    };
    let addresses = Addresses {
        admin: admin.local_addr(),
        stats: stats.local_addr(),
        readiness: readiness.local_addr(),
        tunnel: tunnel.as_ref().and_then(MetricsTunnel::address),
    };
    let mut tasks = vec![
        tasks::spawn("admin", admin::serve(admin, pages.admin(), drain.clone())),
        tasks::spawn(
            "metrics",
            admin::serve_open(stats, admin::metrics(&pages.exposition), drain.clone()),
        ),
    ];
    // A kernel without IPv6 on loopback is no reason not to start; port 0 must not open a second, unknown one.
    if config.ipv6 && ports.admin != 0 {
        match bind((Ipv6Addr::LOCALHOST, ports.admin).into()).await {
            Ok(admin) => tasks.push(tasks::spawn(
                "admin",
                admin::serve(admin, pages.admin(), drain.clone()),
            )),
            Err(error) => tracing::debug!(%error, "no admin pages over IPv6"),
        }
    }
    tasks.extend(tunnel.map(|tunnel| tunnel.serve(workers)));
    let ready = admin::readiness(&pages.ready);
    tasks.push(workers.spawn_named("readiness", admin::serve_open(readiness, ready, drain.clone())));
    Ok((tasks, addresses))
}

/// A node without a name still has a socket.
fn socket_name(node: &str) -> &str {
    if node.is_empty() { "local" } else { node }
}

async fn bind(address: SocketAddr) -> Result<Listener, AdminError> {
    Listener::bind(&Listen::Tcp(address)).await
}

async fn bind_any(ipv6: bool, port: u16) -> Result<Listener, AdminError> {
    if ipv6 && let Ok(listener) = bind((Ipv6Addr::UNSPECIFIED, port).into()).await {
        return Ok(listener);
    }
    bind((Ipv4Addr::UNSPECIFIED, port).into()).await
}
