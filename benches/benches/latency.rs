//! A small message there and back: through a tunnel and all that it is measured beside, and beside a transfer in the same
//! tunnel.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tulle_benches::contestants::beside;
use tulle_benches::{Peers, runtime};
use tulle_runtime::tasks;

fn round_trip(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("round trip of 200 bytes");
    let mut tunnel = runtime.block_on(async { Peers::default().tunnel().await });
    let mut all = runtime.block_on(beside(1));
    all.push(("tunnel".to_owned(), vec![runtime.block_on(tunnel.path())]));
    for (name, paths) in &mut all {
        group.bench_function(name.as_str(), |bencher| {
            bencher.iter_custom(|rounds| {
                let started = Instant::now();
                runtime.block_on(paths[0].ping(rounds));
                started.elapsed()
            });
        });
    }
    let (mut mouse, mut elephant) = runtime.block_on(async { (tunnel.path().await, tunnel.path().await) });
    let inside = runtime.enter();
    let bulk = tasks::spawn("bench elephant", async move {
        loop {
            elephant.transfer(64 * 1024 * 1024, 256 * 1024).await;
        }
    });
    drop(inside);
    group.sample_size(20);
    group.bench_function("tunnel beside bulk", |bencher| {
        bencher.iter_custom(|rounds| {
            let started = Instant::now();
            runtime.block_on(mouse.ping(rounds));
            started.elapsed()
        });
    });
    bulk.abort();
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = round_trip
}
criterion_main!(benches);
