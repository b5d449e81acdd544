//! What a push of 10,000 workloads costs: the whole table to a client that holds nothing, alone and shared, raw and
//! compressed; one change; and a client that comes back.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tulle_benches::mesh::{batch, manifests, parse};
use tulle_k8s::translate::MeshConfig;
use tulle_proto::resume::{Digests, Layout};
use tulle_xds::engine::Engine;
use tulle_xds::serve::frame::{Encoding, Payload, Shared};
use tulle_xds::serve::session::{Request, Session};
use tulle_xds::serve::viewer::Viewer;
use tulle_xds::snapshot::{ResourceType, Snapshot};

const PODS: usize = 10_000;

fn first() -> Request {
    Request {
        type_url: ResourceType::Address.type_url().into(),
        ..Request::default()
    }
}

/// Everything that a stream is sent after this request; bytes as they are written.
fn drain(head: &Arc<Snapshot>, request: &Request, shared: Option<&Shared>, best: Encoding) -> usize {
    let mut session = Session::new(1, Viewer::node("n1"), head.clone());
    session.on_request(request, head).expect("it goes on");
    let mut bytes = 0;
    while let Some(response) = session.poll_send(head, Instant::now()) {
        let payload = match shared {
            Some(shared) => shared.payload(&response),
            None => Arc::new(Payload::encode(
                &response.type_url,
                &response.resources,
                &response.removed,
            )),
        };
        bytes += payload
            .message(&response.type_url, response.cut, &response.nonce, best)
            .len();
        let answer = Request {
            type_url: response.type_url,
            nonce: response.nonce,
            ..Request::default()
        };
        session.on_request(&answer, head).expect("it goes on");
    }
    bytes
}

fn push(criterion: &mut Criterion) {
    let mut engine = Engine::new(MeshConfig::default());
    let head = Arc::new(engine.apply(batch(parse(&manifests(PODS)))));
    let shared = Shared::default();
    let mut group = criterion.benchmark_group("push 10k workloads");
    group.sample_size(20);
    for best in [Encoding::Raw, Encoding::Gzip, Encoding::Zstd] {
        let name = best.as_str();
        group.bench_function(format!("alone, {name}"), |bencher| {
            bencher.iter(|| black_box(drain(&head, &first(), None, best)))
        });
        group.bench_function(format!("shared, {name}"), |bencher| {
            bencher.iter(|| black_box(drain(&head, &first(), Some(&shared), best)));
        });
    }
    let held = head.by_name(ResourceType::Address).into_iter();
    let held = held.map(|slot| (&*slot.name, &*slot.version));
    let digests = Digests::of(Layout::Fine, held).to_text();
    let back = Request {
        initial_versions: [(Layout::Fine.name().into(), digests.into())].into(),
        ..first()
    };
    group.bench_function("back with digests", |bencher| {
        bencher.iter(|| black_box(drain(&head, &back, Some(&shared), Encoding::Gzip)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    // All benches of the tree are to be run through in minutes.
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = push
}
criterion_main!(benches);
