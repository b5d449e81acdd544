//! From what the control plane describes to what this node's agent has to do: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use tulle_model::Str;
use tulle_model::mesh::Snapshot;
use tulle_model::workload::{TunnelProtocol, Workload};

use crate::netns::NetnsName;
use crate::records::PodId;
use crate::variant::Wishes;

/// The workload extension that says how a pod is recognised on its node.
pub const PROCESS_EXTENSION: &str = "tulle.dev/process";

/// How a pod is recognised on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// By the name of its network namespace: `netns:<name>`.
    Netns(NetnsName),
    /// By its namespace and name, as a container runtime has them, and by its uid if one is given: `pod:<uid>`, or
    /// `pod:*` for whichever sandbox has the name.
    Pod(Option<Str>),
}

/// Text that recognises no pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be `netns:` and a name, or `pod:` and a uid")]
pub struct InvalidProcess;

impl FromStr for Process {
    type Err = InvalidProcess;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("netns", _)) => text.parse().map(Self::Netns).map_err(|_| InvalidProcess),
            Some(("pod", "*")) => Ok(Self::Pod(None)),
            Some(("pod", uid)) if !uid.is_empty() => Ok(Self::Pod(Some(uid.into()))),
            _ => Err(InvalidProcess),
        }
    }
}

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
    /// How it is recognised, if the description says; else by its namespace and name.
    pub process: Option<Process>,
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
            process: process.and_then(|process| process.parse().ok()),
            wishes: Wishes::read(&workload.extensions),
            enrolled: workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.native_tunnel,
        }
    }

    /// Whether a sandbox is this pod's.
    #[must_use]
    pub fn is(&self, sandbox: &PodId) -> bool {
        let uid_fits = match &self.process {
            Some(Process::Pod(Some(uid))) => *uid == sandbox.uid,
            Some(Process::Netns(_)) => false,
            Some(Process::Pod(None)) | None => true,
        };
        uid_fits && self.namespace == sandbox.namespace && self.name == sandbox.name
    }

    /// Whether it is looked for among the sandboxes of a container runtime.
    #[must_use]
    pub fn has_sandbox(&self) -> bool {
        !matches!(self.process, Some(Process::Netns(_)))
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
        .filter(|pod| pod.enrolled || pod.process.is_some());
    pods.map(|pod| (pod.uid.clone(), pod)).collect()
}

/// The pod of `node` that a sandbox belongs to, enrolled or not; nothing if it is not described.
#[must_use]
pub fn of_sandbox(snapshot: &Snapshot, node: &str, sandbox: &PodId) -> Option<Pod> {
    let mut here = snapshot
        .workloads()
        .filter(|workload| workload.node.as_ref() == node && workload.name == sandbox.name)
        .map(|workload| Pod::of(workload));
    here.find(|pod| pod.is(sandbox))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(process: Option<&str>) -> Pod {
        Pod {
            uid: "c//Pod/shop/web".into(),
            name: "web".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            addresses: Vec::new(),
            process: process.map(|process| process.parse().unwrap()),
            enrolled: true,
            wishes: Wishes::default(),
        }
    }

    fn sandbox(name: &str, uid: &str) -> PodId {
        PodId {
            namespace: "shop".into(),
            name: name.into(),
            uid: uid.into(),
        }
    }

    #[test]
    fn a_pod_is_recognised_by_its_name_and_by_its_uid_if_one_is_described() {
        for process in [None, Some("pod:*"), Some("pod:u1")] {
            assert!(pod(process).is(&sandbox("web", "u1")), "{process:?}");
            assert!(!pod(process).is(&sandbox("db", "u1")), "{process:?}");
        }
        assert!(pod(None).is(&sandbox("web", "u2")));
        assert!(
            !pod(Some("pod:u1")).is(&sandbox("web", "u2")),
            "a later pod of the same name"
        );
        assert!(!pod(Some("netns:web")).is(&sandbox("web", "u1")));
    }

    #[test]
    fn other_ways_to_recognise_a_process_are_not_ours() {
        for text in ["pod:", "pod", "unit:web.service", "netns:../x", ""] {
            assert_eq!(text.parse::<Process>(), Err(InvalidProcess), "{text}");
        }
    }
}
