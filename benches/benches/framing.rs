//! Our frames and heads without a socket: bytes from one end to the other, and the head of a CONNECT there and back.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tulle_transport::Baggage;
use tulle_transport::hbone::{ConnectRequest, raw};

const KIB: usize = 1024;

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for (write, length) in [(100, 256 * KIB), (16 * KIB, 4096 * KIB), (256 * KIB, 4096 * KIB)] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::new("there", write), |bencher| {
            bencher.iter(|| black_box(raw::through_memory(write, length)));
        });
    }
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let full = ConnectRequest {
        baggage: Baggage::parse(
            "k8s.cluster.name=east,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v1",
        ),
        forwarded: "for=\"10.0.0.1:4000\";host=reviews.shop.svc.cluster.local"
            .parse()
            .ok(),
        ..ConnectRequest::new("10.0.0.7:8080")
    };
    let mut group = criterion.benchmark_group("head of a CONNECT");
    group.bench_function("encode", |bencher| bencher.iter(|| raw::encode(black_box(&full))));
    let block = raw::encode(&full);
    assert_eq!(raw::decode(&block), full);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| raw::decode(black_box(&block)))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = frames, heads
}
criterion_main!(benches);
