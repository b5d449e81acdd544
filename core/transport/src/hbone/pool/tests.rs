//! The pool over in-memory connections: sharing, growth, retirement.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::{Semaphore, mpsc};
use tulle_identity::Clock;

use super::*;
use crate::hbone::tests::serve;
use crate::hbone::{Incoming, ServerHandle, Settings, client, server};

mod properties;
mod raw;

/// Dials in-memory servers that accept every stream.
struct Network {
    dials: AtomicUsize,
    /// A dial needs a permit.
    may_dial: Semaphore,
    fail: bool,
    /// What is left of the certificate.
    lifetime: Option<Duration>,
    server: Settings,
    servers: Mutex<Vec<ServerHandle>>,
    accepted: mpsc::Sender<HboneStream>,
}

impl Network {
    fn new(server: Settings) -> (Arc<Self>, mpsc::Receiver<HboneStream>) {
        let (accepted, streams) = mpsc::channel(10_000);
        let network = Self {
            dials: AtomicUsize::new(0),
            may_dial: Semaphore::new(1000),
            fail: false,
            lifetime: None,
            server,
            servers: Mutex::default(),
            accepted,
        };
        (Arc::new(network), streams)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

struct Dialer(Arc<Network>);

impl Dial for Dialer {
    fn dial<'a>(&'a self, key: &'a TunnelKey) -> DialFuture<'a> {
        Box::pin(async move {
            self.0.dials.fetch_add(1, Ordering::SeqCst);
            self.0.may_dial.acquire().await.unwrap().forget();
            if self.0.fail {
                return Err(OpenError::connect(
                    key.destination,
                    std::io::ErrorKind::ConnectionRefused.into(),
                ));
            }
            let (near, far) = duplex(64 * 1024);
            let connection = server::handshake(far, &self.0.server);
            let client = client::handshake(near, &const { Settings::client() });
            let (client, connection) = tokio::join!(client, connection);
            let (handle, mut incoming) = serve(connection.unwrap());
            self.0.servers.lock().push(handle);
            let accepted = self.0.accepted.clone();
            tasks::spawn("test acceptor", async move {
                while let Some(stream) = incoming.recv().await {
                    let stream = Incoming::accept(stream, &ConnectResponse::default());
                    let _ = accepted.send(stream.unwrap()).await;
                }
            });
            let client = client?;
            if let Some(lifetime) = self.0.lifetime {
                let now = SystemTime::now();
                tasks::spawn(
                    "test lifetime",
                    client.retire_after(now + lifetime, Clock::from_fn(move || now)),
                );
            }
            Ok(client)
        })
    }
}

fn key(port: u16) -> TunnelKey {
    TunnelKey {
        source: Identity::new("td", "shop", "web"),
        expected: [Identity::new("td", "shop", "reviews")].into(),
        destination: SocketAddr::from(([10, 0, 0, 1], port)),
        source_ip: IpAddr::from([10, 0, 0, 2]),
    }
}

fn pool(network: &Arc<Network>, config: PoolConfig) -> HbonePool {
    HbonePool::new(config, Dialer(Arc::clone(network)))
}

fn request() -> ConnectRequest {
    ConnectRequest::new("10.0.0.1:80")
}

async fn open(pool: &HbonePool, port: u16) -> HboneStream {
    pool.open(&key(port), &request()).await.unwrap().0
}

#[tokio::test]
async fn first_requests_share_one_dial() {
    let (network, _streams) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let streams = futures_util::future::join_all((0..50).map(|_| open(&pool, 1))).await;
    assert_eq!((streams.len(), network.dials()), (50, 1));
}

#[tokio::test]
async fn keys_never_share_a_connection() {
    let (network, _streams) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let _a = open(&pool, 1).await;
    let _b = open(&pool, 2).await;
    let other = TunnelKey {
        source_ip: IpAddr::from([10, 0, 0, 3]),
        ..key(1)
    };
    let _c = pool.open(&other, &request()).await.unwrap();
    assert_eq!(network.dials(), 3);
}

#[tokio::test]
async fn a_failed_dial_fails_those_who_waited_and_leaves_nothing() {
    let (network, _streams) = Network::new(Settings::server());
    let mut network = Arc::into_inner(network).unwrap();
    network.fail = true;
    let network = Arc::new(network);
    let pool = pool(&network, PoolConfig::default());
    let results =
        futures_util::future::join_all((0..10).map(|_| async { pool.open(&key(1), &request()).await })).await;
    assert!(
        results
            .into_iter()
            .all(|result| matches!(result, Err(OpenError::ConnectFailed { .. })))
    );
    assert_eq!(network.dials(), 1);
    assert!(pool.peers().is_empty());
    assert!(
        pool.open(&key(1), &request()).await.is_err(),
        "the next one dials again"
    );
    assert_eq!(network.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_is_given_up() {
    let (network, _streams) = Network::new(Settings::server());
    network.may_dial.forget_permits(1000);
    let pool = pool(&network, PoolConfig::default());
    let error = pool.open(&key(15008), &request()).await.unwrap_err();
    assert_eq!(error.reason(), tulle_model::Reason::ConnectTimeout);
    assert_eq!(error.flag(), tulle_model::reason::ResponseFlag::NetworkPolicy);
    assert!(pool.peers().is_empty());
}

#[tokio::test]
async fn giving_up_does_not_take_the_others_along() {
    let (network, _streams) = Network::new(Settings::server());
    network.may_dial.forget_permits(1000);
    let pool = pool(&network, PoolConfig::default());
    let first = tasks::spawn("first", {
        let pool = pool.clone();
        async move { open(&pool, 1).await }
    });
    let second = tasks::spawn("second", {
        let pool = pool.clone();
        async move { open(&pool, 1).await }
    });
    while network.dials() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    network.may_dial.add_permits(1);
    second.await.unwrap();
    assert_eq!(network.dials(), 1);
}

#[tokio::test]
async fn a_full_connection_opens_another_and_takes_streams_again_when_some_end() {
    let (network, _streams) = Network::new(Settings::server());
    let config = PoolConfig {
        streams_per_connection: 4,
        connections_per_key: 1,
        ..PoolConfig::default()
    };
    let pool = pool(&network, config);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open(&pool, 1).await);
    }
    assert_eq!(network.dials(), 1);
    streams.push(open(&pool, 1).await);
    assert_eq!(network.dials(), 2, "the first was at its cap");
    streams.drain(..3);
    for _ in 0..6 {
        streams.push(open(&pool, 1).await);
    }
    assert_eq!(network.dials(), 2, "places were given back");
    streams.push(open(&pool, 1).await);
    assert_eq!(network.dials(), 3);
}

#[tokio::test]
async fn a_crowd_of_first_requests_dials_as_many_as_it_needs() {
    let (network, _streams) = Network::new(Settings::server());
    let config = PoolConfig {
        streams_per_connection: 10,
        connections_per_key: 1,
        ..PoolConfig::default()
    };
    let pool = pool(&network, config);
    let streams = futures_util::future::join_all((0..35).map(|_| open(&pool, 1))).await;
    assert_eq!((streams.len(), network.dials()), (35, 4));
}

#[tokio::test]
async fn a_busy_connection_gets_company_before_it_is_full() {
    let (network, _streams) = Network::new(Settings::server());
    let config = PoolConfig {
        streams_per_connection: 8,
        connections_per_key: 2,
        ..PoolConfig::default()
    };
    let pool = pool(&network, config);
    let mut streams = Vec::new();
    for _ in 0..7 {
        streams.push(open(&pool, 1).await);
    }
    assert_eq!(network.dials(), 1);
    streams.push(open(&pool, 1).await);
    while pool.peers()[0].connections < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(network.dials(), 2);
}

#[tokio::test]
async fn the_peers_limit_is_kept() {
    let (network, _streams) = Network::new(Settings {
        streams_max: 2,
        ..Settings::server()
    });
    let pool = pool(
        &network,
        PoolConfig {
            connections_per_key: 1,
            ..PoolConfig::default()
        },
    );
    let _streams = [open(&pool, 1).await, open(&pool, 1).await, open(&pool, 1).await];
    assert_eq!(network.dials(), 2);
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced_without_the_caller_noticing() {
    let (network, mut accepted) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let mut old = open(&pool, 1).await;
    let mut old_server = accepted.recv().await.unwrap();
    let servers: Vec<_> = network.servers.lock().clone();
    servers[0].drain();
    // The GOAWAY may still be on its way; once it is there, streams go elsewhere.
    while network.dials() == 1 {
        drop(open(&pool, 1).await);
        tokio::task::yield_now().await;
    }
    old.write_all(b"finished in peace").await.unwrap();
    old.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    old_server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"finished in peace");
}

#[tokio::test]
async fn a_dead_connection_is_replaced_without_the_caller_noticing() {
    let (network, _accepted) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let _old = open(&pool, 1).await;
    let servers: Vec<_> = network.servers.lock().clone();
    servers[0].close();
    let _new = open(&pool, 1).await;
    assert_eq!(network.dials(), 2);
    assert_eq!(pool.peers()[0].connections, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_held_for_an_unused_key() {
    let (network, _accepted) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    drop(open(&pool, 1).await);
    assert_eq!(pool.peers().len(), 1);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert!(pool.peers().is_empty());
}

#[tokio::test]
async fn a_pool_that_keeps_nothing_idle_closes_each_connection_with_its_last_stream() {
    let (network, mut accepted) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let closed = async |pool: &HbonePool| {
        while !pool.peers().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    drop(open(&pool, 1).await);
    let mut open_still = open(&pool, 2).await;
    accepted.recv().await.unwrap();
    let mut server = accepted.recv().await.unwrap();
    pool.keep_idle(false);
    closed(&pool).await;
    open_still.write_all(b"goes on").await.unwrap();
    open_still.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"goes on");
    let late = futures_util::future::join_all((0..20).map(|_| open(&pool, 3))).await;
    assert_eq!(late.len(), 20, "streams can be opened still");
    closed(&pool).await;
    pool.keep_idle(true);
    drop(open(&pool, 4).await);
    assert_eq!(pool.peers().len(), 1);
}

#[tokio::test]
async fn a_drained_pool_opens_nothing_and_lets_streams_end() {
    let (network, mut accepted) = Network::new(Settings::server());
    let pool = pool(&network, PoolConfig::default());
    let mut stream = open(&pool, 1).await;
    let mut server = accepted.recv().await.unwrap();
    pool.drain();
    assert!(matches!(
        pool.open(&key(1), &request()).await,
        Err(OpenError::Draining)
    ));
    stream.write_all(b"goes on").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"goes on");
    assert!(pool.peers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connection_retires_with_its_certificate_and_its_streams_go_on() {
    let (network, mut accepted) = Network::new(Settings::server());
    let hour = Duration::from_secs(3600);
    let mut network = Arc::into_inner(network).unwrap();
    network.lifetime = Some(hour);
    let network = Arc::new(network);
    let pool = pool(&network, PoolConfig::default());
    let mut old = open(&pool, 1).await;
    let mut old_server = accepted.recv().await.unwrap();
    tokio::time::sleep(hour - Duration::from_secs(1)).await;
    let _still = open(&pool, 1).await;
    assert_eq!(network.dials(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _new = open(&pool, 1).await;
    assert_eq!(network.dials(), 2);
    old.write_all(b"goes on").await.unwrap();
    old.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    old_server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"goes on");
}

/// Lets others have their turn until something holds, as it must before long. The time is a paused one.
async fn turned(holds: impl Fn() -> bool) {
    let turns = async {
        while !holds() {
            tokio::time::sleep(Duration::from_micros(10)).await;
        }
    };
    let turned = timeout(Duration::from_secs(10), turns).await;
    turned.expect("it does not become so");
}

#[tokio::test(start_paused = true)]
async fn new_streams_avoid_a_connection_that_moves_much() {
    let (network, mut accepted) = Network::new(Settings::server());
    let config = PoolConfig {
        connections_per_key: 2,
        ..PoolConfig::default()
    };
    let pool = pool(&network, config);
    let mut elephant = open(&pool, 1).await;
    let mut sink = accepted.recv().await.unwrap();
    let length = usize::try_from(crate::hbone::load::BULK_AFTER).unwrap();
    let (sent, mut bytes) = (vec![7; length], vec![0; length]);
    let (written, read) = tokio::join!(elephant.write_all(&sent), sink.read_exact(&mut bytes));
    written.unwrap();
    read.unwrap();
    // The connection is at rest, and so old that it can have been blocked for that long.
    let long = Duration::from_millis(50);
    tokio::time::sleep(long).await;
    {
        let state = pool.inner.state.lock();
        let traffic = state.peers[&key(1)].connections[0].traffic();
        assert!(traffic.has_bulk());
        traffic.write_blocked(Instant::now().checked_sub(long).unwrap());
    }
    // It was blocked too long as well, so the next stream asks for another connection, and those after it go there.
    let mut mice = vec![open(&pool, 1).await];
    turned(|| pool.peers()[0].connections == 2).await;
    for _ in 0..20 {
        mice.push(open(&pool, 1).await);
    }
    let streams: Vec<u32> = {
        let state = pool.inner.state.lock();
        state.peers[&key(1)]
            .connections
            .iter()
            .map(ClientConnection::active)
            .collect()
    };
    assert_eq!(streams, [2, 20]);
    drop((elephant, sink));
    let has_bulk = || {
        let state = pool.inner.state.lock();
        state.peers[&key(1)].connections[0].traffic().has_bulk()
    };
    turned(|| !has_bulk()).await;
}
