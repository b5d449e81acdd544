//! What only a waypoint can protect is refused without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_k8s::translate::waypoint;
use tulle_model::{NamespacedName, Str, Workload};

use super::super::table::version_of;
use super::super::world::World;
use super::{Emitted, services};

/// Adds to a workload the policies that keep everyone but the waypoints from its protected ports.
pub(super) fn require_waypoints(workload: &mut Workload, world: &World) -> Vec<Emitted> {
    let mut principals_by_port: BTreeMap<u16, BTreeSet<Str>> = BTreeMap::new();
    for (service, ports) in &workload.services {
        let Some(key) = services::winner(&service.hostname, &service.namespace, world) else {
            continue;
        };
        let Some(object) = world.get(key) else { continue };
        let (named, true) = services::protection(key, object, world) else {
            continue;
        };
        let principal = named.map(|named| waypoint::principal(&named, world.mesh()));
        for target in ports.values() {
            principals_by_port
                .entry(*target)
                .or_default()
                .extend(principal.clone());
        }
    }
    let mut ports_by_principals: BTreeMap<BTreeSet<Str>, BTreeSet<u16>> = BTreeMap::new();
    for (port, principals) in principals_by_port {
        ports_by_principals.entry(principals).or_default().insert(port);
    }
    let mut emitted = Vec::new();
    for (principals, ports) in ports_by_principals {
        let name = name(&ports, &principals);
        let policy = waypoint::required(&workload.namespace, &ports, &principals, name.clone());
        workload
            .authorization_policies
            .push(NamespacedName::new(workload.namespace.clone(), name));
        emitted.push(Emitted::Authorization(Arc::new(policy)));
    }
    workload.authorization_policies.sort();
    emitted
}

/// Workloads with the same ports and principals share a policy, so that its name is made of them.
fn name(ports: &BTreeSet<u16>, principals: &BTreeSet<Str>) -> Str {
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let principals: Vec<_> = principals.iter().map(AsRef::as_ref).collect();
    let content = format!("{} {}", ports.join(","), principals.join(","));
    format!(
        "{}{}",
        tulle_model::authz::matcher::REQUIRE_WAYPOINT_PREFIX,
        version_of(content.as_bytes())
    )
    .into()
}
