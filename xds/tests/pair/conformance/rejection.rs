//! X16 to X18: what a client rejects.

use tulle_xds::snapshot::ResourceType::{Address, Authorization};

use crate::peer::{holding, peer, request};
use crate::store::{remove, set};

#[test]
fn x16_a_rejection_is_recorded_and_not_sent_again() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["a@1", "b@1"], &[]);
    peer.edit([set(Address, "a@bad"), set(Address, "b@2")]);
    let response = peer.receive().expect("a response");
    peer.nack(&response, "a: no action");
    peer.expect_silence();
    let rejections: Vec<_> = peer.session.rejections().collect();
    let [(ty, name, rejection)] = rejections[..] else {
        panic!("one rejection: {rejections:?}");
    };
    assert_eq!(
        (ty, &**name, &*rejection.version, &*rejection.text),
        (Address, "a", "bad", "no action")
    );
    peer.edit([set(Address, "a@3")]);
    peer.expect(Address, &["a@3"], &[]);
    assert_eq!(peer.session.rejections().count(), 0);
}

#[test]
fn x16_a_rejected_resource_that_is_removed_and_comes_back_is_told_again() {
    let mut peer = peer([set(Authorization, "p@bad")]);
    peer.subscribe(Authorization, &[], &[]);
    let response = peer.receive().expect("a response");
    peer.nack(&response, "p: no action");
    peer.edit([remove(Authorization, "p")]);
    peer.expect(Authorization, &[], &["p"]);
    // The client dropped its stand-in with the removal, so it must know that there is such a policy.
    peer.edit([set(Authorization, "p@bad")]);
    peer.expect(Authorization, &["p@bad"], &[]);
}

#[test]
fn x17_after_a_reconnect_only_the_rejected_is_sent() {
    let mut peer = peer([set(Address, "a@bad"), set(Address, "b@1")]);
    peer.subscribe(Address, &[], &[]);
    let response = peer.receive().expect("a response");
    peer.nack(&response, "a: no action");
    peer.reconnect();
    peer.say(&holding(request(Address, &[], &[]), &["b@1"]));
    peer.expect(Address, &["a@bad"], &[]);
    peer.expect_silence();
}

#[test]
fn x18_a_rejection_of_one_type_leaves_the_others() {
    let mut peer = peer([set(Address, "a@1"), set(Authorization, "p@bad")]);
    peer.subscribe(Address, &[], &[]);
    peer.subscribe(Authorization, &[], &[]);
    let response = peer.receive().expect("a response");
    peer.nack(&response, "p: no action");
    peer.expect(Address, &["a@1"], &[]);
    peer.edit([set(Address, "a@2")]);
    peer.expect(Address, &["a@2"], &[]);
    let acked: Vec<_> = peer
        .session
        .deliveries()
        .map(|(ty, _, delivery)| (ty, delivery.acked()))
        .collect();
    assert_eq!(acked, [(Address, Some(2)), (Authorization, None)]);
}
