//! Classes of published flaws in other proxies, by their stable ids: what a waypoint's policies and metrics must not do.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{
    Action, Attributes, Authorizer, Authz, From, PathPattern, Rule, To, Values, Verdict, When,
};
use tulle_model::policy::jwt::Keys;
use tulle_model::policy::{Concern, Policy};
use tulle_model::request::{Destination, Source};
use tulle_model::{Identity, testing};

use super::policies::{authz, exact, status};
use super::tokens::{Issuer, jwt, with_token};
use super::world::{World, body, get, policy, read_head, told_policy};

fn of_paths(paths: Vec<StringMatch>) -> Rule {
    Rule {
        to: vec![To {
            paths: Values {
                any: paths.into_iter().map(PathPattern::Text).collect(),
                none: vec![],
            },
            ..To::default()
        }],
        ..Rule::default()
    }
}

fn of_header(name: &str, value: &str) -> Rule {
    Rule {
        when: vec![When {
            key: format!("request.headers[{name}]").into(),
            values: exact(value),
            ips: Values::default(),
        }],
        ..Rule::default()
    }
}

fn asks(fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = get("/");
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

#[tokio::test(start_paused = true)]
async fn r108_nothing_is_decompressed() {
    let world = World::web().await;
    // The head of a bomb: what matters is that nobody opens it.
    let bomb = Bytes::from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].repeat(64));
    let mut request = Request::post("/").header("host", "web.shop");
    request = request.header("content-encoding", "gzip");
    let request = request.body(Full::new(bomb.clone())).unwrap();
    let response = world.http1("client").await.send_request(request).await.unwrap();
    let seen = body(response).await;
    assert!(seen.contains("content-encoding: gzip\n"), "{seen}");
    assert!(seen.ends_with(&*String::from_utf8_lossy(&bomb)), "byte by byte");
}

#[tokio::test(start_paused = true)]
async fn r110_what_clients_write_makes_no_series() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    let series = || {
        world
            .registry
            .encode()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count()
    };
    let mut after_first = 0;
    for n in 0..300 {
        let mut request = get(&format!("/path-{n}?q={n}"));
        request
            .headers_mut()
            .insert("host", format!("host-{n}.example").parse().unwrap());
        request
            .headers_mut()
            .insert("user-agent", format!("agent-{n}").parse().unwrap());
        body(client.send_request(request).await.unwrap()).await;
        if n == 0 {
            world.counted("istio_requests_total", 1.0).await;
            after_first = series();
        }
    }
    world.counted("istio_requests_total", 300.0).await;
    assert_eq!(series(), after_first);
    let text = world.registry.encode();
    for word in ["path-", "host-", "agent-"] {
        assert!(!text.contains(word), "{word}");
    }
}

#[tokio::test(start_paused = true)]
async fn r302_one_value_of_a_repeated_header_denies() {
    let world = World::web().await;
    let deny = authz(Action::Deny, vec![of_header("x-role", "admin")]);
    world.apply(vec![told_policy("deny", deny)]).await;
    let guest = ("x-role", "guest");
    for (fields, expect) in [
        (&[guest][..], 200),
        (&[("x-role", "admin")], 403),
        (&[guest, ("x-role", "admin")], 403),
        (&[("X-Role", "admin"), guest], 403),
    ] {
        assert_eq!(status(&world, "client", asks(fields)).await, expect, "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r302_each_value_of_a_repeated_header_must_be_allowed() {
    let world = World::web().await;
    let allow = authz(Action::Allow, vec![of_header("x-role", "guest")]);
    world.apply(vec![told_policy("allow", allow)]).await;
    let (guest, admin) = (("x-role", "guest"), ("x-role", "admin"));
    assert_eq!(status(&world, "client", asks(&[guest, guest])).await, 200);
    assert_eq!(status(&world, "client", asks(&[guest, admin])).await, 403);
}

#[tokio::test(start_paused = true)]
async fn r309_a_token_of_another_issuer_or_audience_is_refused() {
    let world = World::web().await;
    let issuer = Issuer::new();
    let Concern::Jwt(mut rules) = jwt(Keys::Inline(issuer.jwks().into())) else {
        panic!("it is of tokens");
    };
    rules.rules[0].audiences = vec!["shop".into()];
    world.apply(vec![told_policy("jwt", Concern::Jwt(rules))]).await;
    for (claims, expect) in [
        (r#"{"iss":"https://issuer","sub":"a","aud":"shop"}"#, 200),
        (r#"{"iss":"https://issuer","sub":"a","aud":["x","shop"]}"#, 200),
        (r#"{"iss":"https://issuer","sub":"a","aud":"other"}"#, 401),
        (r#"{"iss":"https://issuer","sub":"a"}"#, 401),
        (r#"{"iss":"https://other","sub":"a","aud":"shop"}"#, 401),
        (r#"{"iss":"https://issuer/","sub":"a","aud":"shop"}"#, 401),
    ] {
        let token = issuer.token(claims);
        assert_eq!(
            status(&world, "client", with_token(&token)).await,
            expect,
            "{claims}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn r310_internal_headers_of_clients_reach_nobody() {
    let world = World::web().await;
    let fields = [
        ("x-tulle-original-source", "spiffe://cluster.local/ns/a/sa/root"),
        ("x-tulle-hops", "0"),
        ("X-Tulle-Reason", "forged"),
        ("x-envoy-original-path", "/forged"),
        ("X-Envoy-Attempt-Count", "99"),
        ("x-forwarded-client-cert", "URI=spiffe://forged"),
        ("X-Forwarded-Client-Cert", "URI=spiffe://forged"),
        ("x-forwarded-proto", "forged"),
        ("x-forwarded-host", "forged"),
        ("forwarded", "for=forged"),
        ("x-istio-attributes", "forged"),
    ];
    let response = world
        .http1("client")
        .await
        .send_request(asks(&fields))
        .await
        .unwrap();
    let seen = body(response).await;
    assert!(!seen.contains("forged") && !seen.contains("x-tulle-"), "{seen}");
    assert!(seen.contains("x-envoy-attempt-count: 1\n"), "ours: {seen}");
}

/// A path in all sorts of disguises that some application may take for it.
fn disguises(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    let encoded = |byte: u8, upper: bool| match upper {
        true => format!("%{byte:02X}"),
        false => format!("%{byte:02x}"),
    };
    for at in 1..path.len() {
        for upper in [true, false] {
            let byte = path.as_bytes()[at];
            all.push(format!(
                "{}{}{}",
                &path[..at],
                encoded(byte, upper),
                &path[at + 1..]
            ));
            // Two letters at once.
            if at + 1 < path.len() {
                let next = path.as_bytes()[at + 1];
                let both = encoded(byte, upper) + &encoded(next, !upper);
                all.push(format!("{}{both}{}", &path[..at], &path[at + 2..]));
            }
        }
    }
    let whole: String = path.bytes().skip(1).map(|byte| encoded(byte, true)).collect();
    all.push(format!("/{whole}"));
    let turns = [
        "/./",
        "/x/../",
        "/%2e/",
        "/x/%2e%2e/",
        "/x/.%2E/",
        "//",
        "///",
        "/\\",
        "\\",
        "/%2f",
        "/%5c",
        "/%5C",
        "/x/..\\",
        "/x%2f..%2f",
        "/.//",
        "//./",
    ];
    for (at, _) in path.match_indices('/') {
        for turn in turns {
            all.push(format!("{}{turn}{}", &path[..at], &path[at + 1..]));
        }
    }
    let again: Vec<_> = all
        .iter()
        .map(|one| one.replacen("/x/..", "/yy/../x/..", 1))
        .collect();
    all.extend(again);
    all.sort_unstable();
    all.dedup();
    all
}

#[tokio::test(start_paused = true)]
async fn r311_no_disguise_of_a_denied_path_passes() {
    let world = World::web().await;
    let rule = of_paths(vec![StringMatch::Prefix("/admin/users".into())]);
    world
        .apply(vec![told_policy("deny", authz(Action::Deny, vec![rule]))])
        .await;
    let denied = [
        "/admin/users",
        "/admin/users/root",
        "/admin/users/a/b/c",
        "/admin/users/.hidden/file",
    ];
    let paths: Vec<_> = denied.into_iter().flat_map(disguises).collect();
    assert!(paths.len() > 400, "{}", paths.len());
    for path in &paths {
        // As it is: what would write it for us might refuse to.
        let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        let status = head.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "403", "404"].contains(&status), "{path}: {head}");
    }
    assert_eq!(status(&world, "client", get("/admin/other")).await, 200);
}

fn source(service_account: &str) -> Source {
    Source {
        identity: Some(Identity::new("cluster.local", "shop", service_account)),
        ip: [10, 0, 0, 1].into(),
        remote_ip: [10, 0, 0, 1].into(),
    }
}

fn allowed(policies: Vec<Policy>, source: &Source, path: &str, header: Option<&str>) -> bool {
    let policies: Vec<_> = policies.into_iter().map(std::sync::Arc::new).collect();
    let authorizer = Authorizer::new(&policies);
    let mut head = testing::get("/");
    head.path = path.into();
    if let Some(value) = header.and_then(|value| value.parse().ok()) {
        head.headers.insert("x-name", value);
    }
    let destination = Destination {
        address: ([10, 96, 0, 1], 80).into(),
    };
    let of = Attributes::of_request(source, destination, &head, None);
    matches!(authorizer.check(&of), Verdict::Allow(_))
}

fn named(name: &str, action: Action, rule: Rule) -> Policy {
    let authz = Authz {
        action,
        rules: vec![rule],
        provider: None,
    };
    policy(name, Concern::Authz(authz))
}

/// Names out of few letters, and of those that mean something to patterns elsewhere.
fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        proptest::sample::select(vec!['a', 'b', '.', '[', ']', '*', '+', '?', '$', '|']),
        1..6,
    )
    .prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn r301_exact_names_are_literals(pattern in name(), told in name()) {
        let by_header = named("allow", Action::Allow, of_header("x-name", &pattern));
        let passes = allowed(vec![by_header], &source("web"), "/", Some(&told));
        prop_assert_eq!(passes, pattern == told);
        let path = |name: &str| format!("/{name}");
        let by_path = named("allow", Action::Allow, of_paths(vec![StringMatch::Exact(path(&pattern).into())]));
        prop_assert_eq!(allowed(vec![by_path], &source("web"), &path(&told), None), pattern == told);
    }

    #[test]
    fn r313_deny_beats_a_narrower_allow(wide in "/[ab]{0,2}", narrow in "/[ab]{0,4}", asked in "/[ab]{0,4}", web: bool) {
        let allow = named("allow", Action::Allow, of_paths(vec![StringMatch::Exact(narrow.clone().into())]));
        let mut rule = of_paths(vec![StringMatch::Prefix(wide.clone().into())]);
        rule.from = vec![From { principals: exact("cluster.local/ns/shop/sa/web"), ..From::default() }];
        let deny = named("deny", Action::Deny, rule);
        let who = source(if web { "web" } else { "api" });
        let expect = asked == narrow && !(web && asked.starts_with(&wide));
        prop_assert_eq!(allowed(vec![allow, deny], &who, &asked, None), expect);
    }
}
