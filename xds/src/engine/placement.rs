//! Which identity runs on which node, counted from the objects themselves: a pod that has no address yet already
//! needs its certificate.
//!
//! The counts stand where they are published, so that there is one list for each node, and each identity once for all of
//! them; here are the steps since then.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::workload::{is_over, node_of};
use tulle_k8s::{Key, Object};
use tulle_model::{Identity, Str};

use crate::snapshot::{Carried, Placement};

/// Workloads more or less that carry an identity.
type Steps = BTreeMap<Arc<Identity>, isize>;

/// The steps since the placement was last published.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Every identity that is placed anywhere, and how many workloads carry it.
    identities: BTreeMap<Arc<Identity>, usize>,
    nodes: BTreeMap<Str, Steps>,
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
        // What comes is counted before what goes, so that an identity which stays is not forgotten between.
        if let Some((node, identity)) = new.and_then(|object| place(key, object, mesh)) {
            self.step(node, identity, true);
        }
        if let Some((node, identity)) = old.and_then(|object| place(key, object, mesh)) {
            self.step(node, identity, false);
        }
    }

    fn step(&mut self, node: Str, identity: Identity, add: bool) {
        let known = self.identities.get_key_value(&identity);
        let identity = known.map_or_else(|| Arc::new(identity), |(known, _)| known.clone());
        let count = self.identities.entry(identity.clone()).or_default();
        *count = if add { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.identities.remove(&identity);
        }
        let steps = self.nodes.entry(node).or_default();
        *steps.entry(identity).or_default() += if add { 1 } else { -1 };
    }

    /// Brings the published placement up to date; says whether an identity came to a node, or went.
    pub(super) fn publish(&mut self, placement: &mut Placement) -> bool {
        let mut moved = false;
        for (node, mut steps) in std::mem::take(&mut self.nodes) {
            steps.retain(|_, step| *step != 0);
            if steps.is_empty() {
                continue;
            }
            let before = placement.carried(&node);
            let now = after(before, steps);
            let names = |(identity, _): &Carried| identity.clone();
            moved |= !before.iter().map(names).eq(now.iter().map(names));
            placement.carry(node, now);
        }
        moved
    }
}

/// A node's identities after some steps; both come in order.
fn after(before: &[Carried], steps: Steps) -> Vec<Carried> {
    let mut now = Vec::with_capacity(before.len() + steps.len());
    let mut steps = steps.into_iter().peekable();
    for (identity, count) in before {
        while let Some(new) = steps.next_if(|(new, _)| new < identity) {
            now.extend(carried(new, 0));
        }
        let step = steps.next_if(|(of, _)| of == identity);
        now.extend(carried(step.unwrap_or_else(|| (identity.clone(), 0)), *count));
    }
    now.extend(steps.filter_map(|new| carried(new, 0)));
    now
}

/// An identity that so many workloads carried, after a step; nothing once none does.
fn carried((identity, step): (Arc<Identity>, isize), before: usize) -> Option<Carried> {
    let count = before.saturating_add_signed(step);
    (count > 0).then_some((identity, count))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn identity(number: u8) -> Identity {
        Identity::new("cluster.local", "shop", format!("sa{number}"))
    }

    proptest! {
        #[test]
        fn what_is_placed_is_what_was_counted(
            turns in prop::collection::vec(prop::collection::vec((0_u8..3, 0_u8..6, any::<bool>()), 0..20), 0..10),
        ) {
            let (mut placed, mut placement) = (Placed::default(), Placement::default());
            let mut counts: BTreeMap<(u8, u8), usize> = BTreeMap::new();
            for turn in turns {
                let before: Vec<_> = counts.keys().copied().collect();
                for (node, account, add) in turn {
                    let count = counts.entry((node, account)).or_default();
                    if add || *count > 0 {
                        *count = if add { *count + 1 } else { *count - 1 };
                        placed.step(format!("n{node}").into(), identity(account), add);
                    }
                }
                counts.retain(|_, count| *count > 0);
                let now: Vec<_> = counts.keys().copied().collect();
                prop_assert_eq!(placed.publish(&mut placement), before != now);
                for node in 0..3 {
                    let on = counts.keys().filter(|(on, _)| *on == node);
                    let expected: Vec<Identity> = on.map(|(_, account)| identity(*account)).collect();
                    let node = format!("n{node}");
                    prop_assert!(placement.identities(&node).eq(&expected));
                }
                let used: BTreeSet<u8> = counts.keys().map(|(_, account)| *account).collect();
                prop_assert_eq!(placed.identities.len(), used.len());
            }
        }
    }

    #[test]
    fn nodes_share_the_identities_they_have_in_common() {
        let (mut placed, mut placement) = (Placed::default(), Placement::default());
        for node in 0..3 {
            placed.step(format!("n{node}").into(), identity(1), true);
        }
        placed.publish(&mut placement);
        let held = |node: &str| placement.carried(node)[0].0.clone();
        assert!(Arc::ptr_eq(&held("n0"), &held("n2")));
        assert_eq!(size_of::<Carried>(), 2 * size_of::<usize>());
    }
}
