//! Applications that want to be told who their client is, as a waypoint does.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ConnectRequest, OpenError};
use tulle_transport::proxy_protocol::{Header, InvalidHeader};

use crate::world::{SOON, World, assert_echoes, code, identity};

/// An application that reads a header before it sends back what it gets.
async fn told_application() -> (SocketAddr, mpsc::Receiver<(Header, SocketAddr)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, headers) = mpsc::channel(8);
    tasks::spawn("told-application", async move {
        loop {
            let (mut socket, peer) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            let (header, length) = loop {
                match Header::parse(&bytes) {
                    Err(InvalidHeader::Incomplete) => {
                        assert!(socket.read_buf(&mut bytes).await.unwrap() > 0, "a whole header");
                    }
                    read => break read.unwrap(),
                }
            };
            told.send((header, peer)).await.unwrap();
            socket.write_all(&bytes[length..]).await.unwrap();
            tasks::spawn("told-connection", async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, headers)
}

/// The workload of the proxy, whose application listens behind an application tunnel.
fn behind(port: u16) -> String {
    format!(
        "workloads:\n\
         - {{uid: web, name: web-1, namespace: shop, serviceAccount: web, workloadIps: [127.0.0.1], protocol: HBONE, \
            applicationTunnel: {{protocol: PROXY, port: {port}}}, services: {{shop/web.mesh: {{80: 8080}}}}}}\n\
         services:\n- {{name: web, namespace: shop, hostname: web.mesh, vips: [/10.1.0.7], ports: {{80: 8080}}}}\n"
    )
}

/// The callers of these tests live here.
const REVIEWS: &str = "workloads:\n- {uid: reviews, name: reviews, namespace: shop, serviceAccount: reviews, workloadIps: [203.0.113.9]}\n";

async fn header_for(authority: &str, forwarded: Option<&str>) -> (Header, SocketAddr) {
    let world = World::start("").await;
    let (application, mut headers) = told_application().await;
    world.apply(&behind(application.port()));
    world.apply(REVIEWS);
    let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
    let request = ConnectRequest {
        forwarded: forwarded.map(|text| text.parse().unwrap()),
        ..ConnectRequest::new(authority)
    };
    let (mut stream, _) = connection.open(&request).await.unwrap();
    let told = timeout(SOON, headers.recv()).await.unwrap().unwrap();
    assert_echoes(&mut stream, b"what follows is the application's").await;
    told
}

#[tokio::test]
async fn an_application_is_told_who_calls_and_what_was_asked_for() {
    let forwarded = "for=\"203.0.113.9:1234\";host=web.mesh";
    let (header, peer) = header_for("198.51.100.1:443", Some(forwarded)).await;
    assert_eq!(header.source.to_string(), "203.0.113.9:1234", "the real client");
    assert_eq!(header.destination.to_string(), "198.51.100.1:443");
    assert_eq!(
        header.identity.as_deref(),
        Some("spiffe://cluster.local/ns/shop/sa/reviews")
    );
    assert_eq!(header.service.as_deref(), Some("web.mesh"));
    assert!(peer.ip().is_loopback(), "from loopback");
}

#[tokio::test]
async fn f34_a_client_that_is_not_the_peers_own_is_not_told() {
    for claimed in ["for=\"198.51.100.7:1234\"", "for=\"127.0.0.1:1\";host=other.mesh"] {
        let (header, _) = header_for("198.51.100.1:443", Some(claimed)).await;
        assert!(
            header.source.ip().is_loopback() && header.source.port() != 1,
            "{claimed}: {header:?}"
        );
        assert_eq!(
            header.identity.as_deref(),
            Some("spiffe://cluster.local/ns/shop/sa/reviews"),
            "who has proven it"
        );
        assert_eq!(header.service, None, "{claimed}");
    }
}

#[tokio::test]
async fn a_host_name_is_told_as_its_services_address() {
    let (header, _) = header_for("web.mesh:80", None).await;
    assert_eq!(header.destination.to_string(), "10.1.0.7:80");
    assert_eq!(header.service.as_deref(), Some("web.mesh"));
}

#[tokio::test]
async fn policies_see_the_port_that_the_application_really_listens_on() {
    let world = World::start("").await;
    let (application, _headers) = told_application().await;
    let port = application.port();
    world.apply(&format!(
        "{}policies:\n- {{name: no-port, namespace: shop, scope: Namespace, action: Deny, \
         rules: [[[{{destinationPorts: [{port}]}}]]]}}\n",
        behind(port)
    ));
    let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
    let refused = connection.open(&ConnectRequest::new("198.51.100.1:443")).await;
    let Err(OpenError::Refused(refusal)) = refused else {
        panic!("refused")
    };
    assert_eq!((refusal.status, code(&refusal)), (401, "T0412"));
}

#[tokio::test]
async fn a_proxy_says_nothing_of_its_workload_where_that_is_switched_off() {
    let world = World::start_with("", &[("ENABLE_RESPONSE_BAGGAGE", "false")]).await;
    let (mut stream, response) = world.ask_echo().await.unwrap();
    assert!(response.baggage.is_empty(), "{:?}", response.baggage);
    assert_echoes(&mut stream, b"served all the same").await;
}
