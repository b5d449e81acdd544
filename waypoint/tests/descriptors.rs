//! Descriptors that run short: a process of its own, because the limit is the process's.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests, and some are for others"
)]

#[path = "it/world.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, Settings, client};
use tulle_waypoint::listener;

use world::{World, get, identity};

/// Descriptors of this process, which is the waypoint and its callers.
const DESCRIPTORS: u64 = 500;
/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const REFUSED: &str = "tulle_waypoint_local_replies_total{reason=\"overload\"}";

async fn tunnel(world: &World, at: SocketAddr) -> Option<ClientConnection> {
    let certificate = world.ca.certificate(&identity("client"));
    let tls = certificate.client_config(&[identity("way")]);
    let socket = TcpStream::connect(at).await.ok()?;
    client::connect_over(socket, at, tls, &Settings::client())
        .await
        .ok()
}

async fn ask(tunnel: &ClientConnection) -> u16 {
    let (stream, _) = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    sender.send_request(get("/")).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn f17_without_descriptors_new_tunnels_are_refused_and_open_ones_live() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard), hard).unwrap();
    let world = World::web().await;
    let listener = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    drop(tasks::spawn(
        "accept",
        listener::accept(Arc::clone(&world.waypoint), listener),
    ));
    let open = tunnel(&world, at).await.unwrap();
    assert_eq!(ask(&open).await, 200);
    let mut held = Vec::new();
    let until = Instant::now() + PATIENCE;
    while world.metric(REFUSED) < 1.0 {
        assert!(
            Instant::now() < until && held.len() < 500,
            "{} are taken",
            held.len()
        );
        held.push(TcpStream::connect(at).await.unwrap());
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&open).await, 200, "what is open lives");
    assert!(std::fs::File::open("/proc/self/status").is_ok(), "some are left");
    drop(held);
    let again = loop {
        match tunnel(&world, at).await {
            Some(tunnel) => break tunnel,
            None => assert!(Instant::now() < until, "nobody is taken again"),
        }
    };
    assert_eq!(ask(&again).await, 200);
}
