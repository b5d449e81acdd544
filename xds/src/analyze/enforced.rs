//! Who enforces what, before and after a change of the folder: what goes through a waypoint, and which policies and routes
//! node proxies, waypoints or nobody carries out. The same computation as in a running control plane tells it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tulle_k8s::api::gateway::GatewayStatusAddress;
use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::condition::{
    ACCEPTED, Condition, PROGRAMMED, Status, WAYPOINT_ACCEPTED, WAYPOINT_BOUND, ZTUNNEL_ACCEPTED,
};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::authz::matcher::REQUIRE_WAYPOINT_PREFIX;
use tulle_model::{NamespacedName, Str};

use super::{Texts, settled};
use crate::engine::{Batch, Engine};
use crate::snapshot::objects::ObjectStatus;
use crate::source::folder::scan::Scanner;

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Nobody: traffic goes directly, a policy or route has no effect of its own.
    Nobody,
    /// The node proxies of the destinations.
    NodeProxy,
    /// A waypoint.
    Waypoint,
}

impl By {
    /// As people read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::NodeProxy => "node proxy",
            Self::Waypoint => "waypoint",
        }
    }
}

/// What is said of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// Which way requests to it take.
    Traffic,
    /// Whether it refuses callers that come past its waypoint.
    DirectCallers,
    /// Who enforces it.
    Policy,
    /// Who follows it.
    Route,
}

/// How it is at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// Who acts.
    pub by: By,
    /// Whether all of it is as the objects say.
    #[serde(rename = "asWritten")]
    pub is_as_written: bool,
    /// What that means, and what to do where it is not as written.
    pub says: String,
}

/// An object before and after; none of the two where it is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shift {
    /// The object, `Kind namespace/name`.
    pub object: String,
    /// What is said of it.
    pub about: About,
    /// The target or parent that it is said for, of those that have several.
    pub of: Option<String>,
    /// Before the change.
    pub before: Option<State>,
    /// After it.
    pub after: Option<State>,
}

impl Shift {
    /// Whether the change makes a difference.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.before != self.after
    }
}

/// What some changes of files, each with its new text, mean for who enforces what, once this waypoint is ready: whatever
/// changes, and what stays as it is of policies and routes beside it.
///
/// # Errors
/// The folder cannot be read.
pub fn enforcement(
    config_dir: &Path,
    changes: &[(Str, Option<&str>)],
    waypoint: &NamespacedName,
    mesh: &MeshConfig,
) -> std::io::Result<Vec<Shift>> {
    std::fs::metadata(config_dir)?;
    let scan = Scanner::new(config_dir.to_owned()).scan();
    let before: Texts = scan.texts().map(|(path, text)| (path.clone(), text)).collect();
    let mut after = before.clone();
    for (file, text) in changes {
        match text {
            Some(text) => drop(after.insert(file.clone(), Ok(Arc::from(*text)))),
            None => drop(after.remove(file)),
        }
    }
    Ok(shifts(&before, &after, waypoint, mesh))
}

/// What of an object is told, and for which target.
type Row = (Key, About, Option<String>);

fn shifts(before: &Texts, after: &Texts, waypoint: &NamespacedName, mesh: &MeshConfig) -> Vec<Shift> {
    let before = states(before, None, mesh);
    let mut after = states(after, Some(waypoint), mesh);
    let mut rows: BTreeMap<Row, (Option<State>, Option<State>)> = BTreeMap::new();
    for (row, state) in before {
        let later = after.remove(&row);
        rows.insert(row, (Some(state), later));
    }
    rows.extend(after.into_iter().map(|(row, state)| (row, (None, Some(state)))));
    let is_changed = |states: &(Option<State>, Option<State>)| states.0 != states.1;
    let touched: Vec<Str> = rows
        .iter()
        .filter(|(_, states)| is_changed(states))
        .map(|((key, ..), _)| key.namespace.clone())
        .chain([waypoint.namespace.clone()])
        .collect();
    let told = rows.into_iter().filter(|((key, about, _), states)| {
        let is_rule = matches!(about, About::Policy | About::Route);
        is_changed(states) || (is_rule && touched.contains(&key.namespace))
    });
    told.map(|((key, about, of), (before, after))| Shift {
        object: key.to_string(),
        about,
        of,
        before,
        after,
    })
    .collect()
}

/// Every object's state. A waypoint that is to come is taken for ready.
fn states(texts: &Texts, coming: Option<&NamespacedName>, mesh: &MeshConfig) -> BTreeMap<Row, State> {
    let Some(mut batch) = settled(texts).1.batch else {
        return BTreeMap::new();
    };
    if let Some(waypoint) = coming {
        make_ready(&mut batch, waypoint, mesh);
    }
    let snapshot = Engine::new(mesh.clone()).apply(batch);
    let mut states = BTreeMap::new();
    for status in snapshot.objects().objects.values() {
        tell(status, &mut states);
    }
    states
}

/// Gives a waypoint that was never ready the address that it will have.
fn make_ready(batch: &mut Batch, waypoint: &NamespacedName, mesh: &MeshConfig) {
    for in_force in batch.events.iter_mut().filter_map(|event| event.object.as_mut()) {
        let Object::Gateway(gateway) = in_force.object.as_ref() else {
            continue;
        };
        let meta = &gateway.metadata;
        let is_meant = meta.namespace == waypoint.namespace && meta.name == waypoint.name;
        if !is_meant || !gateway.status.addresses.is_empty() {
            continue;
        }
        let mut gateway = gateway.clone();
        gateway.status.addresses = vec![GatewayStatusAddress {
            kind: "Hostname".into(),
            value: format!("{}.{}.svc.{}", waypoint.name, waypoint.namespace, mesh.domain).into(),
        }];
        in_force.object = Arc::new(Object::Gateway(gateway));
    }
}

fn tell(status: &ObjectStatus, states: &mut BTreeMap<Row, State>) {
    let key = &status.key;
    let mut say = |about, of: Option<&String>, state| {
        states.insert((key.clone(), about, of.cloned()), state);
    };
    let is_reached = matches!(
        key.kind,
        Kind::Service | Kind::ServiceEntry | Kind::Pod | Kind::WorkloadEntry
    );
    let is_policy = matches!(key.kind, Kind::TrafficPolicy | Kind::BackendTlsPolicy)
        || (key.kind.is_security() && key.kind != Kind::Mesh);
    if is_reached {
        say(About::Traffic, None, traffic(&status.conditions));
        if is_closed(status) {
            say(About::DirectCallers, None, closed());
        }
    } else if is_policy {
        for condition in &status.conditions {
            if let Some(state) = policy(condition, !status.resources.is_empty()) {
                say(About::Policy, condition.of.as_ref(), state);
            }
        }
    } else if key.kind.is_route() {
        for condition in &status.conditions {
            if let Some(state) = route(condition, &status.conditions) {
                say(About::Route, condition.of.as_ref(), state);
            }
        }
    }
}

fn traffic(conditions: &[Condition]) -> State {
    let bound = conditions
        .iter()
        .find(|condition| condition.kind == WAYPOINT_BOUND);
    let Some(bound) = bound else {
        return State {
            by: By::Nobody,
            is_as_written: true,
            says: "traffic goes directly".to_owned(),
        };
    };
    // Without its canary, it is bound all the same.
    let is_bound = bound.status == Status::True || bound.reason.starts_with("Canary");
    State {
        by: if is_bound { By::Waypoint } else { By::Nobody },
        is_as_written: bound.status == Status::True,
        says: bound.message.clone(),
    }
}

/// Whether a workload refers to a policy that lets only waypoints in.
fn is_closed(status: &ObjectStatus) -> bool {
    let is_required = |name: &Str| {
        let name = name.rsplit_once('/').map_or(&**name, |(_, name)| name);
        name.starts_with(REQUIRE_WAYPOINT_PREFIX)
    };
    status.resources.iter().any(is_required)
}

fn closed() -> State {
    State {
        by: By::NodeProxy,
        is_as_written: true,
        says: "whoever comes past the waypoint to a port that its policies protect is refused (T0416)"
            .to_owned(),
    }
}

fn policy(condition: &Condition, is_sent: bool) -> Option<State> {
    let carried_out = match &*condition.kind {
        ZTUNNEL_ACCEPTED => By::NodeProxy,
        WAYPOINT_ACCEPTED | ACCEPTED => By::Waypoint,
        _ => return None,
    };
    let is_idle = matches!(
        &*condition.reason,
        "AncestorNotBound" | "TargetNotFound" | "Conflicted"
    );
    let is_enforced = condition.status == Status::True || (is_sent && !is_idle);
    Some(State {
        by: if is_enforced { carried_out } else { By::Nobody },
        is_as_written: condition.status == Status::True,
        says: condition.message.clone(),
    })
}

/// What is said by the condition that decides: a route without a waypoint is accepted, and nobody follows it.
fn route(condition: &Condition, all: &[Condition]) -> Option<State> {
    let nobody = |condition: &Condition| State {
        by: By::Nobody,
        is_as_written: false,
        says: condition.message.clone(),
    };
    match &*condition.kind {
        PROGRAMMED if condition.status == Status::False => Some(nobody(condition)),
        ACCEPTED if condition.status == Status::False => Some(nobody(condition)),
        ACCEPTED => {
            let unbound = |other: &&Condition| {
                other.kind == PROGRAMMED && other.status == Status::False && other.of == condition.of
            };
            Some(all.iter().find(unbound).map_or_else(
                || State {
                    by: By::Waypoint,
                    is_as_written: true,
                    says: condition.message.clone(),
                },
                nobody,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIP: 10.0.0.1}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: read-only, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l4, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: l7, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec: {clusterIPs: [10.9.0.2], ports: [{port: 80}]}\n";
    const WAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    const ENROLLED: &str =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: way}}\n";

    fn texts(files: &[&str]) -> Texts {
        let file = |(number, text): (usize, &&str)| (Str::from(format!("{number}.yaml")), Ok((*text).into()));
        files.iter().enumerate().map(file).collect()
    }

    fn told(before: &[&str], after: &[&str]) -> Vec<(String, About, Option<By>, Option<By>)> {
        let way = NamespacedName::new("shop", "way");
        let found = shifts(&texts(before), &texts(after), &way, &MeshConfig::default());
        let by = |state: Option<State>| state.map(|state| state.by);
        let row = |one: Shift| (one.object, one.about, by(one.before), by(one.after));
        found.into_iter().map(row).collect()
    }

    fn row(
        object: &str,
        about: About,
        before: Option<By>,
        after: Option<By>,
    ) -> (String, About, Option<By>, Option<By>) {
        (object.to_owned(), about, before, after)
    }

    #[test]
    fn a_waypoint_takes_over_what_names_it_and_leaves_the_rest_to_node_proxies() {
        let (none, node, way) = (Some(By::Nobody), Some(By::NodeProxy), Some(By::Waypoint));
        let bound = [
            row("Service shop/web", About::Traffic, none, way),
            row("AuthorizationPolicy shop/l4", About::Policy, node, node),
            row("AuthorizationPolicy shop/l7", About::Policy, node, node),
            row("AuthorizationPolicy shop/read-only", About::Policy, none, way),
            row("HTTPRoute shop/web", About::Route, none, way),
        ];
        let mut found = told(&[SHOP], &[SHOP, WAY, ENROLLED]);
        found.retain(|one| one.1 != About::DirectCallers);
        assert_eq!(found, bound, "and nothing of other namespaces");
        let mut back = told(&[SHOP, &ready(), ENROLLED], &[SHOP]);
        back.retain(|one| one.1 != About::DirectCallers);
        let unbound = bound.map(|(object, about, before, after)| (object, about, after, before));
        assert_eq!(back, unbound, "and back");
    }

    fn ready() -> String {
        format!("{WAY}status: {{addresses: [{{value: 10.0.0.9}}]}}\n")
    }

    #[test]
    fn what_node_proxies_cannot_evaluate_is_said_of_the_policy() {
        let way = NamespacedName::new("shop", "way");
        let (before, after) = (texts(&[SHOP]), texts(&[SHOP, WAY, ENROLLED]));
        let found = shifts(&before, &after, &way, &MeshConfig::default());
        let l7 = found.iter().find(|one| one.object.ends_with("shop/l7")).unwrap();
        assert!(!l7.is_change());
        let says = &l7.after.as_ref().unwrap().says;
        assert!(!l7.after.as_ref().unwrap().is_as_written);
        assert!(says.contains("paths") && says.contains("targetRefs"), "{says}");
    }

    #[test]
    fn a_waypoint_that_nothing_goes_through_takes_nothing_over() {
        let found = told(&[SHOP], &[SHOP, WAY]);
        assert!(
            found.iter().all(|(_, _, before, after)| before == after),
            "{found:?}"
        );
    }

    #[test]
    fn the_last_waypoint_of_something_leaves_its_protected_pods_closed() {
        let left = told(&[SHOP, &ready(), ENROLLED], &[SHOP, ENROLLED]);
        let service = left.iter().find(|one| one.0 == "Service shop/web").unwrap();
        assert_eq!((service.2, service.3), (Some(By::Waypoint), Some(By::Nobody)));
        assert!(
            !left
                .iter()
                .any(|one| one.1 == About::DirectCallers && one.3.is_none())
        );
    }
}
