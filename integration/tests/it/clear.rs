//! What is said in clear, and what comes in clear: nothing, while rules are replaced and pods die, on no interface.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tulle_integration::http::{self, App, get};
use tulle_integration::mesh::eventually;
use tulle_integration::storm::Storm;
use tulle_integration::traffic::{Echo, Pinned, assert_echo, call, gets_through};
use tulle_integration::{TestMesh, manifest};
use tulle_world::{Component, Pod, Recorder, Sought};

/// Port of tunnels.
const HBONE: u16 = 15008;

/// How often rules are replaced; ten times as often in the scenario F07.
const REPLACED: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r401_no_plain_caller_is_let_in_while_rules_are_replaced_and_the_agent_restarts() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let outsider = mesh.stranger("n1", "outsider").await;
    let echo = Echo::start(db.namespace(), db.ipv4(), 8080).await;
    assert_echo(outsider.namespace(), echo.address()).await;
    mesh.apply("strict", &manifest::strict());
    let refused = eventually(async || !gets_through(outsider.namespace(), echo.address()).await);
    assert!(refused.await, "{}", mesh.logs());

    let let_in = || {
        let outside = IpAddr::from(outsider.ipv4());
        echo.peers().iter().filter(|peer| peer.ip() == outside).count()
    };
    let before = let_in();
    let hammer = Storm::start(outsider.namespace(), &[echo.address()], 2);
    let pinned = Pinned::open(web.namespace(), echo.address(), 5).await;
    for round in 0..REPLACED {
        mesh.replace_rules(&db, round % 2 == 1).await;
    }
    for _ in 0..2 {
        let agent = Component::Agent("n2".into());
        mesh.mesh.kill(&agent).unwrap();
        mesh.mesh.start_agent(&mesh.world, "n2").unwrap();
        mesh.mesh.wait_ready(&agent).await.unwrap();
    }
    let hammered = hammer.end().await;
    assert!(hammered.failed > REPLACED as u64, "{} tries", hammered.failed);
    assert_eq!((hammered.done, let_in()), (0, before), "{}", mesh.logs());
    assert_eq!(pinned.lost(), 0, "{}", mesh.logs());
}

/// Connections of an application that has its own idea of when to end.
struct Talkers(Vec<TcpStream>);

impl Talkers {
    async fn connect(from: &Pod, to: SocketAddr, count: usize) -> Self {
        let connect = move || -> std::io::Result<Vec<TcpStream>> {
            (0..count).map(|_| TcpStream::connect(to)).collect()
        };
        let streams = from.namespace().run_async(connect).await.unwrap().unwrap();
        for stream in &streams {
            stream.set_nonblocking(true).unwrap();
        }
        Self(streams)
    }

    /// Writes more than a reader has taken yet; whether the other end is still there does not matter.
    fn write(&mut self) {
        for stream in &mut self.0 {
            let _ = stream.write(&[b'x'; 64 * 1024]);
        }
    }

    /// Ends half of what is open by FIN, and half by RST.
    fn end(self) {
        for (at, stream) in self.0.into_iter().enumerate() {
            let linger = (at % 2 == 1).then_some(Duration::ZERO);
            socket2::SockRef::from(&stream).set_linger(linger).unwrap();
        }
    }
}

/// Frames of TCP in clear, of a pod, that were seen until now.
///
/// A caller from the node itself is let in by the proxy no more, and its SYN and the answer are two frames in clear: once they
/// were counted, so was everything before them.
async fn seen_in_clear(mesh: &TestMesh, recorder: &Recorder, pod: &Pod) -> u64 {
    let to = SocketAddr::new(pod.ipv4().into(), 9);
    let node = mesh.world.node(pod.node()).unwrap().namespace();
    let refused = node.run_async(move || TcpStream::connect(to)).await.unwrap();
    assert!(refused.is_err(), "nobody listens there");
    let counted = eventually(async || recorder.seen().marked_frames >= 2).await;
    assert!(
        counted,
        "the recorder sees what is in clear: {:?}",
        recorder.seen()
    );
    recorder.seen().marked_frames - 2
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r402_what_a_dying_pod_still_sends_never_leaves_in_clear() {
    let (mut mesh, web, db) = TestMesh::pair().await;
    let addresses = vec![IpAddr::from(web.ipv4()), web.ipv6().into()];
    let sought = Sought::Streams {
        of: addresses,
        but: HBONE,
    };
    let recorder = mesh.world.record_node("n1", &sought).unwrap();
    let (mut talkers, mut echoes) = (Vec::new(), Vec::new());
    for address in [IpAddr::from(db.ipv4()), db.ipv6().into()] {
        let echo = Echo::start(db.namespace(), address, 8080).await;
        assert_echo(web.namespace(), echo.address()).await;
        for _ in 0..3 {
            talkers.push(Talkers::connect(&web, echo.address(), 8).await);
        }
        echoes.push(echo);
    }
    talkers.iter_mut().for_each(Talkers::write);

    // Some end while all is well, some when their proxy is dead, some when nobody serves the pod any more.
    let [mut after_proxy, mut after_pod] = [Vec::new(), Vec::new()];
    for (at, mut group) in talkers.into_iter().enumerate() {
        group.write();
        match at % 3 {
            0 => group.end(),
            1 => after_proxy.push(group),
            _ => after_pod.push(group),
        }
    }
    let proxy = Component::Ztunnel("n1".into());
    mesh.mesh.kill(&proxy).unwrap();
    for mut group in after_proxy {
        group.write();
        group.end();
    }
    mesh.mesh.start_ztunnel(&mesh.world, "n1").unwrap();
    mesh.mesh.wait_ready(&proxy).await.unwrap();
    let late = Echo::start(db.namespace(), db.ipv4(), 8081).await;
    assert_echo(web.namespace(), late.address()).await;
    after_pod.push(Talkers::connect(&web, late.address(), 8).await);

    mesh.forget(&web);
    // Unknown is what it is once everything of it has been let go.
    let let_go = eventually(async || mesh.state(&web).await.is_empty());
    assert!(let_go.await, "{}", mesh.logs());
    for mut group in after_pod {
        group.write();
        group.end();
    }
    for _ in 0..5 {
        let refused = call(web.namespace(), late.address(), b"too late").await;
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(
        seen_in_clear(&mesh, &recorder, &web).await,
        0,
        "of {:?}\n{}",
        recorder.seen(),
        mesh.logs()
    );
    assert!(recorder.seen().frames > 100, "{:?}", recorder.seen());
}

/// What every piece of payload carries.
const MARKER: &str = "sentinel-4f1c9a";

/// Recorders on every interface of both nodes, and a word in clear between pods that are no part of the mesh.
struct Sentinels {
    recorders: Vec<Recorder>,
    from: Pod,
    /// Never read, and open: else the kernel would send each word back.
    hears: UdpSocket,
}

impl Sentinels {
    async fn start(mesh: &mut TestMesh) -> Self {
        let sought = Sought::Marker(MARKER.as_bytes().to_vec());
        let recorders = ["n1", "n2"].map(|node| mesh.world.record_node(node, &sought).unwrap());
        let from = mesh.stranger("n1", "outside-1").await;
        let to = mesh.stranger("n2", "outside-2").await;
        let address = SocketAddr::new(to.ipv4().into(), 9);
        let hears = to.namespace().run_async(move || UdpSocket::bind(address)).await;
        Self {
            recorders: recorders.into(),
            from,
            hears: hears.unwrap().unwrap(),
        }
    }

    /// Frames with the marker that were seen until now, of which these datagrams are two on each node: one by the link of a
    /// pod, one by the link of the node. Once they were counted, so was everything before them.
    async fn seen(&self, words: u64) -> Vec<u64> {
        let address = self.hears.local_addr().unwrap();
        let say = move || UdpSocket::bind("0.0.0.0:0")?.send_to(MARKER.as_bytes(), address);
        self.from.namespace().run_async(say).await.unwrap().unwrap();
        let counts = || -> Vec<u64> {
            let seen = self
                .recorders
                .iter()
                .map(|recorder| recorder.seen().marked_frames);
            seen.collect()
        };
        let heard = eventually(async || counts().iter().all(|&count| count >= 2 * words)).await;
        assert!(heard, "recorders do not hear what is in clear: {:?}", counts());
        counts()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r403_no_interface_of_a_node_carries_what_the_mesh_carries_in_clear() {
    for way in ["inprocess", "hbone"] {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.environment("TULLE_SAME_NODE", way);
        let web = mesh.pod("n1", "web").await;
        let near = mesh.pod("n1", "near").await;
        let server = mesh.pod("n2", "server").await;
        let service: IpAddr = [10, 96, 0, 70].into();
        mesh.apply("server-service", &manifest::fronted("server", service, "way"));
        mesh.start().await;
        mesh.captured(&[&web, &near, &server]).await;
        mesh.start_waypoint("n2", manifest::NAMESPACE, "way").await;
        let sentinels = Sentinels::start(&mut mesh).await;
        assert_eq!(sentinels.seen(1).await, [2, 2], "in clear it is heard");

        for (pod, address) in [
            (&near, IpAddr::from(near.ipv4())),
            (&near, near.ipv6().into()),
            (&server, server.ipv4().into()),
            (&server, server.ipv6().into()),
        ] {
            let echo = Echo::start(pod.namespace(), address, 9090).await;
            for from in [&web, &near, &server] {
                let answer = call(from.namespace(), echo.address(), MARKER.as_bytes()).await;
                let answer = answer
                    .unwrap_or_else(|error| panic!("{} to {address}: {error}\n{}", from.name(), mesh.logs()));
                assert_eq!(answer, MARKER.as_bytes());
            }
        }
        let app = App::start(&server, 8080).await;
        let path = format!("/{MARKER}");
        let by_waypoint = eventually(async || {
            let answer = http::ask(web.namespace(), (service, 80).into(), get(&path)).await;
            answer.is_ok_and(|answer| answer.status == 200)
        });
        assert!(by_waypoint.await, "{}", mesh.logs());
        assert!(app.seen().iter().any(|seen| seen.target.contains(MARKER)));
        assert_eq!(
            sentinels.seen(2).await,
            [4, 4],
            "{way}: nothing but the two words"
        );
        let read: u64 = sentinels
            .recorders
            .iter()
            .map(|recorder| recorder.seen().bytes)
            .sum();
        eprintln!("{way}: {read} bytes of frames were looked through");
    }
}
