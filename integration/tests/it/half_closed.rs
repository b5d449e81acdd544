//! Connections of which one direction is closed: whoever is still there may stay, whoever is gone is found.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_integration::TestMesh;
use tulle_integration::faults::{Blackhole, Direction};
use tulle_integration::mesh::PATIENCE;
use tulle_integration::traffic::{connect, spawn};
use tulle_linux::NetNs;
use tulle_transport::CopyError;
use tulle_transport::copy::{self, CopyResult, End, Endpoint, Transfer};
use tulle_transport::socket::{Closed, Keepalive, classify};
use tulle_world::Pod;

/// The options of the product, made short: what they find within two minutes is found within seconds.
const SHORT: Keepalive = Keepalive {
    idle: Duration::from_secs(1),
    interval: Duration::from_secs(1),
    retries: 2,
};

async fn listen(namespace: &NetNs, at: SocketAddr) -> TcpListener {
    let listener = namespace.run_async(move || std::net::TcpListener::bind(at)).await;
    let listener = listener.unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// A connection through a copy in the middle, of which the client has closed its direction.
struct HalfClosed {
    client: TcpStream,
    server: TcpStream,
    copy: tokio::task::JoinHandle<CopyResult>,
}

async fn half_closed(client: &Pod, middle: &Pod, server: &Pod, port: u16) -> HalfClosed {
    let at = |pod: &Pod| SocketAddr::from((pod.ipv4(), port));
    let (in_the_middle, at_the_end) = (
        listen(middle.namespace(), at(middle)).await,
        listen(server.namespace(), at(server)).await,
    );
    let mut caller = connect(client.namespace(), at(middle)).await.unwrap();
    let (accepted, _) = in_the_middle.accept().await.unwrap();
    let onward = connect(middle.namespace(), at(server)).await.unwrap();
    let (mut called, _) = at_the_end.accept().await.unwrap();
    let copy = spawn(async move {
        let ends = (
            Endpoint::watched(accepted, SHORT),
            Endpoint::watched(onward, SHORT),
        );
        copy::bidirectional(ends.0, ends.1, &Transfer::new()).await
    });
    caller.write_all(b"last words").await.unwrap();
    caller.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(PATIENCE, called.read_to_end(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard, b"last words");
    HalfClosed {
        client: caller,
        server: called,
        copy,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_peer_that_is_gone_is_found_and_both_sides_are_reset_and_one_that_lives_stays() {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let gone = mesh.stranger("n1", "gone").await;
    let alive = mesh.stranger("n1", "alive").await;
    let middle = mesh.stranger("n1", "middle").await;
    let server = mesh.stranger("n2", "server").await;
    let mut stays = half_closed(&alive, &middle, &server, 9001).await;
    let lost = half_closed(&gone, &middle, &server, 9002).await;
    let _vanished = Blackhole::new(gone.namespace(), &[middle.ipv4().into()], Direction::Both);
    let ended = timeout(PATIENCE, lost.copy).await.expect("it is found").unwrap();
    let by_silence = CopyError::Socket {
        end: End::Local,
        closed: Closed::TimedOut,
    };
    assert_eq!(ended.error, Some(by_silence));
    timeout(PATIENCE, lost.server.ready(Interest::ERROR))
        .await
        .expect("the other side hears of it")
        .unwrap();
    let reset = lost.server.take_error().unwrap().expect("an error");
    assert_eq!(classify(&reset), Closed::Reset, "{reset}");
    drop(lost.client);
    // The other one was asked as often, and has answered.
    assert!(!stays.copy.is_finished());
    stays.server.write_all(b"an answer at last").await.unwrap();
    stays.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stays.client.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, b"an answer at last");
    assert_eq!(stays.copy.await.unwrap().error, None);
}
