use hickory_proto::op::Query as Question;
use hickory_proto::rr::RecordType;

use super::super::wire::{Received, Transport, cut};
use super::*;

fn asked(name: &str, edns: Option<u8>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(version) = edns {
        let mut opt = Edns::new();
        opt.set_version(version);
        opt.set_dnssec_ok(true);
        message.set_edns(opt);
    }
    message.to_vec().unwrap()
}

fn query(bytes: &[u8]) -> Query<'_> {
    match Received::read(bytes) {
        Received::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn known(count: u8, alias_of: Option<&str>) -> Answer {
    Answer {
        alias_of: alias_of.map(str::to_owned),
        addresses: (0..count).map(|last| IpAddr::from([10, 0, 0, last])).collect(),
    }
}

#[test]
fn an_answer_is_authoritative_and_short_lived() {
    let bytes = asked("Db.Shop.", None);
    let query = query(&bytes);
    let read = Message::from_vec(&answer(&query, known(2, None))).unwrap();
    assert_eq!(read.id, query.id());
    assert!(read.authoritative && read.recursion_available && read.recursion_desired);
    assert!(
        read.queries[0].name().eq_case(query.question.name()),
        "as it was asked"
    );
    assert_eq!(read.answers.len(), 2);
    assert!(read.answers.iter().all(|record| record.ttl == 30));
    assert!(read.edns.is_none(), "nobody asked for it");
}

#[test]
fn an_alias_comes_before_the_addresses_it_has() {
    let bytes = asked("api.example.com.shop.svc.cluster.local.", None);
    let read = Message::from_vec(&answer(&query(&bytes), known(1, Some("api.example.com")))).unwrap();
    let alias = Name::from_ascii("api.example.com.").unwrap();
    assert_eq!(read.answers[0].name, read.queries[0].name);
    assert_eq!(read.answers[0].data, RData::CNAME(CNAME(alias.clone())));
    assert_eq!(read.answers[1].name, alias);
    assert!(read.answers[1].name.is_fqdn());
}

#[test]
fn a_known_name_without_addresses_is_no_error() {
    let bytes = asked("db.", None);
    let read = Message::from_vec(&answer(&query(&bytes), Answer::default())).unwrap();
    assert_eq!(
        (read.response_code, read.answers.len()),
        (ResponseCode::NoError, 0)
    );
}

#[test]
fn who_speaks_edns_is_answered_in_edns() {
    let bytes = asked("db.", Some(0));
    let replies = [
        answer(&query(&bytes), known(1, None)),
        failure(&query(&bytes), ResponseCode::ServFail),
    ];
    for reply in replies {
        let edns = Message::from_vec(&reply).unwrap().edns.unwrap();
        assert!(edns.flags().dnssec_ok && edns.version() == 0);
    }
    let later = asked("db.", Some(1));
    let read = Message::from_vec(&answer(&query(&later), known(1, None))).unwrap();
    // One number has two names: BADVERS here, BADSIG with TSIG.
    let code = u16::from(read.response_code);
    assert_eq!((code, read.answers.len()), (u16::from(ResponseCode::BADVERS), 0));
}

#[test]
fn a_long_answer_is_cut_for_a_datagram_and_whole_on_a_stream() {
    let bytes = asked("db.", None);
    let query = query(&bytes);
    let whole = answer(&query, known(200, None));
    let datagram = cut(whole.clone(), query.reply_bytes_max(Transport::Udp));
    let read = Message::from_vec(&datagram).unwrap();
    assert!(read.truncation && datagram.len() <= 512 && !read.answers.is_empty());
    assert_eq!(cut(whole.clone(), query.reply_bytes_max(Transport::Tcp)), whole);
}

#[test]
fn however_many_endpoints_there_are_a_reply_can_be_sent() {
    let bytes = asked("db.", None);
    let many = (0..20_000_u32).map(|bits| IpAddr::from(std::net::Ipv4Addr::from_bits(bits)));
    let answered = answer(
        &query(&bytes),
        Answer {
            alias_of: None,
            addresses: many.collect(),
        },
    );
    let read = Message::from_vec(&answered).unwrap();
    assert_eq!((read.answers.len(), read.truncation), (ADDRESSES_MAX, false));
}
