//! An address that goes to another pod while tunnels to the one before it are open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::timeout;
use tulle_identity::testing::TestCa;
use tulle_model::MeshUpdate;
use tulle_runtime::tasks::Scope;
use tulle_transport::hbone::{ConnectResponse, Settings, server};

use crate::outbound::{assert_echoes, assert_reset, call};
use crate::world::{SOON, World, identity, updates};

/// A pod's end of tunnels. It says on each stream who it is, by a name of two letters, then sends back what it gets.
struct Peer {
    listening: Scope,
    tunnels: Scope,
    streams: Arc<AtomicUsize>,
}

impl Peer {
    /// Takes the address as soon as it is free, and proves the account of the namespace `shop` that is so called.
    async fn take(address: SocketAddr, ca: &TestCa, account: &'static str) -> Self {
        // A program that another test starts holds our sockets too, from its fork until it is loaded.
        let free = async {
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => return listener,
                    Err(_) => yield_now().await,
                }
            }
        };
        let listener = timeout(SOON, free).await.unwrap();
        let certificate = ca.certificate(&identity("shop", account));
        let (tunnels, streams) = (Scope::new(), Arc::new(AtomicUsize::new(0)));
        let (carried, counted) = (tunnels.clone(), Arc::clone(&streams));
        let listening = Scope::new();
        listening.spawn("peer", async move {
            while let Ok((socket, _)) = listener.accept().await {
                let accepted = server::accept(socket, certificate.server_config(), &Settings::server()).await;
                // Whoever expects somebody else goes away during the handshake.
                let Ok(mut tunnel) = accepted else { continue };
                let (scope, counted) = (carried.clone(), Arc::clone(&counted));
                carried.spawn("peer-tunnel", async move {
                    while let Some(incoming) = tunnel.connection.accept().await {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let stream = incoming.accept(&ConnectResponse::default()).unwrap();
                        scope.spawn("peer-stream", async move {
                            let (mut read, mut write) = split(stream);
                            write.write_all(account.as_bytes()).await.unwrap();
                            let _ = copy(&mut read, &mut write).await;
                        });
                    }
                });
            }
        });
        Self {
            listening,
            tunnels,
            streams,
        }
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// The address is no longer this pod's; its tunnels do not hear of that.
    async fn leave_address(&self) {
        self.listening.cancel();
        self.listening.close();
        self.listening.wait().await;
    }

    /// The pod is gone, and its tunnels with it.
    async fn end(&self) {
        self.tunnels.cancel();
        self.tunnels.close();
        self.tunnels.wait().await;
    }
}

/// What a control plane says of the pod that has the address.
fn has(address: SocketAddr, account: &str) -> Vec<MeshUpdate> {
    updates(&format!(
        "workloads:\n- {{uid: {account}-1, name: {account}-1, namespace: shop, serviceAccount: {account}, workloadIps: \
         [{}], protocol: HBONE}}\n",
        address.ip()
    ))
}

/// Who answers.
async fn answers(application: &mut TcpStream) -> String {
    let mut name = [0; 2];
    let read = timeout(SOON, application.read_exact(&mut name)).await.unwrap();
    read.unwrap();
    String::from_utf8_lossy(&name).into_owned()
}

#[tokio::test]
async fn f11_an_open_tunnel_to_the_pod_before_carries_nothing_for_the_one_that_has_its_address_now() {
    let world = World::start("").await;
    let mesh = &world.app.node().mesh;
    let tunnel: SocketAddr = "127.0.11.1:15008".parse().unwrap();
    let target = SocketAddr::new(tunnel.ip(), 8080);
    let before = Peer::take(tunnel, &world.ca, "db").await;
    mesh.apply(has(tunnel, "db"));
    let mut open = call(&world, target).await;
    assert_eq!(answers(&mut open).await, "db");

    before.leave_address().await;
    let now = Peer::take(tunnel, &world.ca, "qa").await;
    let mut uninformed = call(&world, target).await;
    assert_eq!(
        answers(&mut uninformed).await,
        "db",
        "who was meant, over its own tunnel"
    );
    // The new one is told before the old one is taken back, as a control plane may.
    mesh.apply(has(tunnel, "qa"));
    mesh.apply(vec![MeshUpdate::RemoveWorkload("db-1".into())]);
    for _ in 0..3 {
        let mut informed = call(&world, target).await;
        assert_eq!(answers(&mut informed).await, "qa");
    }
    assert_eq!((before.streams(), now.streams()), (2, 3));
    assert_echoes(&mut open, b"what was open goes on").await;
}

#[tokio::test]
async fn f11_the_pod_that_has_the_address_now_is_never_talked_to_as_the_one_before() {
    let world = World::start("").await;
    let mesh = &world.app.node().mesh;
    let tunnel: SocketAddr = "127.0.11.2:15008".parse().unwrap();
    let target = SocketAddr::new(tunnel.ip(), 8080);
    let before = Peer::take(tunnel, &world.ca, "db").await;
    mesh.apply(has(tunnel, "db"));
    let mut open = call(&world, target).await;
    assert_eq!(answers(&mut open).await, "db");

    before.leave_address().await;
    before.end().await;
    let now = Peer::take(tunnel, &world.ca, "qa").await;
    assert_reset(&mut open).await;
    for _ in 0..3 {
        assert_reset(&mut call(&world, target).await).await;
    }
    assert_eq!(now.streams(), 0, "not even once");
    world.until_counted("tulle_denied_total{code=\"T0512\"").await;

    mesh.apply(has(tunnel, "qa"));
    mesh.apply(vec![MeshUpdate::RemoveWorkload("db-1".into())]);
    let mut informed = call(&world, target).await;
    assert_eq!(answers(&mut informed).await, "qa");
    assert_eq!(now.streams(), 1);
}
