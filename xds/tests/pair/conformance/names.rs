//! X9 to X15 and X27: names asked for again, given up, missing or aliased; unknown types.

use tulle_xds::serve::session::{End, Request};
use tulle_xds::snapshot::ResourceType::Address;

use crate::peer::{peer, request};
use crate::store::{Edit, remove, set, slot};

#[test]
fn x9_subscribing_again_resends_unchanged_content_or_the_removal() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.subscribe(Address, &["a", "missing"], &[]);
    peer.expect(Address, &["a@1"], &["missing"]);
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.subscribe(Address, &["missing"], &[]);
    peer.expect(Address, &[], &["missing"]);
    peer.expect_silence();
}

#[test]
fn x10_a_stale_nonce_is_counted_and_its_change_honoured() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
    peer.subscribe(Address, &["a"], &[]);
    peer.expect(Address, &["a@1"], &[]);
    peer.say(&Request {
        nonce: "of-another-time".into(),
        ..request(Address, &["b"], &[])
    });
    peer.expect(Address, &["b@1"], &[]);
    let (_, _, delivery) = peer.session.deliveries().next().expect("a type");
    assert_eq!(
        (delivery.stale_nonces(), delivery.acks(), delivery.nacks()),
        (1, 2, 0)
    );
}

#[test]
fn x11_one_request_may_acknowledge_and_subscribe() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]).never_acks();
    peer.subscribe(Address, &["a"], &[]);
    let response = peer.expect(Address, &["a@1"], &[]);
    peer.say(&Request {
        nonce: response.nonce,
        ..request(Address, &["b"], &[])
    });
    peer.expect(Address, &["b@1"], &[]);
    let (_, _, delivery) = peer.session.deliveries().next().expect("a type");
    assert_eq!((delivery.acks(), delivery.unacked()), (1, 1));
}

#[test]
fn x12_unsubscribing_a_name_under_the_wildcard_is_answered() {
    let mut peer = peer([set(Address, "a@1")]);
    peer.subscribe(Address, &["*", "a", "missing"], &[]);
    peer.expect(Address, &["a@1"], &["missing"]);
    peer.subscribe(Address, &[], &["a", "missing", "never-subscribed"]);
    peer.expect(Address, &["a@1"], &["missing"]);
    peer.edit([set(Address, "a@2")]);
    peer.expect(Address, &["a@2"], &[]);
    peer.expect_silence();
}

#[test]
fn x13_a_missing_name_is_removed_and_sent_once_it_is_created() {
    let mut peer = peer([set(Address, "other@1")]);
    peer.subscribe(Address, &["late"], &[]);
    peer.expect(Address, &[], &["late"]);
    peer.expect_silence();
    peer.edit([set(Address, "other@2")]);
    peer.expect_silence();
    peer.edit([set(Address, "late@1")]);
    peer.expect(Address, &["late@1"], &[]);
    peer.edit([remove(Address, "late")]);
    peer.expect(Address, &[], &["late"]);
    // The subscription outlives the resource.
    peer.edit([set(Address, "late@2")]);
    peer.expect(Address, &["late@2"], &[]);
    peer.expect_silence();
}

fn aliased(name: &str, version: &str, alias: &str) -> Edit {
    let mut slot = slot(name, version);
    slot.aliases = [alias.into()].into();
    Edit::Set(Address, slot)
}

#[test]
fn x14_an_alias_answers_under_the_real_names() {
    let mut peer = peer([aliased("pod", "1", "/10.0.0.1"), aliased("svc", "1", "/10.0.0.1")]);
    peer.subscribe(Address, &["/10.0.0.1", "/10.0.0.2"], &[]);
    let response = peer.expect(Address, &["pod@1", "svc@1"], &["/10.0.0.2"]);
    assert!(
        response
            .resources
            .iter()
            .all(|slot| *slot.aliases == ["/10.0.0.1".into()])
    );
    peer.edit([aliased("new", "1", "/10.0.0.2"), remove(Address, "pod")]);
    peer.expect(Address, &["new@1"], &["pod"]);
    peer.expect_silence();
}

#[test]
fn x14_losing_the_alias_is_a_removal_for_who_asked_by_it() {
    let mut peer = peer([aliased("pod", "1", "/10.0.0.1")]);
    peer.subscribe(Address, &["/10.0.0.1"], &[]);
    peer.expect(Address, &["pod@1"], &[]);
    peer.edit([aliased("pod", "2", "/10.0.0.9")]);
    peer.expect(Address, &[], &["pod"]);
    peer.subscribe(Address, &["pod"], &[]);
    peer.expect(Address, &["pod@2"], &[]);
}

#[test]
fn x27_an_unknown_type_is_answered_once_and_envoys_own_end_the_stream() {
    let mut peer = peer([]);
    let unknown = Request {
        type_url: "type.googleapis.com/tulle.future.v9.Thing".into(),
        ..Request::default()
    };
    peer.say(&unknown);
    peer.say(&unknown);
    let response = peer.receive().expect("a response");
    assert!(response.resources.is_empty() && response.removed.is_empty());
    peer.expect_silence();
    let end = peer.say_and_end(&Request {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..Request::default()
    });
    assert!(matches!(end, End::Unimplemented(_)));
}
