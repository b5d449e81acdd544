//! Verdicts, one rule each.

mod equivalence;

use std::sync::Arc;

use super::policy::{Match, StringMatch};
use super::*;
use crate::mesh::{Policy, PolicySet};
use crate::testing::{PolicyBuilder, allow, any_of, deny, name};

fn set(policies: impl IntoIterator<Item = PolicyBuilder>) -> PolicySet {
    let compiled = policies
        .into_iter()
        .map(|policy| Arc::new(Policy::new(Arc::new(policy.build()))));
    PolicySet {
        policies: compiled.collect(),
        missing: Vec::new(),
    }
}

fn identity(namespace: &str, service_account: &str) -> Identity {
    Identity::new("cluster.local", namespace, service_account)
}

fn from(peer: Option<Identity>) -> Connection {
    Connection {
        peer,
        original_source: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:8080".parse().unwrap(),
    }
}

fn from_web() -> Connection {
    from(Some(identity("shop", "web")))
}

/// Behind a waypoint of namespace `infra`, a client of namespace `shop`.
fn through_waypoint() -> Connection {
    Connection {
        original_source: Some(identity("shop", "web")),
        ..from(Some(identity("infra", "wp")))
    }
}

fn passes(policy: PolicyBuilder, connection: &Connection) -> bool {
    matches!(set([policy]).check(connection), Verdict::Allow { .. })
}

fn denied_by(policy: &str) -> Verdict {
    Verdict::Deny {
        because: DenyBecause::Policy {
            policy: name(policy),
            rule: 0,
        },
    }
}

#[test]
fn without_policies_everything_passes() {
    assert_eq!(
        set([]).check(&from(None)),
        Verdict::Allow {
            because: AllowBecause::NoAllowPolicy
        }
    );
}

#[test]
fn deny_beats_allow() {
    let set = set([allow("a").always(), deny("d").always()]);
    assert_eq!(set.check(&from_web()), denied_by("d"));
}

#[test]
fn one_matching_allow_is_enough_and_is_named() {
    let set = set([
        allow("a"),
        allow("b").from_namespace("else").from_namespace("shop"),
    ]);
    let because = AllowBecause::Policy {
        policy: name("b"),
        rule: 1,
    };
    assert_eq!(set.check(&from_web()), Verdict::Allow { because });
}

#[test]
fn an_allow_that_does_not_match_refuses_the_rest() {
    let set = set([allow("a").from_namespace("else")]);
    assert_eq!(
        set.check(&from_web()),
        Verdict::Deny {
            because: DenyBecause::NoAllowMatched
        }
    );
}

#[test]
fn a_deny_that_does_not_match_lets_pass() {
    let set = set([deny("d").from_namespace("else")]);
    assert_eq!(
        set.check(&from_web()),
        Verdict::Allow {
            because: AllowBecause::NoAllowPolicy
        }
    );
}

#[test]
fn a_policy_without_rules_never_matches() {
    assert!(passes(deny("d"), &from_web()));
    assert!(!passes(allow("a"), &from_web()));
}

#[test]
fn a_rule_without_clauses_and_a_clause_without_matches_always_match() {
    assert!(!passes(deny("d").rule([]), &from_web()));
    assert!(!passes(deny("d").rule([any_of([])]), &from_web()));
}

#[test]
fn a_match_without_fields_is_skipped() {
    let port = Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    assert!(
        passes(deny("d").when(Match::default()), &from_web()),
        "alone it never holds"
    );
    assert!(!passes(
        deny("d").rule([any_of([Match::default(), port])]),
        &from_web()
    ));
}

#[test]
fn every_clause_must_hold_and_any_match_of_one() {
    let port = |port| Match {
        destination_ports: vec![port],
        ..Match::default()
    };
    let shop = Match {
        namespaces: vec![StringMatch::Exact("shop".into())],
        ..Match::default()
    };
    assert!(!passes(
        deny("d").rule([any_of([port(1), port(8080)]), any_of([shop.clone()])]),
        &from_web()
    ));
    assert!(passes(
        deny("d").rule([any_of([port(1)]), any_of([shop])]),
        &from_web()
    ));
}

#[test]
fn every_kind_of_field_must_hold_and_any_value_of_one() {
    let both = |ports| Match {
        destination_ports: ports,
        source_ips: vec!["10.0.0.0/24".parse().unwrap()],
        ..Match::default()
    };
    assert!(!passes(deny("d").when(both(vec![1, 8080])), &from_web()));
    assert!(passes(deny("d").when(both(vec![1])), &from_web()));
}

#[test]
fn a_not_field_holds_if_none_of_its_values_matches() {
    let not = |texts: [&str; 2]| Match {
        not_namespaces: texts.map(|text| StringMatch::Exact(text.into())).into(),
        ..Match::default()
    };
    assert!(!passes(deny("d").when(not(["a", "b"])), &from_web()));
    assert!(passes(deny("d").when(not(["a", "shop"])), &from_web()));
}

#[test]
fn strings_are_compared_plainly() {
    for (pattern, matches) in [
        (StringMatch::Exact("cluster.local/ns/shop/sa/web".into()), true),
        (StringMatch::Exact("cluster.local/ns/shop/sa/we".into()), false),
        (StringMatch::Exact("cluster.local/ns/shop/sa/web/".into()), false),
        (StringMatch::Exact("cluster.local/ns/*/sa/web".into()), false),
        (StringMatch::Prefix("cluster.local/ns/sh".into()), true),
        (StringMatch::Prefix("cluster.local/ns/shop/sa/webx".into()), false),
        (StringMatch::Prefix("cluster_local".into()), false),
        (StringMatch::Prefix("".into()), true),
        (StringMatch::Suffix("/sa/web".into()), true),
        (StringMatch::Suffix("op/sa/web".into()), true),
        (StringMatch::Suffix("xcluster.local/ns/shop/sa/web".into()), false),
        (StringMatch::Presence, true),
    ] {
        let one = Match {
            principals: vec![pattern.clone()],
            ..Match::default()
        };
        assert_eq!(!passes(deny("d").when(one), &from_web()), matches, "{pattern:?}");
    }
}

#[test]
fn without_identity_positive_fields_fail_and_not_fields_hold() {
    let anyone = vec![StringMatch::Presence];
    let account = vec![ServiceAccountMatch {
        namespace: "shop".into(),
        service_account: "web".into(),
    }];
    for (positive, negative) in [
        (
            Match {
                principals: anyone.clone(),
                ..Match::default()
            },
            Match {
                not_principals: anyone.clone(),
                ..Match::default()
            },
        ),
        (
            Match {
                namespaces: anyone.clone(),
                ..Match::default()
            },
            Match {
                not_namespaces: anyone,
                ..Match::default()
            },
        ),
        (
            Match {
                service_accounts: account.clone(),
                ..Match::default()
            },
            Match {
                not_service_accounts: account,
                ..Match::default()
            },
        ),
    ] {
        assert!(!passes(allow("a").when(positive), &from(None)));
        assert!(!passes(deny("d").when(negative), &from(None)));
    }
}

#[test]
fn strict_mode_refuses_plaintext_only() {
    let strict = || {
        deny("istio_converted_static_strict").when(Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        })
    };
    assert!(passes(strict(), &from_web()));
    assert!(!passes(strict(), &from(None)));
}

#[test]
fn a_service_account_matches_in_any_trust_domain() {
    let web = ServiceAccountMatch {
        namespace: "shop".into(),
        service_account: "web".into(),
    };
    let policy = || {
        allow("a").when(Match {
            service_accounts: vec![web.clone()],
            ..Match::default()
        })
    };
    assert!(passes(
        policy(),
        &from(Some(Identity::new("elsewhere", "shop", "web")))
    ));
    assert!(!passes(policy(), &from(Some(identity("shop", "other")))));
    assert!(!passes(policy(), &from(Some(identity("other", "web")))));
}

#[test]
fn addresses_match_by_range_and_mapped_ones_as_ipv4() {
    let mapped = Connection {
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        ..from_web()
    };
    assert!(!passes(deny("d").from_ip("10.0.0.0/24"), &mapped));
    assert!(!passes(deny("d").from_ip("0.0.0.0/0"), &mapped));
    assert!(passes(deny("d").from_ip("::/0"), &mapped));
    assert!(passes(deny("d").from_ip("10.0.1.0/24"), &mapped));
}

#[test]
fn behind_a_waypoint_a_positive_field_holds_for_either_identity() {
    for namespace in ["shop", "infra"] {
        assert!(
            passes(allow("a").from_namespace(namespace), &through_waypoint()),
            "{namespace}"
        );
    }
    assert!(!passes(allow("a").from_namespace("else"), &through_waypoint()));
}

#[test]
fn behind_a_waypoint_a_not_field_holds_only_if_neither_matches() {
    for (principal, denied) in [
        ("cluster.local/ns/shop/sa/web", false),
        ("cluster.local/ns/infra/sa/wp", false),
        ("cluster.local/ns/else/sa/x", true),
    ] {
        assert_eq!(
            !passes(deny("d").not_from_principal(principal), &through_waypoint()),
            denied
        );
    }
}

#[test]
fn a_policy_for_the_peer_never_sees_the_original_source() {
    let policy = || {
        deny("d")
            .not_from_principal("cluster.local/ns/shop/sa/web")
            .match_peer()
    };
    assert!(!passes(policy(), &through_waypoint()));
    assert!(!passes(
        allow("a").from_namespace("shop").match_peer(),
        &through_waypoint()
    ));
}

#[test]
fn an_original_source_without_a_peer_counts_for_nothing() {
    let claimed = Connection {
        original_source: Some(identity("shop", "web")),
        ..from(None)
    };
    assert!(!passes(allow("a").from_namespace("shop"), &claimed));
}

#[test]
fn a_missing_policy_holds_the_connection_back() {
    let missing = PolicySet {
        missing: vec![name("p")],
        ..set([allow("a").always()])
    };
    let because = DenyBecause::PolicyPending { policy: name("p") };
    assert_eq!(missing.check(&from_web()), Verdict::Deny { because });
}

#[test]
fn a_deny_that_matches_is_stronger_than_a_missing_policy() {
    let missing = PolicySet {
        missing: vec![name("p")],
        ..set([deny("d").always()])
    };
    assert_eq!(missing.check(&from_web()), denied_by("d"));
}

#[test]
fn an_untranslatable_policy_denies_what_it_selects() {
    let because = || DenyBecause::Untranslatable { policy: name("p") };
    for policy in [allow("p").always().untranslatable(), deny("p").untranslatable()] {
        assert_eq!(
            set([policy]).check(&from_web()),
            Verdict::Deny { because: because() }
        );
    }
}

#[test]
fn a_generated_policy_asks_for_the_waypoint() {
    let policy = deny("tulle_require_waypoint_1f").not_from_principal("cluster.local/ns/infra/sa/wp");
    let because = DenyBecause::WaypointRequired {
        policy: name("tulle_require_waypoint_1f"),
    };
    assert_eq!(
        set([policy.clone()]).check(&from_web()),
        Verdict::Deny { because }
    );
    assert!(passes(policy, &through_waypoint()));
}

#[test]
fn a_dry_run_policy_decides_nothing_and_says_what_it_would() {
    let set = set([
        deny("deny-all").always().dry_run(),
        deny("deny-else").from_namespace("else").dry_run(),
        allow("allow-shop").from_namespace("shop").dry_run(),
        allow("allow-none").dry_run(),
    ]);
    assert_eq!(
        set.check(&from_web()),
        Verdict::Allow {
            because: AllowBecause::NoAllowPolicy
        }
    );
    let because = AllowBecause::Policy {
        policy: name("allow-shop"),
        rule: 0,
    };
    assert_eq!(
        set.check_dry_run(&from_web()),
        [
            (name("deny-all"), denied_by("deny-all")),
            (
                name("deny-else"),
                Verdict::Allow {
                    because: AllowBecause::NoAllowPolicy
                }
            ),
            (name("allow-shop"), Verdict::Allow { because }),
            (
                name("allow-none"),
                Verdict::Deny {
                    because: DenyBecause::NoAllowMatched
                }
            ),
        ]
    );
}
