//! X5 to X8: coming back with what is held, as versions or as digests.

use std::sync::Arc;

use tulle_proto::resume::{BUCKETS, DIGEST_NAME, bucket_name, bucket_of};
use tulle_xds::snapshot::ResourceType::{Address, Authorization};
use tulle_xds::snapshot::Scope;

use crate::peer::{holding, peer, request, resuming};
use crate::store::{Edit, set, slot};

#[test]
fn x2_on_demand_reconnect_keeps_what_is_held_and_answers_pending_keys() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@2"), set(Address, "d@1")]);
    let held = ["a@1", "b@1", "gone@1", "d@", "missing@"];
    peer.say(&holding(request(Address, &["*"], &["*"]), &held));
    peer.expect(Address, &["b@2", "d@1"], &["gone", "missing"]);
    peer.expect_silence();
}

#[test]
fn x5_reconnect_with_equal_versions_sends_no_resource() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.say(&holding(request(Address, &["a", "b"], &[]), &["a@1", "b@1"]));
    peer.expect_silence();
}

#[test]
fn x6_reconnect_tells_what_was_deleted_and_changed_meanwhile() {
    for subscribe in [&[][..], &["*"][..], &["a"][..]] {
        let mut peer = peer([set(Address, "a@1"), set(Address, "b@2")]);
        peer.say(&holding(
            request(Address, subscribe, &[]),
            &["a@1", "b@1", "gone@1"],
        ));
        peer.expect(Address, &["b@2"], &["gone"]);
        peer.expect_silence();
    }
}

#[test]
fn x6_versions_are_read_in_the_first_request_of_a_type_only() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.say(&holding(request(Address, &[], &[]), &["gone@1"]));
    peer.expect_silence();
}

#[test]
fn x7_another_replica_with_the_same_content_sends_nothing() {
    let content = || [set(Address, "a@1"), set(Address, "b@1")];
    let mut other = peer(content());
    other.say(&holding(request(Address, &["*"], &[]), &["a@1", "b@1"]));
    other.expect(Address, &[], &[]);
    other.expect_silence();
}

#[test]
fn x8_equal_digests_are_answered_once_with_nothing() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.say(&resuming(request(Address, &["*"], &[]), &["a@1", "b@1"]));
    peer.expect(Address, &[], &[]);
    peer.expect_silence();
    peer.edit([set(Address, "a@2")]);
    peer.expect(Address, &["a@2"], &[]);
    peer.expect_silence();
}

/// The bucket of a name, as it stands among removals.
fn bucket(name: &str) -> String {
    bucket_name(bucket_of(name))
}

#[test]
fn x8_a_changed_bucket_is_told_whole_and_no_other() {
    assert_ne!(bucket("a"), bucket("b"));
    let mut peer = peer([set(Address, "a@2"), set(Address, "b@1")]);
    peer.say(&resuming(request(Address, &[], &[]), &["a@1", "b@1"]));
    peer.expect(Address, &["a@2"], &[&bucket("a")]);
    peer.expect_silence();
}

#[test]
fn x8_what_is_gone_is_told_by_its_empty_bucket() {
    let mut peer = peer([set(Address, "b@1")]);
    peer.say(&resuming(request(Address, &["*"], &[]), &["a@1", "b@1"]));
    peer.expect(Address, &[], &[&bucket("a")]);
    peer.expect_silence();
}

#[test]
fn x8_digests_that_cannot_be_read_say_that_every_bucket_is_another() {
    let mut peer = peer([set(Address, "a@1")]);
    let mut first = request(Address, &["*"], &[]);
    first.initial_versions = [(DIGEST_NAME.into(), "nonsense".into())].into();
    peer.say(&first);
    let response = peer.receive().expect("an answer");
    peer.ack(&response);
    assert_eq!(response.removed.len(), usize::from(BUCKETS));
    assert_eq!(response.resources.len(), 1);
    peer.expect_silence();
}

#[test]
fn x8_digests_mean_a_wildcard_and_nothing_else() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.say(&resuming(request(Address, &["a"], &[]), &["b@1"]));
    peer.expect(Address, &["a@1"], &[]);
    peer.expect_silence();
}

#[test]
fn x8_a_node_that_resumes_gets_no_policy_of_another() {
    let mut peer = peer([set(Authorization, "a@1")]);
    let mut other = slot("a", "2");
    other.scope = Scope::Workloads {
        nodes: Arc::new(["n2".into()].into()),
    };
    peer.edit([Edit::Set(Authorization, other)]);
    peer.say(&resuming(request(Authorization, &["*"], &[]), &["a@1"]));
    peer.expect(Authorization, &[], &[&bucket("a")]);
    peer.expect_silence();
}
