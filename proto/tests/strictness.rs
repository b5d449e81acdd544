//! What a decoder refuses, said one fact at a time.

use prost::Message;
use tulle_model::service::{Service, Visibility};
use tulle_proto::security::string_match::MatchType;
use tulle_proto::{
    Cause, Malformed, Resource, decode_address, decode_authorization, decode_workload, names, security,
    workload as wire,
};

/// Type URL of a text.
const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

fn workload() -> wire::Workload {
    wire::Workload {
        uid: "u".into(),
        ..Default::default()
    }
}

fn decode_one(workload: wire::Workload) -> Result<Resource, Malformed> {
    decode_workload("u", &workload.encode_to_vec())
}

fn policy(matches: security::Match) -> security::Authorization {
    let clause = security::Clause {
        matches: vec![matches],
    };
    security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        rules: vec![security::Rule {
            clauses: vec![clause],
        }],
        ..Default::default()
    }
}

fn flaw(policy: &security::Authorization) -> (String, Cause) {
    let flaw = decode_authorization("shop/p", &policy.encode_to_vec()).expect_err("a refusal");
    (flaw.field, flaw.cause)
}

#[test]
fn the_legacy_tunnel_is_refused() {
    let flaw = decode_one(wire::Workload {
        tunnel_protocol: 2,
        ..workload()
    })
    .unwrap_err();
    assert_eq!(
        (flaw.field.as_str(), &flaw.cause),
        ("tunnel_protocol", &Cause::LegacyTunnel)
    );
    assert_eq!(
        flaw.to_string(),
        "u: tunnel_protocol: the legacy sidecar tunnel is not supported"
    );
}

#[test]
fn an_address_of_five_bytes_is_refused_with_its_place() {
    let flaw = decode_one(wire::Workload {
        addresses: vec![vec![0; 4], vec![0; 5]],
        ..workload()
    })
    .unwrap_err();
    assert_eq!(
        (flaw.field.as_str(), flaw.cause),
        ("addresses[1]", Cause::AddressLength(5))
    );
}

#[test]
fn a_waypoint_without_destination_is_refused() {
    let flaw = decode_one(wire::Workload {
        waypoint: Some(Default::default()),
        ..workload()
    })
    .unwrap_err();
    assert_eq!(
        (flaw.field.as_str(), flaw.cause),
        ("waypoint.destination", Cause::Unset)
    );
}

#[test]
fn empty_fields_get_their_meaning() {
    let Ok(Resource::Workload(workload)) = decode_one(workload()) else {
        panic!("a workload")
    };
    assert_eq!(
        workload.identity().to_string(),
        "spiffe://cluster.local/ns//sa/default"
    );
    assert_eq!(
        (workload.cluster_id.as_ref(), workload.capacity),
        ("Kubernetes", 1)
    );
    let never = wire::Workload {
        capacity: Some(0),
        ..wire::Workload {
            uid: "u".into(),
            ..Default::default()
        }
    };
    let Ok(Resource::Workload(never)) = decode_one(never) else {
        panic!("a workload")
    };
    assert_eq!(never.capacity, 0, "a present zero is not an absent one");
}

#[test]
fn a_body_under_another_name_is_refused() {
    let flaw = decode_workload("other", &workload().encode_to_vec()).unwrap_err();
    assert_eq!(flaw.cause, Cause::OtherName("u".into()));
}

#[test]
fn an_address_that_is_neither_workload_nor_service_is_refused() {
    assert_eq!(decode_address("u", &[]).unwrap_err().cause, Cause::Unset);
}

#[test]
fn a_service_prefix_says_host_or_range() {
    let address = |bytes: &[u8], length| wire::NetworkAddress {
        network: "n".into(),
        address: bytes.to_vec(),
        length,
    };
    let service = wire::Service {
        namespace: "shop".into(),
        hostname: "web".into(),
        addresses: vec![
            address(&[10, 0, 0, 1], None),
            address(&[10, 0, 0, 2], Some(32)),
            address(&[10, 1, 2, 3], Some(16)),
            address(&[0; 16], Some(0)),
        ],
        ..Default::default()
    };
    let body = wire::Address {
        r#type: Some(wire::address::Type::Service(service)),
    }
    .encode_to_vec();
    let resource = decode_address("shop/web", &body).unwrap();
    let aliases = tulle_proto::aliases(&resource);
    let aliases: Vec<&str> = aliases.iter().map(AsRef::as_ref).collect();
    assert_eq!(aliases, ["n/10.0.0.1", "n/10.0.0.2", "n/10.1.0.0/16", "n/::/0"]);
}

#[test]
fn an_unknown_visibility_is_refused() {
    let service = wire::Service {
        namespace: "a".into(),
        hostname: "b".into(),
        visibility: 2,
        ..Default::default()
    };
    let body = wire::Address {
        r#type: Some(wire::address::Type::Service(service)),
    }
    .encode_to_vec();
    let flaw = decode_address("a/b", &body).unwrap_err();
    assert_eq!(
        (flaw.field.as_str(), flaw.cause),
        ("visibility", Cause::UnknownValue(2))
    );
}

#[test]
fn a_list_of_namespaces_is_read_or_refused() {
    let list = |type_url: &str, names: &str| wire::Extension {
        name: names::EXPORT_TO.into(),
        config: Some(prost_types::Any {
            type_url: type_url.into(),
            value: names.to_owned().encode_to_vec(),
        }),
    };
    let other = || wire::Extension {
        name: "example.com/other".into(),
        config: None,
    };
    let seen = |visibility, extensions| {
        let service = wire::Service {
            namespace: "a".into(),
            hostname: "b".into(),
            visibility,
            extensions,
            ..Default::default()
        };
        Service::try_from(service)
            .map(|service| service.visibility)
            .map_err(|flaw| (flaw.field, flaw.cause))
    };
    let of = |names: &[&str]| Visibility::Namespaces(names.iter().map(|name| (*name).into()).collect());
    assert_eq!(seen(1, vec![other(), list(STRING, "b c")]), Ok(of(&["b", "c"])));
    assert_eq!(seen(1, vec![list(STRING, "")]), Ok(of(&[])), "nobody");
    assert_eq!(seen(1, vec![other()]), Ok(Visibility::Namespace));
    let flaw = |index: usize| {
        let cause = Cause::ExtensionValue(names::EXPORT_TO.into());
        Err((format!("extensions[{index}].config"), cause))
    };
    assert_eq!(seen(1, vec![other(), list("example.com/Other", "b")]), flaw(1));
    assert_eq!(
        seen(1, vec![list(STRING, "b"), list(STRING, "c")]),
        flaw(0),
        "which?"
    );
    assert_eq!(seen(0, vec![list(STRING, "b")]), flaw(0), "everybody, or b?");
}

#[test]
fn an_unset_string_match_is_refused_with_its_path() {
    let matches = security::Match {
        principals: vec![Default::default()],
        ..Default::default()
    };
    let expected = "rules[0].clauses[0].matches[0].principals[0].match_type";
    assert_eq!(flaw(&policy(matches)), (expected.into(), Cause::Unset));
}

#[test]
fn a_prefix_that_does_not_fit_is_refused() {
    let address = security::Address {
        address: vec![10, 0, 0, 0],
        length: 33,
    };
    let matches = security::Match {
        not_source_ips: vec![address],
        ..Default::default()
    };
    let (field, cause) = flaw(&policy(matches));
    assert_eq!(field, "rules[0].clauses[0].matches[0].not_source_ips[0].length");
    assert_eq!(
        cause,
        Cause::PrefixLength {
            length: 33,
            width: 32
        }
    );
}

#[test]
fn a_policy_range_that_is_ipv4_mapped_matches_ipv4() {
    let mut mapped = vec![0; 10];
    mapped.extend([0xff, 0xff, 10, 1, 0, 0]);
    let address = security::Address {
        address: mapped,
        length: 112,
    };
    let matches = security::Match {
        source_ips: vec![address],
        ..Default::default()
    };
    let body = policy(matches).encode_to_vec();
    let Ok(Resource::Authorization(policy)) = decode_authorization("shop/p", &body) else {
        panic!("a policy")
    };
    let range = &policy.rules[0].clauses[0].matches[0].source_ips[0];
    assert_eq!(range.to_string(), "10.1.0.0/16");
}

#[test]
fn scope_and_action_must_be_known() {
    let unknown = security::Authorization {
        scope: 3,
        ..policy(Default::default())
    };
    assert_eq!(flaw(&unknown), ("scope".into(), Cause::UnknownValue(3)));
    let unknown = security::Authorization {
        action: 2,
        ..policy(Default::default())
    };
    assert_eq!(flaw(&unknown), ("action".into(), Cause::UnknownValue(2)));
}

#[test]
fn only_our_own_extension_of_a_policy_is_known() {
    let extension = |name: &str| wire::Extension {
        name: name.into(),
        config: None,
    };
    let ours = security::Authorization {
        extensions: vec![extension(names::MATCH_PEER)],
        ..policy(Default::default())
    };
    let Ok(Resource::Authorization(decoded)) = decode_authorization("shop/p", &ours.encode_to_vec()) else {
        panic!("a policy")
    };
    assert!(decoded.match_peer);
    let theirs = security::Authorization {
        extensions: vec![extension("x")],
        ..policy(Default::default())
    };
    assert_eq!(
        flaw(&theirs),
        ("extensions[0].name".into(), Cause::UnknownExtension("x".into()))
    );
    let inside = policy(security::Match {
        extensions: vec![extension(names::MATCH_PEER)],
        ..Default::default()
    });
    assert!(
        matches!(flaw(&inside).1, Cause::UnknownExtension(_)),
        "a match has no extension"
    );
}

#[test]
fn presence_is_a_match_of_its_own() {
    let presence = security::StringMatch {
        match_type: Some(MatchType::Presence(())),
    };
    let body = policy(security::Match {
        namespaces: vec![presence],
        ..Default::default()
    })
    .encode_to_vec();
    assert!(decode_authorization("shop/p", &body).is_ok());
}
