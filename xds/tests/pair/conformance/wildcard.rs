//! X1 to X3: wildcards, legacy and explicit, and giving them up.

use tulle_xds::snapshot::ResourceType::Address;

use crate::peer::{holding, peer, request};
use crate::store::{remove, set};

#[test]
fn x1_the_first_wildcard_is_answered_even_with_nothing() {
    for subscribe in [&[][..], &["*"][..]] {
        let mut peer = peer([]);
        peer.subscribe(Address, subscribe, &[]);
        peer.expect(Address, &[], &[]);
        peer.expect_silence();
    }
}

#[test]
fn x1_the_first_wildcard_is_answered_when_everything_is_held() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.say(&holding(request(Address, &[], &[]), &["a@1"]));
    peer.expect(Address, &[], &[]);
    peer.expect_silence();
}

#[test]
fn x2_wildcard_given_up_in_the_same_request_is_answered_once_and_empty() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["*"], &["*"]);
    peer.expect(Address, &[], &[]);
    peer.edit([set(Address, "a@2")]);
    peer.expect_silence();
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@2"], &[]);
    peer.expect_silence();
}

#[test]
fn x3_an_implicit_wildcard_survives_names_and_ends_by_star() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.edit([set(Address, "b@2")]);
    peer.expect(Address, &["b@2"], &[]);
    peer.subscribe(Address, &[], &["*"]);
    peer.edit([set(Address, "a@2"), set(Address, "b@3")]);
    peer.expect(Address, &["a@2"], &[]);
    peer.expect_silence();
}

#[test]
fn x3_a_wildcard_given_up_and_taken_again_tells_what_went_while_a_response_was_under_way() {
    let mut peer = peer([set(Address, "a@1")]).never_acks();
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.edit([remove(Address, "a")]);
    peer.subscribe(Address, &[], &["*"]);
    peer.subscribe(Address, &["*"], &[]);
    peer.expect(Address, &[], &["a"]);
    peer.expect_silence();
}

#[test]
fn x3_repeating_the_wildcard_has_no_effect() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.subscribe(Address, &["*"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.subscribe(Address, &["*"], &[]);
    peer.expect_silence();
}

#[test]
fn x3_an_empty_later_request_changes_nothing() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.subscribe(Address, &[], &[]);
    peer.expect_silence();
}
