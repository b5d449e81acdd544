//! The compiled form agrees with the plain one, on whatever policies, requests and streams.

use proptest::prelude::*;

use super::*;
use crate::authz::ServiceAccountMatch;
use crate::policy::authz::reference::{self, Plain};

fn some_text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "a",
        "ab",
        "b",
        "A",
        "td/ns/a/sa/b",
        "td/ns/",
        "a/b",
        "GET",
        "80",
        "/a",
        "/a/b",
        "/a%2Fb",
        "a.b",
        "a.b:80",
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

fn some_path_pattern() -> impl Strategy<Value = PathPattern> {
    let templates = prop::sample::select(vec!["/{*}", "/a/{*}", "/{**}", "/a/{**}", "/{**}/b", "/{*}/b"]);
    prop_oneof![
        some_pattern().prop_map(PathPattern::Text),
        templates.prop_map(|text| PathPattern::Template(text.into())),
    ]
}

fn some_net() -> impl Strategy<Value = IpNet> {
    let nets = [
        "10.0.0.0/8",
        "10.0.0.1/32",
        "0.0.0.0/0",
        "::/0",
        "::ffff:10.0.0.0/120",
        "fd::/64",
    ];
    prop::sample::select(nets.map(|net| net.parse().unwrap()).to_vec())
}

fn some_account() -> impl Strategy<Value = ServiceAccountMatch> {
    let part = || prop::sample::select(vec!["a", "ab", "b"]);
    (part(), part()).prop_map(|(namespace, service_account)| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    })
}

fn few<S: Strategy>(one: impl Fn() -> S) -> impl Strategy<Value = Values<S::Value>>
where
    S::Value: Clone,
{
    // Most fields are not set, so that some rules match.
    let list = move |strategy: S| prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(strategy, 1..3)];
    (list(one()), list(one())).prop_map(|(any, none)| Values { any, none })
}

fn some_from() -> impl Strategy<Value = From> {
    let fields = (
        few(some_pattern),
        few(some_pattern),
        few(some_pattern),
        few(some_net),
        few(some_net),
        few(some_account),
    );
    fields.prop_map(
        |(principals, namespaces, request_principals, ips, remote_ips, service_accounts)| From {
            principals,
            namespaces,
            request_principals,
            ips,
            remote_ips,
            service_accounts,
        },
    )
}

fn some_to() -> impl Strategy<Value = To> {
    let fields = (
        few(some_pattern),
        few(|| 79u16..82),
        few(some_pattern),
        few(some_path_pattern),
    );
    fields.prop_map(|(hosts, ports, methods, paths)| To {
        hosts,
        ports,
        methods,
        paths,
    })
}

fn some_when() -> impl Strategy<Value = When> {
    let keys = prop::sample::select(vec![
        "source.ip",
        "remote.ip",
        "destination.ip",
        "destination.port",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.headers[X]",
        "request.headers[:odd]",
        "request.auth.claims[c]",
        "request.auth.claims[n][c]",
    ]);
    let key = prop_oneof![30 => keys, 1 => Just("request.body")];
    (key, few(some_pattern), few(some_net)).prop_map(|(key, values, ips)| {
        let is_address = key.ends_with(".ip");
        When {
            key: key.into(),
            values: if is_address { Values::default() } else { values },
            ips: if is_address { ips } else { Values::default() },
        }
    })
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let fields = (
        prop::collection::vec(some_from(), 0..3),
        prop::collection::vec(some_to(), 0..3),
        prop::collection::vec(some_when(), 0..2),
        prop::bool::weighted(0.1),
    );
    fields.prop_map(|(from, to, when, is_partial)| Rule {
        from,
        to,
        when,
        is_partial,
    })
}

fn some_policy() -> impl Strategy<Value = (Option<Authz>, bool)> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit, Action::Custom]);
    let authz = (action, prop::collection::vec(some_rule(), 0..3)).prop_map(|(action, rules)| Authz {
        action,
        rules,
        provider: None,
    });
    (prop::option::weighted(0.95, authz), prop::bool::weighted(0.1))
}

fn some_source() -> impl Strategy<Value = Source> {
    let part = || prop::sample::select(vec!["td", "a", "ab", "b"]);
    let identity = (part(), part(), part()).prop_map(|(td, ns, sa)| Identity::new(td, ns, sa));
    let ips = ["10.0.0.1", "::ffff:10.0.0.1", "192.0.2.1", "fd::1"];
    let ip = move || prop::sample::select(ips.map(|ip| ip.parse().unwrap()).to_vec());
    (prop::option::weighted(0.8, identity), ip(), ip()).prop_map(|(identity, ip, remote_ip)| Source {
        identity,
        ip,
        remote_ip,
    })
}

fn some_head() -> impl Strategy<Value = RequestHead> {
    let path = prop::sample::select(vec![
        "/",
        "/a",
        "/a/b",
        "/a%2Fb",
        "/a//b",
        "/c/%2E%2E/a",
        "/a/b/c",
    ]);
    let authority = prop::sample::select(vec!["a.b", "a.b:80", "A.B", "a.b.:81", "[::1]:80"]);
    let value = prop::sample::select(vec!["a", "ab", "b", ""]);
    let method = prop::sample::select(vec![Method::GET, Method::POST]);
    (path, authority, prop::collection::vec(value, 0..3), method).prop_map(
        |(path, authority, values, method)| {
            let mut head = RequestHead {
                method,
                authority: authority.into(),
                ..get(path)
            };
            for value in values {
                head.headers.append("x", HeaderValue::from_static(value));
            }
            head
        },
    )
}

fn some_token() -> impl Strategy<Value = Token> {
    let text = || prop::sample::select(vec!["a", "ab", "b"]).prop_map(Into::into);
    let claim = move || {
        prop_oneof![
            prop::collection::vec(text(), 0..3).prop_map(Claim::Texts),
            Just(Claim::Odd),
            prop::collection::vec(text(), 0..3)
                .prop_map(|texts| Claim::Nested([("c".into(), Claim::Texts(texts))].into())),
        ]
    };
    let claims = (prop::option::of(claim()), prop::option::of(claim()));
    (
        text(),
        prop::collection::vec(text(), 0..3),
        prop::option::of(text()),
        claims,
    )
        .prop_map(|(principal, audiences, presenter, (c, n))| {
            let pairs = [("c", c), ("n", n)];
            Token {
                principal,
                audiences,
                presenter,
                claims: pairs
                    .into_iter()
                    .filter_map(|(name, claim)| Some((name.into(), claim?)))
                    .collect(),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_form_agrees_with_the_plain_one(
        policies in prop::collection::vec(some_policy(), 0..4),
        source in some_source(),
        head in prop::option::weighted(0.8, some_head()),
        token in prop::option::of(some_token()),
        sni in prop::option::of(prop::sample::select(vec!["a", "A", "b"])),
        port in 79u16..82,
    ) {
        let compiled: Vec<_> = policies.iter().map(|(authz, dry_run)| match authz {
            Some(authz) => made("p", *dry_run, Concern::Authz(authz.clone())),
            None => made("p", *dry_run, Concern::DenyAll("why".into())),
        }).collect();
        let plain: Vec<Plain<'_>> =
            policies.iter().map(|(authz, dry_run)| ("shop", *dry_run, authz.as_ref())).collect();
        let of = match &head {
            Some(head) => Attributes { sni, ..Attributes::of_request(&source, to_port(port), head, token.as_ref()) },
            None => Attributes::of_stream(&source, to_port(port), sni),
        };
        let passes = matches!(Authorizer::new(&compiled).check(&of), Verdict::Allow(_));
        prop_assert_eq!(passes, reference::allows(&plain, &of));
    }

    #[test]
    fn what_is_denied_before_its_tokens_are_known_is_denied_whatever_they_say(
        policies in prop::collection::vec(some_policy(), 0..4),
        source in some_source(),
        head in some_head(),
        token in prop::option::of(some_token()),
    ) {
        let compiled: Vec<_> = policies.iter().map(|(authz, dry_run)| match authz {
            Some(authz) => made("p", *dry_run, Concern::Authz(authz.clone())),
            None => made("p", *dry_run, Concern::DenyAll("why".into())),
        }).collect();
        let authorizer = Authorizer::new(&compiled);
        let before = authorizer.check(&Attributes::before_tokens(&source, to_port(80), &head));
        let with = authorizer.check(&Attributes::of_request(&source, to_port(80), &head, token.as_ref()));
        prop_assert!(matches!(before, Verdict::Allow(_)) || matches!(with, Verdict::Deny(_)));
    }

    #[test]
    fn each_compiled_rule_agrees_with_the_plain_one(
        rule in some_rule(),
        allow in any::<bool>(),
        source in some_source(),
        head in some_head(),
        token in prop::option::of(some_token()),
    ) {
        prop_assume!(rule.when.iter().all(|when| &*when.key != "request.body"));
        let action = if allow { Action::Allow } else { Action::Audit };
        let authz = Authz { action, rules: vec![rule], provider: None };
        let of = Attributes::of_request(&source, to_port(80), &head, token.as_ref());
        let compiled = Authorizer::new(&[made("p", false, Concern::Authz(authz.clone()))]);
        let matches = match action {
            Action::Allow => matches!(compiled.check(&of), Verdict::Allow(_)),
            _ => compiled.audits(&of).next().is_some(),
        };
        prop_assert_eq!(matches, reference::policy_matches("shop", &authz, &of));
    }
}
