//! Bytes per second through a tunnel beside a plain relay: by streams, and by how much the application writes at once.

use std::io::Write;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tulle_benches::{Peers, cpu, relayed, runtime, transfer_all};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bytes that open the copy buffers to their largest step before anything is measured.
const WARM_UP: usize = 16 * MIB;

fn by_streams(criterion: &mut Criterion) {
    const TRANSFER: usize = 256 * MIB;
    let runtime = runtime();
    let mut group = criterion.benchmark_group("throughput");
    group
        .throughput(Throughput::Bytes(TRANSFER as u64))
        .sample_size(10);
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(6));
    let mut relay = runtime.block_on(relayed());
    runtime.block_on(relay.transfer(WARM_UP, 256 * KIB));
    group.bench_function("relay", |bencher| {
        bencher.iter(|| runtime.block_on(relay.transfer(TRANSFER, 256 * KIB)));
    });
    let mut tunnel = runtime.block_on(async { Peers::default().tunnel().await });
    for streams in [1, 4, 16, 64] {
        let mut paths = Vec::new();
        for _ in 0..streams {
            let mut path = runtime.block_on(tunnel.path());
            runtime.block_on(path.transfer(WARM_UP, 256 * KIB));
            paths.push(path);
        }
        group.bench_function(BenchmarkId::new("tunnel", streams), |bencher| {
            bencher.iter_custom(|rounds| {
                let started = Instant::now();
                for _ in 0..rounds {
                    paths = runtime.block_on(transfer_all(std::mem::take(&mut paths), TRANSFER, 256 * KIB));
                }
                started.elapsed()
            });
        });
    }
    group.finish();
}

fn by_write(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("throughput by write");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    let mut tunnel = runtime.block_on(async { Peers::default().tunnel().await });
    let paths = runtime.block_on(async { [("relay", relayed().await), ("tunnel", tunnel.path().await)] });
    for (name, mut path) in paths {
        for (write, length) in [
            (1, 128 * KIB),
            (KIB, 16 * MIB),
            (16 * KIB, 128 * MIB),
            (MIB, 256 * MIB),
        ] {
            group.throughput(Throughput::Bytes(length as u64));
            group.bench_function(BenchmarkId::new(name, write), |bencher| {
                bencher.iter(|| runtime.block_on(path.transfer(length, write)));
            });
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
