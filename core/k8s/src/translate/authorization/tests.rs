//! Every row of the translation of authorization policies.

use std::sync::Arc;

use tulle_model::authz::policy::{Clause, Match, StringMatch};
use tulle_model::{Connection, Identity, Mesh, MeshUpdate, NamespacedName, Verdict, Workload};

mod direct;

use super::*;
use crate::testing::{authorization_policy, workload_entry};

fn policy(namespace: &str, spec: &str) -> AuthorizationPolicy {
    authorization_policy(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    ))
}

fn translated(spec: &str) -> (Option<Authorization>, Condition) {
    let (policy, mut conditions) = authorization(&policy("shop", spec), &MeshConfig::default());
    assert_eq!(conditions.len(), 1);
    (policy, conditions.remove(0))
}

/// The only clauses of the only rule.
fn clauses(spec: &str) -> Vec<Clause> {
    let (policy, condition) = translated(spec);
    assert_eq!(condition.reason, "Accepted", "{}", condition.message);
    policy.expect("emitted").rules.remove(0).clauses
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

#[test]
fn reach_follows_selector_and_namespace() {
    let mesh = MeshConfig::default();
    let cases = [
        ("shop", "{}", Scope::Namespace),
        ("istio-system", "{}", Scope::Global),
        (
            "shop",
            "{selector: {matchLabels: {app: a}}}",
            Scope::WorkloadSelector,
        ),
        (
            "istio-system",
            "{selector: {matchLabels: {app: a}}}",
            Scope::WorkloadSelector,
        ),
        ("shop", "{selector: {matchLabels: {}}}", Scope::Namespace),
        ("istio-system", "{selector: {matchLabels: {}}}", Scope::Global),
        // Unreadable selectors never widen to the mesh.
        (
            "istio-system",
            "{selector: {matchExpressions: []}}",
            Scope::Namespace,
        ),
        ("shop", "{selector: 7}", Scope::Namespace),
        ("istio-system", "{rules: 7}", Scope::Global),
    ];
    for (namespace, spec, expected) in cases {
        assert_eq!(
            scope(&policy(namespace, spec), &mesh),
            expected,
            "{namespace} {spec}"
        );
    }
}

#[test]
fn a_rule_is_an_and_of_from_to_and_each_when() {
    let clauses = clauses(
        "{rules: [{from: [{source: {principals: [a]}}, {source: {namespaces: [b]}}], to: [{operation: {ports: ['80']}}], \
         when: [{key: source.ip, values: [10.0.0.0/8]}, {key: destination.port, notValues: ['81']}]}]}",
    );
    assert_eq!(clauses.len(), 4);
    assert_eq!(clauses[0].matches.len(), 2);
    assert_eq!(clauses[0].matches[0].principals, [exact("a")]);
    assert_eq!(clauses[0].matches[1].namespaces, [exact("b")]);
    assert_eq!(clauses[1].matches[0].destination_ports, [80]);
    assert_eq!(clauses[2].matches[0].source_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(clauses[3].matches[0].not_destination_ports, [81]);
}

#[test]
fn an_element_that_is_always_true_removes_its_clause() {
    for spec in [
        "{rules: [{}]}",
        "{rules: [{from: [{}]}]}",
        "{rules: [{from: [{source: {}}, {source: {namespaces: [a]}}]}]}",
        "{rules: [{to: [{operation: {}}]}]}",
    ] {
        assert!(clauses(spec).is_empty(), "{spec}");
    }
}

#[test]
fn no_rules_match_nothing() {
    let (policy, _) = translated("{}");
    assert!(policy.expect("emitted").rules.is_empty());
}

#[test]
fn wildcards_stand_at_the_ends_only() {
    let clauses =
        clauses("{rules: [{from: [{source: {namespaces: ['*', '*x', 'x*', 'a*b', 'a.[*', '.*\\']}}]}]}");
    let suffix = |text: &str| StringMatch::Suffix(text.into());
    let prefix = |text: &str| StringMatch::Prefix(text.into());
    let expected = [
        StringMatch::Presence,
        suffix("x"),
        prefix("x"),
        exact("a*b"),
        prefix("a.["),
        exact(".*\\"),
    ];
    assert_eq!(clauses[0].matches[0].namespaces, expected);
}

#[test]
fn principals_of_our_trust_domain_stand_for_all_its_aliases() {
    let mesh = MeshConfig {
        trust_domain: "td".into(),
        trust_domain_aliases: vec!["old".into()],
        ..MeshConfig::default()
    };
    let context = values::Context {
        mesh: &mesh,
        namespace: &"shop".into(),
    };
    let both = |rest: &str| vec![exact(&format!("td/{rest}")), exact(&format!("old/{rest}"))];
    assert_eq!(context.principal("td/ns/a/sa/b"), Ok(both("ns/a/sa/b")));
    assert_eq!(
        context.principal("cluster.local/ns/a/sa/b"),
        Ok(both("ns/a/sa/b"))
    );
    assert_eq!(context.principal("spiffe://old/ns/a/sa/b"), Ok(both("ns/a/sa/b")));
    assert_eq!(
        context.principal("other/ns/a/sa/b"),
        Ok(vec![exact("other/ns/a/sa/b")])
    );
    assert_eq!(
        context.principal("*/ns/a/sa/b"),
        Ok(vec![StringMatch::Suffix("/ns/a/sa/b".into())])
    );
    let prefixes = vec![
        StringMatch::Prefix("td/ns/a/".into()),
        StringMatch::Prefix("old/ns/a/".into()),
    ];
    assert_eq!(context.principal("td/ns/a/*"), Ok(prefixes));
}

#[test]
fn a_service_account_without_namespace_is_of_the_policys() {
    let clauses = clauses("{rules: [{from: [{source: {serviceAccounts: [web, other/api]}}]}]}");
    let names: Vec<_> = clauses[0].matches[0]
        .service_accounts
        .iter()
        .map(|account| format!("{}/{}", account.namespace, account.service_account))
        .collect();
    assert_eq!(names, ["shop/web", "other/api"]);
}

#[test]
fn an_allow_rule_that_cannot_be_evaluated_is_dropped() {
    let (policy, condition) =
        translated("{rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [a]}}]}]}");
    assert_eq!(policy.expect("emitted").rules.len(), 1);
    assert_eq!(
        (condition.status, &*condition.reason),
        (Status::False, "PartiallyInvalid")
    );
}

#[test]
fn an_allow_policy_without_a_rule_left_stays_and_allows_nothing() {
    for rule in [
        "{to: [{operation: {paths: [/a]}}]}",
        "{to: [{operation: {notHosts: [a]}}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}",
        "{when: [{key: 'request.headers[x]', values: [y]}]}",
        "{when: [{key: source.ip}]}",
        "{to: [{operation: {ports: ['http']}}]}",
        "{to: [{operation: {ports: ['0']}}]}",
        "{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}",
        "{from: [{source: {serviceAccounts: ['a/b/c']}}]}",
        "{from: [{source: {namespaces: ['']}}]}",
    ] {
        let (policy, condition) = translated(&format!("{{action: ALLOW, rules: [{rule}]}}"));
        let policy = policy.expect("emitted");
        assert!(
            policy.rules.is_empty() && policy.action == Action::Allow,
            "{rule}"
        );
        assert_eq!(condition.reason, "Invalid", "{rule}");
    }
}

#[test]
fn r312_a_deny_rule_counts_what_cannot_be_evaluated_as_true() {
    let spec = "{action: DENY, rules: [{from: [{source: {namespaces: [a], requestPrincipals: ['*']}}], to: [{operation: {methods: [GET]}}]}]}";
    let (policy, condition) = translated(spec);
    let rules = policy.expect("emitted").rules;
    let from = Match {
        namespaces: vec![exact("a")],
        ..Match::default()
    };
    assert_eq!(
        rules,
        [Rule {
            clauses: vec![Clause { matches: vec![from] }]
        }]
    );
    assert_eq!(condition.reason, "PartiallyInvalid");
    assert!(
        condition.message.contains("targetRefs") && condition.message.contains("T0206"),
        "{}",
        condition.message
    );
    let (policy, _) = translated("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}");
    assert_eq!(policy.expect("emitted").rules, [Rule::default()]);
}

#[test]
fn one_bad_value_makes_the_whole_attribute_unknown() {
    let (policy, _) = translated(
        "{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.1, bad], namespaces: [a]}}]}]}",
    );
    let rules = policy.expect("emitted").rules;
    assert!(rules[0].clauses[0].matches[0].source_ips.is_empty());
}

#[test]
fn custom_denies_and_audit_is_not_sent() {
    let (policy, condition) =
        translated("{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {namespaces: [a]}}]}]}");
    assert_eq!(policy.expect("emitted").action, Action::Deny);
    assert_eq!(condition.reason, "UnsupportedValue");
    let (policy, condition) = translated("{action: AUDIT, rules: [{}]}");
    assert!(policy.is_none());
    assert_eq!(condition.reason, "UnsupportedValue");
}

#[test]
fn what_cannot_be_translated_denies_what_it_selects() {
    for spec in [
        "{action: MAYBE}",
        "{rules: 7}",
        "{rulez: []}",
        "{selector: {matchLabels: {app: a}}, targetRefs: [{kind: Service, name: a}]}",
    ] {
        let (policy, condition) = translated(spec);
        let policy = policy.expect("emitted");
        assert_eq!(
            (policy.action, policy.rules.len(), policy.untranslatable),
            (Action::Deny, 1, true),
            "{spec}"
        );
        assert!(policy.rules[0].clauses.is_empty());
        assert_eq!(condition.reason, "Invalid", "{spec}");
    }
}

#[test]
fn a_policy_with_targets_is_for_waypoints() {
    let policy = authorization_policy(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: Service, group: '', name: a}], rules: [{}]}\n",
    );
    assert_eq!(authorization(&policy, &MeshConfig::default()), (None, Vec::new()));
}

#[test]
fn a_dry_run_is_marked_and_its_condition_says_that_it_refuses_nobody() {
    let policy = authorization_policy(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, annotations: {istio.io/dry-run: 'true'}}\nspec: {}\n",
    );
    let (policy, conditions) = authorization(&policy, &MeshConfig::default());
    assert!(policy.expect("emitted").dry_run);
    let [condition] = &conditions[..] else {
        panic!("one condition: {conditions:?}");
    };
    assert_eq!(condition.status, Status::True);
    assert_eq!(
        condition.message,
        "node proxies judge by the policy and refuse nobody"
    );
}

fn target() -> Workload {
    let entry = workload_entry(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: web, namespace: shop}\nspec: {address: 10.0.0.1}\n",
    );
    let mesh = MeshConfig::default();
    let around = crate::translate::workload::Around {
        mesh: &mesh,
        namespace: None,
        node: None,
        network: &"".into(),
        services: std::collections::BTreeMap::new(),
        policies: vec![NamespacedName::new("shop", "p")],
    };
    crate::translate::workload::workload_entry(&entry, &around)
        .0
        .expect("a workload")
}

fn allows(policy: Authorization, connection: &Connection) -> bool {
    let mesh = Mesh::new();
    let workload = target();
    mesh.apply(vec![
        MeshUpdate::Policy(Arc::new(policy)),
        MeshUpdate::Workload(Arc::new(workload.clone())),
    ]);
    matches!(
        mesh.snapshot().policies_for(&workload).check(connection),
        Verdict::Allow { .. }
    )
}

fn connection(namespace: &str, port: u16) -> Connection {
    Connection {
        peer: Some(Identity::new("cluster.local", namespace, "web")),
        original_source: None,
        source_ip: "10.1.0.1".parse().unwrap(),
        destination: std::net::SocketAddr::new("10.0.0.1".parse().unwrap(), port),
    }
}

/// For one L4 and one L7 attribute: an ALLOW lets pass only what it lets pass whatever the unknown is, a DENY
/// refuses whatever it could refuse.
#[test]
fn unknown_decides_against_access() {
    let rules = [
        ("{from: [{source: {namespaces: [a]}}]}", [true, false]),
        ("{from: [{source: {notNamespaces: [a]}}]}", [false, true]),
    ];
    for (rule, matches) in rules {
        for (unknown, with) in [
            (false, rule.to_owned()),
            (
                true,
                rule.replace("}}]}", "}}], to: [{operation: {methods: [GET]}}]}"),
            ),
        ] {
            for (namespace, matches) in ["a", "b"].into_iter().zip(matches) {
                let connection = connection(namespace, 80);
                let allow = translated(&format!("{{rules: [{with}]}}")).0.expect("emitted");
                assert_eq!(
                    allows(allow, &connection),
                    matches && !unknown,
                    "ALLOW {with} from {namespace}"
                );
                let deny = translated(&format!("{{action: DENY, rules: [{with}]}}"))
                    .0
                    .expect("emitted");
                assert_eq!(
                    allows(deny, &connection),
                    !matches,
                    "DENY {with} from {namespace}"
                );
            }
        }
    }
}
