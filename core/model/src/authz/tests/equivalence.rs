//! The compiled matcher agrees with the plain one, on whatever policies and connections.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use crate::authz::matcher::Matcher;
use crate::authz::policy::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};
use crate::authz::{Connection, ServiceAccountMatch, Verdict, reference};
use crate::identity::Identity;
use crate::mesh::{Policy, PolicySet};
use crate::testing::deny;

/// Few names, so that patterns and identities meet often; some look like others or hold what policies hold.
fn some_text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "a",
        "ab",
        "b",
        "sa",
        "ns",
        "/ns/a",
        "a/sa/b",
        "td/ns/a/sa/b",
        "td/ns/",
    ])
}

fn some_pattern() -> impl Strategy<Value = StringMatch> {
    (some_text(), 0..4).prop_map(|(text, kind)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn some_identity() -> impl Strategy<Value = Identity> {
    let part = || prop::sample::select(vec!["td", "a", "ab", "b", "sa"]);
    (part(), part(), part()).prop_map(|(td, ns, sa)| Identity::new(td, ns, sa))
}

fn some_net() -> impl Strategy<Value = ipnet::IpNet> {
    let nets = [
        "10.0.0.0/8",
        "10.0.0.1/32",
        "10.0.0.2/31",
        "0.0.0.0/0",
        "::/0",
        "::ffff:10.0.0.0/120",
        "fd::/64",
    ];
    prop::sample::select(nets.map(|net| net.parse().unwrap()).to_vec())
}

fn some_account() -> impl Strategy<Value = ServiceAccountMatch> {
    let part = || prop::sample::select(vec!["a", "ab", "b", "sa"]);
    (part(), part()).prop_map(|(namespace, service_account)| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    })
}

fn few<S: Strategy>(one: impl Fn() -> S) -> impl Strategy<Value = (Vec<S::Value>, Vec<S::Value>)>
where
    S::Value: Clone,
{
    // Most fields are not set, so that some matches hold.
    let list = move |strategy: S| prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(strategy, 1..4)];
    (list(one()), list(one()))
}

fn some_match() -> impl Strategy<Value = Match> {
    let fields = (
        few(some_pattern),
        few(some_pattern),
        few(some_net),
        few(some_net),
        few(|| 1u16..4),
        few(some_account),
    );
    fields.prop_map(
        |(namespaces, principals, source, destination, ports, accounts)| Match {
            namespaces: namespaces.0,
            not_namespaces: namespaces.1,
            principals: principals.0,
            not_principals: principals.1,
            source_ips: source.0,
            not_source_ips: source.1,
            destination_ips: destination.0,
            not_destination_ips: destination.1,
            destination_ports: ports.0,
            not_destination_ports: ports.1,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
        },
    )
}

fn some_policy() -> impl Strategy<Value = Authorization> {
    let clause = prop::collection::vec(some_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let flag = || prop::bool::weighted(0.1);
    (
        prop::collection::vec(rule, 0..3),
        any::<bool>(),
        flag(),
        flag(),
        any::<bool>(),
    )
        .prop_map(
            |(rules, denies, dry_run, untranslatable, match_peer)| Authorization {
                name: "p".into(),
                namespace: "default".into(),
                scope: Scope::Global,
                action: if denies { Action::Deny } else { Action::Allow },
                rules,
                dry_run,
                untranslatable,
                match_peer,
            },
        )
}

fn some_connection() -> impl Strategy<Value = Connection> {
    let ips = ["10.0.0.1", "10.0.0.3", "::ffff:10.0.0.1", "192.0.2.1", "fd::1"];
    let ip = move || prop::sample::select(ips.map(|ip| ip.parse::<IpAddr>().unwrap()).to_vec());
    let peer = prop::option::weighted(0.8, some_identity());
    (peer, prop::option::of(some_identity()), ip(), ip(), 1u16..4).prop_map(
        |(peer, original_source, source_ip, destination, port)| Connection {
            peer,
            original_source,
            source_ip,
            destination: SocketAddr::new(destination, port),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_matcher_agrees_with_the_plain_one(
        policies in prop::collection::vec(some_policy(), 0..4),
        connection in some_connection(),
    ) {
        let compiled = policies.iter().map(|policy| Arc::new(Policy::new(Arc::new(policy.clone()))));
        let set = PolicySet { policies: compiled.collect(), missing: Vec::new() };
        let passes = matches!(set.check(&connection), Verdict::Allow { .. });
        prop_assert_eq!(passes, reference::allows(&policies, &connection));
    }

    #[test]
    fn rules_that_are_looked_up_agree_with_rules_that_are_walked(
        policy in some_policy(),
        more in prop::collection::vec(some_match(), 0..20),
        connection in some_connection(),
    ) {
        let mut policy = policy;
        policy.rules.extend(more.into_iter().map(|one| Rule { clauses: vec![Clause { matches: vec![one] }] }));
        let (looked_up, walked) = (Matcher::indexed_from(0, &policy), Matcher::indexed_from(usize::MAX, &policy));
        prop_assert_eq!(looked_up.first_match(&connection), walked.first_match(&connection));
    }

    #[test]
    fn each_compiled_rule_agrees_with_the_plain_one(
        one in some_match(),
        connection in some_connection(),
    ) {
        let policy = deny("p").when(one).build();
        let compiled = Policy::new(Arc::new(policy.clone()));
        prop_assert_eq!(
            compiled.matcher().first_match(&connection).is_some(),
            reference::policy_matches(&policy, &connection)
        );
    }
}
