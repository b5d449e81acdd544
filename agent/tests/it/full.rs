//! A conntrack table without a free place. Its size is the host's and read-only in namespaces, but each counts for itself: a
//! pod's is filled here, and nobody else's.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use tulle_agent::capture::Capture;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::{self, ProxyMark, Variant};
use tulle_agent::sockets::Listeners;
use tulle_agent::variant::Existing;
use tulle_linux::NetNs;

use crate::pod::{OUTSIDE, PATIENCE, POD, World, assert_alive};

/// Larger ones are not filled: that takes a third of a KiB of the kernel's memory for each place.
const PLACES_MAX: usize = 300_000;
/// How long what must not arrive is waited for; a SYN is sent again after a second.
const A_MOMENT: Duration = Duration::from_millis(500);
const PORT: u16 = 8080;

/// Takes every place of the pod's table, by connections that look established; false where it is too large for that.
fn fill(world: &World) -> bool {
    let read = |what: &str| {
        let text = world.output("cat", &format!("/proc/sys/net/netfilter/nf_conntrack_{what}"));
        text.trim().parse::<usize>().unwrap()
    };
    let places = read("max");
    if !(1..=PLACES_MAX).contains(&places) {
        return false;
    }
    let mut entries = String::new();
    for index in 0..places {
        let source =
            Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + u32::try_from(index).unwrap());
        writeln!(
            entries,
            "-A -p tcp -s {source} -d 192.0.2.1 --sport 1000 --dport 2000 --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 3600"
        )
        .unwrap();
    }
    let file = world.folder.path().join("entries");
    std::fs::write(&file, entries).unwrap();
    // It ends with an error where no place is left.
    world.succeeds("conntrack", &format!("-R {}", file.display()));
    assert_eq!(read("count"), places);
    true
}

fn listen(netns: &NetNs, address: Ipv4Addr) -> TcpListener {
    let listener = netns
        .run(move || TcpListener::bind((address, PORT)))
        .unwrap()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn connect(netns: &NetNs, to: Ipv4Addr, wait: Duration) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(IpAddr::V4(to), PORT);
    netns.run(move || TcpStream::connect_timeout(&to, wait)).unwrap()
}

fn accepted(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(false).unwrap();
    let (stream, _) = listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    stream
}

#[tokio::test]
async fn a_full_conntrack_table_lets_nothing_past_the_proxy() {
    let test = "a_full_conntrack_table_lets_nothing_past_the_proxy";
    let Some(world) = World::new(test) else {
        return;
    };
    let application = listen(&world.pod, POD);
    let (server, name_server) = (
        listen(&world.outside, OUTSIDE),
        world
            .outside
            .run(|| UdpSocket::bind((OUTSIDE, 53)))
            .unwrap()
            .unwrap(),
    );
    name_server.set_nonblocking(true).unwrap();
    let mut old = connect(&world.outside, POD, PATIENCE).unwrap();
    let mut old_server = accepted(&application);
    let pod = world.located().await;
    let listeners = Listeners::open(&pod.netns, true, ProxyMark::WellKnown)
        .await
        .unwrap();
    let capture = Capture::new(Backend::Netlink.rules(), ProxyMark::WellKnown);
    let table = plan::capture(&Variant {
        dns: true,
        ..Variant::default()
    });
    capture.install(&pod, &table, Existing::Keep).await.unwrap();
    let mut captured = connect(&world.outside, POD, PATIENCE).unwrap();
    let inbound = TcpListener::from(listeners.fds()[1].try_clone_to_owned().unwrap());
    let mut proxy = accepted(&inbound);
    proxy.set_nonblocking(false).unwrap();
    assert_alive(&mut captured, &mut proxy);

    if !fill(&world) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {test}: the table is too large to be filled"
        );
        return;
    }
    assert_alive(&mut captured, &mut proxy);
    for (from, to) in [(&world.pod, OUTSIDE), (&world.outside, POD)] {
        let refused = connect(from, to, A_MOMENT).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "towards {to}");
    }
    let asking = world.pod.run(|| UdpSocket::bind((POD, 0))).unwrap().unwrap();
    let sent = asking.send_to(b"who is it", (OUTSIDE, 53)).unwrap_err();
    assert_eq!(sent.kind(), ErrorKind::PermissionDenied);
    let nobody = |listener: &TcpListener| listener.accept().unwrap_err().kind() == ErrorKind::WouldBlock;
    assert!(
        nobody(&application) && nobody(&server),
        "nothing went past the proxy"
    );
    let heard = name_server.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::WouldBlock, "nor past its names");
    // What has no entry, and is to have none, asks for a place with each packet.
    old.write_all(b"wait").unwrap();
    old_server.set_nonblocking(false).unwrap();
    old_server.set_read_timeout(Some(A_MOMENT)).unwrap();
    assert!(old_server.read(&mut [0; 4]).is_err());

    world.output("conntrack", "-F");
    old_server.set_read_timeout(Some(PATIENCE)).unwrap();
    old_server.read_exact(&mut [0; 4]).unwrap();
    assert_alive(&mut old, &mut old_server);
    let _new = connect(&world.outside, POD, PATIENCE).unwrap();
    accepted(&inbound);
    assert!(nobody(&application), "captured again");
}
