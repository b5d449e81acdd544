//! X19 and X20: slow readers, overrun logs, bounded responses.

use tulle_xds::serve::push::{RESPONSE_BYTES_MAX, RESPONSE_ENTRIES_MAX};
use tulle_xds::serve::session::UNACKED_RESPONSES_MAX;
use tulle_xds::snapshot::ResourceType::{Address, Authorization};

use crate::peer::peer;
use crate::store::{Edit, LOG_MAX, remove, set, slot};

#[test]
fn x19_a_slow_reader_gets_the_newest_version_once() {
    let mut peer = peer([set(Address, "a@0")]).never_acks();
    peer.subscribe(Address, &[], &[]);
    let mut last = peer.expect(Address, &["a@0"], &[]);
    for version in 1..UNACKED_RESPONSES_MAX {
        peer.edit([set(Address, &format!("a@{version}"))]);
        last = peer.expect(Address, &[&format!("a@{version}")], &[]);
    }
    for version in ["x", "y", "z"] {
        peer.edit([set(Address, &format!("a@{version}"))]);
        peer.expect_silence();
    }
    peer.ack(&last);
    peer.expect(Address, &["a@z"], &[]);
    peer.expect_silence();
}

#[test]
fn x20_an_overrun_log_is_made_up_by_comparison() {
    let mut peer = peer([
        set(Address, "a@1"),
        set(Address, "gone@1"),
        set(Address, "same@1"),
    ]);
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["a@1", "gone@1", "same@1"], &[]);
    peer.edit([remove(Address, "gone"), set(Address, "a@2")]);
    for edit in 0..LOG_MAX {
        peer.edit([set(Authorization, &format!("p@{edit}"))]);
    }
    peer.expect(Address, &["a@2"], &["gone"]);
    peer.expect_silence();
}

#[test]
fn a_large_table_goes_out_in_bounded_responses() {
    let edits = (0..2 * RESPONSE_ENTRIES_MAX + 1).map(|n| set(Address, &format!("r{n:05}@1")));
    let mut peer = peer(edits);
    peer.subscribe(Address, &[], &[]);
    let mut sizes = Vec::new();
    while let Some(response) = peer.receive() {
        sizes.push(response.resources.len());
        peer.ack(&response);
    }
    assert_eq!(sizes, [RESPONSE_ENTRIES_MAX, RESPONSE_ENTRIES_MAX, 1]);
}

#[test]
fn a_resource_above_the_bound_travels_alone() {
    let big = |name: &str, bytes: usize| {
        let mut slot = slot(name, "1");
        slot.body = vec![0; bytes].into();
        Edit::Set(Address, slot)
    };
    let mut peer = peer([big("a", 10), big("b", RESPONSE_BYTES_MAX + 1), big("c", 10)]);
    peer.subscribe(Address, &[], &[]);
    for name in ["a@1", "b@1", "c@1"] {
        peer.expect(Address, &[name], &[]);
    }
    peer.expect_silence();
}

#[test]
fn a_change_during_a_long_cut_waits_for_the_next_cut() {
    let edits = (0..RESPONSE_ENTRIES_MAX + 1).map(|n| set(Address, &format!("r{n:05}@1")));
    let mut peer = peer(edits);
    peer.subscribe(Address, &[], &[]);
    let first = peer.receive().expect("a response");
    peer.edit([set(Address, "r00000@2"), remove(Address, "r01000")]);
    let second = peer.receive().expect("a response");
    assert_eq!(first.cut, second.cut);
    peer.ack(&second);
    peer.expect(Address, &["r00000@2"], &["r01000"]);
    peer.expect_silence();
}

#[test]
fn a_client_that_holds_nothing_is_told_chunk_by_chunk() {
    let all = ["a@1", "b@1", "c@1", "d@1", "e@1"];
    let mut peer = peer(all.map(|text| set(Address, text))).in_chunks_of(2);
    peer.subscribe(Address, &["*"], &[]);
    for chunk in all.chunks(2) {
        let response = peer.expect(Address, chunk, &[]);
        assert!(response.chunk.is_some(), "others are sent the same");
    }
    peer.expect_silence();
}

#[test]
fn a_change_before_the_first_chunk_is_in_the_chunks() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1"), set(Address, "c@1")]).in_chunks_of(2);
    peer.subscribe(Address, &["*"], &[]);
    peer.edit([set(Address, "b@2"), remove(Address, "c"), set(Address, "d@1")]);
    peer.expect(Address, &["a@1", "b@2"], &[]);
    peer.expect(Address, &["d@1"], &[]);
    peer.expect_silence();
}

#[test]
fn a_change_between_chunks_follows_the_last_of_them() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1"), set(Address, "c@1")]).in_chunks_of(2);
    peer.subscribe(Address, &["*"], &[]);
    peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.edit([set(Address, "a@2"), remove(Address, "c")]);
    peer.expect(Address, &["c@1"], &[]);
    peer.expect(Address, &["a@2"], &["c"]);
    peer.expect_silence();
}

#[test]
fn giving_up_the_wildcard_between_chunks_ends_them() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1"), set(Address, "c@1")]).in_chunks_of(1);
    peer.subscribe(Address, &["*"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.subscribe(Address, &["c"], &["*"]);
    peer.expect(Address, &["c@1"], &["b"]);
    peer.expect_silence();
}
