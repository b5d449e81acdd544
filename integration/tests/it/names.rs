//! Names that a captured pod asks for.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tulle_integration::{TestMesh, manifest};
use tulle_linux::NetNs;
use tulle_world::Pod;

/// What the name server outside answers for every name.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);
const PATIENCE: Duration = Duration::from_secs(20);

/// A question for the IPv4 address of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The question again, with one address.
fn answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut message = question[..end].to_vec();
    message[2] = 0x81;
    message[3] = 0x80;
    message[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    message
}

/// The address at the end of an answer.
fn address_in(message: &[u8]) -> Option<Ipv4Addr> {
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let last: [u8; 4] = message.get(message.len().checked_sub(4)?..)?.try_into().ok()?;
    (answers > 0).then(|| last.into())
}

/// A name server in a pod, over UDP and TCP.
fn serve(pod: &Pod) {
    serve_as(pod, OUTSIDE);
}

/// As [`serve`], with another address for every name.
pub(crate) fn serve_as(pod: &Pod, address: Ipv4Addr) {
    let at = SocketAddr::from((pod.ipv4(), 53));
    let (udp, tcp) = pod
        .namespace()
        .run(move || {
            (
                UdpSocket::bind(at).unwrap(),
                std::net::TcpListener::bind(at).unwrap(),
            )
        })
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..length], address), from);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut message).unwrap();
                let reply = answer(&message, address);
                let _ = stream.write_all(&u16::try_from(reply.len()).unwrap().to_be_bytes());
                let _ = stream.write_all(&reply);
            }
        }
    });
}

/// What a question is answered with.
fn exchange_udp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Vec<u8>> {
    let message = question(7, name);
    let asked = from.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&message, (server, 53))?;
        let mut buffer = [0; 1500];
        let (length, replier) = socket.recv_from(&mut buffer)?;
        assert_eq!(
            replier,
            SocketAddr::from((server, 53)),
            "the answer comes from who was asked"
        );
        std::io::Result::Ok(buffer[..length].to_vec())
    });
    asked.unwrap().ok()
}

fn ask_udp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
    address_in(&exchange_udp(from, server, name)?)
}

fn ask_tcp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
    let message = question(9, name);
    let asked = from.run(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes())?;
        stream.write_all(&message)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        std::io::Result::Ok(reply)
    });
    address_in(&asked.unwrap().ok()?)
}

/// Names a pod's name server in its settings.
pub(crate) fn resolve_by(mesh: &TestMesh, pod: &Pod, server: &Pod) {
    let folder = mesh.world.resolver_dir().join(pod.name());
    std::fs::create_dir_all(&folder).unwrap();
    let settings = format!(
        "nameserver {}\nsearch app.svc.cluster.local svc.cluster.local\n",
        server.ipv4()
    );
    std::fs::write(folder.join("resolv.conf"), settings).unwrap();
}

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

/// What a moody name server does with every question over UDP; over TCP it always answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Answers,
    Dead,
    Fails,
    Slow,
    Denies,
    Truncates,
    Lies,
}

/// How long a slow server takes.
const SLOW: Duration = Duration::from_secs(5);
/// What only a liar answers with.
const LIE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// A name server whose mood can be changed, and that counts what it is asked.
struct Moody {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
}

impl Moody {
    fn start(pod: &Pod) -> Self {
        let moody = Self {
            mood: Arc::new(Mutex::new(Mood::Answers)),
            asked: Arc::default(),
        };
        let at = SocketAddr::from((pod.ipv4(), 53));
        let socket = pod.namespace().run(move || UdpSocket::bind(at).unwrap()).unwrap();
        let (mood, asked) = (Arc::clone(&moody.mood), Arc::clone(&moody.asked));
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                asked.fetch_add(1, Ordering::Relaxed);
                let (mood, query) = (*mood.lock().unwrap(), buffer[..length].to_vec());
                let socket = socket.try_clone().unwrap();
                // A slow answer keeps no other waiting.
                std::thread::spawn(move || {
                    for reply in replies(mood, &query) {
                        let _ = socket.send_to(&reply, from);
                    }
                });
            }
        });
        moody
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn replies(mood: Mood, query: &[u8]) -> Vec<Vec<u8>> {
    let code = |code: u8| {
        let mut message = answer(query, OUTSIDE);
        let records = message.len() - 16;
        message.truncate(records);
        message[3] |= code;
        message[6..8].copy_from_slice(&[0, 0]);
        message
    };
    match mood {
        Mood::Answers => vec![answer(query, OUTSIDE)],
        Mood::Dead => Vec::new(),
        Mood::Fails => vec![code(2)],
        Mood::Denies => vec![code(3)],
        Mood::Truncates => {
            let mut cut = code(0);
            cut[2] |= 2;
            vec![cut]
        }
        Mood::Slow => {
            let due = Instant::now() + SLOW;
            while let Some(left) = due
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            {
                std::thread::park_timeout(left);
            }
            vec![answer(query, OUTSIDE)]
        }
        Mood::Lies => {
            let lie = answer(query, LIE);
            let (mut other_id, mut other_name) = (lie.clone(), lie.clone());
            other_id[0] ^= 0x55;
            other_name[13] ^= 1;
            vec![other_id, other_name, vec![0xff; 40], lie[..7].to_vec()]
        }
    }
}

/// The code of an answer, and the address in it.
fn said(answer: Option<Vec<u8>>) -> Option<(u8, Option<Ipv4Addr>)> {
    let answer = answer?;
    Some((answer[3] & 0xf, address_in(&answer)))
}

const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

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
    // Whose server it is decides, and nobody else's: not even while it is dead, and another pod's answer is known.
    let before = moody.asked();
    assert_eq!(ask(&job, "known.example"), Some((0, Some(OUTSIDE))));
    others.becomes(Mood::Dead);
    assert_eq!(ask(&job, "of-web.example"), Some((SERVFAIL, None)));
    assert_eq!(moody.asked(), before, "no question went to another pod's server");
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

/// A mesh that is not started, with two pods whose settings name a server each.
async fn two_resolvers() -> (TestMesh, [Pod; 2], [Pod; 2]) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let server = mesh.stranger("n2", "nameserver").await;
    let other = mesh.stranger("n2", "another").await;
    resolve_by(&mesh, &web, &server);
    resolve_by(&mesh, &job, &other);
    (mesh, [web, job], [server, other])
}
