//! Connections of the local workload `shop/web`, given their original destination.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_runtime::tasks;
use tulle_ztunnel::outbound::serve_to;
use tulle_ztunnel::pod::Pod;

use crate::world::{SOON, World, echo_application};

/// A connection of the application, captured on its way to `destination`.
pub(crate) async fn call(world: &World, destination: SocketAddr) -> TcpStream {
    let (pod, _) = world.app.dedicated().unwrap();
    call_of(&pod, destination).await
}

/// A connection of one pod's application.
pub(crate) async fn call_of(pod: &Arc<Pod>, destination: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (application, captured) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (captured, peer) = captured.unwrap();
    tasks::spawn("captured", serve_to(Arc::clone(pod), captured, peer, destination));
    application.unwrap()
}

pub(crate) async fn assert_echoes(application: &mut TcpStream, text: &[u8]) {
    application.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(SOON, application.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, text);
}

pub(crate) async fn assert_reset(application: &mut TcpStream) {
    let mut buffer = [0; 16];
    let ended = timeout(SOON, application.read(&mut buffer)).await.unwrap();
    assert!(ended.is_err(), "a reset, not an orderly end");
}

/// A second proxy, for the workload `shop/front-1` at 127.0.0.8, which is the waypoint of one at 127.0.0.9. The first
/// world expects it to prove the service account `expected`.
pub(crate) async fn with_waypoint(world: &World, expected: &str) -> World {
    let mesh = |service_account: &str, port: u16| {
        format!(
            "workloads:\n\
             - {{uid: front, name: front-1, namespace: shop, serviceAccount: {service_account}, \
                workloadIps: [127.0.0.8], protocol: HBONE}}\n\
             - {{uid: db, name: db-1, namespace: shop, serviceAccount: db, workloadIps: [127.0.0.9], \
                protocol: HBONE, waypoint: {{destination: /127.0.0.8, hboneMtlsPort: {port}}}}}\n"
        )
    };
    let front = World::serve("shop/front-1/front", &mesh("front", 1), Arc::clone(&world.ca)).await;
    front.apply(&mesh("front", front.hbone.port()));
    world.apply(&mesh(expected, front.hbone.port()));
    front
}

/// An application at 127.0.0.8 that sends back what it gets, addressed as 127.0.0.9.
pub(crate) async fn behind_waypoint() -> SocketAddr {
    let application = echo_application("127.0.0.8:0").await;
    SocketAddr::from(([127, 0, 0, 9], application.port()))
}

#[tokio::test]
async fn an_unknown_destination_is_passed_through() {
    let world = World::start("").await;
    let unknown = SocketAddr::from(([127, 0, 0, 77], world.echo.port()));
    let listener = TcpListener::bind(unknown).await.unwrap();
    let mut application = call(&world, unknown).await;
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    let mut buffer = [0; 5];
    application.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
}

#[tokio::test]
async fn a_port_of_the_proxy_on_loopback_is_refused() {
    let world = World::start("").await;
    let mut application = call(&world, world.hbone).await;
    assert_reset(&mut application).await;
    world
        .until_counted("tulle_denied_total{code=\"T0421\",reason=\"self_call\",direction=\"outbound\"} 1")
        .await;
}

#[tokio::test]
async fn a_service_without_endpoints_is_refused() {
    let world = World::start("").await;
    world.apply(
        "services:\n- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, \
         vips: [/10.1.0.1], ports: {80: 8080}}\n",
    );
    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0506\"").await;
}

#[tokio::test]
async fn an_identity_that_is_not_expected_is_never_talked_to() {
    let world = World::start("").await;
    let _front = with_waypoint(&world, "other").await;
    let mut application = call(&world, behind_waypoint().await).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0512\"").await;
}

#[tokio::test]
async fn a_tunnel_port_that_refuses_is_tried_again_and_never_replaced_by_plaintext() {
    let world = World::start("").await;
    let tunnel = TcpListener::bind("127.0.0.8:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let plain = TcpListener::bind("127.0.0.9:0").await.unwrap();
    world.apply(&format!(
        "workloads:\n\
         - {{uid: wp, name: wp-1, namespace: shop, serviceAccount: wp, workloadIps: [127.0.0.8], protocol: HBONE}}\n\
         - {{uid: db, name: db-1, namespace: shop, serviceAccount: db, workloadIps: [127.0.0.9], protocol: HBONE, \
            waypoint: {{destination: /127.0.0.8, hboneMtlsPort: {}}}}}\n",
        tunnel.port()
    ));
    let began = std::time::Instant::now();
    let mut application = call(&world, plain.local_addr().unwrap()).await;
    let refused = tokio::select! {
        () = assert_reset(&mut application) => true,
        _ = plain.accept() => false,
    };
    assert!(refused, "no plaintext");
    assert!(
        began.elapsed() >= tulle_ztunnel::outbound::CAPTURE_WAIT,
        "tried again for as long as capture may take"
    );
}

#[tokio::test]
async fn a_tunnel_joins_two_proxies() {
    let world = World::start("").await;
    let front = with_waypoint(&world, "front").await;
    let mut application = call(&world, behind_waypoint().await).await;
    assert_echoes(&mut application, b"both ends are ours").await;
    let opened = |world: &World, reporter: &str| {
        let series = format!("istio_tcp_connections_opened_total{{reporter=\"{reporter}\"");
        world
            .metrics()
            .lines()
            .any(|line| line.starts_with(&series) && line.contains("mutual_tls"))
    };
    assert!(opened(&world, "source"));
    assert!(opened(&front, "destination"));
}

#[tokio::test]
async fn the_reason_of_a_peer_reaches_the_caller() {
    let world = World::start("").await;
    let front = with_waypoint(&world, "front").await;
    front.apply(
        "policies:\n- {name: deny-web, namespace: shop, scope: Namespace, action: Deny, \
         rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/web}]}]]]}\n",
    );
    let mut application = call(&world, behind_waypoint().await).await;
    assert_reset(&mut application).await;
    world
        .until_counted("tulle_refused_total{code=\"T0412\",reason=\"policy_denied\"} 1")
        .await;
}
