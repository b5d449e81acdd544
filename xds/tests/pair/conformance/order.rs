//! X23 to X26: order within a cut, and who may receive what.

use std::sync::Arc;

use tulle_xds::snapshot::ResourceType::{Address, Authorization, Route};
use tulle_xds::snapshot::{Order, Scope};

use crate::peer::{holding, peer, request};
use crate::store::{Edit, remove, set, slot};

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
fn x24_the_rules_of_one_object_come_in_one_response() {
    let rules = || (0..900).map(|rule| format!("HTTPRoute/shop/r/{rule:03}"));
    let mut peer = peer([]);
    peer.subscribe(Route, &[], &[]);
    peer.expect(Route, &[], &[]);
    peer.edit(rules().map(|rule| set(Route, &format!("{rule}@1"))));
    let all: Vec<String> = rules().map(|rule| format!("{rule}@1")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    peer.expect(Route, &all, &[]);
    // Some change, one goes: one response again, and nothing of what stayed.
    peer.edit([
        set(Route, "HTTPRoute/shop/r/000@2"),
        set(Route, "HTTPRoute/shop/r/899@2"),
        remove(Route, "HTTPRoute/shop/r/450"),
    ]);
    let changed = ["HTTPRoute/shop/r/000@2", "HTTPRoute/shop/r/899@2"];
    peer.expect(Route, &changed, &["HTTPRoute/shop/r/450"]);
    peer.expect_silence();
}

#[test]
fn x24_the_rules_of_one_object_stay_together_where_a_response_is_full() {
    let rule = |object: &str, rule: usize| format!("HTTPRoute/shop/{object}/{rule:03}@1");
    let first: Vec<String> = (0..600).map(|number| rule("a", number)).collect();
    let second: Vec<String> = (0..600).map(|number| rule("b", number)).collect();
    let mut peer = peer([]);
    peer.subscribe(Route, &[], &[]);
    peer.expect(Route, &[], &[]);
    peer.edit(first.iter().chain(&second).map(|text| set(Route, text)));
    for rules in [first, second] {
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        peer.expect(Route, &rules, &[]);
    }
    peer.expect_silence();
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
