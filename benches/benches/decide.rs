//! What one connection pays for its decisions, and what one change of the mesh costs.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_model::authz::Connection;
use tulle_model::authz::policy::{Match, StringMatch};
use tulle_model::service::Scope;
use tulle_model::testing::{MeshBuilder, allow, any_of, deny, mesh, service, workload};
use tulle_model::{Identity, Mesh, MeshUpdate, Workload};

/// How many workloads the large mesh has.
const WORKLOADS: u32 = 10_000;
/// How many of them each service of the large mesh has as endpoints.
const ENDPOINTS_PER_SERVICE: u32 = 20;

/// A pod, the n-th of its kind, at an address of its own.
fn pod(n: u32) -> tulle_model::testing::WorkloadBuilder {
    let [_, high, middle, low] = n.to_be_bytes();
    workload(&format!("ns-{}/pod-{n}", n % 50))
        .ip(&format!("10.{high}.{middle}.{low}"))
        .hbone()
        .node(&format!("node-{}", n % 100))
        .locality(&format!("eu/{}", n % 3))
}

/// Ten thousand pods behind five hundred services.
fn large_mesh() -> MeshBuilder {
    let mut mesh = mesh();
    for n in 0..WORKLOADS / ENDPOINTS_PER_SERVICE {
        let [.., high, low] = n.to_be_bytes();
        mesh = mesh.with(
            service(&format!("svc-{n}"))
                .vip(&format!("10.96.{high}.{low}"))
                .port(80, 8080),
        );
    }
    for n in 0..WORKLOADS {
        mesh = mesh.with(pod(n).serves(&format!("svc-{}", n / ENDPOINTS_PER_SERVICE)));
    }
    mesh
}

fn exactly(principals: std::ops::Range<u32>) -> Match {
    let principal = |n| StringMatch::Exact(format!("cluster.local/ns/ns-{}/sa/pod-{n}", n % 50).into());
    Match {
        principals: principals.map(principal).collect(),
        ..Match::default()
    }
}

/// A connection of the same pod from this address.
fn from_pod(address: &str) -> Connection {
    Connection {
        peer: Some(Identity::new("cluster.local", "ns-1", "pod-1")),
        original_source: None,
        source_ip: address.parse().expect("an address"),
        destination: "10.0.0.7:8080".parse().expect("an address"),
    }
}

fn check_policies(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy_check");
    let local = workload("web").ip("10.0.0.7").build();
    let connection = from_pod("10.1.2.3");
    let ports = |ports: &[u16]| Match {
        destination_ports: ports.to_vec(),
        ..Match::default()
    };
    let few = mesh()
        .with(deny("no-dev").from_namespace("dev"))
        .with(allow("callers").rule([any_of([exactly(0..4)]), any_of([ports(&[80, 8080])])]));
    let many = (0..50).fold(mesh(), |mesh, n| {
        mesh.with(
            deny(&format!("deny-{n}")).rule([any_of([exactly(100..120)]), any_of([ports(&[80, 8080])])]),
        )
    });
    let long = mesh().with(allow("callers").when(exactly(0..1000)));
    for (name, mesh) in [
        ("2_policies", few),
        ("50_policies", many),
        ("1000_principals", long),
    ] {
        let snapshot = mesh.snapshot();
        let set = snapshot.policies_for(&local);
        group.bench_function(BenchmarkId::new("check", name), |b| {
            b.iter(|| black_box(&set).check(black_box(&connection)));
        });
        group.bench_function(BenchmarkId::new("collect_and_check", name), |b| {
            b.iter(|| {
                snapshot
                    .policies_for(black_box(&local))
                    .check(black_box(&connection))
            });
        });
    }
    group.finish();
}

/// A workload that names many policies, none of which is about the caller.
fn named_policies(c: &mut Criterion) {
    let mut group = c.benchmark_group("policies_of_a_workload");
    let connection = from_pod("10.1.2.3");
    for count in [1, 100, 5_000] {
        let (mut mesh, mut local) = (mesh(), workload("web").ip("10.0.0.7"));
        for name in (0..count).map(|n| format!("deny-{n}")) {
            mesh = mesh.with(deny(&name).selector().from_namespace("dev"));
            local = local.policy(&name);
        }
        let (snapshot, local) = (mesh.snapshot(), local.build());
        group.bench_function(BenchmarkId::new("collect_and_check", count), |b| {
            b.iter(|| {
                snapshot
                    .policies_for(black_box(&local))
                    .check(black_box(&connection))
            });
        });
    }
    group.finish();
}

/// One policy of many rules, each for a network of its own; the last one matches.
fn long_policies(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy_rules");
    let local = workload("web").ip("10.0.0.7").build();
    for rules in [1, 100, 10_000u32] {
        let of = |n: u32| {
            let [_, high, middle, low] = n.to_be_bytes();
            format!("10.{high}.{middle}.{low}")
        };
        let from = |n: u32| Match {
            source_ips: vec![format!("{}/32", of(n)).parse().expect("a range")],
            ..Match::default()
        };
        let policy = (1..=rules).fold(deny("networks"), |policy, n| policy.when(from(n)));
        let snapshot = mesh().with(policy).snapshot();
        let set = snapshot.policies_for(&local);
        for (kind, connection) in [("last", from_pod(&of(rules))), ("none", from_pod("192.0.2.1"))] {
            group.bench_function(BenchmarkId::new(kind, rules), |b| {
                b.iter(|| black_box(&set).check(black_box(&connection)));
            });
        }
    }
    group.finish();
}

fn pick_upstream(c: &mut Criterion) {
    let mut group = c.benchmark_group("upstream_for");
    let source = pod(0).build();
    let destination: SocketAddr = "10.96.0.1:80".parse().expect("an address");
    for endpoints in [1, 100, 10_000] {
        for (kind, scopes) in [
            ("any", &[][..]),
            ("failover", &[Scope::Region, Scope::Zone, Scope::Node][..]),
        ] {
            let shop = service("shop")
                .vip("10.96.0.1")
                .port(80, 8080)
                .failover(scopes.iter().copied());
            let mesh = (0..endpoints).fold(mesh().with(shop), |mesh, n| mesh.with(pod(n).serves("shop")));
            let snapshot = mesh.snapshot();
            let mut draw = 0u64;
            group.bench_function(BenchmarkId::new(kind, endpoints), |b| {
                b.iter(|| {
                    let mut random = |of| {
                        draw = draw.wrapping_add(0x9E37_79B9_7F4A_7C15);
                        draw % of
                    };
                    snapshot.upstream_for(black_box(&source), destination, &mut random, &[])
                });
            });
        }
    }
    let snapshot = mesh().with(pod(7)).snapshot();
    let known: SocketAddr = "10.0.0.7:8080".parse().expect("an address");
    let unknown: SocketAddr = "192.0.2.1:443".parse().expect("an address");
    for (kind, destination) in [("workload", known), ("nothing", unknown)] {
        group.bench_function(kind, |b| {
            b.iter(|| snapshot.upstream_for(black_box(&source), destination, &mut |_| 0, &[]));
        });
    }
    group.finish();
}

fn apply_changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    let mesh: Mesh = large_mesh().build();
    let variants: [Arc<Workload>; 2] = [pod(5000), pod(5000).unhealthy()].map(|pod| {
        Arc::new(
            pod.serves(&format!("svc-{}", 5000 / ENDPOINTS_PER_SERVICE))
                .build(),
        )
    });
    let mut turn = 0;
    group.bench_function("one_workload_of_10000", |b| {
        b.iter(|| {
            turn += 1;
            mesh.apply(vec![MeshUpdate::Workload(Arc::clone(&variants[turn % 2]))])
        });
    });
    let mut turn = 0;
    group.bench_function("one_workload_of_10000_and_a_pick", |b| {
        let (source, destination) = (pod(1).build(), "10.96.0.250:80".parse().expect("an address"));
        b.iter(|| {
            turn += 1;
            mesh.apply(vec![MeshUpdate::Workload(Arc::clone(&variants[turn % 2]))]);
            mesh.snapshot()
                .upstream_for(&source, destination, &mut |_| 0, &[])
        });
    });
    group.sample_size(10);
    group.bench_function("10000_workloads_at_once", |b| {
        let updates: Vec<MeshUpdate> = mesh
            .snapshot()
            .workloads()
            .cloned()
            .map(MeshUpdate::Workload)
            .collect();
        b.iter_batched(
            || updates.clone(),
            |updates| Mesh::new().apply(updates),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group! {
    name = decide;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = check_policies, named_policies, long_policies, pick_upstream, apply_changes
}
criterion_main!(decide);
