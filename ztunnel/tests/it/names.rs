//! Names, asked for by clients that build their questions by hand.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tulle_linux::NetNs;
use tulle_proto::zds;
use tulle_proto::zds::sockets::Kind;
use tulle_proto::zds::workload_request::Payload;
use tulle_runtime::tasks;

use crate::agent::{Agent, add, namespace, snapshot_sent};
use crate::captured::{DB, Pods, WEB, mesh, run};
use crate::world::{SOON, World, until_counted, updates};

const DB_SERVICE: &str = "services:\n\
    - {name: db, namespace: shop, hostname: db.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}}\n";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.parse().unwrap(), kind));
    message.to_vec().unwrap()
}

async fn ask_over(socket: &UdpSocket, question: &[u8]) -> Message {
    socket.send(question).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask(server: SocketAddr, question: &[u8]) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    ask_over(&socket, question).await
}

/// Two questions at once on one connection, answered in their order.
async fn ask_twice_on_a_stream(stream: &mut TcpStream, question: &[u8]) -> Vec<Message> {
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    let framed = [&length[..], question].concat();
    stream.write_all(&framed.repeat(2)).await.unwrap();
    let mut replies = Vec::new();
    for _ in 0..2 {
        let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await.unwrap();
        replies.push(Message::from_vec(&reply).unwrap());
    }
    replies
}

fn told(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_mesh_are_answered_over_datagrams_and_streams() {
    let world = World::start("").await;
    world.apply(DB_SERVICE);
    let reply = ask(world.names, &question("db.", RecordType::A)).await;
    assert_eq!((reply.id, reply.response_code), (7, ResponseCode::NoError));
    assert!(reply.authoritative);
    assert_eq!(told(&reply), ["10.96.0.1"]);
    let mut stream = TcpStream::connect(world.names).await.unwrap();
    for reply in ask_twice_on_a_stream(&mut stream, &question("db.shop.", RecordType::A)).await {
        assert_eq!(told(&reply), ["10.96.0.1"]);
    }
    let labels = |protocol| {
        format!(
            "istio_dns_requests_total{{request_query_type=\"a\",request_protocol=\"{protocol}\",\
             source_canonical_service=\"web\",source_canonical_revision=\""
        )
    };
    world.until_counted(&labels("udp")).await;
    world.until_counted(&labels("tcp")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_question_is_refused() {
    let world = World::start("").await;
    let mut update = question("db.", RecordType::A);
    update[2] |= u8::from(OpCode::Update) << 3;
    let reply = ask(world.names, &update).await;
    assert_eq!((reply.id, reply.response_code), (7, ResponseCode::NotImp));
    let reply = ask(world.names, &question("db.", RecordType::A)[..19]).await;
    assert_eq!(reply.response_code, ResponseCode::FormErr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_is_not_known_is_told_so() {
    let ca = std::sync::Arc::new(tulle_identity::testing::TestCa::new());
    let world = World::serve("shop/nobody/nobody", DB_SERVICE, ca).await;
    let reply = ask(world.names, &question("db.shop.", RecordType::A)).await;
    assert_eq!(reply.response_code, ResponseCode::ServFail);
}

/// What the agent's packet rules add for names.
const RULES: &str = r#"
table inet names {
    chain raw-pre { type filter hook prerouting priority raw; policy accept;
        iifname != "lo" udp sport 53 ct zone set 1
    }
    chain raw-out { type filter hook output priority raw; policy accept;
        meta mark & 0xfff == 0x539 udp dport 53 ct zone set 1
    }
    chain nat-out { type nat hook output priority -101; policy accept;
        oifname "lo" accept
        meta mark & 0xfff == 0x539 accept
        udp dport 53 ct mark set ct mark & 0xfffff000 | 0x222 redirect to :15053
        tcp dport 53 ct mark set ct mark & 0xfffff000 | 0x222 redirect to :15053
    }
}
"#;

/// A name server that nobody is: what is sent to it is captured.
const NOBODY: &str = "10.78.0.53:53";

/// A pod whose names are captured, and a name server in the other pod.
async fn captured() -> Option<(Pods, Agent)> {
    let made = Pods::make().and_then(|pods| {
        run(&pods.web, &format!("nft -f - <<'RULES'\n{RULES}\nRULES"))?;
        Ok(pods)
    });
    let pods = match made {
        Ok(pods) => pods,
        Err(error) => {
            eprintln!("skipped: captured pods cannot be made here: {error}");
            return None;
        }
    };
    name_server(&pods.db).await;
    let agent = Agent::start().await;
    agent.app.node().mesh.apply(updates(&mesh()));
    let Payload::Add(mut web) = add("web", &[]) else {
        panic!("an add")
    };
    web.dns = Some(zds::PodDns {
        nameservers: vec![DB.to_owned()],
        ..zds::PodDns::default()
    });
    agent.assert_done(Payload::Add(web), &[pods.web.fd()]).await;
    agent.assert_done(snapshot_sent(), &[]).await;
    Some((pods, agent))
}

/// Tells everyone the address they ask from.
async fn name_server(netns: &NetNs) {
    let opened = netns.run_async(|| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)));
    let socket = opened.await.unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    tasks::spawn("name-server", async move {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.id, OpCode::Query);
            let name = query.queries[0].name().clone();
            reply.add_queries(query.queries.clone());
            let data = RData::TXT(TXT::new(vec![client.ip().to_string()]));
            reply.add_answer(Record::from_rdata(name, 5, data));
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_pod_is_answered_as_if_by_its_name_server() {
    let Some((pods, agent)) = captured().await else {
        return;
    };
    let opened = pods.web.run_async(|| {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Connected, so that replies count only from the address that was asked.
        socket.connect(NOBODY)?;
        socket.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    let socket = UdpSocket::from_std(opened.await.unwrap().unwrap()).unwrap();
    let reply = ask_over(&socket, &question("db.", RecordType::A)).await;
    assert_eq!(told(&reply), ["10.78.0.1"]);
    let reply = ask_over(&socket, &question("who.example.com.", RecordType::TXT)).await;
    assert_eq!(told(&reply), [WEB], "asked from the pod, past the rules");
    assert_eq!((reply.id, reply.answers[0].ttl), (7, 5));
    let forwarded = "istio_dns_upstream_requests_total{request_query_type=\"txt\"";
    until_counted(agent.app.exposition(), forwarded).await;

    let opened = pods.web.run_async(|| {
        let stream = std::net::TcpStream::connect_timeout(&NOBODY.parse().unwrap(), SOON)?;
        stream.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let mut stream = TcpStream::from_std(opened.await.unwrap().unwrap()).unwrap();
    for reply in ask_twice_on_a_stream(&mut stream, &question("db.", RecordType::A)).await {
        assert_eq!(told(&reply), ["10.78.0.1"]);
    }
}

/// What an agent opens that captures names, without IPv6.
fn listeners(netns: &NetNs) -> Vec<(Kind, OwnedFd)> {
    let open = || {
        let tcp = |address| OwnedFd::from(std::net::TcpListener::bind(address).unwrap());
        let udp = std::net::UdpSocket::bind("127.0.0.1:15053").unwrap();
        vec![
            (Kind::Outbound, tcp("0.0.0.0:15001")),
            (Kind::InboundPlain, tcp("0.0.0.0:15006")),
            (Kind::InboundHbone, tcp("0.0.0.0:15008")),
            (Kind::DnsUdp4, udp.into()),
            (Kind::DnsTcp4, tcp("127.0.0.1:15053")),
        ]
    };
    netns.run(open).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_s_sockets_for_names_are_used_and_given_back() {
    let Some(netns) = namespace() else { return };
    if run(&netns, "ip link set lo up").is_err() {
        eprintln!("skipped: loopback cannot be brought up here");
        return;
    }
    let agent = Agent::start().await;
    agent.app.node().mesh.apply(updates(&mesh()));
    let handed = listeners(&netns);
    let kinds: Vec<_> = handed.iter().map(|(kind, _)| *kind).collect();
    let fds: Vec<_> = std::iter::once(netns.fd())
        .chain(handed.iter().map(|(_, fd)| fd.as_fd()))
        .collect();
    agent.assert_done(add("web", &kinds), &fds).await;
    drop(fds);
    drop(handed);
    let opened = netns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.connect("127.0.0.1:15053")?;
        socket.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    let socket = UdpSocket::from_std(opened.unwrap().unwrap()).unwrap();
    let reply = ask_over(&socket, &question("db.", RecordType::A)).await;
    assert_eq!(told(&reply), ["10.78.0.1"]);
    let back = zds::ReturnSockets {
        uid: "web".to_owned(),
    };
    let (error, returned, copies) = agent.ask(Payload::ReturnSockets(back), &[]).await;
    assert_eq!((error.as_str(), &returned, copies.len()), ("", &kinds, 5));
}
