//! How many certificates a second, and how long one takes on a machine that does nothing else.

use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::Instant;
use tulle_identity::ca::CaClient as _;
use tulle_identity::{GrpcCa, GrpcCaOptions, csr};
use tulle_proto::ca::IstioCertificateRequest;
use tulle_proto::node_ca::BatchRequest;
use tulle_proto::node_ca::batch_certificate_service_client::BatchCertificateServiceClient;
use tulle_proto::node_ca::result::Outcome;

use super::plane::{Plane, node};
use crate::traffic::spawn;

/// Certificates of one call; a node may ask for 500 at once, and for 256 in one call.
const BATCH: usize = 250;
/// Nodes that ask at the same time.
const AT_ONCE: usize = 8;
/// Certificates that one node asks for one by one, below what it may at once.
const ONE_BY_ONE: usize = 250;

/// What came of it.
#[derive(Debug)]
pub(super) struct Signed {
    pub certificates: usize,
    /// All batches together.
    pub took: Duration,
    pub per_second: f64,
    /// Share of a processor that the control plane used meanwhile.
    pub cpu: f64,
    pub refused: u64,
    /// 99 of 100 single requests took no longer.
    pub single_p99: Duration,
}

fn request(plane: &Plane, index: usize, pem: &str) -> IstioCertificateRequest {
    let identity = plane.size.identity_on(index).to_string();
    let impersonated = Value {
        kind: Some(Kind::StringValue(identity)),
    };
    IstioCertificateRequest {
        csr: pem.to_owned(),
        validity_duration: 3600,
        metadata: Some(Struct {
            fields: [("ImpersonatedIdentity".to_owned(), impersonated)].into(),
        }),
    }
}

/// Asks for certificates of so many nodes, a batch for each, then for some one by one.
pub(super) async fn measure(plane: &Plane, nodes: usize) -> Signed {
    // Every request of a batch carries the same key: making keys is the nodes' work and happens elsewhere.
    let pem = csr::request(&plane.size.identity_on(0)).unwrap().pem;
    let mut calls = Vec::new();
    for index in 0..nodes {
        let requests = vec![request(plane, index, &pem); BATCH];
        let mut client = BatchCertificateServiceClient::new(plane.channel(&node(index)))
            .max_decoding_message_size(8 << 20);
        // The handshake is no part of it.
        let warm = BatchRequest {
            requests: vec![request(plane, index, &pem)],
        };
        client.create_certificates(warm).await.unwrap();
        calls.push((client, BatchRequest { requests }));
    }
    let (cpu, begun) = (plane.cpu(), Instant::now());
    let (mut refused, mut certificates) = (0, 0);
    let calls = std::sync::Arc::new(parking_lot::Mutex::new(calls));
    let mut workers = Vec::new();
    for _ in 0..AT_ONCE {
        let calls = std::sync::Arc::clone(&calls);
        workers.push(spawn(async move {
            let (mut good, mut bad) = (0, 0);
            loop {
                let next = calls.lock().pop();
                let Some((mut client, batch)) = next else {
                    return (good, bad);
                };
                let answer = client.create_certificates(batch).await.unwrap().into_inner();
                for result in answer.results {
                    match result.outcome {
                        Some(Outcome::Certificate(_)) => good += 1,
                        _ => bad += 1,
                    }
                }
            }
        }));
    }
    for worker in workers {
        let (good, bad) = worker.await.unwrap();
        certificates += good;
        refused += bad;
    }
    let took = begun.elapsed();
    let cpu = (plane.cpu() - cpu).as_secs_f64() / took.as_secs_f64();
    Signed {
        certificates,
        took,
        per_second: certificates as f64 / took.as_secs_f64(),
        cpu,
        refused,
        single_p99: single(plane, nodes).await,
    }
}

/// One request after the other, with nothing else to do.
async fn single(plane: &Plane, skip: usize) -> Duration {
    let mut times = Vec::new();
    for index in skip..skip + 4 {
        let ca = GrpcCa::new(plane.channel(&node(index)), GrpcCaOptions::default());
        let identity = plane.size.identity_on(index);
        ca.fetch(&identity).await.unwrap();
        for _ in 0..ONE_BY_ONE {
            let asked = Instant::now();
            ca.fetch(&identity).await.unwrap();
            times.push(asked.elapsed());
        }
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}
