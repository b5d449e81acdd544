//! How a pod reaches peers: TCP from its own namespace, TLS under its own identity.

use std::sync::Arc;

use tulle_identity::{Clock, Priority, WorkloadCertificate};
use tulle_model::Identity;
use tulle_runtime::drain::DrainWatcher;
use tulle_runtime::tasks;
use tulle_transport::OpenError;
use tulle_transport::hbone::pool::DialFuture;
use tulle_transport::hbone::{ClientConnection, Dial, HbonePool, PoolConfig, Settings, TunnelKey, client};
use tulle_transport::socket::{self, SocketFactory};

use crate::metrics::labels::Direction;
use crate::outbound::{ATTEMPT_TIME_MAX, CONNECT_BUDGET};
use crate::pod::Node;
use crate::revocation::Proofs;

/// Dials tunnels for one pod.
#[derive(Debug)]
pub struct Dialer {
    node: Arc<Node>,
    sockets: Arc<dyn SocketFactory>,
}

impl Dialer {
    /// A dialer that opens its sockets with `sockets`.
    #[must_use]
    pub fn new(node: Arc<Node>, sockets: Arc<dyn SocketFactory>) -> Self {
        Self { node, sockets }
    }

    /// A pool over this dialer that says goodbye when the pod drains.
    #[must_use]
    pub fn into_pool(self, drain: &DrainWatcher) -> HbonePool {
        let bounds = self.node.config.pool;
        let config = PoolConfig {
            streams_per_connection: u32::try_from(bounds.streams_max).unwrap_or(u32::MAX),
            connections_per_key: bounds.connections_per_key,
            dial_timeout: ATTEMPT_TIME_MAX,
        };
        let pool = HbonePool::new(config, self);
        let (draining, drain) = (pool.clone(), drain.clone());
        tasks::spawn("pool-drain", async move {
            drain.signaled().await;
            // What was accepted before the drain may still need a tunnel; nothing is accepted any more.
            tokio::select! {
                () = tokio::time::sleep(CONNECT_BUDGET) => {}
                () = drain.urgent() => {}
            }
            draining.drain();
        });
        pool
    }

    async fn connect(&self, key: &TunnelKey) -> Result<ClientConnection, OpenError> {
        let certificate = self.node.secrets.fetch(&key.source, Priority::Waiting).await;
        let certificate = certificate.map_err(|error| OpenError::Certificate {
            reason: error.reason(),
            detail: error.to_string().into(),
        })?;
        let options = self.node.socket_options();
        let stream = socket::connect(&*self.sockets, key.destination, None, &options).await;
        let stream = stream.map_err(|error| OpenError::connect(key.destination, error))?;
        let expected: Vec<Identity> = key.expected.iter().cloned().collect();
        let tls = certificate.client_config(&expected);
        let connection = client::connect(stream, tls, &client_settings(&self.node)).await?;
        self.watch(&connection, &certificate, key)?;
        Ok(connection)
    }
}

impl Dialer {
    /// Counts a tunnel, retires it with the first certificate that expires, and ends it when one of its ends is not
    /// believed any more.
    fn watch(
        &self,
        connection: &ClientConnection,
        own: &WorkloadCertificate,
        key: &TunnelKey,
    ) -> Result<(), OpenError> {
        let counted = self.node.metrics.tunnel();
        let peer = connection.peer().cloned();
        let peer = peer.ok_or(OpenError::GoingAway)?;
        let proofs = Proofs::new(&self.node, own, peer, key.destination.ip());
        let retired = connection.retire_after(proofs.not_after(), Clock::system());
        tasks::spawn("tunnel-lifetime", async move {
            retired.await;
            drop(counted);
        });
        proofs.judge(&self.node).map_err(|why| OpenError::Certificate {
            reason: why.reason(),
            detail: why.to_string().into(),
        })?;
        let (over, cut, node) = (connection.over(), connection.cutter(), Arc::clone(&self.node));
        tasks::spawn("tunnel-revocation", async move {
            tokio::select! {
                () = over => {}
                why = proofs.broken(&node, Direction::Outbound) => cut(why.reason()),
            }
        });
        Ok(())
    }
}

impl Dial for Dialer {
    fn dial<'a>(&'a self, key: &'a TunnelKey) -> DialFuture<'a> {
        Box::pin(self.connect(key))
    }
}

/// HTTP/2 settings of the tunnels that we open.
#[must_use]
pub fn client_settings(node: &Node) -> Settings {
    Settings {
        idle_timeout: node.config.pool.unused_release,
        ..with_windows(Settings::client(), node)
    }
}

/// HTTP/2 settings of the tunnels that peers open to us.
#[must_use]
pub fn server_settings(node: &Node) -> Settings {
    with_windows(Settings::server(), node)
}

fn with_windows(settings: Settings, node: &Node) -> Settings {
    Settings {
        stream_window: node.config.http2.stream_window,
        connection_window: node.config.http2.connection_window,
        frame_size: node.config.http2.frame,
        framing: node.config.http2.framing,
        ..settings
    }
}
