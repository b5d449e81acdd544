//! Any sequence of changes leaves what a plain list of objects would say, and reports whom it touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::authz::policy::Scope;
use crate::service::Visibility;
use crate::testing::{allow, name, service, service_key, workload};
use crate::workload::{NetworkMode, TunnelProtocol};

/// The mesh as plain maps, asked by walking them.
#[derive(Default)]
struct Plain {
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    services: BTreeMap<NamespacedHostname, Arc<Service>>,
    policies: BTreeMap<NamespacedName, Arc<Authorization>>,
}

impl Plain {
    fn apply(&mut self, update: MeshUpdate) {
        match update {
            MeshUpdate::Workload(one) => drop(self.workloads.insert(one.uid.clone(), one)),
            MeshUpdate::Service(one) => drop(self.services.insert(one.key(), one)),
            MeshUpdate::Policy(one) => drop(self.policies.insert(one.key(), one)),
            MeshUpdate::RemoveWorkload(uid) => drop(self.workloads.remove(&uid)),
            MeshUpdate::RemoveService(key) => drop(self.services.remove(&key)),
            MeshUpdate::RemovePolicy(key) => drop(self.policies.remove(&key)),
            // No lookup of workloads and services depends on the others.
            _ => {}
        }
    }

    fn workload_by_address(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let owners = self
            .workloads
            .values()
            .filter(|one| one.network_mode == NetworkMode::Standard && one.addresses.contains(&address));
        owners
            .min_by_key(|one| (one.tunnel_protocol != TunnelProtocol::Hbone, one.uid.clone()))
            .cloned()
    }

    fn service_by_vip(&self, client: &str, address: IpAddr) -> Option<Arc<Service>> {
        let visible = |one: &&Arc<Service>| match &one.visibility {
            Visibility::Public => true,
            Visibility::Namespace => &*one.namespace == client,
            Visibility::Namespaces(listed) => listed.iter().any(|name| &**name == client),
        };
        let exact = self.services.values().filter(visible);
        let exact = exact.filter(|one| one.addresses.iter().any(|vip| vip.address == address));
        let exact = exact.min_by_key(|one| (&*one.namespace != client, !one.canonical, one.key()));
        exact.cloned().or_else(|| {
            let length = |one: &Service| {
                let holding = one.cidrs.iter().filter(|range| range.cidr.contains(&address));
                holding.map(|range| range.cidr.prefix_len()).max()
            };
            let ranged = self
                .services
                .values()
                .filter(visible)
                .filter(|one| length(one).is_some());
            let ranged = ranged.min_by_key(|one| {
                let own = &*one.namespace == client;
                (
                    !own,
                    length(one).map(|length| 128 - length),
                    !one.canonical,
                    one.key(),
                )
            });
            ranged.cloned()
        })
    }

    fn policies_for(&self, workload: &Workload) -> (Vec<Arc<Authorization>>, Vec<NamespacedName>) {
        let in_scope = |scope| self.policies.values().filter(move |one| one.scope == scope);
        let own = in_scope(Scope::Namespace).filter(|one| one.namespace == workload.namespace);
        let mut found: Vec<_> = in_scope(Scope::Global).chain(own).cloned().collect();
        let mut missing = Vec::new();
        for name in &workload.authorization_policies {
            match self.policies.get(name) {
                Some(one) if one.scope == Scope::WorkloadSelector => found.push(Arc::clone(one)),
                Some(_) => {}
                None => missing.push(name.clone()),
            }
        }
        (found, missing)
    }
}

const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "y", "z"];
const VIPS: [&str; 3] = ["10.0.0.1", "10.0.1.1", "10.1.0.1"];

fn object() -> impl Strategy<Value = String> {
    (
        prop::sample::select(NAMESPACES.to_vec()),
        prop::sample::select(NAMES.to_vec()),
    )
        .prop_map(|(namespace, name)| format!("{namespace}/{name}"))
}

fn some_workload() -> impl Strategy<Value = MeshUpdate> {
    let ips = prop::sample::subsequence(VIPS.to_vec(), 0..=2);
    let policies = prop::sample::subsequence(vec!["a/x", "a/y", "b/x"], 0..=2);
    (object(), ips, policies, object(), any::<(bool, bool)>()).prop_map(
        |(own, ips, policies, service, (hbone, host_network))| {
            let mut one = workload(&own).serves(&service);
            one = ips.into_iter().fold(one, |one, ip| one.ip(ip));
            one = policies.into_iter().fold(one, |one, policy| one.policy(policy));
            one = if hbone { one.hbone() } else { one };
            if host_network { one.host_network() } else { one }.into()
        },
    )
}

fn some_service() -> impl Strategy<Value = MeshUpdate> {
    let vips = prop::sample::subsequence(VIPS.to_vec(), 0..=2);
    let cidrs = prop::sample::subsequence(vec!["10.0.0.0/8", "10.0.0.0/16", "10.0.1.0/24"], 0..=2);
    let listed = prop::option::of(prop::sample::subsequence(vec!["a", "b"], 0..=2));
    let seen = (any::<(bool, bool)>(), listed);
    (object(), vips, cidrs, seen).prop_map(|(own, vips, cidrs, ((canonical, private), listed))| {
        let mut one = service(&own);
        one = vips.into_iter().fold(one, |one, vip| one.vip(vip));
        one = cidrs.into_iter().fold(one, |one, cidr| one.cidr(cidr));
        one = if canonical { one.canonical() } else { one };
        one = if private { one.private() } else { one };
        match listed {
            Some(listed) => one.exported_to(&listed).into(),
            None => one.into(),
        }
    })
}

fn some_policy() -> impl Strategy<Value = MeshUpdate> {
    (object(), 0..3, 1u16..3).prop_map(|(own, scope, port)| {
        let one = allow(&own).to_port(port);
        match scope {
            0 => one.global(),
            1 => one.selector(),
            _ => one,
        }
        .into()
    })
}

fn some_removal() -> impl Strategy<Value = MeshUpdate> {
    (object(), 0..3).prop_map(|(own, kind)| match kind {
        0 => MeshUpdate::RemoveWorkload(own.as_str().into()),
        1 => MeshUpdate::RemoveService(service_key(&own)),
        _ => MeshUpdate::RemovePolicy(name(&own)),
    })
}

fn some_batches() -> impl Strategy<Value = Vec<Vec<MeshUpdate>>> {
    let update =
        prop_oneof![3 => some_workload(), 3 => some_service(), 2 => some_policy(), 3 => some_removal()];
    prop::collection::vec(prop::collection::vec(update, 1..5), 1..8)
}

/// What is decided for a workload: its description and its policies.
fn decided(
    snapshot: &Snapshot,
    uid: &WorkloadUid,
) -> Option<(Arc<Workload>, Vec<Arc<Authorization>>, usize)> {
    let workload = snapshot.workload(uid)?;
    let set = snapshot.policies_for(workload);
    let policies = set
        .policies
        .iter()
        .map(|policy| Arc::clone(policy.authorization()))
        .collect();
    Some((Arc::clone(workload), policies, set.missing.len()))
}

fn uids() -> impl Iterator<Item = WorkloadUid> {
    NAMESPACES.iter().flat_map(|ns| {
        NAMES
            .iter()
            .map(move |name| format!("{ns}/{name}").as_str().into())
    })
}

fn agree(snapshot: &Snapshot, plain: &Plain) -> Result<(), TestCaseError> {
    for ip in VIPS.map(|ip| ip.parse::<IpAddr>().unwrap()) {
        let address = NetworkAddress::new("", ip);
        prop_assert_eq!(
            snapshot.workload_by_address(&address),
            plain.workload_by_address(ip)
        );
        for client in ["a", "b", "c"] {
            let found = snapshot.service_by_vip(client, &address);
            prop_assert_eq!(found, plain.service_by_vip(client, ip), "{} from {}", ip, client);
        }
    }
    for uid in uids() {
        prop_assert_eq!(snapshot.workload(&uid), plain.workloads.get(&uid));
        let (namespace, name) = uid.0.split_once('/').unwrap();
        let by_name = snapshot.workload_by_name(namespace, name, name);
        prop_assert_eq!(by_name.as_ref(), plain.workloads.get(&uid));
        let key = service_key(&uid.0);
        prop_assert_eq!(snapshot.service(&key), plain.services.get(&key));
        let endpoints: Vec<_> = snapshot.endpoints(&key).collect();
        let listed = plain
            .workloads
            .values()
            .filter(|one| one.services.contains_key(&key));
        prop_assert_eq!(endpoints, listed.cloned().collect::<Vec<_>>());
    }
    for one in plain.workloads.values() {
        let set = snapshot.policies_for(one);
        let (policies, missing) = plain.policies_for(one);
        let found: Vec<_> = set
            .policies
            .iter()
            .map(|policy| Arc::clone(policy.authorization()))
            .collect();
        prop_assert_eq!(found, policies);
        prop_assert_eq!(set.missing, missing);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_indexes_agree_with_a_plain_list(batches in some_batches()) {
        let (mesh, mut plain) = (Mesh::new(), Plain::default());
        for batch in batches {
            batch.iter().cloned().for_each(|update| plain.apply(update));
            mesh.apply(batch);
            agree(&mesh.snapshot(), &plain)?;
        }
    }

    #[test]
    fn whoever_is_decided_anew_is_among_the_changes(batches in some_batches()) {
        let mesh = Mesh::new();
        for batch in batches {
            let before = mesh.snapshot();
            let changes = mesh.apply(batch);
            let after = mesh.snapshot();
            prop_assert_eq!(changes.generation, after.generation());
            for uid in uids() {
                let named = changes.everything || changes.workloads.contains(&uid);
                prop_assert!(named || decided(&before, &uid) == decided(&after, &uid), "{}", uid);
            }
        }
    }

    #[test]
    fn an_emptied_mesh_holds_nothing(batches in some_batches()) {
        let mesh = Mesh::new();
        batches.into_iter().for_each(|batch| drop(mesh.apply(batch)));
        let snapshot = mesh.snapshot();
        let mut removals: Vec<_> =
            snapshot.workloads().map(|one| MeshUpdate::RemoveWorkload(one.uid.clone())).collect();
        removals.extend(snapshot.services().map(|one| MeshUpdate::RemoveService(one.key())));
        removals.extend(snapshot.policies().map(|one| MeshUpdate::RemovePolicy(one.key())));
        mesh.apply(removals);
        let rest = mesh.snapshot();
        prop_assert_eq!(rest.workloads.indexed() + rest.services.indexed() + rest.policies.indexed(), 0);
    }
}
