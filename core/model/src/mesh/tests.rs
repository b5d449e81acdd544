//! What can be looked up after which changes.

use std::sync::Arc;

use super::*;
use crate::testing::{address, allow, deny, mesh, name, service, service_key, workload};

fn uids<'a>(workloads: impl IntoIterator<Item = &'a Arc<Workload>>) -> Vec<String> {
    workloads
        .into_iter()
        .map(|workload| workload.uid.to_string())
        .collect()
}

fn endpoints(snapshot: &Snapshot, service: &str) -> Vec<String> {
    uids(&snapshot.endpoints(&service_key(service)).collect::<Vec<_>>())
}

fn vip_owner(snapshot: &Snapshot, client: &str, vip: &str) -> Option<String> {
    snapshot
        .service_by_vip(client, &address(vip))
        .map(|found| found.key().namespace.to_string())
}

#[test]
fn a_snapshot_never_changes() {
    let mesh = mesh().with(workload("web").ip("10.0.0.1")).build();
    let before = mesh.snapshot();
    mesh.apply(vec![MeshUpdate::RemoveWorkload("default/web".into())]);
    assert!(before.workload(&"default/web".into()).is_some());
    assert!(mesh.snapshot().workload(&"default/web".into()).is_none());
    assert_eq!(mesh.snapshot().generation(), before.generation() + 1);
}

#[test]
fn a_reader_never_frees_what_a_batch_replaced() {
    let mesh = mesh().with(workload("web")).build();
    let reading = mesh.snapshot();
    let replaced = Arc::downgrade(reading.workload(&"default/web".into()).unwrap());
    mesh.apply(vec![MeshUpdate::RemoveWorkload("default/web".into())]);
    mesh.sweep();
    assert_eq!(reading.workloads().count(), 1, "it is read still");
    drop(reading);
    assert_ne!(replaced.strong_count(), 0, "the reader left it to others");
    mesh.sweep();
    assert_eq!(replaced.strong_count(), 0);
}

#[test]
fn what_nobody_reads_is_freed_with_the_batch_that_replaced_it() {
    let mesh = mesh().with(workload("web")).build();
    let replaced = Arc::downgrade(mesh.snapshot().workload(&"default/web".into()).unwrap());
    mesh.apply(vec![MeshUpdate::RemoveWorkload("default/web".into())]);
    assert_eq!(replaced.strong_count(), 0);
}

#[test]
fn clones_of_a_mesh_see_the_same() {
    let mesh = Mesh::new();
    let other = mesh.clone();
    mesh.apply(vec![workload("web").into()]);
    assert_eq!(other.snapshot().workloads().count(), 1);
}

#[test]
fn a_batch_that_changes_nothing_swaps_nothing() {
    let mesh = mesh()
        .with(workload("web"))
        .with(service("web"))
        .with(allow("a"))
        .build();
    let before = mesh.snapshot();
    let changes = mesh.apply(vec![
        workload("web").into(),
        service("web").into(),
        allow("a").into(),
        MeshUpdate::RemoveWorkload("unknown".into()),
        MeshUpdate::RemoveService(service_key("unknown")),
        MeshUpdate::RemovePolicy(name("unknown")),
    ]);
    assert!(changes.is_empty());
    assert_eq!(changes.generation, before.generation());
    assert!(Arc::ptr_eq(&before, &mesh.snapshot()));
}

#[test]
fn a_replaced_workload_leaves_no_old_trace() {
    let old = workload("web")
        .ip("10.0.0.1")
        .sa("old")
        .serves("a")
        .policy("p")
        .ns("x");
    let new = workload("web")
        .ip("10.0.0.2")
        .sa("new")
        .serves("b")
        .ns("y")
        .uid("x/web");
    let mesh = mesh().with(old).build();
    mesh.apply(vec![new.into()]);
    let snapshot = mesh.snapshot();
    assert!(snapshot.workload_by_address(&address("10.0.0.1")).is_none());
    assert!(snapshot.workload_by_address(&address("10.0.0.2")).is_some());
    assert!(snapshot.workload_by_name("x", "web", "old").is_none());
    assert!(snapshot.workload_by_name("y", "web", "new").is_some());
    assert!(endpoints(&snapshot, "a").is_empty());
    assert_eq!(endpoints(&snapshot, "b"), ["x/web"]);
    assert_eq!(snapshot.members(&"x".into()).count(), 0);
    assert_eq!(snapshot.naming(&name("p")).count(), 0);
}

#[test]
fn a_removed_workload_is_found_by_nothing() {
    let mesh = mesh().with(workload("web").ip("10.0.0.1").serves("a")).build();
    mesh.apply(vec![MeshUpdate::RemoveWorkload("default/web".into())]);
    let snapshot = mesh.snapshot();
    assert!(snapshot.workload_by_address(&address("10.0.0.1")).is_none());
    assert!(snapshot.workload_by_name("default", "web", "web").is_none());
    assert!(endpoints(&snapshot, "a").is_empty());
}

#[test]
fn a_replaced_service_leaves_no_old_trace() {
    let mesh = mesh()
        .with(service("a").vip("10.96.0.1").cidr("10.97.0.0/16"))
        .build();
    mesh.apply(vec![service("a").vip("10.96.0.2").cidr("10.98.0.0/16").into()]);
    let snapshot = mesh.snapshot();
    for (vip, known) in [
        ("10.96.0.1", false),
        ("10.97.0.1", false),
        ("10.96.0.2", true),
        ("10.98.0.1", true),
    ] {
        assert_eq!(vip_owner(&snapshot, "x", vip).is_some(), known, "{vip}");
    }
}

#[test]
fn endpoints_that_come_before_their_service_are_joined_later() {
    let mesh = mesh().with(workload("web").ip("10.0.0.1").serves("a")).build();
    assert_eq!(endpoints(&mesh.snapshot(), "a"), ["default/web"]);
    mesh.apply(vec![service("a").into()]);
    mesh.apply(vec![MeshUpdate::RemoveService(service_key("a"))]);
    assert_eq!(
        endpoints(&mesh.snapshot(), "a"),
        ["default/web"],
        "and outlive it"
    );
}

#[test]
fn an_address_belongs_to_its_network() {
    let snapshot = mesh()
        .with(workload("here").ip("10.0.0.1"))
        .with(workload("there").ip("10.0.0.1").network("other"))
        .snapshot();
    let at = |text| {
        snapshot
            .workload_by_address(&address(text))
            .map(|found| found.name.to_string())
    };
    assert_eq!(at("10.0.0.1").as_deref(), Some("here"));
    assert_eq!(at("other/10.0.0.1").as_deref(), Some("there"));
    assert_eq!(at("third/10.0.0.1"), None);
}

#[test]
fn mapped_addresses_are_ipv4() {
    let snapshot = mesh().with(workload("web").ip("::ffff:10.0.0.1")).snapshot();
    assert!(snapshot.workload_by_address(&address("10.0.0.1")).is_some());
}

#[test]
fn host_network_workloads_are_not_found_by_address() {
    let snapshot = mesh()
        .with(workload("agent").ip("10.0.0.1").host_network())
        .snapshot();
    assert!(snapshot.workload_by_address(&address("10.0.0.1")).is_none());
    assert!(snapshot.workload_by_name("default", "agent", "agent").is_some());
}

#[test]
fn hbone_wins_a_shared_address_and_the_other_returns_when_it_leaves() {
    let mesh = mesh()
        .with(workload("a").ip("10.0.0.1"))
        .with(workload("b").ip("10.0.0.1").hbone())
        .build();
    let owner = || {
        mesh.snapshot()
            .workload_by_address(&address("10.0.0.1"))
            .unwrap()
            .name
            .to_string()
    };
    assert_eq!(owner(), "b");
    mesh.apply(vec![MeshUpdate::RemoveWorkload("default/b".into())]);
    assert_eq!(owner(), "a");
}

#[test]
fn a_shared_address_goes_to_own_namespace_then_canonical_then_first() {
    let snapshot = mesh()
        .with(service("b/s").vip("10.96.0.1"))
        .with(service("a/s").vip("10.96.0.1"))
        .with(service("c/s").vip("10.96.0.1").canonical())
        .with(service("f/s").vip("10.96.0.2"))
        .with(service("e/s").vip("10.96.0.2"))
        .snapshot();
    assert_eq!(vip_owner(&snapshot, "b", "10.96.0.1").as_deref(), Some("b"));
    assert_eq!(vip_owner(&snapshot, "x", "10.96.0.1").as_deref(), Some("c"));
    assert_eq!(vip_owner(&snapshot, "x", "10.96.0.2").as_deref(), Some("e"));
}

#[test]
fn a_private_service_does_not_exist_elsewhere() {
    let snapshot = mesh()
        .with(service("a/s").vip("10.96.0.1").private().canonical())
        .with(service("b/s").vip("10.96.0.1"))
        .with(service("c/s").vip("10.96.0.2").private())
        .snapshot();
    assert_eq!(vip_owner(&snapshot, "a", "10.96.0.1").as_deref(), Some("a"));
    assert_eq!(vip_owner(&snapshot, "x", "10.96.0.1").as_deref(), Some("b"));
    assert_eq!(vip_owner(&snapshot, "x", "10.96.0.2"), None);
}

#[test]
fn an_exported_service_exists_in_the_namespaces_of_its_list_alone() {
    let snapshot = mesh()
        .with(service("a/s").vip("10.96.0.1").exported_to(&["b", "c"]))
        .with(service("z/s").vip("10.96.0.2").exported_to(&[]))
        .with(service("y/s").cidr("10.97.0.0/16").exported_to(&["b"]))
        .snapshot();
    for (client, vip, owner) in [
        ("b", "10.96.0.1", Some("a")),
        ("c", "10.96.0.1", Some("a")),
        ("d", "10.96.0.1", None),
        ("a", "10.96.0.1", None),
        ("z", "10.96.0.2", None),
        ("b", "10.97.0.1", Some("y")),
        ("y", "10.97.0.1", None),
    ] {
        assert_eq!(
            vip_owner(&snapshot, client, vip).as_deref(),
            owner,
            "{client} {vip}"
        );
    }
}

#[test]
fn ranges_go_by_the_longest_prefix_but_own_namespace_beats_it() {
    let snapshot = mesh()
        .with(service("wide/s").cidr("10.0.0.0/8"))
        .with(service("mid/s").cidr("10.1.0.0/16"))
        .with(service("narrow/s").cidr("10.1.1.0/24"))
        .snapshot();
    assert_eq!(vip_owner(&snapshot, "x", "10.1.1.1").as_deref(), Some("narrow"));
    assert_eq!(vip_owner(&snapshot, "x", "10.1.2.1").as_deref(), Some("mid"));
    assert_eq!(vip_owner(&snapshot, "x", "10.2.0.1").as_deref(), Some("wide"));
    assert_eq!(vip_owner(&snapshot, "wide", "10.1.1.1").as_deref(), Some("wide"));
    assert_eq!(vip_owner(&snapshot, "x", "11.0.0.1"), None);
    assert_eq!(vip_owner(&snapshot, "x", "::1"), None);
}

#[test]
fn an_exact_address_beats_a_range_of_the_own_namespace() {
    let snapshot = mesh()
        .with(service("a/s").cidr("10.0.0.0/8"))
        .with(service("b/s").vip("10.0.0.1"))
        .snapshot();
    assert_eq!(vip_owner(&snapshot, "a", "10.0.0.1").as_deref(), Some("b"));
}

#[test]
fn a_range_shared_by_two_outlives_one_of_them() {
    let mesh = mesh()
        .with(service("a/s").cidr("10.0.0.0/8"))
        .with(service("b/s").cidr("10.0.0.0/8"))
        .build();
    mesh.apply(vec![MeshUpdate::RemoveService(service_key("a/s"))]);
    assert_eq!(vip_owner(&mesh.snapshot(), "x", "10.9.9.9").as_deref(), Some("b"));
    mesh.apply(vec![MeshUpdate::RemoveService(service_key("b/s"))]);
    assert_eq!(vip_owner(&mesh.snapshot(), "x", "10.9.9.9"), None);
}

#[test]
fn policies_apply_by_scope() {
    let snapshot = mesh()
        .with(allow("root/everyone").global())
        .with(allow("a/all"))
        .with(allow("b/all"))
        .with(allow("a/named").selector())
        .with(allow("a/unnamed").selector())
        .snapshot();
    let set = snapshot.policies_for(&workload("a/web").policy("a/named").policy("a/named").build());
    let names: Vec<_> = set
        .policies
        .iter()
        .map(|policy| policy.key().to_string())
        .collect();
    assert_eq!(names, ["root/everyone", "a/all", "a/named"]);
    assert!(set.missing.is_empty());
}

#[test]
fn a_dry_run_that_is_named_as_such_applies_and_is_neither_enforced_nor_missing() {
    let snapshot = mesh()
        .with(deny("a/trial").always().selector().dry_run())
        .with(deny("a/earnest").always().selector())
        .snapshot();
    let mut web = workload("a/web").build();
    web.set_dry_runs(&["a/trial", "a/earnest", "a/unknown"].map(name));
    let set = snapshot.policies_for(&web);
    let names = |set: &PolicySet| -> Vec<String> {
        set.policies
            .iter()
            .map(|policy| policy.key().to_string())
            .collect()
    };
    assert_eq!(names(&set), ["a/trial"]);
    assert!(set.missing.is_empty());
    web.authorization_policies = vec![name("a/trial")];
    assert_eq!(names(&snapshot.policies_for(&web)), ["a/trial"], "once");
    web.set_dry_runs(&[]);
    assert!(web.extensions.is_empty());
}

#[test]
fn a_named_policy_of_another_namespaces_scope_does_not_apply() {
    let snapshot = mesh().with(deny("b/all").always()).snapshot();
    let set = snapshot.policies_for(&workload("a/web").policy("b/all").build());
    assert!(set.policies.is_empty() && set.missing.is_empty());
}

#[test]
fn a_named_policy_that_has_not_come_is_missing_once() {
    let snapshot = Mesh::new().snapshot();
    let set = snapshot.policies_for(&workload("web").policy("p").policy("p").build());
    assert_eq!(set.missing, [name("p")]);
}

#[test]
fn of_many_names_each_counts_once() {
    let names = (0..50).map(|n| format!("p{}", n % 40));
    let all = names.fold(workload("web"), |web, name| web.policy(&name));
    let set = mesh()
        .with(deny("p7").selector())
        .snapshot()
        .policies_for(&all.build());
    assert_eq!(set.policies.len(), 1);
    let missing: Vec<_> = (0..40)
        .filter(|n| *n != 7)
        .map(|n| name(&format!("p{n}")))
        .collect();
    assert_eq!(set.missing, missing);
}

#[test]
fn a_policy_that_changes_its_scope_leaves_the_old_one() {
    let mesh = mesh().with(allow("a/p").global()).build();
    let reach = |text: &str| {
        mesh.snapshot()
            .policies_for(&workload(text).build())
            .policies
            .len()
    };
    mesh.apply(vec![allow("a/p").into()]);
    assert_eq!((reach("a/web"), reach("b/web")), (1, 0));
    mesh.apply(vec![allow("a/p").selector().into()]);
    assert_eq!((reach("a/web"), reach("b/web")), (0, 0));
}

#[test]
fn changes_name_the_workloads_a_policy_reaches() {
    let mesh = mesh()
        .with(workload("a/one"))
        .with(workload("a/two").policy("b/p"))
        .with(workload("b/three"))
        .build();
    let affected = |update: MeshUpdate| {
        let changes = mesh.apply(vec![update]);
        let uids: Vec<_> = changes.workloads.iter().map(ToString::to_string).collect();
        (uids.join(" "), changes.everything)
    };
    assert_eq!(affected(deny("a/all").into()), ("a/one a/two".into(), false));
    assert_eq!(affected(deny("b/p").selector().into()), ("a/two".into(), false));
    assert_eq!(
        affected(MeshUpdate::RemovePolicy(name("b/p"))),
        ("a/two".into(), false)
    );
    assert_eq!(affected(deny("b/p").into()), ("a/two b/three".into(), false));
    assert_eq!(affected(deny("root/g").global().into()), (String::new(), true));
    assert_eq!(affected(deny("root/g").selector().into()), (String::new(), true));
}

#[test]
fn changes_name_the_workloads_that_were_described_anew() {
    let mesh = mesh().with(workload("web")).with(workload("db")).build();
    let web = workload("web").policy("p");
    let changes = mesh.apply(vec![web.clone().into(), service("s").into()]);
    assert_eq!(changes.workloads, ["default/web".into()]);
    assert_eq!(changes.services, [service_key("s")]);
    assert!(changes.affects(&web.build()) && !changes.affects(&workload("db").build()));
}

#[test]
fn only_a_bound_waypoint_speaks_for_others() {
    let snapshot = mesh()
        .with(service("wp").port(15008, 15008))
        .with(service("canary").port(15008, 15008))
        .with(workload("wp-1").sa("wp").ip("10.0.9.1").hbone().serves("wp"))
        .with(
            workload("canary-1")
                .sa("canary")
                .ip("10.0.9.2")
                .hbone()
                .serves("canary"),
        )
        .with(workload("other").ip("10.0.9.3").hbone())
        .with(service("s").waypoint("wp").weighted_waypoint("canary", 0))
        .snapshot();
    let identity = |sa: &str| Identity::new("cluster.local", "default", sa);
    let speaks = |local: &Workload, sa: &str, ip: &str| {
        snapshot.is_waypoint_of(local, &identity(sa), ip.parse().unwrap())
    };
    let local = workload("web").serves("s").build();
    assert!(speaks(&local, "wp", "10.0.9.1"));
    assert!(speaks(&local, "canary", "10.0.9.2"));
    assert!(!speaks(&local, "wp", "10.0.9.2"), "the address is another's");
    assert!(!speaks(&local, "other", "10.0.9.1"), "the identity is another's");
    assert!(
        !speaks(&workload("web").build(), "wp", "10.0.9.1"),
        "bound to nothing here"
    );
    assert!(speaks(
        &workload("web").waypoint("10.0.9.1").build(),
        "wp",
        "10.0.9.1"
    ));
}
