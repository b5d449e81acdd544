//! Which identity runs on which node, and which pods there are, told by the objects themselves: a pod that has no
//! address yet already needs its certificate.

use std::collections::{BTreeMap, BTreeSet};

use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::workload::{is_over, node_of};
use tulle_k8s::{Key, Object};
use tulle_model::{Identity, Str};

use crate::snapshot::bearers::Moves;
use crate::snapshot::{Bearer, Bearers, Placement};

/// The counts, and what changed since it was last published.
#[derive(Debug, Default)]
pub(super) struct Placed {
    nodes: BTreeMap<Str, BTreeMap<Identity, usize>>,
    moved: BTreeSet<Str>,
    bearers: Moves,
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
        let (old, new) = (old.and_then(bearer), new.and_then(bearer));
        if old != new {
            old.iter().for_each(|old| self.bearers.went(old));
            new.iter().for_each(|new| self.bearers.came(new));
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

    /// Brings what is published up to date; says whether an identity moved.
    pub(super) fn publish(&mut self, placement: &mut Placement, bearers: &mut Bearers) -> bool {
        bearers.change(std::mem::take(&mut self.bearers));
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
    let identity = Identity::new(
        mesh.trust_domain.clone(),
        key.namespace.clone(),
        account(service_account),
    );
    (!node.is_empty()).then_some((node, identity))
}

/// The pod that tokens can be bound to: one that has not ended, and that an API server told from all others.
fn bearer(object: &Object) -> Option<Bearer> {
    match object {
        Object::Pod(pod) if !is_over(pod) && !pod.metadata.uid.is_empty() => Some(Bearer {
            namespace: pod.metadata.namespace.clone(),
            account: account(&pod.spec.service_account_name),
            pod: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
        _ => None,
    }
}

/// The service account of who names none is called `default`.
fn account(named: &Str) -> Str {
    match named.is_empty() {
        true => "default".into(),
        false => named.clone(),
    }
}
