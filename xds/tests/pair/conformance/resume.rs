//! X5 to X8: coming back with what is held, as versions or as digests.

use std::sync::Arc;

use tulle_proto::resume::{Layout, digest};
use tulle_xds::snapshot::ResourceType::{Address, Authorization};
use tulle_xds::snapshot::Scope;

use crate::peer::{digests, holding, peer, request, resuming};
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
    for layout in Layout::ALL {
        let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
        peer.say(&resuming(request(Address, &["*"], &[]), layout, &["a@1", "b@1"]));
        peer.expect(Address, &[], &[]);
        peer.expect_silence();
        peer.edit([set(Address, "a@2")]);
        peer.expect(Address, &["a@2"], &[]);
        peer.expect_silence();
    }
}

/// What stands among the removals of the only response: the buckets of these names, then everything that is to be held.
fn removals(layout: Layout, names: &[&str], held: &[&str]) -> Vec<String> {
    let mut buckets: Vec<_> = names.iter().map(|name| layout.bucket_of(name)).collect();
    buckets.sort_unstable();
    let buckets = buckets.iter().map(ToString::to_string);
    buckets.chain(digests(layout, held).whole_name()).collect()
}

fn texts(removals: &[String]) -> Vec<&str> {
    removals.iter().map(String::as_str).collect()
}

#[test]
fn x8_a_changed_bucket_is_told_whole_and_no_other() {
    for layout in Layout::ALL {
        assert_ne!(layout.bucket_of("a"), layout.bucket_of("b"));
        let mut peer = peer([set(Address, "a@2"), set(Address, "b@1")]);
        peer.say(&resuming(request(Address, &[], &[]), layout, &["a@1", "b@1"]));
        let removed = removals(layout, &["a"], &["a@2", "b@1"]);
        peer.expect(Address, &["a@2"], &texts(&removed));
        peer.expect_silence();
    }
}

#[test]
fn x8_what_is_gone_is_told_by_its_empty_bucket() {
    for layout in Layout::ALL {
        let mut peer = peer([set(Address, "b@1")]);
        peer.say(&resuming(request(Address, &["*"], &[]), layout, &["a@1", "b@1"]));
        peer.expect(Address, &[], &texts(&removals(layout, &["a"], &["b@1"])));
        peer.expect_silence();
    }
}

#[test]
fn x8_digests_that_cannot_be_read_say_that_every_bucket_is_another() {
    for layout in Layout::ALL {
        let mut peer = peer([set(Address, "a@1")]);
        let mut first = request(Address, &["*"], &[]);
        first.initial_versions = [(layout.name().into(), "nonsense".into())].into();
        peer.say(&first);
        let response = peer.receive().expect("an answer");
        peer.ack(&response);
        let expected = usize::from(layout.buckets()) + usize::from(layout == Layout::Fine);
        assert_eq!(response.removed.len(), expected);
        assert_eq!(response.resources.len(), 1);
        peer.expect_silence();
    }
}

#[test]
fn x8_digests_mean_a_wildcard_and_nothing_else() {
    for layout in Layout::ALL {
        let mut peer = peer([set(Address, "a@1"), set(Address, "b@1")]);
        peer.say(&resuming(request(Address, &["a"], &[]), layout, &["b@1"]));
        peer.expect(Address, &["a@1"], &[]);
        peer.expect_silence();
    }
}

#[test]
fn x8_digests_of_a_layout_that_nobody_knows_are_no_names_and_everything_is_told() {
    let mut peer = peer([set(Address, "a@1")]);
    let mut first = request(Address, &["*"], &[]);
    first.initial_versions = [("#digest/4096".into(), "AAAA".into())].into();
    peer.say(&first);
    peer.expect(Address, &["a@1"], &["#digest/4096"]);
    peer.expect_silence();
}

#[test]
fn x8_a_node_that_resumes_gets_no_policy_of_another() {
    for layout in Layout::ALL {
        let mut peer = peer([set(Authorization, "a@1")]);
        let mut other = slot("a", "2");
        other.scope = Scope::Workloads {
            nodes: Arc::new(["n2".into()].into()),
        };
        peer.edit([Edit::Set(Authorization, other)]);
        peer.say(&resuming(request(Authorization, &["*"], &[]), layout, &["a@1"]));
        peer.expect(Authorization, &[], &texts(&removals(layout, &["a"], &[])));
        peer.expect_silence();
    }
}

/// A version of `a` whose bucket looks like the one of `a@1` in fine digests.
fn hidden() -> String {
    let short = |version: &str| digest([("a", version)].into_iter()) >> 48;
    let versions = (2..).map(|number: u32| number.to_string());
    let mut hidden = versions.skip_while(|version| short(version) != short("1"));
    hidden.next().expect("there is one")
}

#[test]
fn x8_a_change_that_short_digests_hide_is_seen_by_the_digest_of_everything() {
    let (layout, version) = (Layout::Fine, hidden());
    let a = format!("a@{version}");
    let mut peer = peer([set(Address, &a), set(Address, "b@1")]);
    peer.say(&resuming(request(Address, &["*"], &[]), layout, &["a@1", "b@1"]));
    let response = peer.receive().expect("an answer");
    peer.ack(&response);
    assert_eq!(response.resources.len(), 2, "everything is told");
    let whole = digests(layout, &[&a, "b@1"]).whole_name();
    assert_eq!(response.removed.last().map(|name| name.to_string()), whole);
    peer.expect_silence();
}

#[test]
fn x8_a_change_that_short_digests_hide_beside_another_is_told_to_who_comes_back_for_it() {
    let version = hidden();
    let (a, held) = (format!("a@{version}"), ["a@1", "b@1"]);
    let mut peer = peer([set(Address, &a), set(Address, "b@2")]);
    peer.say(&resuming(request(Address, &["*"], &[]), Layout::Fine, &held));
    let removed = removals(Layout::Fine, &["b"], &[&a, "b@2"]);
    peer.expect(Address, &["b@2"], &texts(&removed));
    // The client holds a@1, and sees that this is not everything.
    let now = ["a@1", "b@2"];
    assert_ne!(digests(Layout::Fine, &now).whole_name().as_ref(), removed.last());
    peer.reconnect();
    peer.say(&resuming(request(Address, &["*"], &[]), Layout::Coarse, &now));
    let removed = removals(Layout::Coarse, &["a"], &[]);
    peer.expect(Address, &[&a], &texts(&removed));
    peer.expect_silence();
}

#[test]
fn x8_what_changes_before_the_first_answer_is_part_of_what_is_confirmed() {
    let mut peer = peer([set(Address, "a@2"), set(Address, "b@1"), set(Address, "c@1")]);
    let held = ["a@1", "b@1", "c@1"];
    peer.say(&resuming(request(Address, &["*"], &[]), Layout::Fine, &held));
    peer.edit([set(Address, "b@2"), Edit::Remove(Address, "c".into())]);
    let bucket = Layout::Fine.bucket_of("a").to_string();
    peer.expect(Address, &["a@2"], &[&bucket]);
    let whole = digests(Layout::Fine, &["a@2", "b@2"]).whole_name();
    peer.expect(Address, &["b@2"], &["c", &whole.expect("there is one")]);
    peer.expect_silence();
}

#[test]
fn x8_names_beside_the_wildcard_are_part_of_what_is_confirmed() {
    let mut peer = peer([set(Address, "a@2"), set(Address, "b@1")]);
    let request = request(Address, &["*", "a"], &[]);
    peer.say(&resuming(request, Layout::Fine, &["a@1", "b@1"]));
    let bucket = Layout::Fine.bucket_of("a").to_string();
    peer.expect(Address, &["a@2"], &[&bucket]);
    let whole = digests(Layout::Fine, &["a@2", "b@1"]).whole_name();
    peer.expect(Address, &["a@2"], &[&whole.expect("there is one")]);
    peer.expect_silence();
}
