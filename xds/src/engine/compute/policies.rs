//! What security objects become, and which policies a workload refers to.

use std::sync::Arc;

use tulle_k8s::api::meta::Labels;
use tulle_k8s::api::{PeerAuthentication, RequestAuthentication};
use tulle_k8s::translate::authorization;
use tulle_k8s::translate::condition::{Condition, ZTUNNEL_ACCEPTED};
use tulle_k8s::translate::peer_authentication::{self, Wider};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::NamespacedName;
use tulle_model::authz::policy::Authorization;

use super::super::world::World;
use super::{Emitted, Part, routes};

/// What a policy object becomes, for node proxies and for waypoints.
pub(super) fn policies(key: &Key, world: &World) -> Vec<Part> {
    let (emitted, mut conditions) = match world.get(key) {
        Some(Object::AuthorizationPolicy(policy)) => authorization::authorization(policy, world.mesh()),
        Some(Object::PeerAuthentication(policy)) => {
            let wider = wider(&key.namespace, world);
            let (emitted, mut conditions) =
                peer_authentication::peer_authentication(policy, wider, world.mesh());
            conditions.extend(outranked(policy, wider, world));
            (emitted, conditions)
        }
        Some(Object::RequestAuthentication(policy)) => request_authentication(policy, world),
        Some(Object::TrafficPolicy(policy)) => match authorization::stand_in_for_traffic(policy) {
            Some(stand_in) => authorization::authorization(&stand_in, world.mesh()),
            None => (None, Vec::new()),
        },
        Some(Object::BackendTlsPolicy(_)) => (None, Vec::new()),
        _ => return Vec::new(),
    };
    let mut emitted: Vec<Emitted> = emitted
        .map(|policy| Emitted::Authorization(Arc::new(policy)))
        .into_iter()
        .collect();
    let (of_waypoints, said) = routes::policies(key, world);
    emitted.extend(of_waypoints);
    conditions.extend(said);
    vec![Part {
        owner: key.clone(),
        emitted,
        conditions,
    }]
}

/// Node proxies do not read tokens. An object that cannot be read and names no targets denies what it selects.
fn request_authentication(
    policy: &RequestAuthentication,
    world: &World,
) -> (Option<Authorization>, Vec<Condition>) {
    if let Some(stand_in) = authorization::stand_in_for(policy) {
        return authorization::authorization(&stand_in, world.mesh());
    }
    let message = "node proxies do not read tokens; it takes effect at a waypoint: use targetRefs";
    let targeted = !policy.spec.target_refs.is_empty() || policy.spec.target_ref.is_some();
    let said = (!targeted).then(|| Condition::fails(ZTUNNEL_ACCEPTED, "UnsupportedValue", message));
    (None, said.into_iter().collect())
}

/// The peer authentications that hold for a whole namespace.
pub(super) fn wider<'a>(namespace: &str, world: &'a World) -> Wider<'a> {
    let root = &world.mesh().root_namespace;
    let all = |namespace: &str| -> Vec<&'a PeerAuthentication> {
        let first = world.of_kind(Kind::PeerAuthentication);
        first
            .filter(|(key, _)| &*key.namespace == namespace)
            .filter_map(|(_, object)| match object {
                Object::PeerAuthentication(policy) => Some(policy),
                _ => None,
            })
            .filter(|policy| peer_authentication::selector(policy).is_none())
            .collect()
    };
    let of_namespace = all(namespace).into_iter();
    let of_root = all(root)
        .into_iter()
        .filter(|policy| peer_authentication::is_mesh_wide(policy, world.mesh()));
    Wider {
        namespace: peer_authentication::oldest(of_namespace),
        root: peer_authentication::oldest(of_root),
    }
}

/// Says so if an older policy holds in the place of this one.
fn outranked(policy: &PeerAuthentication, wider: Wider<'_>, world: &World) -> Option<Condition> {
    let holder = if peer_authentication::is_mesh_wide(policy, world.mesh()) {
        wider.root
    } else {
        wider.namespace
    };
    let holder = holder.filter(|_| peer_authentication::selector(policy).is_none())?;
    (holder.metadata.name != policy.metadata.name).then(|| {
        let message = format!(
            "the older {} holds for the whole of it; remove one of the two",
            holder.metadata.name
        );
        Condition::fails(ZTUNNEL_ACCEPTED, "Invalid", message)
    })
}

/// The policy that refuses callers without an identity, once anything may refer to it.
pub(super) fn static_strict(world: &World) -> Vec<Part> {
    let root = world.mesh().root_namespace.clone();
    let wanted = is_static_wanted(world);
    let emitted = wanted.then(|| peer_authentication::static_strict(world.mesh()));
    let emitted = emitted
        .map(|policy| Emitted::Authorization(Arc::new(policy)))
        .into_iter()
        .collect();
    // It belongs to no object of the user; its name cannot be one of theirs.
    let owner = Key::new(Kind::PeerAuthentication, root, peer_authentication::STATIC_STRICT);
    vec![Part {
        owner,
        emitted,
        conditions: Vec::new(),
    }]
}

fn is_static_wanted(world: &World) -> bool {
    world.mesh().mtls_mode == tulle_k8s::api::security::MtlsMode::Strict
        || world.of_kind(Kind::PeerAuthentication).next().is_some()
}

/// The authorization policies that select these labels, of those that are dry runs or of the others.
fn authorizing(dry_run: bool, namespace: &str, labels: &Labels, world: &World) -> Vec<NamespacedName> {
    let root = &*world.mesh().root_namespace;
    let mut names = Vec::new();
    for home in [namespace, root]
        .into_iter()
        .take(if namespace == root { 1 } else { 2 })
    {
        for (key, object) in world.selecting(Kind::AuthorizationPolicy, home, labels) {
            let Object::AuthorizationPolicy(policy) = object else {
                continue;
            };
            if authorization::is_emitted(policy) && authorization::is_dry_run(policy) == dry_run {
                names.push(NamespacedName::new(key.namespace.clone(), key.name.clone()));
            }
        }
    }
    names
}

/// The policies that judge callers of a workload with these labels and refuse nobody, in order.
pub(super) fn on_trial(namespace: &str, labels: &Labels, world: &World) -> Vec<NamespacedName> {
    let mut names = authorizing(true, namespace, labels, world);
    names.sort();
    names
}

/// The policies that a workload with these labels refers to, in order. Dry runs are none of them: a proxy that does not
/// get those would wait for them for ever.
pub(super) fn selecting(namespace: &str, labels: &Labels, world: &World) -> Vec<NamespacedName> {
    let root = &*world.mesh().root_namespace;
    let mut names = authorizing(false, namespace, labels, world);
    for home in [namespace, root]
        .into_iter()
        .take(if namespace == root { 1 } else { 2 })
    {
        for (key, object) in world.selecting(Kind::RequestAuthentication, home, labels) {
            let Object::RequestAuthentication(policy) = object else {
                continue;
            };
            if authorization::stand_in_for(policy).is_some() {
                let name = authorization::stand_in_name(&key.name);
                names.push(NamespacedName::new(key.namespace.clone(), name));
            }
        }
    }
    let selecting = world.selecting(Kind::PeerAuthentication, namespace, labels);
    let selecting = selecting.into_iter().filter_map(|(_, object)| match object {
        Object::PeerAuthentication(policy) => Some(policy),
        _ => None,
    });
    let selecting = peer_authentication::oldest(selecting);
    names.extend(peer_authentication::reference(
        selecting,
        wider(namespace, world),
        world.mesh(),
    ));
    names.sort();
    names.dedup();
    names
}
