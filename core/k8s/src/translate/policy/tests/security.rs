//! Policies of `security.istio.io` with targets.

use tulle_model::authz::ServiceAccountMatch;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::Jwt;
use tulle_model::policy::authz::{Action, Authz, From, PathPattern, Rule, To, Values, When};
use tulle_model::policy::jwt::{ClaimToHeader, FromHeader, JwtRule, Keys};

use super::*;
use crate::testing::mesh;

fn around() -> Around {
    let provider =
        "providers: [{name: opa, extAuthz: {backendRef: {name: opa, namespace: shop, port: 9000}}}]\n";
    Around::of(SHOP).within(mesh(provider).0)
}

/// What becomes of a policy of this kind on the service.
fn translated(kind: &str, spec: &str) -> Translated {
    let text = format!(
        "apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: p, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
{spec}"
    );
    translate(&text, &around())
}

fn authorized(spec: &str) -> Authz {
    let translated = translated("AuthorizationPolicy", spec);
    assert_eq!(flaws(&translated), [], "{spec}");
    match &translated.policies[0].concern {
        Concern::Authz(authz) => authz.clone(),
        other => panic!("{other:?}"),
    }
}

fn exact(any: &str, none: &str) -> Values<StringMatch> {
    Values {
        any: vec![StringMatch::Exact(any.into())],
        none: vec![StringMatch::Exact(none.into())],
    }
}

/// A rule in which every attribute is asked for.
const EVERYTHING: &str = "
  action: DENY
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/a/sa/b]
        notPrincipals: [other.example/ns/c/sa/d]
        requestPrincipals: [issuer/e]
        notRequestPrincipals: [issuer/f]
        namespaces: [g]
        notNamespaces: [h]
        serviceAccounts: [i/j]
        notServiceAccounts: [k]
        ipBlocks: [10.1.0.0/16]
        notIpBlocks: [10.1.2.3]
        remoteIpBlocks: [10.2.0.0/16]
        notRemoteIpBlocks: [10.2.3.4]
    to:
    - operation:
        hosts: [l.example]
        notHosts: [m.example]
        ports: ['80']
        notPorts: ['81']
        methods: [GET]
        notMethods: [PUT]
        paths: ['/n*', '/o/{*}/p/{**}']
        notPaths: ['*/q']
    when:
    - {key: 'request.headers[x-r]', values: [s], notValues: [t]}
    - {key: destination.port, values: ['8080']}
    - {key: remote.ip, notValues: [10.3.0.0/16]}
";

#[test]
fn every_attribute_of_a_rule_is_its_own() {
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let net = |text: &str| text.parse().expect("a range");
    let from = From {
        principals: exact("cluster.local/ns/a/sa/b", "other.example/ns/c/sa/d"),
        namespaces: exact("g", "h"),
        request_principals: exact("issuer/e", "issuer/f"),
        ips: Values {
            any: vec![net("10.1.0.0/16")],
            none: vec![net("10.1.2.3/32")],
        },
        remote_ips: Values {
            any: vec![net("10.2.0.0/16")],
            none: vec![net("10.2.3.4/32")],
        },
        service_accounts: Values {
            any: vec![account("i", "j")],
            none: vec![account("shop", "k")],
        },
    };
    let to = To {
        hosts: exact("l.example", "m.example"),
        ports: Values {
            any: vec![80],
            none: vec![81],
        },
        methods: exact("GET", "PUT"),
        paths: Values {
            any: vec![
                PathPattern::Text(StringMatch::Prefix("/n".into())),
                PathPattern::Template("/o/{*}/p/{**}".into()),
            ],
            none: vec![PathPattern::Text(StringMatch::Suffix("/q".into()))],
        },
    };
    let when = |key: &str, values, ips| When {
        key: key.into(),
        values,
        ips,
    };
    let port = Values {
        any: vec![StringMatch::Exact("8080".into())],
        none: vec![],
    };
    let remote = Values {
        any: vec![],
        none: vec![net("10.3.0.0/16")],
    };
    let rule = Rule {
        from: vec![from],
        to: vec![to],
        when: vec![
            when("request.headers[x-r]", exact("s", "t"), Values::default()),
            when("destination.port", port, Values::default()),
            when("remote.ip", Values::default(), remote),
        ],
        is_partial: false,
    };
    let expected = Authz {
        action: Action::Deny,
        rules: vec![rule],
        provider: None,
    };
    assert_eq!(authorized(EVERYTHING), expected);
}

#[test]
fn actions_are_those_that_are_written_and_custom_ones_name_who_decides() {
    for (action, expected) in [
        ("", Action::Allow),
        ("  action: ALLOW\n", Action::Allow),
        ("  action: DENY\n", Action::Deny),
        ("  action: AUDIT\n", Action::Audit),
    ] {
        let authz = authorized(action);
        assert_eq!((authz.action, authz.provider), (expected, None), "{action}");
    }
    let custom = authorized("  action: CUSTOM\n  provider: {name: opa}\n  rules: [{}]\n");
    let expected = Authz {
        action: Action::Custom,
        rules: vec![Rule::default()],
        provider: Some("opa".into()),
    };
    assert_eq!(custom, expected);
    for (spec, cause) in [
        (
            "  action: CUSTOM\n  provider: {name: nobody}\n",
            "the mesh has no provider `nobody` that decides",
        ),
        ("  action: CUSTOM\n", "the mesh has no provider `` that decides"),
        ("  action: PERMIT\n", "`PERMIT` is no action"),
    ] {
        let translated = translated("AuthorizationPolicy", spec);
        assert_eq!(
            translated.policies[0].concern,
            Concern::DenyAll(cause.into()),
            "{spec}"
        );
        let message = format!("{cause}; everything on its targets is denied until it is corrected");
        assert_eq!(flaws(&translated), [("Invalid", &*message)]);
    }
}

#[test]
fn a_dry_run_is_one() {
    let text = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {targetRefs: [{kind: Service, name: web}]}
";
    assert!(translate(text, &around()).policies[0].dry_run);
    let enforced = translate(&text.replace("'true'", "'false'"), &around());
    assert!(!enforced.policies[0].dry_run);
}

#[test]
fn tokens_are_looked_for_and_handed_on_as_is_written() {
    let spec = "
  jwtRules:
  - issuer: https://one.example
    audiences: [a, b]
    jwksUri: https://one.example/keys
    fromHeaders: [{name: x-token, prefix: 'Token '}]
    fromParams: [token]
    fromCookies: [session]
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-team, claim: groups.team}]
    timeout: 3s
  - issuer: https://two.example
    jwks: '{\"keys\": []}'
  - issuer: https://three.example
";
    let translated = translated("RequestAuthentication", spec);
    assert_eq!(flaws(&translated), []);
    let of = |issuer: &str, keys| JwtRule {
        issuer: issuer.into(),
        keys,
        ..JwtRule::default()
    };
    let first = JwtRule {
        audiences: texts(&["a", "b"]),
        from_headers: vec![FromHeader {
            name: "x-token".into(),
            prefix: "Token ".into(),
        }],
        from_params: texts(&["token"]),
        from_cookies: texts(&["session"]),
        forward_token: true,
        payload_to_header: Some("x-payload".into()),
        claims_to_headers: vec![ClaimToHeader {
            header: "x-team".into(),
            claim: "groups.team".into(),
        }],
        timeout: seconds(3),
        ..of(
            "https://one.example",
            Keys::Uri("https://one.example/keys".into()),
        )
    };
    let second = of("https://two.example", Keys::Inline("{\"keys\": []}".into()));
    let third = of("https://three.example", Keys::Discover);
    let expected = Jwt {
        rules: vec![first, second, third],
    };
    assert_eq!(translated.policies[0].concern, Concern::Jwt(expected));
}

#[test]
fn a_token_is_written_into_no_header_that_the_mesh_speaks_with() {
    for header in ["host", "x-forwarded-for", "x-tulle-hops"] {
        let spec = format!("  jwtRules: [{{issuer: i, outputPayloadToHeader: {header}}}]\n");
        let translated = translated("RequestAuthentication", &spec);
        let cause = format!("the header {header} may not be written");
        assert_eq!(translated.policies[0].concern, Concern::DenyAll(cause.into()));
    }
}
