//! A tunnel beside a plain relay, in one run: what mutual TLS and HTTP/2 cost per byte.
//!
//! ```text
//!   tunnel:  client ── copy ══ TLS, h2 ══ copy ── server        relay:  client ── copy ── server
//! ```
//!
//! All parts share this process and its cores, so the ratio of the two rows is what to read, not either of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tulle_identity::testing::certificate;
use tulle_model::Identity;
use tulle_transport::copy::{Endpoint, bidirectional};
use tulle_transport::hbone::{ConnectRequest, ConnectResponse, Settings, client, server};
use tulle_transport::{HboneStream, Transfer};

/// Bytes of one measured transfer.
const TRANSFER: usize = 256 * 1024 * 1024;

/// Bytes that open the copy buffers to their largest step before anything is measured.
const WARM_UP: usize = 16 * 1024 * 1024;

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("loopback has ports");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (
        near.expect("loopback connects"),
        far.expect("loopback connects").0,
    );
    near.set_nodelay(true).expect("a fresh socket");
    far.set_nodelay(true).expect("a fresh socket");
    (near, far)
}

/// A tunnel over mutual TLS, both ends.
async fn tunnel() -> (HboneStream, HboneStream) {
    let (near, far) = sockets().await;
    let identity = |name: &str| Identity::new("cluster.local", "bench", name);
    let (web, reviews) = (certificate(&identity("web")), certificate(&identity("reviews")));
    let (client_settings, server_settings) = (Settings::client(), Settings::server());
    let (client, accepted) = tokio::join!(
        client::connect(near, web.client_config(&[identity("reviews")]), &client_settings),
        server::accept(far, reviews.server_config(), &server_settings),
    );
    let (client, mut connection) = (client.expect("trusted"), accepted.expect("trusted").connection);
    let (sender, mut incoming) = tokio::sync::mpsc::channel(1);
    spawn(async move {
        while let Some(stream) = connection.accept().await {
            let _ = sender.send(stream).await;
        }
    });
    let request = ConnectRequest::new("10.0.0.1:80");
    let (opened, accepted) = tokio::join!(client.open(&request), async {
        let stream = incoming.recv().await.expect("the client opens one");
        stream
            .accept(&ConnectResponse::default())
            .expect("the client waits")
    });
    (opened.expect("accepted").0, accepted)
}

fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    Handle::current().spawn(future);
}

fn copy(local: TcpStream, remote: impl Into<Endpoint>) {
    let (remote, transfer) = (remote.into(), Transfer::new());
    spawn(async move {
        bidirectional(local, remote, &transfer).await;
    });
}

/// Client and server applications with a tunnel between them.
async fn tunnelled() -> (TcpStream, TcpStream) {
    let ((client, captured), (delivered, server)) = (sockets().await, sockets().await);
    let (near, far) = tunnel().await;
    copy(captured, near);
    copy(delivered, far);
    (client, server)
}

/// Client and server applications with a plain relay between them.
async fn relayed() -> (TcpStream, TcpStream) {
    let ((client, captured), (delivered, server)) = (sockets().await, sockets().await);
    copy(captured, delivered);
    (client, server)
}

/// Sends `length` bytes from one application to the other.
async fn transfer(client: &mut TcpStream, server: &mut TcpStream, length: usize) {
    let chunk = vec![7; 256 * 1024];
    let sending = async {
        let mut left = length;
        while left > 0 {
            let part = left.min(chunk.len());
            client.write_all(&chunk[..part]).await.expect("the path is open");
            left -= part;
        }
    };
    let receiving = async {
        let mut buffer = vec![0; 256 * 1024];
        let mut left = length;
        while left > 0 {
            left -= server.read(&mut buffer).await.expect("the path is open");
        }
    };
    tokio::join!(sending, receiving);
}

/// Sends one small message there and back, `rounds` times.
async fn ping(client: &mut TcpStream, server: &mut TcpStream, rounds: u64) {
    let mut message = [0; 200];
    for _ in 0..rounds {
        client.write_all(&message).await.expect("the path is open");
        server.read_exact(&mut message).await.expect("the path is open");
        server.write_all(&message).await.expect("the path is open");
        client.read_exact(&mut message).await.expect("the path is open");
    }
}

fn throughput(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("throughput");
    group
        .throughput(Throughput::Bytes(TRANSFER as u64))
        .sample_size(10);
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(6));
    for (name, (mut client, mut server)) in paths(&runtime) {
        runtime.block_on(transfer(&mut client, &mut server, WARM_UP));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let started = Instant::now();
                for _ in 0..rounds {
                    runtime.block_on(transfer(&mut client, &mut server, TRANSFER));
                }
                started.elapsed()
            });
        });
    }
    group.finish();
}

fn latency(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("round trip of 200 bytes");
    for (name, (mut client, mut server)) in paths(&runtime) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let started = Instant::now();
                runtime.block_on(ping(&mut client, &mut server, rounds));
                started.elapsed()
            });
        });
    }
    group.finish();
}

fn paths(runtime: &Runtime) -> [(&'static str, (TcpStream, TcpStream)); 2] {
    runtime.block_on(async { [("relay", relayed().await), ("tunnel", tunnelled().await)] })
}

fn runtime() -> Runtime {
    Runtime::new().expect("threads and epoll are there")
}

criterion_group!(benches, throughput, latency);
criterion_main!(benches);
