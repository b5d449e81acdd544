//! What a pod needs before connections can be served: its description and its certificate. A generation takes nothing
//! over from the one before until it has both, so that no connection waits for them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tulle_identity::Priority;
use tulle_linux::NetNs;
use tulle_model::workload::TunnelProtocol;
use tulle_model::{Identity, Snapshot};

use super::Fleet;
use crate::config::WorkloadName;
use crate::inpod::PodUid;

/// How long the answer to `add` waits for the pod's description and certificate.
const PREPARE_WAIT: Duration = Duration::from_secs(1);

/// How long a process waits for its configuration and the certificates of its node's workloads before it offers to
/// serve. Shorter than agents bear to be without a proxy: where no earlier one serves, connections wait that long.
const PREPARE_ALL_WAIT: Duration = Duration::from_secs(5);

impl Fleet {
    /// Waits, for a bounded time, until the pod's first connection would find its description and certificate.
    pub async fn prepare(&self, uid: &PodUid) {
        let running = self.pods.get(uid).filter(|entry| entry.is_running());
        if let Some(entry) = running {
            // A pod that is not prepared by then holds its first connection instead.
            self.is_prepared(&entry.name).await;
        }
    }

    /// Whether connections of a pod that another generation serves could be served here at once; waits for that for a
    /// bounded time. This process is not ready while there is such a pod that it has not taken.
    pub async fn prepare_to_take(&mut self, uid: &PodUid, name: &WorkloadName, netns: &NetNs) -> bool {
        let known = self.pods.get(uid);
        let serves = known.is_some_and(|known| known.netns == *netns && known.is_running());
        let prepared = serves || self.is_prepared(name).await;
        if !prepared {
            let not_ready = || {
                self.ready
                    .register(format!("configuration and certificate of {name}"))
            };
            self.left.entry(uid.clone()).or_insert_with(not_ready);
        }
        prepared
    }

    /// Waits, for a bounded time, until there is a configuration, and certificates of the workloads of this node: so an
    /// earlier generation hands nothing over that would have to wait here.
    pub async fn prepare_all(&self) {
        let mesh = &self.node.mesh;
        let prepared = async {
            let synced = |_: &Snapshot| mesh.synced().then_some(());
            mesh.wait_for(PREPARE_ALL_WAIT, synced).await;
            let identities = local_identities(&mesh.snapshot(), &self.node.config.node);
            let secrets = &self.node.secrets;
            let fetches = identities
                .iter()
                .map(|identity| secrets.fetch(identity, Priority::First));
            join_all(fetches)
                .await
                .iter()
                .filter(|fetched| fetched.is_ok())
                .count()
        };
        match tokio::time::timeout(PREPARE_ALL_WAIT, prepared).await {
            Ok(certificates) => tracing::info!(certificates, "prepared to serve pods"),
            Err(_) => tracing::warn!("not all certificates of this node have come; pods are taken without"),
        }
    }

    /// Waits, for a bounded time, until a workload is described and has a certificate.
    async fn is_prepared(&self, name: &WorkloadName) -> bool {
        let mesh = &self.node.mesh;
        let prepared = async {
            let found = mesh.wait_for(PREPARE_WAIT, |snapshot| {
                let found = || snapshot.workload_by_name(&name.namespace, &name.name, &name.service_account);
                mesh.synced().then(found).flatten()
            });
            let identity = found.await?.identity();
            self.node.secrets.fetch(&identity, Priority::First).await.ok()
        };
        let prepared = tokio::time::timeout(PREPARE_WAIT, prepared).await;
        prepared.is_ok_and(|certificate| certificate.is_some())
    }
}

/// Who the workloads of a node are whose tunnels end here.
fn local_identities(snapshot: &Snapshot, node: &str) -> BTreeSet<Identity> {
    let here = snapshot
        .workloads()
        .filter(|workload| !node.is_empty() && workload.node.as_ref() == node);
    // Who terminates tunnels itself has a certificate of its own.
    here.filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.native_tunnel)
        .map(|workload| workload.identity())
        .collect()
}
