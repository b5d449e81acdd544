//! Bounds of one workload, and what a connection may cost.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tulle_model::Reason;
use tulle_runtime::tasks;
use tulle_transport::hbone::OpenError;
use tulle_ztunnel::accept::{Accepting, accept};
use tulle_ztunnel::carry;
use tulle_ztunnel::inbound::{listener, passthrough};
use tulle_ztunnel::metrics::labels::Direction;
use tulle_ztunnel::outbound::serve_to;
use tulle_ztunnel::pod::{HANDSHAKES_MAX, Pod};
use tulle_ztunnel::record::Story;

use crate::outbound::{assert_echoes, assert_reset, call};
use crate::world::{World, code, echo_application, identity};

/// Bytes of the task of one connection, whatever its direction; the rest of what an idle connection may cost is for
/// sockets and HTTP/2. Release builds need less, as they share places between variables.
const CONNECTION_BYTES_MAX: usize = 4 * 1024;

/// Bytes of the task of a peer's tunnel, which many connections share.
const TUNNEL_BYTES_MAX: usize = 8 * 1024;

#[tokio::test]
async fn a_workload_has_no_more_connections_than_it_may() {
    let world = World::start_with("", &[("TULLE_MAX_CONNECTIONS_PER_WORKLOAD", "1")]).await;
    let unknown = echo_application("127.0.0.77:0").await;
    let mut first = call(&world, unknown).await;
    assert_echoes(&mut first, b"the only one").await;
    let mut second = call(&world, unknown).await;
    assert_reset(&mut second).await;
    world
        .until_counted("tulle_denied_total{code=\"T0515\",reason=\"overload\",direction=\"outbound\"} 1")
        .await;
    let refusal = world.ask_echo().await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (503, "T0515"));
    drop(first);
    // The place is free as soon as the connection has ended.
    let again = async {
        loop {
            if world.ask_echo().await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(crate::world::SOON, again).await.unwrap();
}

#[tokio::test]
async fn a_call_of_a_workload_to_itself_takes_one_place() {
    let world = World::start_with("", &[("TULLE_MAX_CONNECTIONS_PER_WORKLOAD", "1")]).await;
    let mut itself = call(&world, world.echo).await;
    assert_echoes(&mut itself, b"to myself").await;
    world.until_counted("tulle_same_node_connections_total 1").await;
    let mut second = call(&world, world.echo).await;
    assert_reset(&mut second).await;
}

#[tokio::test]
async fn handshakes_that_are_under_way_are_bounded() {
    let world = World::start("").await;
    let (pod, _) = world.app.dedicated().unwrap();
    assert_eq!(pod.handshakes.available_permits(), HANDSHAKES_MAX);
    let all = pod
        .handshakes
        .try_acquire_many(u32::try_from(HANDSHAKES_MAX).unwrap())
        .unwrap();
    let refused = world.connect_as(&identity("shop", "reviews")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::TlsFailed, "nothing answers: {refused}");
    world
        .until_counted("tulle_denied_total{code=\"T0515\",reason=\"overload\",direction=\"inbound\"} 1")
        .await;
    drop(all);
    world.connect_as(&identity("shop", "reviews")).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_port_that_answers_nothing_is_reported_with_its_hint() {
    let world = World::start("").await;
    let peer = "192.0.2.1:15008".parse().unwrap();
    let error = tulle_ztunnel::error::Error::Open(OpenError::ConnectTimeout {
        peer,
        after: tulle_ztunnel::outbound::ATTEMPT_TIME_MAX,
    });
    assert_eq!(error.reason(), Some(Reason::ConnectTimeout));
    assert_eq!(error.flag(), tulle_model::reason::ResponseFlag::NetworkPolicy);
    assert!(error.to_string().contains("a NetworkPolicy may block"), "{error}");
    drop(world);
}

#[test]
fn f32_a_lack_of_ports_is_not_taken_for_a_failed_peer() {
    let to = "192.0.2.1:80".parse().unwrap();
    for source in [
        std::io::ErrorKind::AddrNotAvailable,
        std::io::ErrorKind::AddrInUse,
    ] {
        let source = source.into();
        let error = tulle_ztunnel::error::Error::Connect { to, source };
        assert_eq!(error.reason(), Some(Reason::PortsExhausted));
        assert_eq!(error.status(), 503);
    }
}

/// Two ends of a connection over loopback.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn f31_the_task_of_a_connection_is_small() {
    let world = World::start("").await;
    let (pod, _) = world.app.dedicated().unwrap();
    let peer = world.echo;
    let mut ends = Vec::new();
    for (task, most) in [
        ("outbound", CONNECTION_BYTES_MAX),
        ("inbound plain", CONNECTION_BYTES_MAX),
        ("carried", CONNECTION_BYTES_MAX),
        ("tunnel", TUNNEL_BYTES_MAX),
    ] {
        let ((near, far), other) = (pair().await, pair().await);
        let served = Arc::clone(&pod);
        let size = match task {
            "outbound" => size_of_val(&serve_to(served, far, peer, peer)),
            "inbound plain" => size_of_val(&passthrough::serve(served, far, peer)),
            "tunnel" => size_of_val(&listener::serve(served, far, peer)),
            _ => {
                let story = Story::begin(Direction::Inbound, peer, peer);
                size_of_val(&carry::run(
                    &served,
                    far,
                    other.0.into(),
                    carry::track(&served, story, None),
                ))
            }
        };
        eprintln!("SIZE {task} {size}");
        assert!(size > 0 && size <= most, "{task}: {size} of {most}");
        ends.push((near, other.1));
    }
}

/// Panics when it is told to, else sends back what it gets.
async fn faulty(_pod: Arc<Pod>, mut stream: TcpStream, _peer: SocketAddr) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() {
        assert_ne!(byte, *b"!", "a fault, on purpose");
        stream.write_all(&byte).await.unwrap();
    }
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_is_counted_and_nobody_else_notices() {
    let world = World::start("").await;
    let (pod, _) = world.app.dedicated().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_never, handed_over) = watch::channel(false);
    let accepting = accept(
        listener,
        pod,
        Accepting::new(handed_over, true),
        "faulty-connection",
        faulty,
    );
    tasks::spawn("faulty-listener", accepting);
    let beat = async |stream: &mut TcpStream, byte: u8| {
        stream.write_all(&[byte]).await?;
        let mut back = [0];
        stream.read_exact(&mut back).await.map(|_| back[0])
    };
    let mut before = TcpStream::connect(address).await.unwrap();
    assert_eq!(beat(&mut before, b'a').await.unwrap(), b'a');
    let mut doomed = TcpStream::connect(address).await.unwrap();
    assert!(beat(&mut doomed, b'!').await.is_err(), "it ends");
    assert_eq!(
        beat(&mut before, b'b').await.unwrap(),
        b'b',
        "what was open goes on"
    );
    let mut after = TcpStream::connect(address).await.unwrap();
    assert_eq!(
        beat(&mut after, b'c').await.unwrap(),
        b'c',
        "and so does accepting"
    );
    let faults = tasks::counts()
        .into_iter()
        .find(|count| count.name == "faulty-connection");
    assert_eq!(faults.unwrap().panicked, 1);
    let (mut stream, _) = world.ask_echo().await.unwrap();
    crate::world::assert_echoes(&mut stream, b"the workload is served on").await;
    let counted = "tulle_task_panics_total{task=\"faulty-connection\"} 1";
    assert!(world.metrics().contains(counted), "{}", world.metrics());
}
