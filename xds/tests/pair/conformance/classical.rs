//! C1 to C8: the classical cases.

use tulle_xds::snapshot::ResourceType::{Address, Authorization};

use crate::peer::peer;
use crate::store::{remove, set};

#[test]
fn c1_two_subscriptions_arrive_once_each() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.subscribe(Address, &["b"], &[]);
    peer.expect(Address, &["b@1"], &[]);
    peer.expect_silence();
}

#[test]
fn c2_an_update_sends_only_what_changed_under_a_new_nonce() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["a", "b"], &[]);
    let first = peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.edit([set(Address, "b@2")]);
    let second = peer.expect(Address, &["b@2"], &[]);
    assert_ne!(first.nonce, second.nonce);
    peer.expect_silence();
}

#[test]
fn c3_a_resource_created_later_comes_alone() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.subscribe(Address, &["a", "b"], &[]);
    peer.expect(Address, &["a@1"], &["b"]);
    peer.edit([set(Address, "b@1")]);
    peer.expect(Address, &["b@1"], &[]);
    peer.expect_silence();
}

#[test]
fn c4_a_removal_is_told_and_an_addition_after_it_is_sent() {
    for subscribe in [&["a"][..], &["*"][..]] {
        let mut peer = peer([set(Address, "a@1")]);
        peer.subscribe(Address, subscribe, &[]);
        peer.expect(Address, &["a@1"], &[]);
        peer.edit([remove(Address, "a")]);
        peer.expect(Address, &[], &["a"]);
        peer.edit([set(Address, "a@2")]);
        peer.expect(Address, &["a@2"], &[]);
        peer.expect_silence();
    }
}

#[test]
fn c5_after_unsubscribing_there_is_silence() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["a", "b"], &[]);
    peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.subscribe(Address, &[], &["b"]);
    peer.edit([set(Address, "b@2")]);
    peer.expect_silence();
    peer.subscribe(Address, &[], &["a"]);
    peer.edit([remove(Address, "a"), set(Address, "b@3")]);
    peer.expect_silence();
}

#[test]
fn c6_types_on_one_stream_are_independent() {
    for first in [Address, Authorization] {
        let second = if first == Address { Authorization } else { Address };
        for edited in [first, second] {
            let mut peer = peer([set(Address, "a@1"), set(Authorization, "a@1")]);
            peer.subscribe(first, &[], &[]);
            peer.expect(first, &["a@1"], &[]);
            peer.subscribe(second, &[], &[]);
            peer.expect(second, &["a@1"], &[]);
            peer.edit([set(edited, "a@2")]);
            peer.expect(edited, &["a@2"], &[]);
            peer.expect_silence();
        }
    }
}

#[test]
fn c7_a_subset_then_the_wildcard_then_a_new_resource() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1"), set(Address, "c@1")]);
    peer.subscribe(Address, &["b"], &[]);
    peer.expect(Address, &["b@1"], &[]);
    peer.expect_silence();
    peer.subscribe(Address, &["*"], &[]);
    // What is held already is not sent twice.
    peer.expect(Address, &["a@1", "c@1"], &[]);
    peer.edit([set(Address, "d@1")]);
    peer.expect(Address, &["d@1"], &[]);
    peer.expect_silence();
}

#[test]
fn c8_shrinking_one_type_leaves_the_other_alone() {
    let mut peer = peer([
        set(Address, "a@1"),
        set(Address, "b@1"),
        set(Authorization, "p@1"),
    ]);
    peer.subscribe(Address, &["a", "b"], &[]);
    peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.subscribe(Authorization, &[], &[]);
    peer.expect(Authorization, &["p@1"], &[]);
    peer.subscribe(Address, &[], &["a"]);
    peer.edit([set(Address, "a@2"), set(Authorization, "p@2")]);
    peer.expect(Authorization, &["p@2"], &[]);
    peer.subscribe(Address, &[], &["b"]);
    peer.edit([set(Address, "b@2"), set(Authorization, "p@3")]);
    peer.expect(Authorization, &["p@3"], &[]);
    peer.expect_silence();
}
