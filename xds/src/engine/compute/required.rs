//! What only a waypoint can protect is refused without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_k8s::translate::waypoint::{self, Binding, Ports};
use tulle_model::{NamespacedName, Str, Workload};

use super::super::world::World;
use super::{Emitted, services};
use crate::snapshot::Version;

/// Adds to a workload the policies that keep everyone but the waypoints from its protected ports. `own` is the
/// waypoint of the workload itself.
pub(super) fn require_waypoints(workload: &mut Workload, own: &Binding, world: &World) -> Vec<Emitted> {
    let mut principals_by_port: BTreeMap<u16, BTreeSet<Str>> = BTreeMap::new();
    for (service, ports) in &workload.services {
        let Some(key) = services::winner(&service.hostname, &service.namespace, world) else {
            continue;
        };
        let Some(object) = world.get(key) else { continue };
        let binding = services::binding(key, object, world);
        if !services::protection(key, object, &binding, world) {
            continue;
        }
        for target in ports.values() {
            principals_by_port
                .entry(*target)
                .or_default()
                .extend(principals(&binding, world));
        }
    }
    let everywhere = own
        .named()
        .any(|waypoint| services::is_protecting(waypoint, world));
    let of_own: BTreeSet<Str> = if everywhere {
        principals(own, world).collect()
    } else {
        BTreeSet::new()
    };
    let listed: BTreeSet<u16> = principals_by_port.keys().copied().collect();
    let mut ports_by_principals: BTreeMap<BTreeSet<Str>, BTreeSet<u16>> = BTreeMap::new();
    for (port, mut principals) in principals_by_port {
        principals.extend(of_own.iter().cloned());
        ports_by_principals.entry(principals).or_default().insert(port);
    }
    let mut required: Vec<(Ports, BTreeSet<Str>)> = ports_by_principals
        .into_iter()
        .map(|(principals, ports)| (Ports::Only(ports), principals))
        .collect();
    if everywhere {
        required.push((Ports::AllBut(listed), of_own));
    }
    let mut emitted = Vec::new();
    for (ports, principals) in required {
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

/// The principals of the waypoints that something names.
fn principals(binding: &Binding, world: &World) -> impl Iterator<Item = Str> {
    binding
        .named()
        .map(|waypoint| waypoint::identity(waypoint, world).principal().into())
}

/// Workloads with the same ports and principals share a policy, so that its name is made of them.
fn name(ports: &Ports, principals: &BTreeSet<Str>) -> Str {
    let (sign, ports) = match ports {
        Ports::Only(ports) => ("", ports),
        Ports::AllBut(ports) => ("!", ports),
    };
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let principals: Vec<_> = principals.iter().map(AsRef::as_ref).collect();
    let content = format!("{sign}{} {}", ports.join(","), principals.join(","));
    format!(
        "{}{}",
        tulle_model::authz::matcher::REQUIRE_WAYPOINT_PREFIX,
        Version::of(content.as_bytes())
    )
    .into()
}
