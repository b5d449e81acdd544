//! The effective modes of peer authentication, and what is emitted against their definition.

use std::sync::Arc;

use proptest::prelude::*;
use tulle_model::{Connection, Identity, Mesh, MeshUpdate, Verdict};

use super::*;
use crate::testing::{peer_authentication as parse, workload_entry};

fn policy(namespace: &str, name: &str, spec: &str) -> PeerAuthentication {
    parse(&format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    ))
}

fn selecting(base: &str, ports: &[(u16, &str)]) -> PeerAuthentication {
    let ports: Vec<_> = ports
        .iter()
        .map(|(port, mode)| format!("'{port}': {{mode: {mode}}}"))
        .collect();
    let spec = format!(
        "{{selector: {{matchLabels: {{app: a}}}}, mtls: {{mode: {base}}}, portLevelMtls: {{{}}}}}",
        ports.join(", ")
    );
    policy("shop", "p", &spec)
}

fn translated(policy: &PeerAuthentication) -> Option<Authorization> {
    peer_authentication(policy, Wider::default(), &MeshConfig::default()).0
}

fn referenced(policy: &PeerAuthentication) -> Option<String> {
    reference(Some(policy), Wider::default(), &MeshConfig::default()).map(|name| name.to_string())
}

#[test]
fn permissive_without_exceptions_emits_nothing() {
    let policy = selecting("PERMISSIVE", &[(80, "DISABLE")]);
    assert_eq!((translated(&policy), referenced(&policy)), (None, None));
}

#[test]
fn strict_without_exceptions_refers_to_the_static_policy() {
    let policy = selecting("STRICT", &[(80, "STRICT"), (81, "UNSET")]);
    assert_eq!(translated(&policy), None);
    assert_eq!(
        referenced(&policy).as_deref(),
        Some("istio-system/istio_converted_static_strict")
    );
}

#[test]
fn strict_ports_of_a_permissive_policy_are_one_rule_each() {
    let policy = selecting(
        "PERMISSIVE",
        &[(80, "STRICT"), (81, "STRICT"), (82, "PERMISSIVE")],
    );
    let emitted = translated(&policy).expect("emitted");
    assert_eq!(emitted.key().to_string(), "shop/converted_peer_authentication_p");
    assert!(emitted.match_peer);
    let ports: Vec<_> = emitted
        .rules
        .iter()
        .map(|rule| rule.clauses[1].matches[0].destination_ports.clone())
        .collect();
    assert_eq!(ports, [[80], [81]]);
    assert_eq!(
        referenced(&policy).as_deref(),
        Some("shop/converted_peer_authentication_p")
    );
}

#[test]
fn permissive_ports_of_a_strict_policy_are_one_rule_without_them() {
    let policy = selecting("STRICT", &[(80, "PERMISSIVE"), (81, "DISABLE")]);
    let emitted = translated(&policy).expect("emitted");
    assert_eq!(emitted.rules.len(), 1);
    assert_eq!(
        emitted.rules[0].clauses[0].matches[0].not_destination_ports,
        [80, 81]
    );
    assert_eq!(
        referenced(&policy).as_deref(),
        Some("shop/converted_peer_authentication_p")
    );
}

#[test]
fn ports_without_a_selector_are_ignored_and_said() {
    let policy = policy(
        "shop",
        "p",
        "{mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: PERMISSIVE}}}",
    );
    let (emitted, conditions) = peer_authentication(&policy, Wider::default(), &MeshConfig::default());
    assert_eq!(emitted, None);
    assert_eq!(conditions[0].reason, "PartiallyInvalid");
}

#[test]
fn an_unreadable_policy_is_strict_and_outranks_the_others() {
    let unreadable = policy("shop", "z", "{mtls: {mode: MAYBE}}");
    let elder = parse(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {mtls: {mode: PERMISSIVE}}\n",
    );
    let wider = Wider {
        namespace: oldest([&elder, &unreadable].into_iter()),
        root: None,
    };
    assert_eq!(base_mode(None, wider, &MeshConfig::default()), Mode::Strict);
}

fn any_mode() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])
}

proptest! {
    #[test]
    fn what_is_emitted_agrees_with_the_mode(
        own in prop::option::of((any_mode(), prop::collection::vec((80u16..83, any_mode()), 0..3))),
        namespace in prop::option::of(any_mode()),
        root in prop::option::of(any_mode()),
        mesh_strict: bool,
        port in 80u16..84,
        with_identity: bool,
    ) {
        let mut config = MeshConfig::default();
        if mesh_strict {
            config.mtls_mode = MtlsMode::Strict;
        }
        let wide = |namespace: &str, mode| policy(namespace, "default", &format!("{{mtls: {{mode: {mode}}}}}"));
        let namespace = namespace.map(|mode| wide("shop", mode));
        let root = root.map(|mode| wide("istio-system", mode));
        let wider = Wider { namespace: namespace.as_ref(), root: root.as_ref() };
        let own = own.map(|(base, ports)| {
            let ports: BTreeMap<_, _> = ports.into_iter().collect();
            selecting(base, &ports.into_iter().collect::<Vec<_>>())
        });
        let entry = workload_entry("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: web, namespace: shop}\nspec: {address: 10.0.0.1}\n");
        let around = crate::translate::workload::Around {
            mesh: &config,
            namespace: None,
            node: None,
            network: &"".into(),
            services: BTreeMap::new(),
            policies: reference(own.as_ref(), wider, &config).into_iter().collect(),
        };
        let workload = crate::translate::workload::workload_entry(&entry, &around).0.expect("a workload");
        let mesh = Mesh::new();
        let converted = own.as_ref().and_then(|policy| peer_authentication(policy, wider, &config).0);
        mesh.apply(converted.into_iter().chain([static_strict(&config)]).map(|policy| MeshUpdate::Policy(Arc::new(policy))).collect());
        let connection = Connection {
            peer: with_identity.then(|| Identity::new("cluster.local", "a", "b")),
            original_source: None,
            source_ip: "10.1.0.1".parse().expect("an address"),
            destination: std::net::SocketAddr::new("10.0.0.1".parse().expect("an address"), port),
        };
        let allowed = matches!(mesh.snapshot().policies_for(&workload).check(&connection), Verdict::Allow { .. });
        let expected = with_identity || mode(own.as_ref(), wider, &config, port) == Mode::Permissive;
        prop_assert_eq!(allowed, expected);
    }
}
