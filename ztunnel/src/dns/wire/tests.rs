use hickory_proto::op::{Edns as OptRecord, Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record as ResourceRecord, RecordType};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn query(edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name("db.shop."), RecordType::A));
    if let Some(payload) = edns {
        let mut opt = OptRecord::new();
        opt.set_max_payload(payload);
        opt.set_dnssec_ok(true);
        message.set_edns(opt);
    }
    message.to_vec().unwrap()
}

fn reply(records: u8, edns: bool) -> Vec<u8> {
    let mut message = Message::response(7, OpCode::Query);
    message.add_query(Question::query(name("db.shop."), RecordType::A));
    for last in 0..records {
        let data = RData::A(A::new(10, 0, 0, last));
        message.add_answer(ResourceRecord::from_rdata(name("db.shop."), 30, data));
    }
    if edns {
        message.set_edns(OptRecord::new());
    }
    message.to_vec().unwrap()
}

fn read(bytes: &[u8]) -> Option<Query<'_>> {
    match Received::read(bytes) {
        Received::Query(query) => Some(query),
        _ => None,
    }
}

#[test]
fn a_query_says_what_its_client_takes() {
    let bytes = query(Some(1232));
    let read = read(&bytes).unwrap();
    assert_eq!((read.id(), read.recursion_desired()), (7, true));
    let edns = Edns {
        payload: 1232,
        version: 0,
        dnssec_ok: true,
    };
    assert_eq!(read.edns, Some(edns));
    assert_eq!(read.reply_bytes_max(Transport::Udp), 1232);
    assert_eq!(read.reply_bytes_max(Transport::Tcp), 65_535);
}

#[test]
fn datagrams_are_neither_tiny_nor_huge() {
    for (payload, max) in [
        (None, 512),
        (Some(0), 512),
        (Some(511), 512),
        (Some(65_535), 4096),
    ] {
        let bytes = query(payload);
        let read = read(&bytes).unwrap();
        assert_eq!(read.reply_bytes_max(Transport::Udp), max, "{payload:?}");
    }
}

#[test]
fn what_is_no_query_is_refused_or_ignored() {
    assert!(matches!(Received::read(&[]), Received::Ignored));
    assert!(matches!(Received::read(&[0; 11]), Received::Ignored));
    assert!(
        matches!(Received::read(&reply(1, false)), Received::Ignored),
        "no reply to a reply"
    );
    let mut update = query(None);
    update[2] |= 5 << 3;
    assert!(matches!(
        Received::read(&update),
        Received::Refused(ResponseCode::NotImp)
    ));
    let mut two = query(None);
    two[5] = 2;
    assert!(matches!(
        Received::read(&two),
        Received::Refused(ResponseCode::FormErr)
    ));
    let short = query(None);
    assert!(matches!(
        Received::read(&short[..short.len() - 1]),
        Received::Refused(ResponseCode::FormErr)
    ));
}

#[test]
fn two_opt_records_are_an_error() {
    let mut twice = query(Some(1232));
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert!(matches!(
        Received::read(&twice),
        Received::Refused(ResponseCode::FormErr)
    ));
}

#[test]
fn a_bare_reply_has_id_opcode_and_code() {
    let mut update = query(None);
    update[2] |= 5 << 3;
    let bare = bare_reply(&update, ResponseCode::NotImp);
    let read = Message::from_vec(&bare).unwrap();
    assert_eq!((read.id, read.op_code), (7, OpCode::Update));
    assert_eq!(
        (read.response_code, read.recursion_desired),
        (ResponseCode::NotImp, true)
    );
}

#[test]
fn a_reply_is_believed_only_to_its_own_question() {
    let asked = query(None);
    assert!(answers(&reply(1, false), &asked));
    let changed = |at: usize, to: u8| {
        let mut changed = reply(1, false);
        changed[at] = to;
        changed
    };
    assert!(answers(&changed(13, b'D'), &asked), "servers may change the case");
    assert!(!answers(&changed(1, 8), &asked), "another id");
    assert!(!answers(&changed(13, b'x'), &asked), "another name");
    assert!(!answers(&changed(23, 28), &asked), "another type");
    assert!(!answers(&asked, &asked), "a query is no reply");
    assert!(
        !answers(&bare_reply(&asked, ResponseCode::NoError), &asked),
        "success without the question"
    );
    assert!(
        answers(&bare_reply(&asked, ResponseCode::FormErr), &asked),
        "an error without the question"
    );
}

#[test]
fn what_fits_is_not_touched() {
    let whole = reply(20, true);
    assert_eq!(cut(whole.clone(), whole.len()), whole);
}

#[test]
fn what_does_not_fit_ends_with_a_whole_record_and_tc() {
    let whole = reply(100, true);
    for max in [512, 513, 514, 527, 528] {
        let short = cut(whole.clone(), max);
        assert!(
            short.len() <= max && short.len() > max - 16,
            "{max}: {}",
            short.len()
        );
        let read = Message::from_vec(&short).unwrap();
        assert!(read.truncation && read.edns.is_some());
        assert_eq!(
            read.answers[..],
            Message::from_vec(&whole).unwrap().answers[..read.answers.len()]
        );
    }
}

#[test]
fn what_cannot_be_read_is_cut_to_its_header() {
    let mut noise = reply(1, false);
    noise[5] = 9;
    noise.resize(600, 0xff);
    let short = cut(noise, 512);
    assert_eq!(short.len(), 12);
    assert!(Message::from_vec(&short).unwrap().truncation);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), max in 12..600_usize) {
        let _ = Received::read(&bytes);
        let _ = answers(&bytes, &query(None));
        let _ = answers(&reply(1, true), &bytes);
        let _ = bare_reply(&bytes, ResponseCode::ServFail);
        prop_assert!(cut(bytes, max).len() <= max);
    }

    #[test]
    fn no_damage_to_a_query_makes_it_panic(at in 0..60_usize, to: u8, length in 0..60_usize) {
        let mut bytes = query(Some(1232));
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        bytes.truncate(bytes.len().saturating_sub(length));
        if let Some(query) = read(&bytes) {
            prop_assert!(query.question.name().len() <= 255);
        }
    }

    #[test]
    fn a_cut_message_can_be_read(records: u8, edns: bool, max in 64..4096_usize) {
        let short = cut(reply(records, edns), max);
        prop_assert!(short.len() <= max);
        prop_assert!(Message::from_vec(&short).is_ok());
    }
}
