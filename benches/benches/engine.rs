//! What configuration costs the control plane: a cold start, a label on a namespace of 10,000 pods, one pod, and the
//! memory of 100,000 workloads. Prints figures; `cargo bench -p tulle-benches --bench engine [pods]`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use tulle_benches::mesh::{NAMESPACES, batch, manifests, parse, resident_kib};
use tulle_k8s::translate::MeshConfig;
use tulle_xds::engine::Engine;
use tulle_xds::snapshot::ResourceType;

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let value = run();
    (value, started.elapsed())
}

#[allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() {
    let pods = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(10_000);
    let text = manifests(pods);
    let (events, read) = timed(|| parse(&text));
    let objects = events.len();
    drop(text);
    let before = resident_kib();
    let mut engine = Engine::new(MeshConfig::default());
    let (first, computed) = timed(|| engine.apply(batch(events)));
    let workloads = first.count(ResourceType::Workload);
    println!("cold: {objects} objects read in {read:?}, computed in {computed:?}; {workloads} workloads");
    println!(
        "memory: {} KiB for the tables of {workloads} workloads and the world",
        resident_kib().saturating_sub(before)
    );

    let labelled = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns0, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}}\n";
    let (_, label) = timed(|| black_box(engine.apply(batch(parse(labelled)))));
    println!("namespace label on {} pods: {label:?}", pods / NAMESPACES);

    let everywhere: String = (0..NAMESPACES)
        .map(|namespace| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{namespace}, labels: {{istio.io/dataplane-mode: none}}}}\n---\n"))
        .collect();
    let (_, label) = timed(|| black_box(engine.apply(batch(parse(&everywhere)))));
    println!("namespace labels on {pods} pods: {label:?}");

    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: s0-0, namespace: ns0, uid: u0, labels: {app: s0}}\nspec: {nodeName: n7, serviceAccountName: s0}\nstatus: {phase: Running, podIP: 10.100.0.0}\n";
    let other = pod.replace("n7", "n8");
    let rounds = 1_000;
    let texts = [parse(pod), parse(&other)];
    let ((), one) = timed(|| {
        for round in 0..rounds {
            black_box(engine.apply(batch(texts[round % 2].clone())));
        }
    });
    println!(
        "one pod: {:?} each",
        one / u32::try_from(rounds).unwrap_or(u32::MAX)
    );
}
