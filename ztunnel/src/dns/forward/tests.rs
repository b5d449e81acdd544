use std::net::Ipv4Addr;

use hickory_proto::op::{Message, Query as Question};
use hickory_proto::rr::RecordType;
use tokio::net::TcpListener;
use tulle_runtime::tasks;
use tulle_transport::socket::CurrentNamespace;

use super::super::wire::Received;
use super::*;

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn question() -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.add_query(Question::query("example.com.".parse().unwrap(), RecordType::TXT));
    message.to_vec().unwrap()
}

/// The query turned into a reply of its own, with bytes behind it that no parser knows.
fn reply_to(query: &[u8]) -> Vec<u8> {
    let mut reply = query.to_vec();
    reply[2] |= 0x80;
    reply.extend([0xde, 0xad]);
    reply
}

async fn ask(servers: &[SocketAddr], transport: Transport) -> Result<Vec<u8>, ForwardError> {
    let upstream = Upstream {
        network: Arc::new(CurrentNamespace),
        mark: None,
        servers: servers.to_vec(),
    };
    let bytes = question();
    let Received::Query(query) = Received::read(&bytes) else {
        panic!("a query")
    };
    upstream.ask(&query, transport).await
}

/// A server that answers each datagram with what `script` makes of it.
async fn server(script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind(ANY_PORT).await.unwrap();
    let address = socket.local_addr().unwrap();
    tasks::spawn("scripted-server", async move {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            for reply in script(&buffer[..length]) {
                socket.send_to(&reply, client).await.unwrap();
            }
        }
    });
    address
}

/// A port where nobody listens.
async fn nobody() -> SocketAddr {
    UdpSocket::bind(ANY_PORT).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_reply_returns_byte_for_byte_but_for_the_id() {
    let faithful = server(|query| {
        assert_eq!(query[2..], question()[2..]);
        vec![reply_to(query)]
    });
    let reply = ask(&[faithful.await], Transport::Udp).await.unwrap();
    assert_eq!(reply, reply_to(&question()));
}

#[tokio::test]
async fn f20_replies_to_other_questions_are_ignored() {
    let hostile = server(|query| {
        let changed = |at: usize| {
            let mut reply = reply_to(query);
            reply[at] ^= 1;
            reply
        };
        vec![
            changed(0),
            changed(13),
            query.to_vec(),
            vec![1, 2, 3],
            reply_to(query),
        ]
    });
    let reply = ask(&[hostile.await], Transport::Udp).await.unwrap();
    assert_eq!(reply, reply_to(&question()));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_not_there() {
    let second = server(|query| vec![reply_to(query)]).await;
    for transport in [Transport::Udp, Transport::Tcp] {
        let servers = [nobody().await, nobody().await];
        assert!(matches!(
            ask(&servers, transport).await,
            Err(ForwardError::Server { .. })
        ));
    }
    assert!(ask(&[nobody().await, second], Transport::Udp).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lost_datagram_is_sent_again_and_silence_ends() {
    let lost = std::sync::atomic::AtomicBool::new(false);
    let forgetful = server(move |query| {
        let first = !lost.swap(true, std::sync::atomic::Ordering::Relaxed);
        if first { Vec::new() } else { vec![reply_to(query)] }
    });
    assert!(ask(&[forgetful.await], Transport::Udp).await.is_ok());
    let begun = tokio::time::Instant::now();
    let silent = [server(|_| Vec::new()).await, server(|_| Vec::new()).await];
    assert!(matches!(
        ask(&silent, Transport::Udp).await,
        Err(ForwardError::NoAnswer)
    ));
    let took = begun.elapsed();
    assert!(
        took >= ANSWER_WAIT && took < ANSWER_WAIT + Duration::from_millis(50),
        "{took:?}"
    );
}

#[tokio::test]
async fn without_servers_nobody_is_asked() {
    assert!(matches!(
        ask(&[], Transport::Udp).await,
        Err(ForwardError::NoServers)
    ));
}

#[tokio::test]
async fn questions_of_streams_are_asked_on_streams() {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks::spawn("scripted-server", async move {
        for honest in [true, false] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = frame::read(&mut stream).await.unwrap().unwrap();
            if !honest {
                query[0] ^= 1;
            }
            frame::write(&mut stream, &reply_to(&query)).await.unwrap();
        }
    });
    let reply = ask(&[address], Transport::Tcp).await.unwrap();
    assert_eq!(reply, reply_to(&question()));
    let lie = ask(&[address], Transport::Tcp).await;
    assert!(matches!(lie, Err(ForwardError::Server { .. })));
}
