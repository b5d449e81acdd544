use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::OpCode;
use hickory_proto::rr::Record;
use tokio::net::UdpSocket;
use tulle_runtime::tasks;
use tulle_transport::socket::CurrentNamespace;

use super::*;

/// What a server says of a name: its addresses, for how many seconds.
type Zone = fn(&str, RecordType) -> (Vec<IpAddr>, u32);

fn reply(query: &[u8], zone: Zone) -> Vec<u8> {
    let asked = Message::from_vec(query).unwrap();
    let question = asked.queries[0].clone();
    let (addresses, ttl) = zone(&question.name().to_string(), question.query_type());
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.add_query(question.clone());
    for address in addresses {
        let data = match address {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        };
        message
            .answers
            .push(Record::from_rdata(question.name().clone(), ttl, data));
    }
    message.to_vec().unwrap()
}

/// A name server, and how often it was asked.
async fn server(zone: Zone) -> (Upstream, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let servers = vec![socket.local_addr().unwrap()];
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tasks::spawn("zone", async move {
        let mut buffer = [0; 512];
        loop {
            let (length, client): (usize, SocketAddr) = socket.recv_from(&mut buffer).await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            socket
                .send_to(&reply(&buffer[..length], zone), client)
                .await
                .unwrap();
        }
    });
    let upstream = Upstream {
        network: Arc::new(CurrentNamespace),
        mark: None,
        servers,
    };
    (upstream, asked)
}

fn both(_: &str, kind: RecordType) -> (Vec<IpAddr>, u32) {
    match kind {
        RecordType::A => (
            vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            60,
        ),
        _ => (vec!["2001:db8::1".parse().unwrap()], 30),
    }
}

#[tokio::test]
async fn both_families_are_asked_for_once_and_kept() {
    let (upstream, asked) = server(both).await;
    let names = Names::default();
    for _ in 0..3 {
        let found = names.lookup(&upstream, &"db.example.com".into(), true).await;
        assert_eq!(found.len(), 3);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "one question per family");
}

#[tokio::test]
async fn without_ipv6_only_ipv4_is_asked_for() {
    let (upstream, asked) = server(both).await;
    let names = Names::default();
    let found = names.lookup(&upstream, &"db.example.com".into(), false).await;
    assert!(found.iter().all(IpAddr::is_ipv4));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_answer_is_forgotten_when_its_time_is_over() {
    let names = Names::default();
    let (short, long): (Str, Str) = ("short".into(), "long".into());
    let addresses: Arc<[IpAddr]> = Arc::new(["192.0.2.1".parse().unwrap()]);
    tokio::time::pause();
    names.keep(&short, &addresses, Duration::from_secs(30));
    names.keep(&long, &addresses, Duration::from_secs(u64::from(u32::MAX)));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(names.fresh(&short).is_none() && names.fresh(&long).is_some());
    tokio::time::advance(TTL_MAX).await;
    assert!(names.fresh(&long).is_none(), "no answer is believed for ever");
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded_and_the_soonest_out_of_date_makes_room() {
    let names = Names::default();
    let addresses: Arc<[IpAddr]> = Arc::new([]);
    names.keep(&"first".into(), &addresses, Duration::from_secs(1));
    for n in 0..NAMES_MAX {
        names.keep(&format!("name-{n}").into(), &addresses, Duration::from_secs(60));
    }
    let known = names.known.lock();
    assert_eq!(known.len(), NAMES_MAX);
    assert!(!known.contains_key("first"));
}

#[tokio::test]
async fn a_name_that_nobody_knows_has_no_address() {
    let (upstream, _) = server(|_, _| (Vec::new(), 60)).await;
    let found = Names::default()
        .lookup(&upstream, &"gone.example.com".into(), true)
        .await;
    assert!(found.is_empty());
}

#[test]
fn the_preferred_family_is_picked_where_it_may_be() {
    let of = |text: &str| text.parse::<IpAddr>().unwrap();
    let addresses = [of("192.0.2.1"), of("192.0.2.2"), of("2001:db8::1")];
    let all = |_| true;
    let pick_at = |ipv4, at: u64| pick(&addresses, ipv4, all, &mut |_| at);
    assert_eq!(pick_at(true, 1), Some(of("192.0.2.2")));
    assert_eq!(pick_at(false, 0), Some(of("2001:db8::1")));
    let only_v4 = pick(&addresses, false, |ip| ip.is_ipv4(), &mut |_| 0);
    assert_eq!(only_v4, Some(of("192.0.2.1")), "what there is");
    assert_eq!(pick(&addresses, true, |_| false, &mut |_| 0), None);
    assert_eq!(pick(&[], true, all, &mut |_| 0), None);
}

#[test]
fn hostile_replies_are_not_followed() {
    let question = question("db.example.com", RecordType::A).unwrap();
    let honest = reply(&question, both);
    assert!(matches!(read(&honest, RecordType::A), Some(Answer::Whole(found)) if found.addresses.len() == 2));
    let record_at = question.len();
    let mut looping = honest.clone();
    let pointer = u16::try_from(record_at).unwrap() | 0xc000;
    looping[record_at..record_at + 2].copy_from_slice(&pointer.to_be_bytes());
    assert_eq!(read(&looping, RecordType::A), None, "a name that is itself");
    let mut ahead = honest.clone();
    ahead[record_at..record_at + 2].copy_from_slice(&(pointer + 20).to_be_bytes());
    assert_eq!(read(&ahead, RecordType::A), None, "a name further on");
    let long = [&honest[..], &vec![0; REPLY_BYTES_MAX]].concat();
    assert_eq!(read(&long, RecordType::A), None, "too long to be looked into");
}
