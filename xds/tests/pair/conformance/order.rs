//! X23 to X26: order within a cut, and who may receive what.

use std::sync::Arc;

use tulle_xds::snapshot::ResourceType::{Address, Authorization};
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
