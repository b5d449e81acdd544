//! Endpoints on another network: a tunnel to the gateway there, and inside of it one that the gateway cannot read.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tulle_identity::testing::TestCa;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ConnectRequest, ConnectResponse, Settings, server};

use crate::hostnames::pod_with_names;
use crate::outbound::{assert_echoes, assert_reset, call, call_of};
use crate::world::{World, identity};

const HOST: &str = "api.shop.svc.cluster.local";

/// A gateway of another network: it takes tunnels and forwards their bytes by what they ask for.
struct Gateway {
    address: SocketAddr,
    /// Who asked for what.
    asked: Arc<Mutex<Vec<(Identity, ConnectRequest)>>>,
}

impl Gateway {
    /// Proves `own`, and leads everything to `to`.
    async fn start(ca: &TestCa, own: &Identity, to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, certificate) = (Arc::clone(&asked), ca.certificate(own));
        tasks::spawn("gateway", async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let accepted = server::accept(socket, certificate.server_config(), &Settings::server()).await;
                let Ok(mut accepted) = accepted else { continue };
                let (seen, identity) = (Arc::clone(&seen), accepted.identity);
                tasks::spawn("gateway-tunnel", async move {
                    while let Some(incoming) = accepted.connection.accept().await {
                        let request = incoming.request().unwrap().clone();
                        seen.lock().push((identity.clone(), request));
                        let mut near = incoming.accept(&ConnectResponse::default()).unwrap();
                        let mut far = TcpStream::connect(to).await.unwrap();
                        tasks::spawn("gateway-stream", async move {
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                        });
                    }
                });
            }
        });
        Self { address, asked }
    }
}

/// What the caller knows: a service whose only endpoint is on the network `west`, behind a gateway that is expected to
/// be `infra/gw`, and who may answer for the service.
fn seen_from_here(gateway: SocketAddr, answers: &str) -> String {
    format!(
        "workloads:\n\
         - {{uid: gw, name: gw-1, namespace: infra, serviceAccount: gw, workloadIps: [{}], network: west, \
            protocol: HBONE}}\n\
         - {{uid: far, name: far, namespace: shop, network: west, protocol: HBONE, \
            networkGateway: {{destination: west/{}, hboneMtlsPort: {}}}, services: {{shop/{HOST}: {{}}}}}}\n\
         services:\n\
         - {{name: api, namespace: shop, hostname: {HOST}, vips: [/10.1.0.1], ports: {{80: 8080}}, \
            subjectAltNames: [\"{answers}\"]}}\n",
        gateway.ip(),
        gateway.ip(),
        gateway.port(),
    )
}

/// A proxy on the other network: the workload `shop/api-1`, which serves the service by the application at `port`.
async fn far_end(ca: &Arc<TestCa>) -> World {
    let start = |port: u16| {
        format!(
            "workloads:\n\
             - {{uid: api, name: api-1, namespace: shop, serviceAccount: api, workloadIps: [127.0.0.1], \
                protocol: HBONE, workloadName: api, services: {{shop/{HOST}: {{80: {port}}}}}}}\n\
             services:\n- {{name: api, namespace: shop, hostname: {HOST}, ports: {{80: {port}}}}}\n"
        )
    };
    let world = World::serve("shop/api-1/api", &start(1), Arc::clone(ca)).await;
    world.apply(&start(world.echo.port()));
    world
}

const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

#[tokio::test]
async fn a_service_on_another_network_is_reached_by_a_tunnel_inside_of_a_tunnel() {
    let world = World::start("").await;
    let far = far_end(&world.ca).await;
    let gateway = Gateway::start(&world.ca, &identity("infra", "gw"), far.hbone).await;
    world.apply(&seen_from_here(gateway.address, API));

    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut application, b"across networks").await;

    let (peer, outer) = gateway.asked.lock()[0].clone();
    assert_eq!(peer, identity("shop", "web"), "the gateway knows the caller");
    assert_eq!(
        outer.authority,
        format!("{HOST}:80"),
        "by service name and service port"
    );
    assert_eq!(
        outer.forwarded_network, None,
        "the gateway is not told the network"
    );
    let metrics = far.metrics();
    let opened = metrics
        .lines()
        .find(|line| line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\""))
        .unwrap();
    assert!(
        opened.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/web\""),
        "the inner tunnel proves the caller: {opened}"
    );
    let here = world.metrics();
    let opened = here
        .lines()
        .find(|line| line.starts_with("istio_tcp_connections_opened_total{reporter=\"source\""))
        .unwrap();
    assert!(
        opened.contains("destination_workload=\"api\"")
            && opened.contains("connection_security_policy=\"mutual_tls\""),
        "the far end says who it is: {opened}"
    );
}

#[tokio::test]
async fn only_the_tunnel_to_the_gateway_is_shared() {
    let world = World::start("").await;
    let far = far_end(&world.ca).await;
    let gateway = Gateway::start(&world.ca, &identity("infra", "gw"), far.hbone).await;
    world.apply(&seen_from_here(gateway.address, API));
    let mut first = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut first, b"one").await;
    let mut second = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut second, b"two").await;
    assert_eq!(gateway.asked.lock().len(), 2, "a stream each");
    let (pod, _) = world.app.dedicated().unwrap();
    let peers = pod.pool.peers();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].connections, 1);
}

#[tokio::test]
async fn a_gateway_that_proves_another_identity_is_not_used() {
    let world = World::start("").await;
    let far = far_end(&world.ca).await;
    let gateway = Gateway::start(&world.ca, &identity("infra", "thief"), far.hbone).await;
    world.apply(&seen_from_here(gateway.address, API));
    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0512\"").await;
    assert!(gateway.asked.lock().is_empty());
}

#[tokio::test]
async fn a_far_end_that_the_service_does_not_name_is_not_talked_to() {
    let world = World::start("").await;
    let far = far_end(&world.ca).await;
    let gateway = Gateway::start(&world.ca, &identity("infra", "gw"), far.hbone).await;
    world.apply(&seen_from_here(
        gateway.address,
        "spiffe://cluster.local/ns/shop/sa/other",
    ));
    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0512\"").await;
}

#[tokio::test]
async fn without_a_gateway_there_is_no_way() {
    let world = World::start("").await;
    world.apply(&format!(
        "workloads:\n\
         - {{uid: far, name: far, namespace: shop, network: west, protocol: HBONE, workloadIps: [10.9.0.1], \
            services: {{shop/{HOST}: {{}}}}}}\n\
         services:\n- {{name: api, namespace: shop, hostname: {HOST}, vips: [/10.1.0.1], ports: {{80: 8080}}}}\n"
    ));
    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0508\"").await;
}

/// As [`seen_from_here`], but of the gateway only a host name is known.
fn behind_a_name(hostname: &str, port: u16) -> String {
    format!(
        "workloads:\n\
         - {{uid: gw, name: gw-1, namespace: infra, serviceAccount: gw, hostname: {hostname}, protocol: HBONE, \
            services: {{infra/gw.mesh: {{15008: {port}}}}}}}\n\
         - {{uid: far, name: far, namespace: shop, network: west, protocol: HBONE, \
            networkGateway: {{destination: infra/gw.mesh, hboneMtlsPort: 15008}}, services: {{shop/{HOST}: {{}}}}}}\n\
         services:\n\
         - {{name: gw, namespace: infra, hostname: gw.mesh, vips: [/10.1.0.9], ports: {{15008: {port}}}}}\n\
         - {{name: api, namespace: shop, hostname: {HOST}, vips: [/10.1.0.1], ports: {{80: 8080}}, \
            subjectAltNames: [\"{API}\"]}}\n",
    )
}

#[tokio::test]
async fn a_gateway_that_is_known_by_a_host_name_is_looked_up() {
    let world = World::start("").await;
    let far = far_end(&world.ca).await;
    let gateway = Gateway::start(&world.ca, &identity("infra", "gw"), far.hbone).await;
    let (pod, _drain) = pod_with_names(&world).await;
    world.apply(&behind_a_name("db.example.com", gateway.address.port()));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut application, b"by name, across networks").await;
    assert_eq!(gateway.asked.lock().len(), 1);

    world.apply(&behind_a_name("gone.example.com", gateway.address.port()));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world.until_counted("tulle_denied_total{code=\"T0701\"").await;
}

#[tokio::test]
async fn a_waypoint_that_is_known_by_a_host_name_is_looked_up() {
    let world = World::start("").await;
    let waypoint = Gateway::start(&world.ca, &identity("infra", "wp"), world.echo).await;
    let (pod, _drain) = pod_with_names(&world).await;
    world.apply(&format!(
        "workloads:\n\
         - {{uid: wp, name: wp-1, namespace: infra, serviceAccount: wp, hostname: db.example.com, protocol: HBONE, \
            services: {{infra/wp.mesh: {{15008: {port}}}}}}}\n\
         services:\n\
         - {{name: wp, namespace: infra, hostname: wp.mesh, vips: [/10.1.0.8], ports: {{15008: {port}}}}}\n\
         - {{name: api, namespace: shop, hostname: {HOST}, vips: [/10.1.0.1], ports: {{80: 8080}}, \
            waypoint: {{destination: infra/wp.mesh, hboneMtlsPort: 15008}}}}\n",
        port = waypoint.address.port()
    ));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut application, b"by name, through a waypoint").await;
    assert_eq!(
        waypoint.asked.lock()[0].1.authority,
        "10.1.0.1:80",
        "what was addressed"
    );
}
