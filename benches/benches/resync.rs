//! What connections notice of a full resync of 100,000 workloads: the time of decisions while batches are applied.
//!
//! One thread decides without a pause, as workers do; another applies. What the deciding thread waited for a processor,
//! by the kernel's account, is taken off and told apart: it depends on who else runs. Prints what it measured; criterion
//! takes no part.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tulle_model::testing::{service, workload};
use tulle_model::{Mesh, MeshUpdate, Workload};

/// Workloads, and how many share a service.
const WORKLOADS: usize = 100_000;
const REPLICAS: usize = 10;

/// Resources of one answer, where a server cuts a resync.
const SLICE: usize = 2_000;

/// Decisions that are timed together: to ask the kernel takes as long as one of them.
const TOGETHER: usize = 8;

fn main() {
    let mesh = Mesh::new();
    mesh.apply(
        (0..WORKLOADS / REPLICAS)
            .map(|n| service(&format!("s{n}")).vip(&vip(n)).port(80, 8080).into())
            .collect(),
    );
    mesh.apply(workloads(1));
    let quiet = beside(&mesh, || thread::park_timeout(Duration::from_secs(2)));
    report("nothing", &quiet, &quiet);
    let same = beside(&mesh, || apply(&mesh, workloads(1), WORKLOADS));
    report("100,000 again, nothing changed", &same, &quiet);
    let whole = beside(&mesh, || apply(&mesh, workloads(2), WORKLOADS));
    report("100,000 changed, one batch", &whole, &quiet);
    let sliced = beside(&mesh, || apply(&mesh, workloads(3), SLICE));
    report("100,000 changed, batches of 2,000", &sliced, &quiet);
}

fn vip(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250)
}

/// All of them, in a state of their own.
fn workloads(capacity: u32) -> Vec<MeshUpdate> {
    let one = |n: usize| {
        let ip = format!("10.{}.{}.{}", 100 + n / 62_500, (n / 250) % 250, n % 250);
        let serves = format!("s{}", n / REPLICAS);
        workload(&format!("w{n}"))
            .ip(&ip)
            .hbone()
            .serves(&serves)
            .capacity(capacity)
            .into()
    };
    (0..WORKLOADS).map(one).collect()
}

fn apply(mesh: &Mesh, updates: Vec<MeshUpdate>, slice: usize) {
    let mut updates = updates.into_iter().peekable();
    while updates.peek().is_some() {
        mesh.apply(updates.by_ref().take(slice).collect());
    }
}

/// Times of [`TOGETHER`] decisions each, in order of length.
struct Seen {
    took: Duration,
    times: Vec<Duration>,
    longest_wait: Duration,
}

/// Decides while `work` runs in this thread.
fn beside(mesh: &Mesh, work: impl FnOnce()) -> Seen {
    let over = Arc::new(AtomicBool::new(false));
    let deciding = {
        let (mesh, over) = (mesh.clone(), Arc::clone(&over));
        thread::spawn(move || decide(&mesh, &over))
    };
    let began = Instant::now();
    work();
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    let (mut times, longest_wait) = deciding.join().expect("deciding does not panic");
    times.sort_unstable();
    Seen {
        took,
        times,
        longest_wait,
    }
}

fn decide(mesh: &Mesh, over: &AtomicBool) -> (Vec<Duration>, Duration) {
    let account = std::fs::File::open("/proc/thread-self/schedstat").expect("Linux has it");
    let source: Workload = workload("client").ip("10.1.1.1").hbone().build();
    let (mut times, mut longest) = (Vec::new(), Duration::ZERO);
    let mut service = 0;
    let mut random = |bound: u64| bound / 2;
    while !over.load(Ordering::Relaxed) {
        let (began, before) = (Instant::now(), waited(&account));
        for _ in 0..TOGETHER {
            // Far apart, so that every table is used sooner or later.
            service = (service + 7_919) % (WORKLOADS / REPLICAS);
            let to = std::net::SocketAddr::new(vip(service).parse().expect("an address"), 80);
            let next = mesh.snapshot().upstream_for(&source, to, &mut random, &[]);
            assert!(next.is_ok(), "every service has endpoints");
        }
        let wait = waited(&account) - before;
        times.push(began.elapsed().saturating_sub(wait));
        longest = longest.max(wait);
    }
    (times, longest)
}

/// How long this thread has waited for a processor so far.
fn waited(account: &std::fs::File) -> Duration {
    let mut text = [0; 64];
    let length = account.read_at(&mut text, 0).expect("it is open");
    let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
    let nanos = text
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn report(beside: &str, seen: &Seen, quiet: &Seen) {
    let at = |seen: &Seen, permille: usize| seen.times[(seen.times.len() - 1) * permille / 1000];
    let _ = writeln!(
        std::io::stdout(),
        "beside {beside}: {:.1?}; {TOGETHER} decisions: p50 {:.1?} p99 {:.1?} p99.9 {:.1?} (quiet {:.1?}) longest {:.1?}; \
         longest wait for a processor {:.1?}",
        seen.took,
        at(seen, 500),
        at(seen, 990),
        at(seen, 999),
        at(quiet, 999),
        at(seen, 1000),
        seen.longest_wait,
    );
}
