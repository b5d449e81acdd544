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
fn f20_what_does_not_fit_ends_with_a_whole_record_and_tc() {
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

#[test]
fn the_shortest_time_of_an_answer_counts_and_can_be_limited() {
    let mut two = Message::from_vec(&reply(2, true)).unwrap();
    two.answers[1].ttl = 600;
    let mut bytes = two.to_vec().unwrap();
    assert_eq!(shortest_ttl(&bytes), Some(Duration::from_secs(30)));
    limit_ttls(&mut bytes, Duration::from_secs(40));
    let limited = Message::from_vec(&bytes).unwrap();
    let ttls: Vec<u32> = limited.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [30, 40]);
    assert!(limited.edns.is_some(), "what is no time is not touched");
    two.answers[0].ttl = 1 << 31;
    assert_eq!(shortest_ttl(&two.to_vec().unwrap()), Some(Duration::ZERO));
    assert_eq!(shortest_ttl(&reply(0, false)), None, "nothing is answered");
    assert!(says_nothing_is_there(&reply(0, false)) && !says_nothing_is_there(&reply(1, false)));
    let mut cut = reply(1, false);
    cut[2] |= 2;
    assert_eq!(shortest_ttl(&cut), None, "the rest is missing");
}

/// Messages that are made to cost as much as they can, each as long as a message may be.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    const LENGTH: usize = 65_535;
    // One question for the root, and as many records as can be claimed.
    let header = |response: u8| [0, 7, response, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let question = [0, 0, 1, 0, 1];
    let filled = |response: u8, body: &[u8]| {
        let mut message = [&header(response)[..], &question].concat();
        while message.len() + body.len() <= LENGTH {
            message.extend_from_slice(body);
        }
        message
    };
    let mut many_labels = [1, b'a'].repeat(127);
    many_labels.extend([0; 11]);
    let mut no_end = header(0x80).to_vec();
    no_end.extend([1, b'a'].repeat((LENGTH - 12) / 2));
    let mut huge = filled(0x80, &[0; 11]);
    huge[17 + 9..17 + 11].copy_from_slice(&[0xff, 0xff]);
    vec![
        ("tiny records", filled(0x80, &[0; 11])),
        ("tiny records in a question", filled(0, &[0; 11])),
        (
            "names that point to themselves",
            filled(0x80, &[0xc0, 17, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0]),
        ),
        ("names of many labels", filled(0x80, &many_labels)),
        ("names of many labels in a question", filled(0, &many_labels)),
        ("a name without end", no_end),
        ("a record longer than the message", huge),
        ("nothing but pointers", vec![0xc0; LENGTH]),
        ("nothing but long labels", vec![63; LENGTH]),
    ]
}

/// Keeps a result from being left out.
fn done<T>(result: T) {
    std::hint::black_box(result);
}

#[test]
fn f20_no_message_takes_more_steps_than_it_has_bytes() {
    for (what, message) in hostile() {
        let mut limited = message.clone();
        let works: [(&str, usize); 6] = [
            ("read", steps::of(|| done(Received::read(&message)))),
            ("cut", steps::of(|| done(cut(message.clone(), 512)))),
            (
                "cut a little",
                steps::of(|| done(cut(message.clone(), message.len() - 1))),
            ),
            ("believed", steps::of(|| done(answers(&message, &message)))),
            ("kept", steps::of(|| done(shortest_ttl(&message)))),
            ("limited", steps::of(|| limit_ttls(&mut limited, Duration::ZERO))),
        ];
        for (work, steps) in works {
            // Twice: to cut a message it is walked for its OPT record first.
            assert!(steps <= 2 * message.len(), "{what}, {work}: {steps} steps");
        }
    }
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
