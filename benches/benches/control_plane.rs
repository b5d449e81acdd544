//! What a control plane with many streams does on this machine; server and clients share its cores.
//! `cargo bench -p tulle-benches --bench control_plane [pods] [streams]`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tulle_benches::control::{ControlPlane, first};
use tulle_benches::mesh::{REPLICAS, batch, manifests, parse, resident_kib};
use tulle_proto::resume::{Digests, Layout};
use tulle_xds::ca::order;
use tulle_xds::snapshot::ResourceType;

/// Seconds that each rate of changes is kept up.
const SECONDS: u32 = 10;
/// Certificates signed.
const CERTIFICATES: u32 = 2_000;
/// Clients that connect at once.
const AT_ONCE: usize = 64;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let (pods, streams) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(500));
    tulle_benches::runtime().block_on(run(pods, streams));
}

#[allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
async fn run(pods: usize, streams: usize) {
    let before = resident_kib();
    let events = parse(&manifests(pods));
    let mut plane = ControlPlane::start().await;
    let begin = Instant::now();
    plane.apply(batch(events)).await;
    println!(
        "cold: {pods} pods computed in {:?}; {} KiB",
        begin.elapsed(),
        resident_kib() - before
    );
    let resources = pods + pods / REPLICAS;

    let (told, mut heard) = mpsc::unbounded_channel();
    let (begin, sent) = (Instant::now(), plane.sent());
    let nodes: Vec<String> = (0..streams).map(|number| format!("n{number}")).collect();
    for some in nodes.chunks(AT_ONCE) {
        let mut clients = Vec::new();
        for node in some {
            clients.push(
                plane
                    .connect(node, first(node, ResourceType::Address), true)
                    .await,
            );
        }
        for mut client in clients {
            client.read(resources).await;
            client.follow(told.clone());
        }
    }
    let bytes = plane.sent() - sent;
    println!(
        "{streams} streams consistent after {:?}; {} bytes per workload on the wire; {} KiB",
        begin.elapsed(),
        bytes / (streams * pods) as u64,
        resident_kib() - before
    );

    for rate in [10, 100, 1_000] {
        changes(&plane, rate, streams, &mut heard).await;
    }
    println!("memory after churn: {} KiB", resident_kib() - before);
    resume(&plane).await;
    certificates(&plane).await;
}

/// The pod of a change, with an address of its own.
fn changed(number: u32) -> (String, String) {
    let ip = format!("11.{}.{}.{}", number / 62_500, (number / 250) % 250, number % 250);
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: s0-0, namespace: ns0, uid: u0, labels: {{app: s0}}}}\nspec: {{nodeName: n0, serviceAccountName: s0}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    );
    (format!("/{ip}"), text)
}

#[allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
async fn changes(
    plane: &ControlPlane,
    rate: u32,
    streams: usize,
    heard: &mut mpsc::UnboundedReceiver<(String, Instant)>,
) {
    let start = rate * 100;
    let all: Vec<_> = (start..start + rate * SECONDS).map(changed).collect();
    let events: Vec<_> = all.iter().map(|(_, text)| batch(parse(text))).collect();
    let mut told = BTreeMap::new();
    let mut next = tokio::time::interval(Duration::from_secs(1) / rate);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let begin = Instant::now();
    for ((name, _), event) in all.iter().zip(events) {
        next.tick().await;
        told.insert(name.clone(), Instant::now());
        plane.batches.send(event).await.expect("the engine runs");
    }
    let offered = begin.elapsed();
    let (last, mut ended) = (&all[all.len() - 1].0, 0);
    let mut lags = Vec::new();
    while ended < streams {
        let (name, at) = heard.recv().await.expect("clients live");
        ended += usize::from(name == *last);
        if let Some(begin) = told.get(&name) {
            lags.push(at.saturating_duration_since(*begin));
        }
    }
    lags.sort_unstable();
    let at = |part: usize| lags[(lags.len() - 1) * part / 1000];
    println!(
        "{rate}/s for {offered:?}: p50 {:?}, p99 {:?}, p99.9 {:?}; {} told to {streams} streams, all at the last within {:?}",
        at(500),
        at(990),
        at(999),
        lags.len(),
        begin.elapsed() - offered
    );
}

/// A node that comes back and lacks nothing.
#[allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
async fn resume(plane: &ControlPlane) {
    let snapshot = plane.snapshots.borrow().clone();
    let held = snapshot
        .resources(ResourceType::Address)
        .map(|slot| (&*slot.name, &*slot.version));
    let digests = Digests::of(Layout::Fine, held).to_text();
    let mut request = first("n-back", ResourceType::Address);
    let asked = digests.len();
    request.initial_resource_versions = [(Layout::Fine.name().to_owned(), digests)].into();
    let sent = plane.sent();
    let begin = Instant::now();
    let mut client = plane.connect("n-back", request, true).await;
    let answer = client.next().await;
    println!(
        "nothing changed: {} bytes of digests, {} bytes of answer, {} resources, {:?}",
        asked,
        plane.sent() - sent,
        answer.resources.len(),
        begin.elapsed()
    );
}

#[allow(clippy::print_stdout, reason = "a benchmark prints its figures")]
async fn certificates(plane: &ControlPlane) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let csr = csr.pem().expect("text");
    let identity = tulle_model::Identity::new("cluster.local", "ns0", "s0");
    let begin = Instant::now();
    let mut latest = Duration::ZERO;
    for _ in 0..CERTIFICATES {
        let one = Instant::now();
        let signed = plane
            .authority
            .sign(order(csr.clone(), identity.clone(), 3600), false)
            .await;
        signed.expect("it is signed");
        latest = latest.max(one.elapsed());
    }
    let rate = f64::from(CERTIFICATES) / begin.elapsed().as_secs_f64();
    println!("certificates: {rate:.0}/s one after the other, slowest {latest:?}");
}
