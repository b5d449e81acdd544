//! Applications that ask for their proxy.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::outbound::assert_echoes;
use crate::world::{SOON, World};

async fn world() -> (World, SocketAddr) {
    let world = World::start_with("", &[("UNSTABLE_ENABLE_SOCKS5", "true")]).await;
    let port = world.app.node().config.ports.socks5.unwrap();
    let proxy = SocketAddr::from(([127, 0, 0, 1], port));
    let listens = async {
        while TcpStream::connect(proxy).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, listens).await.unwrap();
    (world, proxy)
}

/// Greets the proxy and asks for a target; the code it answers with.
async fn ask(proxy: SocketAddr, kind: u8, address: &[u8], port: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    let request = [&[5, 1, 0, kind], address, &port.to_be_bytes()].concat();
    // In two parts: a proxy must not count on getting all at once.
    stream.write_all(&request[..3]).await.unwrap();
    stream.write_all(&request[3..]).await.unwrap();
    let mut reply = [0; 10];
    timeout(SOON, stream.read_exact(&mut reply))
        .await
        .unwrap()
        .unwrap();
    (stream, reply[1])
}

fn mesh(port: u16) -> String {
    format!(
        "workloads:\n- {{uid: db, name: db, namespace: shop, protocol: TCP, workloadIps: [127.0.0.1], \
         services: {{shop/db.shop.svc.cluster.local: {{80: {port}}}}}}}\n\
         services:\n- {{name: db, namespace: shop, hostname: db.shop.svc.cluster.local, vips: [/10.1.0.1], \
         ports: {{80: 80}}}}\n"
    )
}

#[tokio::test]
async fn a_client_is_led_by_address_or_by_name_of_the_mesh() {
    let (world, proxy) = world().await;
    world.apply(&mesh(world.echo.port()));
    for (kind, address) in [
        (1, &[10, 1, 0, 1][..]),
        (3, b"\x19db.shop.svc.cluster.local"),
        (3, b"\x02db"),
    ] {
        let (mut stream, code) = ask(proxy, kind, address, 80).await;
        assert_eq!(code, 0, "{address:?}");
        assert_echoes(&mut stream, b"through the proxy").await;
    }
    world
        .until_counted("istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"web\"")
        .await;
}

#[tokio::test]
async fn a_refusal_is_answered_by_its_code() {
    let (world, proxy) = world().await;
    world.apply(
        "services:\n- {name: db, namespace: shop, hostname: db.mesh, vips: [/10.1.0.9], ports: {80: 80}}\n",
    );
    let (_, code) = ask(proxy, 1, &[10, 1, 0, 9], 80).await;
    assert_eq!(code, 4, "no endpoint");
    let (_, code) = ask(proxy, 1, &[127, 0, 0, 1], world.hbone.port()).await;
    assert_eq!(code, 2, "a port of the proxy");
    let (_, code) = ask(proxy, 1, &[127, 0, 0, 1], proxy.port()).await;
    assert_eq!(code, 2, "itself");
    let (_, code) = ask(proxy, 7, &[], 80).await;
    assert_eq!(code, 8, "an unknown kind of address");
}

#[tokio::test]
async fn a_client_that_wants_to_authenticate_is_sent_away() {
    let (_world, proxy) = world().await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 2]).await.unwrap();
    let mut all = Vec::new();
    timeout(SOON, stream.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, [5, 0xff]);
}
