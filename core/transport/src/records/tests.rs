//! What records promise: bytes in order, keys that change, ends that are told apart, nothing forged.

use proptest::prelude::*;
use rustls::AlertDescription;
use tokio::time::Instant;

use super::format::{ALERT, APPLICATION_DATA, HANDSHAKE, OVERHEAD, PLAINTEXT_MAX, RECORD_MAX, header};
use super::key::Key;
use super::session::RECORDS_PER_KEY;
use super::testing::{FIRST, key, open, pair, seal};
use super::{Fault, Session};

mod openssl;
mod rustls_peers;
mod traces;

const ROOM: usize = 64 * 1024;

/// One record with `inner` (content, type, padding) in it, of the first end's first key.
fn record(first: &mut Key, inner: &[u8]) -> Vec<u8> {
    let mut out = vec![0; inner.len() + OVERHEAD];
    let length = first.seal(&[], inner, &mut out).unwrap();
    out.truncate(length);
    out
}

/// What the second end makes of records with these contents from the first one.
fn told(inners: &[&[u8]]) -> (Session, Vec<u8>) {
    let now = Instant::now();
    let ([_, mut second], mut first) = (pair(RECORDS_PER_KEY, now), key(FIRST[0]).unwrap());
    let records: Vec<u8> = inners
        .iter()
        .flat_map(|inner| record(&mut first, inner))
        .collect();
    let found = open(&mut second, &records, records.len(), now);
    (second, found)
}

#[track_caller]
fn refused(inners: &[&[u8]], alert: AlertDescription) {
    let (session, found) = told(inners);
    let fault = session.end().expect("it is over").as_ref().unwrap_err();
    assert_eq!(fault.alert(), Some(alert), "{fault}");
    assert!(found.is_empty(), "nothing was handed on");
    assert!(session.owes(), "the peer is told");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn bytes_arrive_in_order_however_they_are_cut(
        lengths in proptest::collection::vec(prop_oneof![0usize..20, 200usize..5000, 10_000usize..70_000], 1..12),
        room in prop_oneof![100usize..400, 17_000usize..20_000, 60_000usize..300_000],
        cut in prop_oneof![60usize..200, 10_000usize..100_000],
        records_per_key in prop_oneof![8u64..20, Just(RECORDS_PER_KEY)],
    ) {
        let now = Instant::now();
        let [mut first, mut second] = pair(records_per_key, now);
        let whole: Vec<u8> = (0..lengths.iter().sum()).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
        // Short rooms make many records, and more changes of keys than a peer may make at once.
        let whole = if room < 1000 { &whole[..whole.len().min(8000)] } else { &whole[..] };
        let (mut parts, mut rest) = (Vec::new(), whole);
        for length in lengths {
            let (part, after) = rest.split_at(length.min(rest.len()));
            parts.push(part);
            rest = after;
        }
        let records = seal(&mut first, &parts, room);
        prop_assert!(open(&mut second, &records, cut, now) == whole);
        prop_assert!(second.end().is_none());
        // The other direction goes on, whatever keys were changed.
        let records = seal(&mut second, &[b"there"], ROOM);
        prop_assert_eq!(open(&mut first, &records, 1, now), b"there");
    }
}

#[test]
fn bulk_costs_a_record_for_each_full_one_and_takes_the_next_head_along() {
    let [mut first, _] = pair(RECORDS_PER_KEY, Instant::now());
    let payload = vec![7; PLAINTEXT_MAX - 9];
    let parts: Vec<&[u8]> = (0..4).flat_map(|_| [&b"nine byte"[..], &payload]).collect();
    let records = seal(&mut first, &parts, 2 * ROOM);
    let expect = 4 * PLAINTEXT_MAX + 5 * OVERHEAD;
    assert_eq!(records.len(), expect, "one short record in front, then full ones");
}

#[test]
fn short_parts_share_a_record() {
    let [mut first, mut second] = pair(RECORDS_PER_KEY, Instant::now());
    let records = seal(&mut first, &[&b"head"[..]; 100], ROOM);
    assert_eq!(records.len(), 400 + OVERHEAD);
    assert_eq!(
        open(&mut second, &records, ROOM, Instant::now()),
        b"head".repeat(100)
    );
}

#[test]
fn a_key_seals_no_more_records_than_it_may() {
    let now = Instant::now();
    let [mut first, mut second] = pair(3, now);
    let payload = vec![7; PLAINTEXT_MAX];
    let records = seal(&mut first, &[&payload[..]; 8], 4 * ROOM);
    let lengths = lengths(&records);
    let changes = lengths.iter().filter(|length| **length == OVERHEAD + 5).count();
    assert_eq!(lengths.len() - changes, 8);
    assert_eq!(changes, 2, "behind the third and the sixth");
    assert_eq!(open(&mut second, &records, ROOM, now).len(), 8 * PLAINTEXT_MAX);
}

fn lengths(mut records: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some(Ok(length)) = super::format::record_length(records) {
        lengths.push(length);
        records = &records[length..];
    }
    lengths
}

#[test]
fn a_peer_that_does_not_change_its_key_in_time_is_asked_to() {
    let now = Instant::now();
    let ([_, mut second], [mut eager, _]) = (pair(3, now), pair(RECORDS_PER_KEY, now));
    for n in 0..9 {
        let records = seal(&mut eager, &[b"data"], ROOM);
        assert_eq!(open(&mut second, &records, ROOM, now), b"data");
        assert_eq!(
            second.owes(),
            n == 5,
            "asked once, after twice as many as one key is to seal: {n}"
        );
        let asked = seal(&mut second, &[], ROOM);
        assert_eq!(open(&mut eager, &asked, ROOM, now), b"");
        if n == 5 {
            assert!(eager.owes(), "it was heard");
        }
    }
}

#[test]
fn whoever_is_asked_for_another_key_answers_once() {
    let (mut session, _) = told(&[&[24, 0, 0, 1, 1, HANDSHAKE]]);
    assert!(session.owes());
    let answer = seal(&mut session, &[], ROOM);
    assert_eq!(lengths(&answer), [OVERHEAD + 5]);
    assert!(!session.owes());
    let (session, _) = told(&[&[24, 0, 0, 1, 0, HANDSHAKE]]);
    assert!(!session.owes(), "it was not asked");
}

#[test]
fn changes_of_keys_are_bounded() {
    let now = Instant::now();
    let [mut first, mut second] = pair(1, now);
    // One record each: a change behind every one.
    let records = seal(&mut first, &[&[7; PLAINTEXT_MAX][..]; 40], 16 * ROOM);
    open(&mut second, &records, ROOM, now);
    let fault = second.end().unwrap().as_ref().unwrap_err();
    assert_eq!(
        fault.alert(),
        Some(AlertDescription::UnexpectedMessage),
        "{fault}"
    );
}

#[test]
fn records_that_carry_nothing_are_bounded() {
    let empty: Vec<&[u8]> = vec![&[APPLICATION_DATA][..]; 100];
    assert!(told(&empty).0.end().is_none());
    let more: Vec<&[u8]> = vec![&[APPLICATION_DATA][..]; 101];
    refused(&more, AlertDescription::UnexpectedMessage);
}

#[test]
fn padding_is_taken_off() {
    let (session, found) = told(&[&[b'x', APPLICATION_DATA, 0, 0, 0]]);
    assert_eq!((found, session.end()), (b"x".to_vec(), None));
    refused(&[&[0, 0, 0]], AlertDescription::UnexpectedMessage);
}

#[test]
fn tickets_are_passed_over() {
    let ticket = [&[4, 0, 0, 200][..], &[9; 200]].concat();
    let (front, back) = ticket.split_at(70);
    let [front, back] = [front, back].map(|part| [part, &[HANDSHAKE]].concat());
    let (session, found) = told(&[&front, &back, &[b'x', APPLICATION_DATA]]);
    assert_eq!((found, session.end()), (b"x".to_vec(), None));
    // Nothing may come between the parts of a message.
    refused(
        &[&front, &[b'x', APPLICATION_DATA]],
        AlertDescription::UnexpectedMessage,
    );
}

#[test]
fn what_has_no_place_after_the_handshake_is_refused() {
    let finished = [20, 0, 0, 1, 0, HANDSHAKE];
    refused(&[&finished], AlertDescription::UnexpectedMessage);
    refused(&[&[HANDSHAKE]], AlertDescription::UnexpectedMessage);
    refused(&[&[1, 20]], AlertDescription::UnexpectedMessage);
    refused(&[&[1, 99]], AlertDescription::UnexpectedMessage);
    refused(&[&[1, ALERT]], AlertDescription::DecodeError);
    refused(&[&[1, 0, 1, 0, ALERT]], AlertDescription::DecodeError);
    refused(
        &[&[24, 0, 0, 1, 7, HANDSHAKE]],
        AlertDescription::IllegalParameter,
    );
    refused(
        &[&[24, 0, 0, 1, 0, 4, 0, 0, 0, HANDSHAKE]],
        AlertDescription::UnexpectedMessage,
    );
}

#[test]
fn a_record_has_a_greatest_length_sealed_and_opened() {
    let inner = |length: usize| [&vec![7; length][..], &[APPLICATION_DATA]].concat();
    let (session, found) = told(&[&inner(PLAINTEXT_MAX)]);
    assert_eq!((found.len(), session.end()), (PLAINTEXT_MAX, None));
    refused(&[&inner(PLAINTEXT_MAX + 1)], AlertDescription::RecordOverflow);
    let longest = [&inner(PLAINTEXT_MAX)[..], &[0; 239]].concat();
    let (session, found) = told(&[&longest]);
    assert_eq!((found.len(), session.end()), (PLAINTEXT_MAX, None));
    // One more: it is not even waited for.
    let now = Instant::now();
    let [_, mut second] = pair(RECORDS_PER_KEY, now);
    let mut too_long = header(RECORD_MAX - 5 + 1).to_vec();
    open(&mut second, &too_long, 100, now);
    let fault = second.end().unwrap().as_ref().unwrap_err();
    assert_eq!(fault.alert(), Some(AlertDescription::RecordOverflow));
    // And what is too short to be sealed is not.
    let [_, mut second] = pair(RECORDS_PER_KEY, now);
    too_long = [&header(16)[..], &[0; 16]].concat();
    open(&mut second, &too_long, 100, now);
    let fault = second.end().unwrap().as_ref().unwrap_err();
    assert_eq!(fault.alert(), Some(AlertDescription::BadRecordMac));
}

#[test]
fn what_is_not_sealed_is_refused() {
    for first in [
        [20, 3, 3, 0, 1, 1],
        [21, 3, 3, 0, 2, 1],
        [22, 3, 3, 0, 4, 24],
        *b"GET / ",
    ] {
        let [_, mut second] = pair(RECORDS_PER_KEY, Instant::now());
        open(&mut second, &first, 6, Instant::now());
        let fault = second.end().unwrap().as_ref().unwrap_err();
        assert_eq!(fault.alert(), Some(AlertDescription::UnexpectedMessage));
    }
}

#[test]
fn no_changed_record_is_taken() {
    let now = Instant::now();
    let records = seal(&mut pair(RECORDS_PER_KEY, now)[0], &[b"data"], ROOM);
    for bit in 0..records.len() * 8 {
        let mut changed = records.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let [_, mut second] = pair(RECORDS_PER_KEY, now);
        let found = open(&mut second, &changed, ROOM, now);
        assert_eq!(found, b"", "bit {bit}");
        let longer = bit / 8 == 3 || bit / 8 == 4;
        assert!(second.end().is_some_and(Result::is_err) || longer, "bit {bit}");
        if bit / 8 >= 5 {
            let fault = second.end().unwrap().as_ref().unwrap_err();
            assert_eq!(fault.alert(), Some(AlertDescription::BadRecordMac));
            let alert = seal(&mut second, &[b"never said"], ROOM);
            assert_eq!(lengths(&alert), [OVERHEAD + 2], "the alert and nothing else");
        }
    }
}

#[test]
fn no_record_is_taken_twice_or_out_of_order() {
    let now = Instant::now();
    let [mut first, _] = pair(RECORDS_PER_KEY, now);
    let (one, two) = (
        seal(&mut first, &[b"one"], ROOM),
        seal(&mut first, &[b"two"], ROOM),
    );
    for (records, expect) in [([&one, &one], &b"one"[..]), ([&two, &one], b"")] {
        let [_, mut second] = pair(RECORDS_PER_KEY, now);
        let found = open(
            &mut second,
            &records.map(|record| &record[..]).concat(),
            ROOM,
            now,
        );
        assert_eq!(found, expect);
        assert!(second.end().unwrap().is_err());
    }
}

#[test]
fn an_end_is_told_from_a_cut() {
    let now = Instant::now();
    let [mut first, mut second] = pair(RECORDS_PER_KEY, now);
    let mut records = seal(&mut first, &[b"all"], ROOM);
    first.close();
    records.extend(seal(&mut first, &[], ROOM));
    assert!(first.is_closed());
    assert_eq!(
        seal(&mut first, &[b"more"], ROOM),
        b"",
        "nothing follows close_notify"
    );
    records.extend_from_slice(b"what comes after it is not looked at");
    assert_eq!(open(&mut second, &records, records.len(), now), b"all");
    assert_eq!(second.end(), Some(&Ok(())));
    second.cut();
    assert_eq!(second.end(), Some(&Ok(())), "it had ended before");
    let [mut first, mut second] = pair(RECORDS_PER_KEY, now);
    let records = seal(&mut first, &[b"part"], ROOM);
    open(&mut second, &records[..10], ROOM, now);
    second.cut();
    assert_eq!(second.end(), Some(&Err(Fault::Truncated)));
    assert!(!second.owes(), "nobody is left to be told");
}

#[test]
fn an_alert_is_told_as_what_it_says() {
    let (session, found) = told(&[&[b'x', APPLICATION_DATA], &[2, 48, ALERT]]);
    assert_eq!(found, b"x", "what came before it counts");
    let fault = session.end().unwrap().as_ref().unwrap_err();
    assert_eq!(*fault, Fault::Alert(AlertDescription::UnknownCA));
    assert!(!session.owes());
    let (session, found) = told(&[&[1, 90, ALERT], &[b'x', APPLICATION_DATA], &[1, 0, ALERT]]);
    assert_eq!((found, session.end()), (b"x".to_vec(), Some(&Ok(()))));
}
