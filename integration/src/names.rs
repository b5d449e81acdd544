//! Questions for names that pods ask, and name servers in pods, moody ones among them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tulle_linux::NetNs;
use tulle_world::Pod;

use crate::TestMesh;
use crate::mesh::PATIENCE;

/// What the name server outside answers for every name.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// What only a liar answers with.
pub const LIE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// For how long answers may be kept.
pub const TTL: Duration = Duration::from_secs(60);
/// Type of a record with an IPv4 address.
const A: &[u8] = &[0, 1];
/// Type of a record with an IPv6 address.
const AAAA: &[u8] = &[0, 28];
/// How long a slow server takes.
const SLOW: Duration = Duration::from_secs(5);

/// A question for the IPv4 address of a name.
#[must_use]
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The name in a question.
fn name_in(question: &[u8]) -> String {
    let (mut labels, mut rest) = (Vec::new(), question.get(12..).unwrap_or_default());
    while let [length @ 1..=63, after @ ..] = rest {
        let (label, next) = after.split_at(usize::from(*length).min(after.len()));
        labels.push(String::from_utf8_lossy(label).into_owned());
        rest = next;
    }
    labels.join(".")
}

/// The question again, with one address.
fn answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut message = question[..end].to_vec();
    message[2] = 0x81;
    message[3] = 0x80;
    message[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
    message.extend([0xc0, 12, 0, 1, 0, 1]);
    message.extend(u32::try_from(TTL.as_secs()).unwrap().to_be_bytes());
    message.extend([0, 4]);
    message.extend(address.octets());
    message
}

/// The address at the end of an answer.
#[must_use]
pub fn address_in(message: &[u8]) -> Option<Ipv4Addr> {
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let last: [u8; 4] = message.get(message.len().checked_sub(4)?..)?.try_into().ok()?;
    (answers > 0).then(|| last.into())
}

/// Every address of an answer, sorted; nothing if it is cut short.
#[must_use]
pub fn addresses_in(message: &[u8]) -> Option<Vec<IpAddr>> {
    let answers = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    let mut rest = after_name(message.get(12..)?)?.get(4..)?;
    let mut addresses = Vec::new();
    for _ in 0..answers {
        let record = after_name(rest)?;
        let (kind, length) = (record.get(..2)?, record.get(8..10)?);
        let end = 10 + usize::from(u16::from_be_bytes(length.try_into().ok()?));
        let data = record.get(10..end)?;
        match kind {
            A => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            AAAA => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => {}
        }
        rest = record.get(end..)?;
    }
    addresses.sort();
    Some(addresses)
}

/// What follows a name, which ends by itself or in a reference to an earlier one.
fn after_name(mut message: &[u8]) -> Option<&[u8]> {
    loop {
        match message {
            [0, rest @ ..] | [0xc0..=0xff, _, rest @ ..] => return Some(rest),
            [length, rest @ ..] => message = rest.get(usize::from(*length)..)?,
            [] => return None,
        }
    }
}

/// A name server in a pod, over UDP and TCP.
pub fn serve(pod: &Pod) {
    serve_as(pod, OUTSIDE);
}

/// As [`serve`], with another address for every name.
pub fn serve_as(pod: &Pod, address: Ipv4Addr) {
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
#[must_use]
pub fn exchange_udp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Vec<u8>> {
    exchange(from, server, question(7, name))
}

fn exchange(from: &NetNs, server: Ipv4Addr, message: Vec<u8>) -> Option<Vec<u8>> {
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

/// The address that a name is answered with over UDP.
#[must_use]
pub fn ask_udp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
    address_in(&exchange_udp(from, server, name)?)
}

/// Every IPv4 address that a name is answered with over UDP, sorted.
#[must_use]
pub fn ask_all(from: &NetNs, server: Ipv4Addr, name: &str) -> Vec<IpAddr> {
    let answer = exchange_udp(from, server, name);
    answer
        .and_then(|answer| addresses_in(&answer))
        .unwrap_or_default()
}

/// The code of an answer to a question for IPv6 addresses, and all of them.
#[must_use]
pub fn ask_v6(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<(u8, Vec<IpAddr>)> {
    let mut message = question(11, name);
    let kind = message.len() - 4;
    message[kind..kind + 2].copy_from_slice(AAAA);
    let answer = exchange(from, server, message)?;
    Some((answer[3] & 0xf, addresses_in(&answer)?))
}

/// The same as [`ask_udp`] over TCP.
#[must_use]
pub fn ask_tcp(from: &NetNs, server: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
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
pub fn resolve_by(mesh: &TestMesh, pod: &Pod, server: &Pod) {
    let folder = mesh.world.resolver_dir().join(pod.name());
    std::fs::create_dir_all(&folder).unwrap();
    let settings = format!(
        "nameserver {}\nsearch app.svc.cluster.local svc.cluster.local\n",
        server.ipv4()
    );
    std::fs::write(folder.join("resolv.conf"), settings).unwrap();
}

/// What a moody name server does with every question over UDP; over TCP it always answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Says what is so.
    Answers,
    /// Says nothing.
    Dead,
    /// Says SERVFAIL.
    Fails,
    /// Says what is so, late.
    Slow,
    /// Says NXDOMAIN.
    Denies,
    /// Says that the answer is too long.
    Truncates,
    /// Says what is not so, in replies that are no answers to the question.
    Lies,
}

/// A name server whose mood can be changed, and that remembers what it is asked.
#[derive(Debug)]
pub struct Moody {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Moody {
    /// Listens at port 53 of a pod, over UDP.
    #[must_use]
    pub fn start(pod: &Pod) -> Self {
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
                asked.lock().push(name_in(&buffer[..length]));
                let (mood, query) = (*mood.lock(), buffer[..length].to_vec());
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

    /// From now on.
    pub fn becomes(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    /// The names it was asked for.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
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
#[must_use]
pub fn said(answer: Option<Vec<u8>>) -> Option<(u8, Option<Ipv4Addr>)> {
    let answer = answer?;
    Some((answer[3] & 0xf, address_in(&answer)))
}

/// The code of an answer that says that the server failed.
pub const SERVFAIL: u8 = 2;
/// The code of an answer that says that there is no such name.
pub const NXDOMAIN: u8 = 3;

/// A mesh that is not started, with two pods of one node, whose settings name a server each.
pub async fn two_resolvers() -> (TestMesh, [Pod; 2], [Pod; 2]) {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let web = mesh.pod("n1", "web").await;
    let job = mesh.pod("n1", "job").await;
    let server = mesh.stranger("n2", "nameserver").await;
    let other = mesh.stranger("n2", "another").await;
    resolve_by(&mesh, &web, &server);
    resolve_by(&mesh, &job, &other);
    (mesh, [web, job], [server, other])
}
