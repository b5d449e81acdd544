//! What a new connection costs: over a tunnel that is there, and with the handshake of a new one.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::AsyncReadExt;
use tulle_benches::{Path, Peers, direct, relayed, runtime};

/// One request and its answer, then the end of both sides.
async fn one_request(mut path: Path) {
    path.ping(1).await;
    drop(path.client);
    let rest = path.server.read(&mut [0; 16]).await;
    assert!(matches!(rest, Ok(0)), "the client has finished");
}

fn connections(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("connections");
    group.throughput(Throughput::Elements(1));
    group.bench_function("direct", |bencher| {
        bencher.iter(|| runtime.block_on(async { one_request(direct().await).await }));
    });
    group.bench_function("relay", |bencher| {
        bencher.iter(|| runtime.block_on(async { one_request(relayed().await).await }));
    });
    let mut tunnel = runtime.block_on(async { Peers::default().tunnel().await });
    group.bench_function("tunnel", |bencher| {
        bencher.iter(|| runtime.block_on(async { one_request(tunnel.path().await).await }));
    });
    group.bench_function("stream alone", |bencher| {
        bencher.iter(|| runtime.block_on(tunnel.stream()));
    });
    group.finish();
}

fn handshakes(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("handshakes");
    group.throughput(Throughput::Elements(1));
    let peers = Peers::default();
    group.bench_function("TCP, mutual TLS", |bencher| {
        bencher.iter(|| runtime.block_on(peers.tls_handshake()));
    });
    group.bench_function("TCP, mutual TLS, HTTP/2", |bencher| {
        bencher.iter(|| runtime.block_on(peers.handshake()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = connections, handshakes
}
criterion_main!(benches);
