//! Which identity runs on which node, counted from the objects themselves: a pod that has no address yet already
//! needs its certificate.

use std::collections::{BTreeMap, BTreeSet};

use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::workload::{is_over, node_of};
use tulle_k8s::{Key, Object};
use tulle_model::{Identity, Str};

use crate::snapshot::Placement;

/// The counts, and the nodes that changed since they were last published.
#[derive(Debug, Default)]
pub(super) struct Placed {
    nodes: BTreeMap<Str, BTreeMap<Identity, usize>>,
    moved: BTreeSet<Str>,
}

impl Placed {
    /// Counts the change of an object.
    pub(super) fn change(
        &mut self,
        key: &Key,
        old: Option<&Object>,
        new: Option<&Object>,
        mesh: &MeshConfig,
    ) {
        if let Some((node, identity)) = old.and_then(|object| place(key, object, mesh)) {
            self.step(node, identity, false);
        }
        if let Some((node, identity)) = new.and_then(|object| place(key, object, mesh)) {
            self.step(node, identity, true);
        }
    }

    fn step(&mut self, node: Str, identity: Identity, add: bool) {
        let identities = self.nodes.entry(node.clone()).or_default();
        let count = identities.entry(identity.clone()).or_default();
        *count = if add { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            identities.remove(&identity);
        }
        if identities.is_empty() {
            self.nodes.remove(&node);
        }
        self.moved.insert(node);
    }

    /// Brings the published placement up to date; says whether anything moved.
    pub(super) fn publish(&mut self, placement: &mut Placement) -> bool {
        let mut changed = false;
        for node in std::mem::take(&mut self.moved) {
            let now: BTreeSet<Identity> = self
                .nodes
                .get(&node)
                .into_iter()
                .flat_map(|identities| identities.keys().cloned())
                .collect();
            if !placement.identities(&node).eq(now.iter()) {
                placement.place(node, now);
                changed = true;
            }
        }
        changed
    }
}

/// The node and identity of an object that runs somewhere.
fn place(key: &Key, object: &Object, mesh: &MeshConfig) -> Option<(Str, Identity)> {
    let (node, service_account) = match object {
        Object::Pod(pod) if !is_over(pod) => (pod.spec.node_name.clone(), &pod.spec.service_account_name),
        Object::WorkloadEntry(entry) => (node_of(&entry.metadata)?, &entry.spec.service_account),
        _ => return None,
    };
    let service_account = if service_account.is_empty() {
        "default".into()
    } else {
        service_account.clone()
    };
    let identity = Identity::new(mesh.trust_domain.clone(), key.namespace.clone(), service_account);
    (!node.is_empty()).then_some((node, identity))
}
