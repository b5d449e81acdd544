//! Endpoints that are known by a host name only.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::tasks;
use tulle_transport::socket::CurrentNamespace;
use tulle_ztunnel::dns::resolv_conf::ResolvConf;
use tulle_ztunnel::pod::Pod;

use crate::outbound::{assert_echoes, assert_reset, call_of};
use crate::world::World;

/// A name server that knows `db.example.com` to be 127.0.0.1, and nothing else.
async fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tasks::spawn("name-server", async move {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let question = asked.queries[0].clone();
            let mut reply = Message::response(asked.metadata.id, OpCode::Query);
            reply.add_query(question.clone());
            let name = question.name().clone();
            if name.to_string() == "db.example.com." && question.query_type() == RecordType::A {
                let data = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
                reply.answers.push(Record::from_rdata(name, 60, data));
            }
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    });
    address
}

/// The pod `shop/web-1` of a running world, with name servers of its own.
pub(crate) async fn pod_with_names(world: &World) -> (Arc<Pod>, DrainTrigger) {
    let (served, _) = world.app.dedicated().unwrap();
    let resolver = ResolvConf {
        servers: vec![name_server().await],
        search: Vec::new(),
    };
    let (trigger, drain) = drain::new();
    let node = Arc::clone(world.app.node());
    let pod = Pod::new(
        served.name.clone(),
        node,
        Arc::new(CurrentNamespace),
        Some(resolver),
        drain,
    );
    (Arc::new(pod), trigger)
}

fn behind_name(hostname: &str, port: u16) -> String {
    format!(
        "workloads:\n\
         - {{uid: db, name: db, namespace: shop, protocol: TCP, hostname: {hostname}, \
            services: {{shop/db.mesh: {{80: {port}}}}}}}\n\
         services:\n- {{name: db, namespace: shop, hostname: db.mesh, vips: [/10.1.0.1], ports: {{80: 80}}}}\n"
    )
}

#[tokio::test]
async fn an_endpoint_is_looked_up_when_it_is_needed() {
    let world = World::start("").await;
    let (pod, _drain) = pod_with_names(&world).await;
    world.apply(&behind_name("db.example.com", world.echo.port()));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut application, b"by name").await;
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_refused_with_its_reason() {
    let world = World::start("").await;
    let (pod, _drain) = pod_with_names(&world).await;
    world.apply(&behind_name("gone.example.com", world.echo.port()));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_reset(&mut application).await;
    world
        .until_counted("tulle_denied_total{code=\"T0701\",reason=\"name_not_resolved\"")
        .await;
}

#[tokio::test]
async fn another_endpoint_answers_when_a_name_leads_nowhere() {
    let world = World::start("").await;
    let (pod, _drain) = pod_with_names(&world).await;
    let port = world.echo.port();
    world.apply(&format!(
        "workloads:\n\
         - {{uid: gone, name: gone, namespace: shop, protocol: TCP, hostname: gone.example.com, capacity: 1000, \
            services: {{shop/db.mesh: {{80: {port}}}}}}}\n\
         - {{uid: db, name: db, namespace: shop, protocol: TCP, workloadIps: [127.0.0.1], \
            services: {{shop/db.mesh: {{80: {port}}}}}}}\n\
         services:\n- {{name: db, namespace: shop, hostname: db.mesh, vips: [/10.1.0.1], ports: {{80: 80}}}}\n"
    ));
    let mut application = call_of(&pod, "10.1.0.1:80".parse().unwrap()).await;
    assert_echoes(&mut application, b"the other one").await;
}
