//! From what the control plane describes to what this node's agent has to do: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tulle_model::Str;
use tulle_model::mesh::Snapshot;
use tulle_model::workload::{TunnelProtocol, Workload};

use crate::netns::NetnsName;
use crate::variant::Wishes;

/// The workload extension that names a pod's network namespace.
pub const PROCESS_EXTENSION: &str = "tulle.dev/process";

/// A pod of this node as the control plane describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, the resource's name.
    pub uid: Str,
    /// Its name.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
    /// Its addresses; one of them proves the network namespace.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, if the description names one.
    pub netns: Option<NetnsName>,
    /// Whether its traffic goes through the mesh. Only the control plane decides that.
    pub enrolled: bool,
    /// What its annotations say about how it is captured.
    pub wishes: Wishes,
}

impl Pod {
    /// A workload as a pod.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        let process = workload.extensions.get(PROCESS_EXTENSION);
        Self {
            uid: workload.uid.0.clone(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
            addresses: workload.addresses.clone(),
            netns: process.and_then(|process| process.parse().ok()),
            wishes: Wishes::read(&workload.extensions),
            enrolled: workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.native_tunnel,
        }
    }
}

/// The pods of `node`, by uid. A workload that names no process and is not enrolled is none of the agent's business.
#[must_use]
pub fn of_node(snapshot: &Snapshot, node: &str) -> BTreeMap<Str, Pod> {
    let here = snapshot
        .workloads()
        .filter(|workload| workload.node.as_ref() == node);
    let pods = here
        .map(|workload| Pod::of(workload))
        .filter(|pod| pod.enrolled || pod.netns.is_some());
    pods.map(|pod| (pod.uid.clone(), pod)).collect()
}
