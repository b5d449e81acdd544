//! What a caller is admitted as, and what it may see: what it claims in its first message must fit its credential.

use tulle_model::{Identity, Str};

use crate::serve::authenticate::{Caller, Principal};
use crate::serve::viewer::Viewer;
use crate::snapshot::Snapshot;

/// What kind of client a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A node proxy.
    Ztunnel,
    /// A node agent.
    Agent,
    /// An instance of a waypoint.
    Waypoint,
}

/// Why the node of a stream's first message does not fit its credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The node's name is missing.
    #[error("the first request must carry a node with metadata NODE_NAME")]
    NoNodeName,
    /// The node's name contradicts the credential.
    #[error("the credential is for node {credential}, the request for node {claimed}")]
    OtherNode {
        /// Node of the credential.
        credential: Str,
        /// Node of the request, cut.
        claimed: String,
    },
    /// The client belongs to another cluster.
    #[error("this is cluster {own}, the request is of cluster {claimed}")]
    OtherCluster {
        /// Ours.
        own: Str,
        /// Cluster of the request, cut.
        claimed: String,
    },
    /// A node's credential is for its proxy, its agent, and the waypoints placed on it.
    #[error("a node's credential serves clients of type ztunnel, agent and waypoint, not `{0}`")]
    OtherKind(String),
    /// No workload of the account runs on the node of the credential.
    #[error("no workload of service account {account} is placed on node {node}")]
    NotPlaced {
        /// Namespace and service account that were claimed, cut.
        account: String,
        /// Node of the credential.
        node: Str,
    },
    /// The workload is not an instance of any waypoint.
    #[error("{0} is not the identity of a waypoint")]
    NotAWaypoint(Identity),
}

/// What the first message of a stream claims.
#[derive(Debug, Clone, Copy)]
pub struct Claimed<'a> {
    /// `<type>~…`
    pub id: &'a str,
    /// The node it runs on.
    pub node: Option<&'a str>,
    /// The cluster it belongs to.
    pub cluster: Option<&'a str>,
    /// Namespace and service account it says it runs under.
    pub account: Option<(&'a str, &'a str)>,
}

impl Claimed<'_> {
    /// What it says it is.
    fn kind(&self) -> &str {
        self.id.split('~').next().unwrap_or_default()
    }
}

/// The kind of a client and what it may see, given what it claims. Only the credential gives anything.
///
/// # Errors
/// The claims do not fit the credential.
pub fn admit(
    caller: &Caller,
    claimed: &Claimed<'_>,
    cluster: &Str,
    snapshot: &Snapshot,
) -> Result<(Kind, Viewer), NotAdmitted> {
    if let Some(other) = claimed
        .cluster
        .filter(|other| !other.is_empty() && **other != **cluster)
    {
        return Err(NotAdmitted::OtherCluster {
            own: cluster.clone(),
            claimed: cut(other),
        });
    }
    let credential = match &caller.principal {
        Principal::Node(node) => node,
        // A proxy for one workload, under the workload's own credential.
        Principal::Workload(identity) if claimed.kind() == "ztunnel" => {
            return Ok((Kind::Ztunnel, Viewer::of_workload(identity.clone())));
        }
        Principal::Workload(identity) => return as_waypoint(identity, snapshot),
    };
    let node = claimed.node.ok_or(NotAdmitted::NoNodeName)?;
    if *node != **credential {
        return Err(NotAdmitted::OtherNode {
            credential: credential.clone(),
            claimed: cut(node),
        });
    }
    let kind = match claimed.kind() {
        "ztunnel" => Kind::Ztunnel,
        "agent" => Kind::Agent,
        "waypoint" => return placed_waypoint(credential, claimed, snapshot),
        other => return Err(NotAdmitted::OtherKind(cut(other))),
    };
    Ok((kind, Viewer::node(credential.clone())))
}

fn as_waypoint(identity: &Identity, snapshot: &Snapshot) -> Result<(Kind, Viewer), NotAdmitted> {
    let waypoint = snapshot.fronted().with_identity(identity).next();
    let waypoint = waypoint.ok_or_else(|| NotAdmitted::NotAWaypoint(identity.clone()))?;
    Ok((Kind::Waypoint, Viewer::of_waypoint(waypoint.clone())))
}

/// A node may speak for the waypoints that are placed on it, as it may have their certificates.
fn placed_waypoint(
    node: &Str,
    claimed: &Claimed<'_>,
    snapshot: &Snapshot,
) -> Result<(Kind, Viewer), NotAdmitted> {
    let Some((namespace, account)) = claimed.account else {
        return Err(NotAdmitted::OtherKind(cut(claimed.id)));
    };
    let own =
        |identity: &&Identity| *identity.namespace == *namespace && *identity.service_account == *account;
    match snapshot.placement().identities(node).find(own) {
        Some(identity) => as_waypoint(identity, snapshot),
        None => Err(NotAdmitted::NotPlaced {
            account: cut(&format!("{namespace}/{account}")),
            node: node.clone(),
        }),
    }
}

/// Foreign text for a message: short and printable.
fn cut(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn admitted(caller: &Caller, id: &str, node: Option<&str>) -> Result<Kind, NotAdmitted> {
        let claimed = Claimed {
            id,
            node,
            cluster: Some("Kubernetes"),
            account: None,
        };
        admit(caller, &claimed, &"Kubernetes".into(), &Snapshot::default()).map(|(kind, _)| kind)
    }

    #[test]
    fn the_named_node_must_be_that_of_the_credential() {
        let caller = Caller::of_node("n1");
        let ztunnel = "ztunnel~1.1.1.1~a.b~b.svc.cluster.local";
        assert_eq!(admitted(&caller, ztunnel, Some("n1")), Ok(Kind::Ztunnel));
        let agent = "agent~1.1.1.1~a.b~b.svc.cluster.local";
        assert_eq!(admitted(&caller, agent, Some("n1")), Ok(Kind::Agent));
        assert_eq!(admitted(&caller, "ztunnel~x", None), Err(NotAdmitted::NoNodeName));
        let other = admitted(&caller, "ztunnel~x", Some("n2"));
        assert!(matches!(other, Err(NotAdmitted::OtherNode { .. })));
        let sidecar = admitted(&caller, "sidecar~x", Some("n1"));
        assert!(matches!(sidecar, Err(NotAdmitted::OtherKind(_))));
    }

    #[test]
    fn a_client_of_another_cluster_is_refused() {
        let claimed = Claimed {
            id: "ztunnel~x",
            node: Some("n1"),
            cluster: Some("west"),
            account: None,
        };
        let refused = admit(
            &Caller::of_node("n1"),
            &claimed,
            &"Kubernetes".into(),
            &Snapshot::default(),
        );
        assert!(matches!(refused, Err(NotAdmitted::OtherCluster { .. })));
    }

    #[test]
    fn a_workloads_own_proxy_sees_as_that_workload_whatever_node_it_names() {
        let identity = Identity::new("cluster.local", "shop", "web");
        let caller = Caller {
            principal: Principal::Workload(identity.clone()),
            serial: None,
            until: None,
            pod_node: None,
        };
        for node in [None, Some("n1")] {
            let claimed = Claimed {
                id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local",
                node,
                cluster: None,
                account: Some(("other", "account")),
            };
            let admitted = admit(&caller, &claimed, &"Kubernetes".into(), &Snapshot::default());
            assert_eq!(
                admitted,
                Ok((Kind::Ztunnel, Viewer::of_workload(identity.clone())))
            );
        }
        let agent = admitted(&caller, "agent~x", Some("n1"));
        assert_eq!(agent, Err(NotAdmitted::NotAWaypoint(identity)));
    }

    #[test]
    fn a_workload_sees_as_the_waypoint_it_is_and_else_nothing() {
        let identity = Identity::new("cluster.local", "shop", "way");
        let caller = Caller {
            principal: Principal::Workload(identity.clone()),
            serial: None,
            until: None,
            pod_node: None,
        };
        let claimed = Claimed {
            id: "waypoint~x",
            node: Some("n1"),
            cluster: None,
            account: None,
        };
        let mut snapshot = Snapshot::default();
        let refused = admit(&caller, &claimed, &"Kubernetes".into(), &snapshot);
        assert_eq!(refused, Err(NotAdmitted::NotAWaypoint(identity.clone())));
        let fronts = crate::snapshot::Fronts {
            identity,
            addresses: BTreeSet::new(),
            authorizations: BTreeSet::new(),
        };
        snapshot.fronted.set(&"shop/way".into(), Some(fronts));
        let admitted = admit(&caller, &claimed, &"Kubernetes".into(), &snapshot);
        assert_eq!(admitted, Ok((Kind::Waypoint, Viewer::of_waypoint("shop/way"))));
    }

    #[test]
    fn a_node_speaks_for_the_waypoints_placed_on_it_and_for_no_others() {
        let identity = Identity::new("cluster.local", "shop", "way");
        let claimed = Claimed {
            id: "waypoint~x",
            node: Some("n1"),
            cluster: None,
            account: Some(("shop", "way")),
        };
        let mut snapshot = Snapshot::default();
        let fronts = crate::snapshot::Fronts {
            identity: identity.clone(),
            addresses: BTreeSet::new(),
            authorizations: BTreeSet::new(),
        };
        snapshot.fronted.set(&"shop/way".into(), Some(fronts));
        let admitted =
            |snapshot: &Snapshot| admit(&Caller::of_node("n1"), &claimed, &"Kubernetes".into(), snapshot);
        assert!(matches!(admitted(&snapshot), Err(NotAdmitted::NotPlaced { .. })));
        snapshot.placement.place("n1".into(), [identity].into());
        let admitted = admitted(&snapshot);
        assert_eq!(admitted, Ok((Kind::Waypoint, Viewer::of_waypoint("shop/way"))));
    }
}
