//! The world is what it says it is: pods reach each other over the wire, and the recorder sees them do it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tulle_world::{Backend, Pod, VirtualService, World};

/// Worlds need root; elsewhere the test says that it was skipped.
fn may_build() -> bool {
    match tulle_linux::NetNs::create() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: network namespaces cannot be made here: {error}");
            false
        }
    }
}

/// A server in a pod that sends back what it gets, to as many callers as asked.
fn echo(pod: &Pod, address: IpAddr, callers: usize) -> SocketAddr {
    let listener = pod
        .namespace()
        .run(move || TcpListener::bind((address, 8080)))
        .unwrap()
        .unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(callers) {
            let mut stream = stream.unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            stream.write_all(&text).unwrap();
        }
    });
    address
}

fn call(pod: &Pod, to: SocketAddr, text: &'static [u8]) -> Vec<u8> {
    pod.namespace()
        .run(move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            stream.write_all(text).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_the_recorder_sees_it() {
    if !may_build() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::create(folder.path(), &["n1", "n2"]).await.unwrap();
    let client = world.add_pod("n1", "client").await.unwrap();
    let neighbour = world.add_pod("n1", "neighbour").await.unwrap();
    let server = world.add_pod("n2", "server").await.unwrap();
    let recorder = world.record(b"a-marker-on-the-wire").await.unwrap();

    let v4 = echo(&server, server.ipv4().into(), 2);
    assert_eq!(
        call(&client, v4, b"a-marker-on-the-wire v4"),
        b"a-marker-on-the-wire v4"
    );
    let v6 = echo(&server, server.ipv6().into(), 1);
    assert_eq!(call(&client, v6, b"over IPv6"), b"over IPv6");
    let same_node = echo(&neighbour, neighbour.ipv4().into(), 1);
    assert_eq!(call(&client, same_node, b"same node"), b"same node");

    let virtual_address: SocketAddr = "10.96.0.1:80".parse().unwrap();
    world
        .set_services(&[VirtualService {
            address: virtual_address,
            backends: vec![Backend(v4)],
        }])
        .unwrap();
    assert_eq!(call(&client, virtual_address, b"by service"), b"by service");

    // The thread that records may be a frame behind.
    while recorder.seen().marked_frames < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(recorder.seen().marked_frames, 2, "once there, once back");
    world.remove_pod("server").await.unwrap();
    assert!(world.pod("server").is_err());
}
