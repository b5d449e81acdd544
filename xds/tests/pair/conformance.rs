//! The conformance cases, by the numbers of the control plane's design.

use std::sync::Arc;

use tulle_xds::serve::push::{RESPONSE_BYTES_MAX, RESPONSE_ENTRIES_MAX};
use tulle_xds::serve::session::{End, Request, UNACKED_RESPONSES_MAX};
use tulle_xds::snapshot::ResourceType::{Address, Authorization};
use tulle_xds::snapshot::{Order, Scope};

use crate::peer::{holding, peer, request};
use crate::store::{Edit, LOG_MAX, remove, set, slot};

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
fn x2_on_demand_reconnect_keeps_what_is_held_and_answers_pending_keys() {
    let mut peer = peer([set(Address, "a@1"), set(Address, "b@2"), set(Address, "d@1")]);
    let held = ["a@1", "b@1", "gone@1", "d@", "missing@"];
    peer.say(&holding(request(Address, &["*"], &["*"]), &held));
    peer.expect(Address, &["b@2", "d@1"], &["gone", "missing"]);
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

fn aliased(name: &str, version: &str, alias: &str) -> Edit {
    let mut slot = slot(name, version);
    slot.aliases = vec![alias.into()];
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
            .all(|slot| slot.aliases == ["/10.0.0.1".into()])
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
fn x23_policies_come_first_and_removals_last_in_reverse_order() {
    let mut peer = peer([set(Address, "old@1"), set(Authorization, "old@1")]);
    peer.subscribe(Address, &[], &[]);
    peer.expect(Address, &["old@1"], &[]);
    peer.subscribe(Authorization, &[], &[]);
    peer.expect(Authorization, &["old@1"], &[]);
    peer.edit([
        remove(Authorization, "old"),
        remove(Address, "old"),
        set(Address, "new@1"),
        set(Authorization, "new@1"),
    ]);
    peer.expect(Authorization, &["new@1"], &[]);
    peer.expect(Address, &["new@1"], &["old"]);
    peer.expect(Authorization, &[], &["old"]);
    peer.expect_silence();
}

#[test]
fn x23_within_a_type_waypoints_come_before_what_points_to_them() {
    let placed = |name: &str, order: Order| {
        let mut slot = slot(name, "1");
        slot.order = order;
        Edit::Set(Address, slot)
    };
    let everything = [
        placed("a-service", Order::Service),
        placed("b-workload", Order::Workload),
        placed("c-waypoint-service", Order::WaypointService),
        placed("d-waypoint", Order::WaypointWorkload),
    ];
    let mut peer = peer(everything);
    peer.subscribe(Address, &[], &[]);
    let order = [
        "d-waypoint@1",
        "c-waypoint-service@1",
        "b-workload@1",
        "a-service@1",
    ];
    peer.expect(Address, &order, &[]);
    peer.edit(
        ["a-service", "b-workload", "c-waypoint-service", "d-waypoint"].map(|name| remove(Address, name)),
    );
    peer.expect(
        Address,
        &[],
        &["a-service", "b-workload", "c-waypoint-service", "d-waypoint"],
    );
}

fn scoped(name: &str, nodes: &[&str]) -> Edit {
    let mut slot = slot(name, "1");
    slot.scope = Scope::Workloads {
        nodes: Arc::new(nodes.iter().map(|node| (*node).into()).collect()),
    };
    Edit::Set(Authorization, slot)
}

#[test]
fn x25_a_node_never_gets_what_is_scoped_to_another() {
    let mut peer = peer([scoped("mine", &["n1"]), scoped("theirs", &["n2"])]);
    peer.say(&holding(
        request(Authorization, &["*", "theirs"], &[]),
        &["theirs@1"],
    ));
    peer.expect(Authorization, &["mine@1"], &["theirs"]);
    peer.subscribe(Authorization, &["theirs"], &[]);
    peer.expect(Authorization, &[], &["theirs"]);
    peer.expect_silence();
}

#[test]
fn x26_a_policy_follows_the_workload_that_moves() {
    let mut peer = peer([scoped("p", &["n2"])]);
    peer.subscribe(Authorization, &[], &[]);
    peer.expect(Authorization, &[], &[]);
    peer.edit([scoped("p", &["n1", "n2"])]);
    peer.expect(Authorization, &["p@1"], &[]);
    peer.edit([scoped("p", &["n2"])]);
    peer.expect(Authorization, &[], &["p"]);
    peer.expect_silence();
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
