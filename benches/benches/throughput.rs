//! Bytes per second through a tunnel and all that it is measured beside: by streams, by tunnels that share them, and by how
//! much the application writes at once.

use std::io::Write;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tulle_benches::contestants::{beside, tunnelled};
use tulle_benches::{Path, Peers, cpu, relayed, runtime, transfer_all};
use tulle_transport::hbone::Framing;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bytes that open the copy buffers to their largest step before anything is measured.
const WARM_UP: usize = 16 * MIB;

/// One row: all of `length` bytes, over all paths at once.
fn row(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    (name, paths): &mut (String, Vec<Path>),
    (parameter, write, length): (usize, usize, usize),
) {
    *paths = runtime.block_on(transfer_all(std::mem::take(paths), WARM_UP.min(length), write));
    group.throughput(Throughput::Bytes(length as u64));
    group.bench_function(BenchmarkId::new(name.as_str(), parameter), |bencher| {
        bencher.iter_custom(|rounds| {
            let started = Instant::now();
            for _ in 0..rounds {
                *paths = runtime.block_on(transfer_all(std::mem::take(paths), length, write));
            }
            started.elapsed()
        });
    });
}

fn by_streams(criterion: &mut Criterion) {
    const TRANSFER: usize = 64 * MIB;
    let runtime = runtime();
    let mut group = criterion.benchmark_group("throughput");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    for streams in [1, 4, 16, 64] {
        let mut all = runtime.block_on(beside(streams));
        for tunnels in [1, 4].into_iter().filter(|tunnels| *tunnels <= streams) {
            let name = if tunnels == 1 { "tunnel" } else { "4 tunnels" };
            let paths = runtime.block_on(tunnelled(Framing::Records, streams, tunnels));
            all.push((name.to_owned(), paths));
        }
        for contestant in &mut all {
            row(&mut group, &runtime, contestant, (streams, 256 * KIB, TRANSFER));
        }
    }
    group.finish();
}

fn by_write(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("throughput by write");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    let mut all = runtime.block_on(beside(1));
    let tunnel = runtime.block_on(tunnelled(Framing::Records, 1, 1));
    all.push(("tunnel".to_owned(), tunnel));
    for contestant in &mut all {
        for (write, length) in [
            (1, 64 * KIB),
            (KIB, 8 * MIB),
            (16 * KIB, 64 * MIB),
            (MIB, 64 * MIB),
        ] {
            row(&mut group, &runtime, contestant, (write, write, length));
        }
    }
    group.finish();
}

/// CPU seconds per gigabyte of all parts together, interleaved: what stays comparable on a machine with other work.
fn by_cpu(_: &mut Criterion) {
    const REPETITIONS: usize = 7;
    const TRANSFER: usize = 128 * MIB;
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    let runtime = runtime();
    let mut paths = runtime.block_on(async {
        [
            ("relay", relayed().await, Vec::new()),
            ("tunnel", Peers::default().tunnel().await.path().await, Vec::new()),
        ]
    });
    for (_, path, _) in &mut paths {
        runtime.block_on(path.transfer(WARM_UP, 256 * KIB));
    }
    for _ in 0..REPETITIONS {
        for (_, path, costs) in &mut paths {
            let before = cpu();
            runtime.block_on(path.transfer(TRANSFER, 256 * KIB));
            let cost = cpu() - before;
            costs.push(cost.as_secs_f64() * 1e9 / TRANSFER as f64);
        }
    }
    for (name, _, mut costs) in paths {
        costs.sort_by(f64::total_cmp);
        let (median, least, most) = (costs[REPETITIONS / 2], costs[0], costs[REPETITIONS - 1]);
        let _ = writeln!(
            std::io::stdout(),
            "CPU s/GB, {name}: {median:.3} [{least:.3}..{most:.3}]"
        );
    }
}

criterion_group!(benches, by_cpu, by_streams, by_write);
criterion_main!(benches);
