//! Rules, routes, conntrack and settings, as the kernel has them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;

use tulle_agent::capture::Capture;
use tulle_agent::conntrack::{self, Select};
use tulle_agent::repair::{Held, deviations};
use tulle_agent::rules::Backend;
use tulle_agent::rules::Comparison;
use tulle_agent::rules::plan::{self, ProxyMark, Table, Variant};
use tulle_agent::sockets::Listeners;
use tulle_agent::sysctl;
use tulle_agent::variant::Existing;

use crate::backends::with_each_backend;
use crate::pod::{OUTSIDE, OUTSIDE6, PATIENCE, POD, POD6, World, assert_alive};

with_each_backend! {
    what_is_applied_is_what_the_plan_says,
    a_changed_table_is_told_from_the_plan_by_its_lines,
    joining_and_leaving_leave_nothing_behind,
    a_pod_whose_ipv6_was_switched_off_leaves_nothing_behind,
    every_deviation_is_seen_and_repaired,
    exactly_the_selected_conntrack_entries_are_deleted,
    old_connections_live_on_and_new_ones_are_captured,
    captured_connections_live_on_when_a_captured_pod_is_joined_again,
    both_families_are_captured_both_ways,
}

const HELD: Held = Held {
    listeners: true,
    announced: true,
};

/// What a pod without wishes gets.
fn table() -> Table {
    plan::capture(&Variant::default())
}

fn tables() -> Vec<Table> {
    vec![
        plan::capture(&Variant::default()),
        plan::capture(&Variant {
            dns: true,
            ..Variant::default()
        }),
        plan::capture(&Variant {
            dns: true,
            inbound: false,
            reroute: vec!["eth0".parse().unwrap()],
            ..Variant::default()
        }),
        plan::drain(ProxyMark::WellKnown),
    ]
}

async fn what_is_applied_is_what_the_plan_says(backend: Backend) {
    let Some(world) = World::new("what_is_applied_is_what_the_plan_says") else {
        return;
    };
    let rules = backend.rules();
    for table in tables() {
        assert_ne!(
            rules.compare(&world.pod, &table).await.unwrap(),
            Comparison::Equal
        );
        rules.apply(&world.pod, &table).await.unwrap();
        rules.apply(&world.pod, &table).await.unwrap();
        assert_eq!(
            rules.compare(&world.pod, &table).await.unwrap(),
            Comparison::Equal
        );
    }
    rules.remove(&world.pod, "tulle").await.unwrap();
    rules.remove(&world.pod, "tulle").await.unwrap();
    assert_eq!(world.output("nft", "list ruleset"), "");
}

async fn a_changed_table_is_told_from_the_plan_by_its_lines(backend: Backend) {
    let Some(world) = World::new("a_changed_table_is_told_from_the_plan_by_its_lines") else {
        return;
    };
    let rules = backend.rules();
    let table = table();
    rules.apply(&world.pod, &table).await.unwrap();
    world.output("nft", "insert rule inet tulle nat-out tcp dport 80 accept");
    let Comparison::Different { diff } = rules.compare(&world.pod, &table).await.unwrap() else {
        panic!("the table was changed")
    };
    match backend {
        Backend::Nft => assert_eq!(diff, ["+tcp dport 80 accept"]),
        Backend::Netlink => {
            let [line] = &diff[..] else {
                panic!("one line, not {diff:?}")
            };
            assert!(line.starts_with("+rule 2=\"nat-out\" [meta "), "{line}");
            assert!(
                line.contains("[cmp 1=00000001 2=00000000 3=0600010000500000]"),
                "{line}"
            );
        }
    }
}

async fn joining_and_leaving_leave_nothing_behind(backend: Backend) {
    let Some(world) = World::new("joining_and_leaving_leave_nothing_behind") else {
        return;
    };
    let pod = world.located().await;
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    for _ in 0..3 {
        capture.install(&pod, &table(), Existing::Keep).await.unwrap();
        assert_eq!(
            deviations(&capture.observe(&pod, &table()).await.unwrap(), HELD),
            []
        );
        assert!(
            world
                .output("ip", "rule")
                .contains("32764:\tfrom all fwmark 0x111/0xfff lookup 100")
        );
        assert_eq!(
            world.output("ip", "route show table 100").trim(),
            "local default dev lo scope host"
        );
        assert!(
            world
                .output("ip", "-6 rule")
                .contains("fwmark 0x111/0xfff lookup 100")
        );
        assert!(
            world
                .output("ip", "-6 route show table 100")
                .starts_with("local default dev lo")
        );
        assert!(!sysctl::tcp_loose(&pod.netns).await.unwrap());

        capture.drain(&pod).await.unwrap();
        capture.remove(&pod).await.unwrap();
        capture.remove(&pod).await.unwrap();
        assert_eq!(world.output("nft", "list ruleset"), "");
        assert!(!world.output("ip", "rule").contains("lookup 100"));
        assert!(!world.output("ip", "-6 rule").contains("lookup 100"));
        assert!(sysctl::tcp_loose(&pod.netns).await.unwrap());
    }
}

async fn a_pod_whose_ipv6_was_switched_off_leaves_nothing_behind(backend: Backend) {
    let Some(world) = World::new("a_pod_whose_ipv6_was_switched_off_leaves_nothing_behind") else {
        return;
    };
    let joined = world.located().await;
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture.install(&joined, &table(), Existing::Keep).await.unwrap();
    let rules = || world.output("ip", "-6 rule");
    assert!(rules().contains("lookup 100"));

    world.switch_ipv6(false);
    let leaving = world.located().await;
    assert!(!leaving.ipv6 && rules().contains("lookup 100"));
    capture.drain(&leaving).await.unwrap();
    capture.remove(&leaving).await.unwrap();
    assert!(!rules().contains("lookup 100"), "{}", rules());

    world.switch_ipv6(true);
    assert!(!tulle_agent::routes::present(&world.pod, true).await.unwrap());
    assert!(!rules().contains("lookup 100") && !world.output("ip", "rule").contains("lookup 100"));
}

async fn every_deviation_is_seen_and_repaired(backend: Backend) {
    let Some(world) = World::new("every_deviation_is_seen_and_repaired") else {
        return;
    };
    let pod = world.located().await;
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    world.output("nft", "delete table inet tulle");
    world.output("ip", "rule del pref 32764");
    sysctl::set_tcp_loose(&pod.netns, true).await.unwrap();
    let found = deviations(&capture.observe(&pod, &table()).await.unwrap(), HELD);
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["tcp_loose", "routes", "rules"]
    );

    capture.forbid_mid_stream(&pod.netns).await.unwrap();
    capture.repair_routes(&pod).await.unwrap();
    capture.repair_rules(&pod, &table()).await.unwrap();
    assert_eq!(
        deviations(&capture.observe(&pod, &table()).await.unwrap(), HELD),
        []
    );
}

async fn exactly_the_selected_conntrack_entries_are_deleted(backend: Backend) {
    let Some(world) = World::new("exactly_the_selected_conntrack_entries_are_deleted") else {
        return;
    };
    let pod = world.located().await;
    let dns = Variant {
        dns: true,
        ..Variant::default()
    };
    backend
        .rules()
        .apply(&world.pod, &plan::capture(&dns))
        .await
        .unwrap();
    let _receiver = world
        .pod
        .run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 15053)))
        .unwrap()
        .unwrap();
    let sender = world.pod.run(|| UdpSocket::bind((POD, 0))).unwrap().unwrap();
    sender.send_to(b"captured", (OUTSIDE, 53)).unwrap();
    sender.send_to(b"not captured", (OUTSIDE, 9999)).unwrap();
    let listed = || world.output("conntrack", "-L");
    assert!(
        listed().contains("dport=53 ") && listed().contains("mark=546"),
        "{}",
        listed()
    );

    assert_eq!(
        conntrack::delete(&pod.netns, &[Select::Transparent])
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        conntrack::delete(&pod.netns, &[Select::CapturedUdp])
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        conntrack::delete(&pod.netns, &[Select::Captured, Select::Dns])
            .await
            .unwrap(),
        0
    );
    assert!(
        listed().contains("dport=9999") && !listed().contains("dport=53 "),
        "{}",
        listed()
    );
}

async fn old_connections_live_on_and_new_ones_are_captured(backend: Backend) {
    let Some(world) = World::new("old_connections_live_on_and_new_ones_are_captured") else {
        return;
    };
    let server = world.serve(8080);
    let mut old = world.dial(8080).unwrap();
    let (mut old_server, _) = server.accept().unwrap();
    assert_alive(&mut old, &mut old_server);

    let pod = world.located().await;
    let listeners = Listeners::open(&pod.netns, false, ProxyMark::WellKnown)
        .await
        .unwrap();
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    assert_alive(&mut old, &mut old_server);
    let new = world.dial(8080).unwrap();
    assert_eq!(
        listeners.reset_waiting(),
        1,
        "the new connection waits at the proxy's port"
    );
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "and not at the application's");
    let ended = std::io::Read::read(&mut &new, &mut [0; 1]).unwrap_err();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);

    capture.drain(&pod).await.unwrap();
    drop(listeners);
    capture.remove(&pod).await.unwrap();
    assert_alive(&mut old, &mut old_server);
    server.set_nonblocking(false).unwrap();
    let mut plain = world.dial(8080).unwrap();
    let (mut plain_server, _) = server.accept().unwrap();
    assert_alive(&mut plain, &mut plain_server);
}

async fn captured_connections_live_on_when_a_captured_pod_is_joined_again(backend: Backend) {
    let Some(world) = World::new("captured_connections_live_on_when_a_captured_pod_is_joined_again") else {
        return;
    };
    let pod = world.located().await;
    let listeners = Listeners::open(&pod.netns, false, ProxyMark::WellKnown)
        .await
        .unwrap();
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    let mut caller = world.dial(8080).unwrap();
    let inbound = TcpListener::from(listeners.fds()[1].try_clone_to_owned().unwrap());
    let (mut proxy, _) = inbound.accept().unwrap();
    proxy.set_nonblocking(false).unwrap();
    assert_alive(&mut caller, &mut proxy);

    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    assert_alive(&mut caller, &mut proxy);
    capture.drain(&pod).await.unwrap();
    assert_alive(&mut caller, &mut proxy);
    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    assert_alive(&mut caller, &mut proxy);
}

#[tokio::test]
async fn a_port_that_the_application_uses_is_named() {
    let Some(world) = World::new("a_port_that_the_application_uses_is_named") else {
        return;
    };
    let application = world.serve(15006);
    let error = Listeners::open(&world.pod, false, ProxyMark::WellKnown)
        .await
        .unwrap_err();
    assert_eq!(error.reason().token(), "port_taken");
    assert!(error.to_string().contains("15006"), "{error}");
    drop(application);
    // A program that another test starts holds our sockets too, from its fork until it is loaded.
    let free = async {
        while Listeners::open(&world.pod, false, ProxyMark::WellKnown)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, free)
        .await
        .expect("nothing of the failed attempt stayed open");
}

#[tokio::test]
async fn nobody_shares_the_ports_of_the_listeners() {
    let Some(world) = World::new("nobody_shares_the_ports_of_the_listeners") else {
        return;
    };
    let listeners = Listeners::open(&world.pod, true, ProxyMark::WellKnown)
        .await
        .unwrap();
    assert_eq!(listeners.kinds().len(), 7, "three for TCP, four for DNS");
    for port in [15001, 15006, 15008] {
        let thief = world.pod.run(move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_port(true)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())
        });
        assert_eq!(thief.unwrap().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    }
    let marked = tulle_agent::sock_diag::marked_sockets(&world.pod, ProxyMark::WellKnown)
        .await
        .unwrap();
    assert_eq!(
        marked.iter().filter(|socket| socket.listening).count(),
        5,
        "{marked:?}"
    );
}

/// What a listener of the proxy accepts, and where it was meant to go.
fn accept_captured(listener: BorrowedFd<'_>) -> (TcpStream, SocketAddr) {
    let listener = TcpListener::from(listener.try_clone_to_owned().unwrap());
    // The caller's last word of the handshake may still be on its way.
    listener.set_nonblocking(false).unwrap();
    let (captured, from) = listener.accept().unwrap();
    captured.set_nonblocking(false).unwrap();
    let socket = socket2::SockRef::from(&captured);
    let meant = match from.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let meant = meant.unwrap().as_socket().unwrap();
    (captured, meant)
}

async fn both_families_are_captured_both_ways(backend: Backend) {
    let Some(world) = World::new("both_families_are_captured_both_ways") else {
        return;
    };
    let pod = world.located().await;
    assert!(pod.ipv6);
    let listeners = Listeners::open(&pod.netns, false, ProxyMark::WellKnown)
        .await
        .unwrap();
    let capture = Capture::new(backend.rules(), ProxyMark::WellKnown);
    capture.install(&pod, &table(), Existing::Keep).await.unwrap();
    let ways = [
        (&world.outside, IpAddr::V4(POD), 1),
        (&world.outside, IpAddr::V6(POD6), 1),
        (&world.pod, IpAddr::V4(OUTSIDE), 0),
        (&world.pod, IpAddr::V6(OUTSIDE6), 0),
    ];
    for (from, to, listener) in ways {
        let to = SocketAddr::new(to, 8080);
        let dial = move || TcpStream::connect_timeout(&to, PATIENCE);
        let mut caller = from.run(dial).unwrap().unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut captured, meant) = accept_captured(listeners.fds()[listener]);
        assert_eq!(meant, to);
        assert_alive(&mut caller, &mut captured);
    }
}
