//! Endpoints of backends: which one, whether again, and when no more.

pub mod backend;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod cluster;
pub mod connect;
pub mod dial;
pub mod endpoint;
pub mod hash;
pub mod locality;
pub mod metrics;
pub mod origination;
pub mod outcome;
pub mod outlier;
pub mod outside;
pub mod pool;
pub mod retry;
pub mod session;
pub mod timeout;
pub mod via;
pub mod walk;

use std::sync::Arc;
use std::time::Duration;

use tulle_runtime::drain::DrainWatcher;
use tulle_transport::hbone::{HbonePool, PoolConfig};

use dial::{Dialer, Network};
use outside::Names;
use pool::HttpPool;

use crate::buffers::Http2;

/// How often connections that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(15);
/// How long a connection may take to come about, unless a policy says otherwise: TCP, TLS and CONNECT.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A policy that allows more gets this much.
pub const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Connections to endpoints. Clones share them.
#[derive(Debug, Clone)]
pub struct Upstreams {
    /// Tunnels.
    pub tunnels: HbonePool,
    /// Connections of HTTP in them.
    pub http: HttpPool,
    /// Sockets, for endpoints without tunnels.
    pub network: Arc<dyn Network>,
    /// What names outside of the mesh stand for.
    pub names: Arc<Names>,
}

impl Upstreams {
    /// No connections yet.
    #[must_use]
    pub fn new(dialer: Dialer, http2: Http2, network: Arc<dyn Network>, drain: &DrainWatcher) -> Self {
        let config = PoolConfig {
            // Whoever waits for a tunnel gives up earlier, by the policy of its backend.
            dial_timeout: CONNECT_TIMEOUT_MAX,
            ..PoolConfig::default()
        };
        let this = Self {
            tunnels: HbonePool::new(config, dialer),
            http: HttpPool::new(http2),
            network,
            names: Arc::default(),
        };
        let (ending, drain) = (this.clone(), drain.clone());
        drop(tulle_runtime::tasks::spawn("upstream-drain", async move {
            // Requests that are running, and those that still arrive while peers learn of the drain, need tunnels.
            drain.over().await;
            ending.http.clear();
            ending.tunnels.drain();
        }));
        this
    }

    /// Closes what nobody has used for a while, until the process ends.
    pub async fn sweep(self, drain: DrainWatcher) {
        loop {
            tokio::select! {
                () = drain.over() => return,
                () = tokio::time::sleep(SWEEP) => self.http.sweep(),
            }
        }
    }
}
