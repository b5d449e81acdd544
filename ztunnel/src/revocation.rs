//! Closes what is open to peers that are no longer believed: revoked, or denied by an operator.
//!
//! Handshakes ask by themselves. Each open tunnel waits here for the end of its proofs, and streams that are handed
//! over within the process are walked whenever something changed, as no tunnel is under them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tulle_identity::{Distrust, PeerProof, WorkloadCertificate};
use tulle_model::trust::Trust;
use tulle_model::{Identity, NetworkAddress, Str};
use tulle_runtime::drain::DrainWatcher;

use crate::connections::Live;
use crate::metrics::labels::Direction;
use crate::pod::Node;

/// Both proofs of a tunnel.
#[derive(Debug, Clone)]
pub struct Proofs {
    own: PeerProof,
    peer: PeerProof,
    /// Where the peer runs, as far as its address tells.
    node: Option<Str>,
}

impl Proofs {
    /// What both ends of a tunnel have proven; the peer has this address.
    #[must_use]
    pub fn new(node: &Node, own: &WorkloadCertificate, peer: PeerProof, address: IpAddr) -> Self {
        let address = NetworkAddress::new(Arc::clone(&node.config.network), address);
        let described = node.mesh.snapshot().workload_by_address(&address);
        Self {
            own: own.proof().clone(),
            peer,
            node: described.map(|workload| Str::clone(&workload.node)),
        }
    }

    /// When the first of them expires: no stream is to begin later.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.own.not_after().min(self.peer.not_after())
    }

    /// Whether both still hold.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, node: &Node) -> Result<(), Distrust> {
        node.trust.judge(&self.own, Some(&node.config.node))?;
        node.trust.judge(&self.peer, self.node.as_deref())
    }

    /// Waits until one of them does not hold any more, and counts that.
    pub async fn broken(&self, node: &Node, direction: Direction) -> Distrust {
        let why = tokio::select! {
            why = node.trust.distrusted(&self.own, Some(&node.config.node)) => why,
            why = node.trust.distrusted(&self.peer, self.node.as_deref()) => why,
        };
        node.metrics.count_crl_rejection(direction);
        tracing::warn!(peer = %self.peer.identity(), own = %self.own.identity(), %why, "closing a tunnel");
        why
    }
}

/// Hands what the control plane says of trust to those who judge, for as long as the process lives.
pub fn follow(node: &Arc<Node>) -> impl Future<Output = ()> + Send + use<> {
    // Here and not in the task: no change is missed from now on.
    let mut changes = node.mesh.changes();
    let node = Arc::clone(node);
    async move {
        take(&node);
        while let Some(change) = changes.next().await {
            if change.trust || change.everything {
                take(&node);
            }
        }
    }
}

fn take(node: &Node) {
    let pushed: Vec<Arc<Trust>> = node.mesh.snapshot().trusts().cloned().collect();
    node.trust.set_pushed(pushed);
}

/// Walks the open streams whenever what is believed changes.
pub async fn walk(node: Arc<Node>, drain: DrainWatcher) {
    let mut moved = node.trust.changes();
    loop {
        tokio::select! {
            () = drain.over() => return,
            changed = moved.changed() => if changed.is_err() { return },
        }
        for live in node.connections.list() {
            look_at(&node, &live);
        }
    }
}

/// Ends an open stream if one of its ends is not believed.
pub(crate) fn look_at(node: &Node, live: &Live) {
    if is_denied(node, live) {
        live.revoke();
    }
}

/// Whether either end is denied by name, or has a certificate here that is not believed on this node.
fn is_denied(node: &Node, live: &Live) -> bool {
    if !live.story.mutual_tls {
        return false;
    }
    let ends = [&live.story.source.principal, &live.story.destination.principal];
    ends.into_iter()
        .flatten()
        .any(|identity| node.trust.denies(identity).is_some() || is_distrusted(node, identity))
}

/// Whether peers would refuse what proves an identity here.
fn is_distrusted(node: &Node, identity: &Identity) -> bool {
    let certificate = node.secrets.current(identity);
    certificate.is_some_and(|own| node.trust.judge(own.proof(), Some(&node.config.node)).is_err())
}
