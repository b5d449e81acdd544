//! Which nodes may receive which policy: kept by counting the workloads that are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_model::authz::policy::Scope as PolicyScope;
use tulle_model::waypoint::Waypoint;
use tulle_model::{Str, Workload};

use super::compute::Emitted;
use crate::snapshot::{InNamespace, Scope};

/// Workloads per node.
type Nodes = BTreeMap<Str, usize>;

/// The counts, and what moved since they were last asked.
#[derive(Debug, Default)]
pub(super) struct Reach {
    by_namespace: BTreeMap<Str, Nodes>,
    /// Beside nodes the identities of workloads, for proxies of one workload alone.
    by_policy: BTreeMap<Str, Nodes>,
    policies: BTreeMap<Str, (Str, PolicyScope)>,
    namespaces_moved: BTreeSet<Str>,
    policies_moved: BTreeSet<Str>,
}

impl Reach {
    /// Counts a resource that is sent from now on.
    pub(super) fn add(&mut self, emitted: &Emitted) {
        match emitted {
            Emitted::Workload(workload, _) => self.count(workload, true),
            Emitted::Authorization(policy) => {
                self.policies
                    .insert(emitted.name(), (policy.namespace.clone(), policy.scope));
            }
            _ => {}
        }
    }

    /// Forgets a resource.
    pub(super) fn remove(&mut self, emitted: &Emitted) {
        match emitted {
            Emitted::Workload(workload, _) => self.count(workload, false),
            Emitted::Authorization(_) => {
                self.policies.remove(&emitted.name());
            }
            _ => {}
        }
    }

    fn count(&mut self, workload: &Workload, add: bool) {
        let node = Some(&workload.node).filter(|node| !node.is_empty());
        if let Some(node) = node
            && step(&mut self.by_namespace, &workload.namespace, node, add)
        {
            self.namespaces_moved.insert(workload.namespace.clone());
        }
        let enforced = workload.authorization_policies.iter().map(ToString::to_string);
        let mut named = enforced
            .chain(workload.dry_runs().map(|policy| policy.to_string()))
            .peekable();
        if named.peek().is_none() {
            return;
        }
        let own: Str = workload.identity().to_string().into();
        for policy in named {
            let name: Str = policy.into();
            for place in node.into_iter().chain([&own]) {
                if step(&mut self.by_policy, &name, place, add) {
                    self.policies_moved.insert(name.clone());
                }
            }
        }
    }

    /// Who may receive a resource.
    pub(super) fn scope(&self, emitted: &Emitted) -> Scope {
        match emitted {
            Emitted::Authorization(policy) => self.of(&emitted.name(), &policy.namespace, policy.scope),
            Emitted::Waypoint(waypoint) => {
                let name = match waypoint.as_ref() {
                    Waypoint::Settings(settings) => settings.name(),
                    Waypoint::Front(front) => front.waypoint.clone(),
                };
                Scope::Waypoints {
                    waypoints: Arc::new(BTreeSet::from([name])),
                }
            }
            Emitted::Route(_, waypoints) | Emitted::Policy(_, waypoints) => Scope::Waypoints {
                waypoints: waypoints.clone(),
            },
            Emitted::Workload(..) | Emitted::Service(..) => Scope::Everyone,
        }
    }

    /// Who may receive the policy of this name, if there is one.
    pub(super) fn scope_of(&self, name: &Str) -> Option<Scope> {
        self.policies
            .get(name)
            .map(|(namespace, scope)| self.of(name, namespace, *scope))
    }

    fn of(&self, name: &Str, namespace: &Str, scope: PolicyScope) -> Scope {
        let nodes = |counts: Option<&Nodes>| -> BTreeSet<Str> {
            let counts = counts.into_iter();
            counts.flat_map(|counts| counts.keys().cloned()).collect()
        };
        match scope {
            PolicyScope::Global => Scope::Everyone,
            PolicyScope::Namespace => {
                let nodes = nodes(self.by_namespace.get(namespace));
                let namespace = namespace.clone();
                Scope::Namespace(Arc::new(InNamespace { namespace, nodes }))
            }
            PolicyScope::WorkloadSelector => Scope::Workloads {
                nodes: Arc::new(nodes(self.by_policy.get(name))),
            },
        }
    }

    /// The policies whose nodes may have changed since this was last asked.
    pub(super) fn moved(&mut self) -> BTreeSet<Str> {
        let namespaces = std::mem::take(&mut self.namespaces_moved);
        let mut moved = std::mem::take(&mut self.policies_moved);
        if !namespaces.is_empty() {
            let of_namespace = self.policies.iter().filter(|(_, (namespace, scope))| {
                *scope == PolicyScope::Namespace && namespaces.contains(namespace)
            });
            moved.extend(of_namespace.map(|(name, _)| name.clone()));
        }
        moved
    }
}

/// How many outputs emit the same policy: its name says its content, and several workloads may need it.
#[derive(Debug, Default)]
pub(super) struct Shares {
    policies: BTreeMap<Str, usize>,
}

impl Shares {
    /// One more output emits a resource.
    pub(super) fn take(&mut self, emitted: &Emitted) {
        if let Emitted::Authorization(_) = emitted {
            *self.policies.entry(emitted.name()).or_default() += 1;
        }
    }

    /// One output less emits a resource; says whether it was the last.
    pub(super) fn give_up(&mut self, emitted: &Emitted) -> bool {
        let Emitted::Authorization(_) = emitted else {
            return true;
        };
        let name = emitted.name();
        let left = self
            .policies
            .get(&name)
            .map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            self.policies.remove(&name);
        } else {
            self.policies.insert(name, left);
        }
        left == 0
    }
}

/// Counts a workload on a node up or down; says whether the node came or went.
fn step(counts: &mut BTreeMap<Str, Nodes>, of: &Str, node: &Str, add: bool) -> bool {
    let nodes = counts.entry(of.clone()).or_default();
    let count = nodes.entry(node.clone()).or_default();
    *count = if add { *count + 1 } else { count.saturating_sub(1) };
    let edge = *count == usize::from(add);
    if *count == 0 {
        nodes.remove(node);
        if nodes.is_empty() {
            counts.remove(of);
        }
    }
    edge
}
