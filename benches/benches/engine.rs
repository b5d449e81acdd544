//! What configuration costs the control plane: a cold start, a label on a namespace of 10,000 pods, one pod, and the
//! memory of 100,000 workloads. Prints figures; `cargo bench -p tulle-benches --bench engine [pods]`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_k8s::Object;
use tulle_k8s::document::documents;
use tulle_k8s::object::{Reading, read};
use tulle_k8s::translate::MeshConfig;
use tulle_xds::engine::{Batch, Engine, Event, InForce};
use tulle_xds::snapshot::ResourceType;

/// Pods per service.
const REPLICAS: usize = 10;
/// Namespaces.
const NAMESPACES: usize = 10;

/// The manifests of a mesh with this many pods.
fn manifests(pods: usize) -> String {
    let mut text = String::new();
    for namespace in 0..NAMESPACES {
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{namespace}, labels: {{istio.io/dataplane-mode: ambient}}}}\n"
            ),
        );
    }
    for service in 0..pods / REPLICAS {
        let (namespace, high, low) = (service % NAMESPACES, service / 250, service % 250);
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: ns{namespace}}}\nspec: {{selector: {{app: s{service}}}, clusterIPs: [10.96.{}.{low}], ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
                high % 250
            ),
        );
    }
    for pod in 0..pods {
        let service = pod / REPLICAS;
        let namespace = service % NAMESPACES;
        let ip = format!("10.{}.{}.{}", 100 + pod / 62_500, (pod / 250) % 250, pod % 250);
        push(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: s{service}-{pod}, namespace: ns{namespace}, uid: u{pod}, labels: {{app: s{service}}}}}\nspec: {{nodeName: n{}, serviceAccountName: s{service}}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
                pod % 200
            ),
        );
    }
    text
}

fn push(text: &mut String, object: std::fmt::Arguments<'_>) {
    writeln!(text, "{object}---").expect("writing to a string does not fail");
}

fn event(object: Arc<Object>) -> Event {
    let in_force = InForce {
        object: object.clone(),
        file: "bench.yaml".into(),
        generation: 1,
        stale_since: None,
    };
    Event {
        key: object.key(),
        object: Some(in_force),
    }
}

fn parse(text: &str) -> Vec<Event> {
    // A file has at most 4 MiB; parts of one are read as files of their own.
    let mut events = Vec::new();
    for part in text.split_inclusive("---\n").collect::<Vec<_>>().chunks(5_000) {
        for node in documents(&part.concat()).iter().flatten() {
            match read(node) {
                Reading::Good { object, .. } => events.push(event(object)),
                other => panic!("no object: {other:?}"),
            }
        }
    }
    events
}

fn batch(events: Vec<Event>) -> Batch {
    Batch {
        events,
        synced: true,
        ..Batch::default()
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

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
    let workloads = first.resources(ResourceType::Workload).count();
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
