//! How much one policy may say.

use std::collections::BTreeMap;

use super::super::authz;
use super::*;
use crate::testing::authorization_policy;

/// A policy with one rule in which one field has this many values.
fn wide(field: &str, number: usize) -> String {
    let (part, field) = field.split_once('.').expect("a part and its field");
    let outer = if part == "source" { "from" } else { "to" };
    let values: Vec<String> = (0..number).map(|number| format!("'{number}'")).collect();
    let values = values.join(",");
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{kind: Service, name: web}}], rules: [{{{outer}: [{{{part}: {{{field}: [{values}]}}}}]}}]}}\n"
    )
}

#[test]
fn every_value_of_a_policy_counts_against_its_bound() {
    let mut counted = BTreeMap::new();
    for field in [
        "principals",
        "notPrincipals",
        "requestPrincipals",
        "notRequestPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
    ] {
        counted.insert(format!("source.{field}"), 0);
    }
    for field in [
        "hosts",
        "notHosts",
        "ports",
        "notPorts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ] {
        counted.insert(format!("operation.{field}"), 0);
    }
    for (field, number) in &mut counted {
        *number = authz::sizes(&authorization_policy(&wide(field, 5))).sum();
    }
    // The rule, its source or operation, and five values.
    assert!(counted.values().all(|number| *number == 7), "{counted:?}");
}

#[test]
fn a_policy_beyond_its_bound_is_refused_after_a_look_at_no_more_than_the_bound() {
    let mut looked = 0;
    let endless = std::iter::repeat_with(|| {
        looked += 1;
        1
    });
    assert!(authz::exceeds(endless, 1_000));
    assert_eq!(looked, 1_001);
    assert!(!authz::exceeds(std::iter::repeat_n(1, 1_000), 1_000));

    let mut many = authorization_policy(&wide("source.namespaces", 1));
    let rule = many.spec.rules[0].clone();
    many.spec.rules = vec![rule; authz::VALUES_MAX / 3 + 1];
    let object = Object::AuthorizationPolicy(many);
    let translated = policy(&object, &[], &Around::of(SHOP));
    let cause = "it has more than 100000 values";
    assert_eq!(translated.policies[0].concern, Concern::DenyAll(cause.into()));
}
