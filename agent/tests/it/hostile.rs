//! What a pod or a stranger may try against capture, and what capture must leave alone.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tulle_agent::capture::Capture;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::{self, ProxyMark, Variant};
use tulle_agent::sockets::Listeners;
use tulle_agent::variant::Existing;

use crate::pod::{OUTSIDE, PATIENCE, POD, World, assert_alive};

/// A captured pod whose listeners the test holds.
async fn captured(world: &World, variant: &Variant) -> (Capture, Listeners) {
    let pod = world.located().await;
    let listeners = Listeners::open(&pod.netns, variant.dns, variant.mark)
        .await
        .unwrap();
    let capture = Capture::new(Backend::Netlink.rules(), variant.mark);
    capture
        .install(&pod, &plan::capture(variant), Existing::Keep)
        .await
        .unwrap();
    (capture, listeners)
}

fn with_dns() -> Variant {
    Variant {
        dns: true,
        ..Variant::default()
    }
}

/// A TCP segment with ACK alone and an option for MD5 signatures, which a listener without keys drops in silence.
fn bare_ack(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    const WORDS: u8 = 10;
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(0x1234_5678_u32.to_be_bytes());
    segment.extend(0x0bad_cafe_u32.to_be_bytes());
    segment.extend([WORDS << 4, 0x10]);
    segment.extend(1024_u16.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([19, 18]);
    segment.extend([0x5a; 16]);
    segment.extend([1, 1]);
    let mut pseudo = Vec::new();
    pseudo.extend(from.0.octets());
    pseudo.extend(to.0.octets());
    pseudo.extend([0, 6]);
    pseudo.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
    let sum = checksum(&[pseudo, segment.clone()].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_made_in_mid_stream_never_leads_past_the_proxy() {
    const ATTEMPTS: u16 = 100;
    const FIRST_PORT: u16 = 40_000;
    let Some(world) = World::new("an_entry_made_in_mid_stream_never_leads_past_the_proxy") else {
        return;
    };
    let application = world.serve(8080);
    application.set_nonblocking(true).unwrap();
    let (_capture, listeners) = captured(&world, &Variant::default()).await;
    let raw = world
        .outside
        .run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)))
        .unwrap()
        .unwrap();
    let inbound = std::net::TcpListener::from(listeners.fds()[1].try_clone_to_owned().unwrap());
    inbound.set_nonblocking(false).unwrap();
    for port in FIRST_PORT..FIRST_PORT + ATTEMPTS {
        let segment = bare_ack((OUTSIDE, port), (POD, 8080));
        raw.send_to(&segment, &SocketAddr::from((POD, 0)).into()).unwrap();
        let dialled = world.outside.run(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((OUTSIDE, port)).into())?;
            socket.connect_timeout(&SocketAddr::from((POD, 8080)).into(), PATIENCE)?;
            std::io::Result::Ok(socket)
        });
        let _caller = dialled.unwrap().unwrap();
        let (_taken, from) = inbound.accept().unwrap();
        assert_eq!(from.port(), port, "the proxy takes the connection");
    }
    assert!(application.accept().is_err(), "nothing reached the application");
    let entries = world.output("conntrack", "-L -p tcp --dport 8080");
    let unmarked = entries
        .lines()
        .filter(|line| line.contains("dport=8080") && !line.contains("mark=546"));
    assert_eq!(unmarked.count(), 0, "{entries}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_the_proxy_are_closed_to_the_outside() {
    const SILENCE: Duration = Duration::from_millis(400);
    let Some(world) = World::new("ports_of_the_proxy_are_closed_to_the_outside") else {
        return;
    };
    let (_capture, listeners) = captured(&world, &with_dns()).await;
    for port in [15001, 15006, 15053] {
        let dial = move || TcpStream::connect_timeout(&SocketAddr::from((POD, port)), SILENCE);
        let refused = world.outside.run(dial).unwrap().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "{port} is dropped");
    }
    assert_eq!(listeners.reset_waiting(), 0);
    world.dial(15008).expect("the tunnel port is open");
}

/// UDP, ICMP, loopback and the pod's own address, as they are without the mesh.
fn assert_untouched(world: &World) {
    let receiver = world.pod.run(|| UdpSocket::bind((POD, 9999))).unwrap().unwrap();
    let sender = world
        .outside
        .run(|| UdpSocket::bind((OUTSIDE, 9998)))
        .unwrap()
        .unwrap();
    for socket in [&receiver, &sender] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 16];
    sender.send_to(b"ping", (POD, 9999)).unwrap();
    let (_, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!(
        from,
        SocketAddr::from((OUTSIDE, 9998)),
        "the source is the sender's own"
    );
    receiver.send_to(b"pong", (OUTSIDE, 9998)).unwrap();
    assert_eq!(
        sender.recv_from(&mut buffer).unwrap().1,
        SocketAddr::from((POD, 9999))
    );

    for target in [IpAddr::from(OUTSIDE), crate::pod::OUTSIDE6.into()] {
        world.output("ping", &format!("-c 1 -W 5 {target}"));
    }
    let application = world.serve(8081);
    for address in [Ipv4Addr::LOCALHOST, POD] {
        let dial = move || TcpStream::connect_timeout(&SocketAddr::from((address, 8081)), PATIENCE);
        let mut caller = world.pod.run(dial).unwrap().unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut server, _) = application.accept().unwrap();
        assert_alive(&mut caller, &mut server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f37_other_traffic_is_untouched_with_and_without_strict_reverse_paths() {
    let Some(world) = World::new("f37_other_traffic_is_untouched_with_and_without_strict_reverse_paths")
    else {
        return;
    };
    assert_untouched(&world);
    let (_capture, listeners) = captured(&world, &Variant::default()).await;
    assert_untouched(&world);
    for interface in ["all", "eth0", "lo"] {
        world.output("sysctl", &format!("-w net.ipv4.conf.{interface}.rp_filter=1"));
    }
    assert_untouched(&world);
    let _caller = world.dial(8080).expect("captured as before");
    assert_eq!(listeners.reset_waiting(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_mesh_captured_with_goes_in_the_same_transaction() {
    let Some(world) = World::new("what_another_mesh_captured_with_goes_in_the_same_transaction") else {
        return;
    };
    for line in [
        "add table inet istio-ambient-nat",
        "add chain inet istio-ambient-nat output { type nat hook output priority -100 ; }",
        "add rule inet istio-ambient-nat output meta l4proto tcp redirect to :15001",
        "add table ip nat",
        "add chain ip nat OUTPUT { type nat hook output priority -100 ; }",
        "add chain ip nat ISTIO_OUTPUT",
        "add chain ip nat ISTIO_OTHER",
        "add rule ip nat ISTIO_OUTPUT jump ISTIO_OTHER",
        "add rule ip nat ISTIO_OTHER meta l4proto tcp redirect to :15001",
        "add rule ip nat OUTPUT counter jump ISTIO_OUTPUT",
        "add rule ip nat OUTPUT tcp dport 7 counter accept",
        "add table ip6 mangle",
        "add chain ip6 mangle ISTIO_PRERT",
    ] {
        world.output("nft", line);
    }
    let (_capture, listeners) = captured(&world, &Variant::default()).await;
    let left = world.output("nft", "list ruleset");
    assert!(
        !left.contains("ISTIO_") && !left.contains("istio-ambient"),
        "{left}"
    );
    assert!(
        left.contains("tcp dport 7"),
        "what is not that mesh's stays: {left}"
    );
    let dial = move || TcpStream::connect_timeout(&SocketAddr::from((OUTSIDE, 8080)), PATIENCE);
    let _caller = world.pod.run(dial).unwrap().unwrap();
    assert_eq!(listeners.reset_waiting(), 1, "captured by our rules");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_connections_are_reset_where_that_is_wanted_and_local_ones_are_not() {
    let Some(world) = World::new("old_connections_are_reset_where_that_is_wanted_and_local_ones_are_not")
    else {
        return;
    };
    let application = world.serve(8080);
    let mut old = world.dial(8080).unwrap();
    let (mut server, _) = application.accept().unwrap();
    let local = || TcpStream::connect((Ipv4Addr::LOCALHOST, 8080));
    let mut local = world.pod.run(local).unwrap().unwrap();
    let (mut local_server, _) = application.accept().unwrap();
    let pod = world.located().await;
    let capture = Capture::new(Backend::Netlink.rules(), ProxyMark::WellKnown);
    capture
        .install(&pod, &plan::capture(&Variant::default()), Existing::Reset)
        .await
        .unwrap();
    let ended = old.read(&mut [0; 1]).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(server.read(&mut [0; 1]).is_err());
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_alive(&mut local, &mut local_server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_a_pod_that_would_cut_its_old_connections_are_recognised() {
    let Some(world) = World::new("rules_of_a_pod_that_would_cut_its_old_connections_are_recognised") else {
        return;
    };
    let capture = Capture::new(Backend::Netlink.rules(), ProxyMark::WellKnown);
    let would_lose = async || capture.would_lose_old_connections(&world.pod).await.unwrap();
    assert!(!would_lose().await);
    for line in [
        "add table inet theirs",
        "add chain inet theirs input { type filter hook input priority 0 ; }",
        "add rule inet theirs input ct state established,related accept",
    ] {
        world.output("nft", line);
    }
    assert!(!would_lose().await);
    for rule in [
        "ct state invalid counter drop",
        "ct state { invalid, untracked } drop",
        "ct state invalid reject",
    ] {
        world.output("nft", &format!("add rule inet theirs input {rule}"));
        if !rule.contains('{') {
            assert!(would_lose().await, "{rule}");
        }
        world.output("nft", "flush chain inet theirs input");
    }
    captured(&world, &with_dns()).await;
    assert!(!would_lose().await, "ours are not theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_mark_passes_and_the_well_known_one_does_not() {
    let Some(world) = World::new("a_secret_mark_passes_and_the_well_known_one_does_not") else {
        return;
    };
    const SECRET: u32 = 0x8123_4567;
    let variant = Variant {
        mark: ProxyMark::Secret(SECRET),
        ..Variant::default()
    };
    let (capture, listeners) = captured(&world, &variant).await;
    let server = world
        .outside
        .run(|| std::net::TcpListener::bind((OUTSIDE, 8080)))
        .unwrap()
        .unwrap();
    server.set_nonblocking(true).unwrap();
    for (mark, passes) in [
        (plan::PROXY_MARK, false),
        (SECRET, true),
        (SECRET ^ 1 << 30, false),
    ] {
        let _caller = dial_marked(&world, mark).unwrap();
        assert_eq!(listeners.reset_waiting() == 0, passes, "{mark:#x}");
        while passes && server.accept().is_err() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(
        capture
            .marked_sockets(&world.pod)
            .await
            .unwrap()
            .iter()
            .filter(|socket| socket.listening)
            .count(),
        3
    );
}

fn dial_marked(world: &World, mark: u32) -> std::io::Result<Socket> {
    world
        .pod
        .run(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_mark(mark)?;
            socket.connect_timeout(&SocketAddr::from((OUTSIDE, 8080)).into(), PATIENCE)?;
            Ok(socket)
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_mark_is_taken_off_and_counted_and_the_proxys_is_not() {
    let name = "a_forged_mark_is_taken_off_and_counted_and_the_proxys_is_not";
    let Some((group, cgroup)) = crate::golden::Group::new("tulle-marks") else {
        eprintln!("skipped: {name}: no unified hierarchy to make a group in");
        return;
    };
    let Some(world) = World::new(name) else { return };
    let variant = Variant {
        proxies: vec![cgroup.clone()],
        ..Variant::default()
    };
    let (capture, listeners) = captured(&world, &variant).await;
    let server = world
        .outside
        .run(|| std::net::TcpListener::bind((OUTSIDE, 8080)))
        .unwrap()
        .unwrap();
    // This process is in no group of the proxies, and may set marks.
    let _forger = dial_marked(&world, plan::PROXY_MARK).unwrap();
    assert_eq!(listeners.reset_waiting(), 1, "captured like any other");
    assert!(capture.forged_marks(&world.pod).await.unwrap() >= 1);

    let before = capture.forged_marks(&world.pod).await.unwrap();
    let mut command = std::process::Command::new("bash");
    command.args([
        "-c",
        "echo $$ > $GROUP/cgroup.procs && exec python3 -c \"$PROGRAM\"",
    ]);
    command.env("GROUP", group.folder()).env(
        "PROGRAM",
        format!(
            "import socket\ns = socket.socket()\ns.setsockopt(1, 36, {})\ns.settimeout(10)\ns.connect(('{OUTSIDE}', 8080))\n",
            plan::PROXY_MARK
        ),
    );
    let mut proxy = world.pod.spawn(command).unwrap();
    let (_direct, _) = server.accept().unwrap();
    assert!(proxy.wait().unwrap().success());
    assert_eq!(
        capture.forged_marks(&world.pod).await.unwrap(),
        before,
        "the proxy's own is none"
    );
}
