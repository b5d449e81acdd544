use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hickory_proto::op::{Message, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tulle_runtime::tasks;
use tulle_transport::socket::CurrentNamespace;

use super::super::wire::Received;
use super::*;

const TTL: u32 = 60;

/// What a server does with every question.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Answers = 0,
    Silent = 1,
    Fails = 2,
    Denies = 3,
}

fn question(name: &str, id: u16) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.add_query(Question::query(name.parse().unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn reply(query: &[u8], mood: u8) -> Vec<u8> {
    let asked = Message::from_vec(query).unwrap();
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.add_query(asked.queries[0].clone());
    if mood == Mood::Answers as u8 {
        let data = RData::A(A::new(192, 0, 2, 1));
        let name = asked.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, TTL, data));
    } else if mood == Mood::Fails as u8 {
        message.metadata.response_code = ResponseCode::ServFail;
    } else {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    message.to_vec().unwrap()
}

struct Server {
    mood: Arc<AtomicU8>,
    upstream: Upstream,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let servers = vec![socket.local_addr().unwrap()];
        let mood = Arc::new(AtomicU8::new(Mood::Answers as u8));
        let now = Arc::clone(&mood);
        tasks::spawn("moody-server", async move {
            let mut buffer = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                let mood = now.load(Ordering::Relaxed);
                if mood != Mood::Silent as u8 {
                    let reply = reply(&buffer[..length], mood);
                    socket.send_to(&reply, client).await.unwrap();
                }
            }
        });
        let network = Arc::new(CurrentNamespace);
        let upstream = Upstream {
            network,
            mark: None,
            servers,
        };
        Self { mood, upstream }
    }

    fn becomes(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    async fn ask(&self, stale: &Stale, question: &[u8]) -> Result<(Message, bool), ForwardError> {
        let Received::Query(query) = Received::read(question) else {
            panic!("a query")
        };
        let answered = stale.ask(&self.upstream, &query, Transport::Udp).await?;
        Ok((Message::from_vec(&answered.reply).unwrap(), answered.stale))
    }
}

#[tokio::test(start_paused = true)]
async fn f20_an_old_answer_is_served_for_its_time_and_the_cap_and_no_longer() {
    let (server, stale) = (Server::start().await, Stale::default());
    let (fresh, old) = server.ask(&stale, &question("db.example.com.", 1)).await.unwrap();
    assert_eq!((fresh.answers[0].ttl, old), (TTL, false));
    let kept_at = Instant::now();
    server.becomes(Mood::Silent);

    let begun = Instant::now();
    let mut asked = question("db.example.com.", 2);
    // The first letter of the name, as clients write it that make replies harder to guess.
    asked[13] = b'D';
    let (served, old) = server.ask(&stale, &asked).await.unwrap();
    assert!(
        old && begun.elapsed() <= PATIENCE + Duration::from_millis(10),
        "soon enough for its client"
    );
    assert_eq!(served.metadata.id, 2, "it is a reply to this question");
    let Received::Query(query) = Received::read(&asked) else {
        panic!("a query")
    };
    let reply = stale.find(&query).unwrap();
    assert_eq!(
        reply[12..asked.len()],
        asked[12..],
        "the question as it was asked"
    );
    assert_eq!(served.answers[0].ttl, 30, "a client asks again soon");
    assert_eq!(served.answers[0].data, fresh.answers[0].data);

    let end = kept_at + Duration::from_secs(u64::from(TTL)) + STALE_MAX;
    tokio::time::advance(end - Instant::now() - Duration::from_secs(5)).await;
    let (last, old) = server.ask(&stale, &question("db.example.com.", 3)).await.unwrap();
    assert!(
        old && last.answers[0].ttl <= 5,
        "not kept by clients beyond the end: {last:?}"
    );
    tokio::time::advance(Duration::from_secs(5)).await;
    let ended = server.ask(&stale, &question("db.example.com.", 4)).await;
    assert!(matches!(ended, Err(ForwardError::NoAnswer)));
}

#[tokio::test(start_paused = true)]
async fn f20_a_server_that_fails_says_nothing_of_the_name() {
    let (server, stale) = (Server::start().await, Stale::default());
    let asked = question("db.example.com.", 1);
    server.becomes(Mood::Fails);
    let (failure, old) = server.ask(&stale, &asked).await.unwrap();
    assert_eq!(
        (failure.metadata.response_code, old),
        (ResponseCode::ServFail, false),
        "nothing is known that could be told instead"
    );
    server.becomes(Mood::Answers);
    let (fresh, _) = server.ask(&stale, &asked).await.unwrap();
    server.becomes(Mood::Fails);
    let (served, old) = server.ask(&stale, &asked).await.unwrap();
    assert_eq!(
        (served.metadata.response_code, old),
        (ResponseCode::NoError, true)
    );
    assert_eq!(served.answers[0].data, fresh.answers[0].data);
}

#[tokio::test(start_paused = true)]
async fn f20_a_server_that_answers_has_the_last_word() {
    let (server, stale) = (Server::start().await, Stale::default());
    let asked = question("db.example.com.", 1);
    server.ask(&stale, &asked).await.unwrap();
    server.becomes(Mood::Denies);
    let (denied, old) = server.ask(&stale, &asked).await.unwrap();
    assert_eq!(
        (denied.metadata.response_code, old),
        (ResponseCode::NXDomain, false)
    );
    server.becomes(Mood::Silent);
    assert!(
        server.ask(&stale, &asked).await.is_err(),
        "what is gone is not served again"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_otherwise_is_another_question() {
    let (server, stale) = (Server::start().await, Stale::default());
    server.ask(&stale, &question("db.example.com.", 1)).await.unwrap();
    server.becomes(Mood::Silent);
    let mut recursive = question("db.example.com.", 1);
    recursive[2] |= 1;
    assert!(server.ask(&stale, &recursive).await.is_err());
    assert!(
        server
            .ask(&stale, &question("other.example.com.", 1))
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn kept_replies_are_bounded() {
    let stale = Stale::default();
    for n in 0..=REPLIES_MAX {
        let asked = question(&format!("name-{n}.example.com."), 1);
        let Received::Query(query) = Received::read(&asked) else {
            panic!("a query")
        };
        stale.keep(&query, &reply(&asked, Mood::Answers as u8));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(stale.find(&query).is_some(), n <= REPLIES_MAX);
    }
    let kept = stale.kept.lock();
    assert_eq!(kept.len(), REPLIES_MAX);
    let first = question("name-0.example.com.", 1);
    let Received::Query(first) = Received::read(&first) else {
        panic!("a query")
    };
    assert!(
        !kept.contains_key(&wire::asked(&first).unwrap()),
        "the oldest made room"
    );
}
