//! What `/explain` says of a request is what happens to it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tulle_model::MeshUpdate;
use tulle_model::authz::policy::StringMatch;
use tulle_model::filter::{Ask, Filter, Redirect};
use tulle_model::policy::authz::{Action, Authz, From, PathPattern, Rule, To, Values};
use tulle_model::policy::jwt::Keys;
use tulle_model::policy::traffic::{Abort, Fault, LocalRateLimit};
use tulle_model::policy::{Concern, On, Policy, Target};
use tulle_model::route::{Kind, Origin};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{exact, http_route, prefix, service_key};
use tulle_model::waypoint::Waypoint as Told;
use tulle_waypoint::admin::explain::{Explanation, Question, explain};

use crate::asked::{asks, backend};
use crate::stream_routes::{OTHER, WEB, What, hello, shop, tcp, tls};
use crate::tokens::{Issuer, jwt};
use crate::world::{World, front, identity, policy_on};

fn policy(name: &str, concern: Concern) -> MeshUpdate {
    let origin = Origin {
        kind: Kind::Policy,
        namespace: "shop".into(),
        name: name.into(),
        rule_index: 0,
        rule_name: "".into(),
        created: None,
        generation: 1,
    };
    let target = Target {
        on: On::Service(service_key("shop/web")),
        port: None,
        section: None,
    };
    MeshUpdate::WaypointPolicy(Arc::new(Policy {
        object: "AuthorizationPolicy".into(),
        origin,
        targets: vec![target],
        dry_run: false,
        concern,
    }))
}

fn authz(action: Action, rules: Vec<Rule>) -> Concern {
    Concern::Authz(Authz {
        action,
        rules,
        provider: None,
    })
}

fn paths(path: &str) -> Rule {
    let any = vec![PathPattern::Text(StringMatch::Prefix(path.into()))];
    Rule {
        to: vec![To {
            paths: Values { any, none: vec![] },
            ..To::default()
        }],
        ..Rule::default()
    }
}

fn methods(method: &str) -> Rule {
    let any = vec![StringMatch::Exact(method.into())];
    Rule {
        to: vec![To {
            methods: Values { any, none: vec![] },
            ..To::default()
        }],
        ..Rule::default()
    }
}

fn namespace(name: &str) -> Rule {
    let any = vec![StringMatch::Exact(name.into())];
    Rule {
        from: vec![From {
            namespaces: Values { any, none: vec![] },
            ..From::default()
        }],
        ..Rule::default()
    }
}

fn route(name: &str, edit: impl FnOnce(&mut tulle_model::route::Route)) -> MeshUpdate {
    let mut route = http_route(&format!("shop/{name}")).under("shop/web.shop.svc.cluster.local");
    edit(&mut route);
    MeshUpdate::Route(Arc::new(route))
}

/// What may be configured, alone and on top of what stands before it.
fn settings() -> Vec<Vec<MeshUpdate>> {
    let to_web = |route: &mut tulle_model::route::Route| {
        *route = route.clone().to("shop/web.shop.svc.cluster.local", 80, 1);
    };
    vec![
        vec![],
        vec![policy("no-admin", authz(Action::Deny, vec![paths("/admin")]))],
        vec![policy("only-get", authz(Action::Allow, vec![methods("GET")]))],
        vec![policy("no-dev", authz(Action::Deny, vec![namespace("dev")]))],
        vec![route("v2", |route| {
            *route = route.clone().on(prefix("/v2")).on(exact("/"));
            to_web(route);
        })],
        vec![route("moved", |route| {
            *route = route.clone().on(prefix("/old"));
            route.filters = vec![Filter::Redirect(Redirect {
                host: Some("new.example".into()),
                ..Redirect::default()
            })];
        })],
        vec![route("admin", |route| {
            *route = route.clone().on(prefix("/admin"));
            to_web(route);
        })],
        vec![policy("broken", Concern::DenyAll("it cannot be read".into()))],
    ]
}

fn question(who: &str, authority: &str) -> Question {
    Question {
        source: identity(who),
        source_ip: "10.0.0.1".parse().unwrap(),
        authority: authority.to_owned(),
        method: None,
        path: None,
        headers: Vec::new(),
        server_name: None,
    }
}

async fn explained(world: &World, who: &str, method: &str, path: &str) -> Explanation {
    let question = Question {
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        ..question(who, "10.96.0.1:80")
    };
    explain(&world.waypoint, &question).await
}

async fn status(world: &World, who: &str, method: &str, path: &str) -> u16 {
    let request = Request::builder().method(method).uri(path).header("host", "web");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = world.http1(who).await.send_request(request).await;
    answer.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn what_is_explained_is_what_happens() {
    let world = World::web().await;
    let mut cases = 0;
    for updates in settings() {
        world.apply(updates).await;
        for who in ["client", "dev/tool"] {
            for method in ["GET", "POST"] {
                for path in [
                    "/",
                    "/v2",
                    "/v2/a?x=1",
                    "/admin/x",
                    "/%61dmin",
                    "/a/../admin",
                    "/old/b",
                    "/../x",
                ] {
                    let told = explained(&world, who, method, path).await;
                    let happened = status(&world, who, method, path).await;
                    let expected = told.status.unwrap_or(200);
                    assert_eq!(happened, expected, "{who} {method} {path}: {told:#?}");
                    assert_eq!(
                        told.verdict == "allow",
                        happened == 200,
                        "{who} {method} {path}: {told:#?}"
                    );
                    cases += 1;
                }
            }
        }
    }
    assert!(cases >= 200, "{cases}");
}

#[tokio::test(start_paused = true)]
async fn the_policy_that_decides_is_named_and_the_others_are_listed() {
    let world = World::web().await;
    let deny = policy(
        "no-admin",
        authz(Action::Deny, vec![methods("PUT"), paths("/admin")]),
    );
    let fault = Fault {
        abort: Some(Abort::Http(500)),
        abort_ppm: 200_000,
        ..Fault::default()
    };
    world
        .apply(vec![deny, policy("sometimes", Concern::Fault(fault))])
        .await;
    let told = explained(&world, "client", "GET", "/admin/users").await;
    assert_eq!((told.verdict, told.status), ("deny", Some(403)));
    assert_eq!(told.reason.as_deref(), Some("T0412 policy_denied"));
    assert_eq!(
        told.decided_by.as_deref(),
        Some("AuthorizationPolicy/shop/no-admin/authz")
    );
    let last = told.steps.last().unwrap();
    assert_eq!(
        last.outcome,
        "denied by AuthorizationPolicy/shop/no-admin/authz[1]"
    );
    let passing = explained(&world, "client", "GET", "/").await;
    let stages: Vec<_> = passing.steps.iter().map(|step| step.stage).collect();
    assert_eq!(
        stages,
        ["tunnel", "request", "route", "policy", "fault", "backend"]
    );
    assert!(
        passing.steps[4].outcome.starts_with("20 % are answered"),
        "{passing:?}"
    );
    assert_eq!(passing.backends[0].endpoints[0].address, "10.0.0.7:8080");
}

#[tokio::test(start_paused = true)]
async fn limits_and_tokens_are_explained() {
    let world = World::web().await;
    let limit = LocalRateLimit {
        requests: 1,
        per: std::time::Duration::from_secs(3600),
        ..LocalRateLimit::default()
    };
    let issuer = Issuer::new();
    let keys = Keys::Inline(issuer.jwks().into());
    world
        .apply(vec![
            policy("few", Concern::LocalRateLimit(limit)),
            policy("jwt", jwt(keys)),
        ])
        .await;
    let asked = |token: Option<String>| Question {
        headers: token
            .map(|token| ("authorization".to_owned(), format!("Bearer {token}")))
            .into_iter()
            .collect(),
        ..question("client", "10.96.0.1:80")
    };
    let said = |told: &Explanation, stage: &str| {
        let said = told.steps.iter().filter(|step| step.stage == stage);
        said.map(|step| step.outcome.clone()).collect::<Vec<_>>()
    };
    // To explain takes nothing from the limit, however often it is done.
    for _ in 0..3 {
        let plain = explain(&world.waypoint, &asked(None)).await;
        assert_eq!(plain.verdict, "allow", "{plain:#?}");
        assert_eq!(
            said(&plain, "limit"),
            ["counted by AuthorizationPolicy/shop/few/local_rate_limit"]
        );
        assert_eq!(said(&plain, "token"), ["no token"]);
    }
    assert_eq!(status(&world, "client", "GET", "/").await, 200);
    let good = issuer.token(r#"{"iss":"https://issuer","sub":"anna"}"#);
    let told = explain(&world.waypoint, &asked(Some(good))).await;
    assert_eq!(said(&told, "token"), ["the token is valid"], "{told:#?}");
    let forged = Issuer::new().token(r#"{"iss":"https://issuer","sub":"eve"}"#);
    let told = explain(&world.waypoint, &asked(Some(forged))).await;
    assert_eq!((told.verdict, told.status), ("deny", Some(401)), "{told:#?}");
    assert_eq!(told.reason.as_deref(), Some("T0603 jwt_invalid"));
    assert_eq!(told.steps.last().unwrap().stage, "token");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_fronted_is_refused_on_the_tunnel() {
    let world = World::web().await;
    let question = question("client", "127.0.0.1:80");
    let told = explain(&world.waypoint, &question).await;
    assert_eq!((told.verdict, told.status), ("deny", Some(400)));
    assert_eq!(told.steps.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_head_is_read_by_the_bounds_of_the_settings() {
    let world = World::web().await;
    let mut question = question("client", "10.96.0.1:80");
    question.headers = vec![("x-long".to_owned(), "a".repeat(1_000))];
    assert_eq!(explain(&world.waypoint, &question).await.verdict, "allow");
    let mut told = super::world::settings();
    told.limits.header_bytes = Some(512);
    let told = Told::Settings(Box::new(told));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
    let told = explain(&world.waypoint, &question).await;
    assert_eq!((told.verdict, told.status), ("deny", Some(431)), "{told:#?}");
}

/// What may be configured for streams, alone and on top of what stands before it.
fn of_streams() -> Vec<Vec<MeshUpdate>> {
    let on_other = |concern| {
        let guard = policy_on("guard", On::Service(service_key("shop/other")), concern);
        vec![
            front("shop/other", |_| {}),
            MeshUpdate::WaypointPolicy(Arc::new(guard)),
        ]
    };
    let route = |route| vec![MeshUpdate::Route(Arc::new(route))];
    let missing = "shop/missing.shop.svc.cluster.local";
    vec![
        vec![],
        vec![policy("no-dev", authz(Action::Deny, vec![namespace("dev")]))],
        route(tcp("shop/t").to(OTHER, 80, 1)),
        on_other(authz(Action::Deny, vec![namespace("shop")])),
        on_other(authz(Action::Custom, vec![namespace("shop")])),
        on_other(authz(Action::Deny, vec![namespace("elsewhere")])),
        route(tls("shop/a", &["a.example"], OTHER)),
        route(tls("shop/b", &["*.b.example"], WEB)),
        route(tls("shop/c", &["c.example"], missing)),
        vec![policy(
            "asks",
            Concern::ExtAuthz(Box::new(asks(Ask::Grpc(backend("judge"))))),
        )],
    ]
}

#[tokio::test(start_paused = true)]
async fn what_is_explained_of_a_stream_is_what_happens_to_it() {
    let names = [
        None,
        Some("a.example"),
        Some("x.b.example"),
        Some("c.example"),
        Some("d.example"),
    ];
    let mut seen = BTreeSet::new();
    for protocol in [AppProtocol::Tcp, AppProtocol::Tls] {
        let mut shop = shop(protocol, vec![]).await;
        for updates in of_streams() {
            shop.world.apply(updates).await;
            for (who, name) in ["client", "dev/tool"]
                .into_iter()
                .flat_map(|who| names.map(|name| (who, name)))
            {
                let question = Question {
                    server_name: name.map(str::to_owned),
                    ..question(who, "10.96.0.1:80")
                };
                let told = explain(&shop.world.waypoint, &question).await;
                let happened = shop.said(who, &hello(name)).await;
                let place = format!("{protocol:?} {who} {name:?}: {told:#?}");
                let to = told.backends.first().map(|share| &*share.backend);
                let expected = match (told.verdict, to) {
                    ("allow", Some(to)) if to.starts_with("web.") => What::Web,
                    ("allow", Some(to)) if to.starts_with("other.") => What::Other,
                    ("deny", _) if told.reason.as_deref() == Some("T0601 route_not_found") => What::Closed,
                    ("deny", _) => What::Reset,
                    _ => panic!("{place}"),
                };
                assert_eq!(happened, expected, "{place}");
                assert_eq!(told.status, None, "{place}");
                seen.insert(told.reason.unwrap_or_default());
            }
        }
    }
    let all = [
        "",
        "T0412 policy_denied",
        "T0601 route_not_found",
        "T0602 backend_invalid",
    ];
    assert!(seen.iter().eq(all), "{seen:?}");
}
