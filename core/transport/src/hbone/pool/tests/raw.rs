//! A pool against a server that is scripted frame by frame: GOAWAY, resets, limits.

use tokio::io::DuplexStream;

use super::*;
use crate::hbone::raw;

/// Hands each dialled connection to the test, as the server's end of a stream.
struct Scripted(mpsc::Sender<DuplexStream>);

impl Dial for Scripted {
    fn dial<'a>(&'a self, _: &'a TunnelKey) -> DialFuture<'a> {
        Box::pin(async move {
            let (near, far) = duplex(64 * 1024);
            self.0.send(far).await.unwrap();
            client::handshake(near, &const { Settings::client() }).await
        })
    }
}

fn scripted() -> (HbonePool, mpsc::Receiver<DuplexStream>) {
    let (sender, servers) = mpsc::channel(16);
    (HbonePool::new(PoolConfig::default(), Scripted(sender)), servers)
}

fn opening(pool: &HbonePool) -> tokio::task::JoinHandle<Result<HboneStream, OpenError>> {
    let pool = pool.clone();
    tasks::spawn(
        "opening",
        async move { Ok(pool.open(&key(1), &request()).await?.0) },
    )
}

/// Reads up to the HEADERS of the next CONNECT and says its stream.
async fn asked(server: &mut raw::Peer<DuplexStream>) -> u32 {
    server.next_of(raw::HEADERS).await.stream
}

#[tokio::test]
async fn streams_above_the_last_one_taken_are_opened_elsewhere_and_those_below_finish() {
    let (pool, mut servers) = scripted();
    let first = opening(&pool);
    let mut old = raw::Peer::server(servers.recv().await.unwrap()).await;
    let taken = asked(&mut old).await;
    old.send(&raw::ok(taken)).await;
    let mut first = first.await.unwrap().unwrap();

    let second = opening(&pool);
    assert!(asked(&mut old).await > taken);
    old.send(&raw::goaway(taken, 0)).await;
    let mut new = raw::Peer::server(servers.recv().await.unwrap()).await;
    let again = asked(&mut new).await;
    new.send(&raw::ok(again)).await;
    second.await.unwrap().unwrap();

    old.send(&raw::frame(raw::DATA, raw::END_STREAM, taken, b"finished"))
        .await;
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"finished");
}

#[tokio::test]
async fn no_stream_is_opened_after_a_goaway() {
    let (pool, mut servers) = scripted();
    let first = opening(&pool);
    let mut old = raw::Peer::server(servers.recv().await.unwrap()).await;
    let taken = asked(&mut old).await;
    old.send(&raw::ok(taken)).await;
    let _first = first.await.unwrap().unwrap();
    old.send(&raw::goaway(u32::MAX >> 1, 0)).await;
    while pool.peers().iter().any(|peer| peer.connections > 0) {
        tokio::task::yield_now().await;
    }
    let second = opening(&pool);
    let mut new = raw::Peer::server(servers.recv().await.unwrap()).await;
    let stream = asked(&mut new).await;
    new.send(&raw::ok(stream)).await;
    second.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_the_peer_refused_is_opened_elsewhere() {
    let (pool, mut servers) = scripted();
    let first = opening(&pool);
    let mut old = raw::Peer::server(servers.recv().await.unwrap()).await;
    let taken = asked(&mut old).await;
    old.send(&raw::ok(taken)).await;
    let _first = first.await.unwrap().unwrap();
    let second = opening(&pool);
    let refused = asked(&mut old).await;
    old.send(&raw::frame(raw::RST_STREAM, 0, refused, &7u32.to_be_bytes()))
        .await;
    let mut new = raw::Peer::server(servers.recv().await.unwrap()).await;
    let stream = asked(&mut new).await;
    new.send(&raw::ok(stream)).await;
    second.await.unwrap().unwrap();
}

/// R201: bytes that come before the 200 are no answer, and none of ours leave before it.
#[tokio::test]
async fn r201_no_payload_leaves_before_the_peer_has_accepted() {
    let (pool, mut servers) = scripted();
    let first = opening(&pool);
    let mut server = raw::Peer::server(servers.recv().await.unwrap()).await;
    let stream = asked(&mut server).await;
    server.send(&raw::frame(raw::PING, 0, 0, &[1; 8])).await;
    let answer = server.next().await;
    assert_eq!(answer.kind, raw::PING, "nothing of the stream came in between");
    server.send(&raw::ok(stream)).await;
    let mut stream = first.await.unwrap().unwrap();
    stream.write_all(b"now").await.unwrap();
    assert_eq!(server.next_of(raw::DATA).await.payload, b"now");
}
