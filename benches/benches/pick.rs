//! What a request pays for its endpoint, and who gets how much when one of four endpoints is slow.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tulle_model::policy::traffic::{Algorithm, LoadBalancing, Outlier};
use tulle_model::testing::{service, workload};
use tulle_model::upstream::Serving;
use tulle_waypoint::clock::Time;
use tulle_waypoint::upstream::cluster::{Ask, Cluster, ClusterPolicy, ClusterState, Sources, Unit};
use tulle_waypoint::upstream::outcome::{Answer, Outcome};

const ALGORITHMS: [(&str, Algorithm); 6] = [
    ("peak_ewma", Algorithm::PeakEwma),
    ("least_request", Algorithm::LeastRequest),
    ("round_robin", Algorithm::RoundRobin),
    ("random", Algorithm::Random),
    ("ring_hash", Algorithm::RingHash),
    ("maglev", Algorithm::Maglev),
];

fn cluster(algorithm: Algorithm, endpoints: usize) -> Arc<Cluster> {
    let serving = |n: usize| Serving {
        workload: Arc::new(workload(&format!("web-{n}")).build()),
        target_port: 8080,
        rank: 0,
        healthy: true,
    };
    let serving: Vec<_> = (0..endpoints).map(serving).collect();
    let sources = Sources {
        here: &workload("way").build(),
        name: "default/web.default.svc.cluster.local:80".into(),
        service: Some(&Arc::new(service("web").port(80, 8080).build())),
        serving: &serving,
        via: &[],
        shares: &[],
        policy: ClusterPolicy {
            balancing: LoadBalancing {
                algorithm: Some(algorithm),
                ..LoadBalancing::default()
            },
            outlier: Some((&Outlier::default()).into()),
            ..ClusterPolicy::default()
        },
        unit: Unit::Requests,
    };
    let state = Arc::<ClusterState>::default();
    Arc::new(Cluster::new(sources, &state, Time::ZERO))
}

/// A small generator, so that chance costs the same everywhere.
fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 1u64;
    move |n| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    }
}

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for (name, algorithm) in ALGORITHMS {
        for endpoints in [4, 1_000] {
            let cluster = cluster(algorithm, endpoints);
            let mut random = random();
            let mut now = Time::from_millis(1_000);
            let mut hash = 1u64;
            group.bench_function(BenchmarkId::new(name, endpoints), |bencher| {
                bencher.iter(|| {
                    now = now + Duration::from_micros(10);
                    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                    let ask = Ask {
                        now,
                        hash: Some(hash),
                        ..Ask::default()
                    };
                    let mut pick = cluster.pick(&ask, &mut random).expect("there are endpoints");
                    let ok = Outcome::Answered(Answer::status(200));
                    pick.settle(black_box(&ok), now + Duration::from_millis(1));
                });
            });
        }
    }
    group.finish();
}

/// Not a time but a share: a simulation of ten thousand requests with thirty-two at once, one of four endpoints twenty
/// times slower than the others.
fn fairness(_: &mut Criterion) {
    for (name, algorithm) in ALGORITHMS {
        let cluster = cluster(algorithm, 4);
        let mut random = random();
        let mut counts = [0u32; 4];
        let mut ends: Vec<(Time, _)> = Vec::new();
        let mut now = Time::from_millis(1_000);
        let mut waits = Vec::new();
        for nth in 0..10_000u64 {
            if ends.len() >= 32 {
                let first = (0..ends.len()).min_by_key(|index| ends[*index].0);
                let (at, mut pick): (Time, tulle_waypoint::upstream::cluster::Pick) =
                    ends.swap_remove(first.expect("thirty-two are under way"));
                now = now.max(at);
                pick.settle(&Outcome::Answered(Answer::status(200)), now);
            }
            let ask = Ask {
                now,
                hash: Some(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                ..Ask::default()
            };
            let pick = cluster.pick(&ask, &mut random).expect("there are endpoints");
            let which = cluster
                .endpoints()
                .iter()
                .position(|one| Arc::ptr_eq(&one.state, &pick.endpoint().state))
                .expect("it is one of them");
            counts[which] += 1;
            let takes = if which == 3 { 100 } else { 5 };
            waits.push(takes);
            ends.push((now + Duration::from_millis(takes), pick));
        }
        let mean = waits.iter().sum::<u64>() / waits.len() as u64;
        eprintln!("fairness/{name}: {counts:?}, the last one is slow; mean time to answer {mean} ms");
    }
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = pick, fairness
}
criterion_main!(benches);
