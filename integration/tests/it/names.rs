//! Names that a captured pod asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tulle_integration::names::{
    Mood, Moody, NXDOMAIN, OUTSIDE, SERVFAIL, address_in, ask_tcp, ask_udp, exchange_udp, question,
    resolve_by, said, serve, two_resolvers,
};
use tulle_integration::{TestMesh, manifest};
use tulle_world::{Component, Pod};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);

/// A mesh with a service, a pod that asks, and the name server that its settings name.
async fn world() -> (TestMesh, Pod, Pod) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let db = mesh.pod("n2", "db").await;
    let server = mesh.stranger("n2", "nameserver").await;
    serve(&server);
    resolve_by(&mesh, &web, &server);
    let addresses = [IpAddr::V4(SERVICE)];
    mesh.apply("db-service", &manifest::service("db", &addresses, &[(80, 8080)]));
    mesh.start().await;
    mesh.captured(&[&web, &db]).await;
    (mesh, web, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_mesh_and_of_the_outside_are_answered_over_udp_and_tcp() {
    let (mesh, web, server) = world().await;
    // Nobody lives at this address: only capture can answer for it.
    let nobody = Ipv4Addr::new(198, 51, 100, 53);
    for asked in [server.ipv4(), nobody] {
        for (name, address) in [
            ("db.app.svc.cluster.local", SERVICE),
            ("outside.example", OUTSIDE),
        ] {
            let (udp, tcp) = (
                ask_udp(web.namespace(), asked, name),
                ask_tcp(web.namespace(), asked, name),
            );
            assert_eq!(
                (udp, tcp),
                (Some(address), Some(address)),
                "{name} of {asked}\n{}",
                mesh.logs()
            );
        }
    }
}

/// Asks once over this socket: whether the answer came, from whom it was asked of.
fn is_answered(socket: &UdpSocket, to: SocketAddr, id: u16) -> bool {
    let mut buffer = [0; 512];
    socket.send_to(&question(id, "outside.example"), to).unwrap();
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..2] == id.to_be_bytes() && from == to => {
                return address_in(&buffer[..length]) == Some(OUTSIDE);
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_that_asks_all_the_time_is_always_answered_when_its_pod_joins_and_leaves() {
    // What is on its way in the very moment when the rules change is asked again, as every resolver does.
    const TRIES: usize = 2;
    let (mesh, web, server) = world().await;
    let (asked, again, failed, end) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let to = SocketAddr::from((server.ipv4(), 53));
    let socket = web
        .namespace()
        .run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let socket = socket.unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let client = {
        let (asked, again) = (Arc::clone(&asked), Arc::clone(&again));
        let (failed, end) = (Arc::clone(&failed), Arc::clone(&end));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let id = u16::try_from(asked.fetch_add(1, Ordering::Relaxed) % 60_000).unwrap();
                let tries = (0..TRIES).take_while(|_| !is_answered(&socket, to, id)).count();
                let counted = if tries == TRIES { &failed } else { &again };
                counted.fetch_add(u64::from(tries > 0), Ordering::Relaxed);
            }
        })
    };
    let goes_on = async |count: u64| {
        let seen = asked.load(Ordering::Relaxed);
        tulle_integration::mesh::eventually(async || asked.load(Ordering::Relaxed) > seen + count).await
    };
    assert!(goes_on(50).await);
    for enrolled in [false, true, false, true] {
        mesh.apply("namespace", &manifest::namespace(manifest::NAMESPACE, enrolled));
        if enrolled {
            mesh.captured(&[&web]).await;
        } else {
            mesh.left(&[&web]).await;
        }
        assert!(goes_on(200).await, "{}", mesh.logs());
    }
    end.store(true, Ordering::Relaxed);
    client.join().unwrap();
    let [asked, again, failed] = [asked, again, failed].map(|count| count.load(Ordering::Relaxed));
    eprintln!("{asked} questions of one socket: {again} asked again, {failed} without an answer");
    assert_eq!(failed, 0, "of {asked}\n{}", mesh.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_what_was_known_outlives_a_name_server_that_is_dead_slow_failing_or_lying() {
    let (mut mesh, [web, job], [server, other]) = two_resolvers().await;
    let (moody, others) = (Moody::start(&server), Moody::start(&other));
    mesh.start().await;
    mesh.captured(&[&web, &job]).await;
    let ask = |pod: &Pod, name: &str| said(exchange_udp(pod.namespace(), server.ipv4(), name));
    for name in ["known.example", "of-web.example"] {
        assert_eq!(ask(&web, name), Some((0, Some(OUTSIDE))), "{}", mesh.logs());
    }
    for mood in [Mood::Dead, Mood::Fails, Mood::Slow, Mood::Lies] {
        moody.becomes(mood);
        assert_eq!(
            ask(&web, "known.example"),
            Some((0, Some(OUTSIDE))),
            "{mood:?}: what was known is told\n{}",
            mesh.logs()
        );
    }
    for mood in [Mood::Dead, Mood::Fails, Mood::Lies] {
        moody.becomes(mood);
        assert_eq!(
            ask(&web, "never.example"),
            Some((SERVFAIL, None)),
            "{mood:?}: what was not known is an error\n{}",
            mesh.logs()
        );
    }
    // Silence has a reason, counted for each question and said once. Where it failed by its own word, it answered.
    let unanswered = [
        "tulle_dns_unanswered_total{",
        "code=\"T0702\"",
        "reason=\"upstream_timeout\"",
    ];
    let counted = mesh.metric("n1", &unanswered).await;
    assert!((counted - 2.0).abs() < 0.1, "{counted}\n{}", mesh.logs());
    let log = mesh.log(&Component::Ztunnel("n1".to_owned()));
    let lines: Vec<_> = log.lines().filter(|line| line.contains("T0702")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("never.example"),
        "{lines:?}"
    );
    // Whose server it is decides, and nobody else's: not even while it is dead, and another pod's answer is known.
    let before = moody.asked().len();
    assert_eq!(ask(&job, "known.example"), Some((0, Some(OUTSIDE))));
    others.becomes(Mood::Dead);
    assert_eq!(ask(&job, "of-web.example"), Some((SERVFAIL, None)));
    assert_eq!(
        moody.asked().len(),
        before,
        "no question went to another pod's server"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_a_name_server_that_answers_has_the_last_word_and_its_cut_replies_stay_cut() {
    let (mut mesh, [web, job], [server, other]) = two_resolvers().await;
    let (moody, _others) = (Moody::start(&server), Moody::start(&other));
    mesh.start().await;
    mesh.captured(&[&web, &job]).await;
    let ask = |name: &str| exchange_udp(web.namespace(), server.ipv4(), name);
    assert_eq!(
        said(ask("flips.example")),
        Some((0, Some(OUTSIDE))),
        "{}",
        mesh.logs()
    );
    moody.becomes(Mood::Denies);
    assert_eq!(said(ask("flips.example")), Some((NXDOMAIN, None)));
    moody.becomes(Mood::Dead);
    assert_eq!(
        said(ask("flips.example")),
        Some((SERVFAIL, None)),
        "what is gone is not told again"
    );
    moody.becomes(Mood::Truncates);
    let cut = ask("long.example").expect("an answer");
    assert_eq!(cut[2] & 2, 2, "TC survives");
    moody.becomes(Mood::Answers);
    assert_eq!(said(ask("flips.example")), Some((0, Some(OUTSIDE))));
}
