//! What waypoints receive survives the wire, and a mutated message is refused or read as one thing only.

#[path = "../../fuzz/replay.rs"]
mod replay;
mod samples;

use proptest::prelude::*;
use tulle_model::Str;
use tulle_model::policy::Policy;
use tulle_proto::{
    Cause, decode_policy, decode_route, decode_waypoint, encode_policy, encode_route, encode_waypoint, fuzz,
};

use replay::replay;
use samples::{policies, route, waypoints};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

#[test]
fn every_field_survives_the_wire() {
    for waypoint in waypoints() {
        assert_eq!(
            decode_waypoint(&waypoint.name(), &encode_waypoint(&waypoint)),
            Ok(waypoint)
        );
    }
    for policy in policies() {
        assert_eq!(decode_policy(&policy.name(), &encode_policy(&policy)), Ok(policy));
    }
    assert_eq!(
        decode_route(&route().name(), &encode_route(&route())),
        Ok(route())
    );
}

#[test]
fn every_concern_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<Str> = policies().iter().map(Policy::name).collect();
    assert_eq!(names.len(), policies().len());
}

#[test]
fn an_unknown_field_is_refused_in_a_policy_that_decides_and_ignored_elsewhere() {
    let add = |mut body: Vec<u8>| {
        prost::encoding::uint32::encode(99, &7, &mut body);
        body
    };
    assert_eq!(
        decode_route(&route().name(), &add(encode_route(&route()))),
        Ok(route())
    );
    for policy in policies() {
        let refused = decode_policy(&policy.name(), &add(encode_policy(&policy))).expect_err("unknown");
        assert_eq!(refused.cause, Cause::UnknownField(99));
    }
}

#[test]
fn a_set_of_nothing_is_refused() {
    use prost::Message;
    let policy = &policies()[0];
    let mut wire = tulle_proto::waypoint::Policy::from(policy);
    let Some(tulle_proto::waypoint::policy::Concern::Authz(authz)) = &mut wire.concern else {
        panic!("authz")
    };
    authz.rules[0].from[0].principals = Some(tulle_proto::waypoint::StringSet::default());
    let refused = decode_policy(&policy.name(), &wire.encode_to_vec()).expect_err("nothing is asked");
    assert_eq!(refused.field, "authz.rules[0].from[0].principals");
}

#[test]
fn the_kept_corpus_holds_every_kind_and_is_read_as_before() {
    let readable = |folder: &str, reads: &dyn Fn(&[u8]) -> bool| {
        let entries = std::fs::read_dir(format!("{CORPUS}/{folder}")).expect("a corpus");
        let bodies = entries.map(|entry| std::fs::read(entry.expect("a file").path()).expect("readable"));
        bodies.filter(|body| reads(body)).count()
    };
    // What is good is refused under no name for no other reason.
    let is_good = |cause: Cause| matches!(cause, Cause::OtherName(_));
    let routes = readable("xds_route", &|body| {
        decode_route("", body).is_err_and(|error| is_good(error.cause))
    });
    let concerns = readable("xds_policy", &|body| {
        decode_policy("", body).is_err_and(|error| is_good(error.cause))
    });
    let settings = readable("xds_waypoint", &|body| {
        decode_waypoint("", body).is_err_and(|error| is_good(error.cause))
    });
    assert!(routes >= 1, "a route");
    assert!(concerns >= policies().len(), "every concern");
    assert!(
        settings >= waypoints().len(),
        "settings, and fronts of both kinds"
    );
    replay(format!("{CORPUS}/xds_route"), fuzz::xds_route);
    replay(format!("{CORPUS}/xds_policy"), fuzz::xds_policy);
    replay(format!("{CORPUS}/xds_waypoint"), fuzz::xds_waypoint);
}

proptest! {
    #[test]
    fn a_mutated_message_is_refused_or_read_as_one_thing(which in 0_usize..32, at: prop::sample::Index, byte: u8) {
        let mut samples: Vec<Vec<u8>> = policies().iter().map(encode_policy).collect();
        samples.extend(waypoints().iter().map(encode_waypoint));
        samples.push(encode_route(&route()));
        let count = samples.len();
        let mut body = samples.swap_remove(which % count);
        let at = at.index(body.len());
        body[at] = byte;
        for target in [fuzz::xds_policy, fuzz::xds_route, fuzz::xds_waypoint] {
            target(&body);
            target(&body[..at]);
        }
    }
}
