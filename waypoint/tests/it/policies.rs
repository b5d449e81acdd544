//! Policies, through a whole waypoint: who passes, and what applications see of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper::body::Incoming;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{Action, Authz, From, PathPattern, Rule, To, Values};
use tulle_model::policy::traffic::{Abort, Fault, Key, LocalRateLimit};
use tulle_model::policy::{Concern, On};
use tulle_model::route::Kind;
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix, service, service_key, workload};
use tulle_model::{Identity, MeshUpdate, Trust};
use tulle_waypoint::config::ReasonDetail;

use crate::world::{Answer, World, application, body, echo, front, get, policy, told_policy};

pub(crate) fn authz(action: Action, rules: Vec<Rule>) -> Concern {
    let provider = (action == Action::Custom).then(|| "judge".into());
    Concern::Authz(Authz {
        action,
        rules,
        provider,
    })
}

pub(crate) fn exact(text: &str) -> Values<StringMatch> {
    Values {
        any: vec![StringMatch::Exact(text.into())],
        none: vec![],
    }
}

pub(crate) fn to(method: &str, prefix: &str) -> Rule {
    Rule {
        to: vec![To {
            methods: exact(method),
            paths: Values {
                any: vec![PathPattern::Text(StringMatch::Prefix(prefix.into()))],
                none: vec![],
            },
            ..To::default()
        }],
        ..Rule::default()
    }
}

pub(crate) fn from_namespace(name: &str) -> Rule {
    Rule {
        from: vec![From {
            namespaces: exact(name),
            ..From::default()
        }],
        ..Rule::default()
    }
}

pub(crate) async fn status(world: &World, who: &str, request: Request<Full<Bytes>>) -> u16 {
    let response = world.http1(who).await.send_request(request).await.unwrap();
    response.status().as_u16()
}

/// A further service of the mesh, `shop/<name>`, behind which this application answers.
pub(crate) async fn helper<F, A>(world: &World, name: &str, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let full = format!("shop/{name}");
    let pod = format!("shop/{name}-1");
    world
        .apply(vec![
            MeshUpdate::Service(Arc::new(service(&full).vip("10.96.0.9").port(80, 8080).build())),
            workload(&pod)
                .sa(name)
                .ip("10.0.0.8")
                .hbone()
                .serves(&full)
                .into(),
        ])
        .await;
    world.serve("10.0.0.8", name, application(answer));
}

#[tokio::test(start_paused = true)]
async fn methods_and_paths_decide_who_passes() {
    let world = World::web().await;
    let allow = authz(Action::Allow, vec![to("GET", "/public/")]);
    let deny = authz(Action::Deny, vec![to("GET", "/public/secret")]);
    world
        .apply(vec![told_policy("allow", allow), told_policy("deny", deny)])
        .await;
    assert_eq!(status(&world, "client", get("/public/a")).await, 200);
    assert_eq!(status(&world, "client", get("/private")).await, 403);
    let mut client = world.http1("client").await;
    let denied = client.send_request(get("/public/secret")).await.unwrap();
    assert_eq!(denied.status(), 403);
    let told = denied.headers()["x-tulle-reason"].to_str().unwrap().to_owned();
    assert!(told.starts_with("T0412; policy_denied"), "{told}");
    assert_eq!(body(denied).await, "RBAC: access denied");
    assert!(
        world.metric(r#"tulle_waypoint_authz_total{action="deny",policy="TestPolicy/shop/deny/authz""#) > 0.0
    );
}

#[tokio::test(start_paused = true)]
async fn sources_decide_by_the_identity_of_the_tunnel_and_never_by_a_header() {
    let world = World::web().await;
    world
        .apply(vec![told_policy(
            "allow",
            authz(Action::Allow, vec![from_namespace("shop")]),
        )])
        .await;
    assert_eq!(status(&world, "shop/client", get("/")).await, 200);
    let forged = Request::get("/")
        .header("host", "web.shop")
        .header(
            "x-forwarded-client-cert",
            "URI=spiffe://cluster.local/ns/shop/sa/client",
        )
        .body(Full::default())
        .unwrap();
    assert_eq!(status(&world, "dev/client", forged).await, 403);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_only_tried_refuses_nobody_and_is_counted() {
    let world = World::web().await;
    let mut dry = policy("try", authz(Action::Deny, vec![Rule::default()]));
    dry.dry_run = true;
    world.apply(vec![MeshUpdate::WaypointPolicy(Arc::new(dry))]).await;
    assert_eq!(status(&world, "client", get("/")).await, 200);
    let series =
        r#"tulle_waypoint_authz_total{action="deny",policy="TestPolicy/shop/try/authz",dry_run="true"}"#;
    assert!(world.metric(series) > 0.0);
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_bucket_of_their_own_are_counted() {
    let world = World::web().await;
    let limit = LocalRateLimit {
        requests: 100,
        per: Duration::from_secs(1),
        keys: vec![Key::Header("x-user".into())],
        keys_max: Some(1),
        ..LocalRateLimit::default()
    };
    let limit = Concern::LocalRateLimit(limit);
    world.apply(vec![told_policy("few", limit)]).await;
    let series = r#"tulle_waypoint_rate_limit_overflow_total{policy="TestPolicy/shop/few/local_rate_limit"}"#;
    for (user, expect) in [("ann", 0.0), ("ben", 1.0), ("eve", 2.0)] {
        let mut request = get("/");
        request.headers_mut().insert("x-user", user.parse().unwrap());
        assert_eq!(status(&world, "client", request).await, 200);
        assert_eq!(world.metric(series), expect, "{user}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_over_a_limit_is_told_when_to_come_again() {
    let world = World::web().await;
    let limit = LocalRateLimit {
        requests: 2,
        per: Duration::from_secs(60),
        burst: Some(2),
        keys: vec![Key::SourceIdentity],
        ..LocalRateLimit::default()
    };
    world
        .apply(vec![told_policy("limit", Concern::LocalRateLimit(limit))])
        .await;
    let mut client = world.http1("client").await;
    for _ in 0..2 {
        let passed = client.send_request(get("/")).await.unwrap();
        assert_eq!(passed.status(), 200);
        body(passed).await;
    }
    let over = client.send_request(get("/")).await.unwrap();
    assert_eq!(over.status(), 429);
    assert_eq!(over.headers()["retry-after"], "30");
    assert_eq!(over.headers()["x-ratelimit-limit"], "2");
    assert_eq!(over.headers()["x-ratelimit-remaining"], "0");
    assert_eq!(
        status(&world, "other", get("/")).await,
        200,
        "another caller has a bucket of its own"
    );
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(status(&world, "client", get("/")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn buckets_outlive_changes_that_do_not_concern_them() {
    let world = World::web().await;
    let limit = LocalRateLimit {
        requests: 1,
        per: Duration::from_secs(60),
        ..LocalRateLimit::default()
    };
    world
        .apply(vec![told_policy("limit", Concern::LocalRateLimit(limit))])
        .await;
    assert_eq!(status(&world, "client", get("/")).await, 200);
    world
        .apply(vec![told_policy("more", authz(Action::Audit, vec![]))])
        .await;
    assert_eq!(status(&world, "client", get("/")).await, 429);
}

#[tokio::test(start_paused = true)]
async fn a_fault_delays_and_then_answers() {
    let world = World::web().await;
    let fault = Fault {
        delay: Some(Duration::from_secs(3)),
        delay_ppm: 1_000_000,
        abort: Some(Abort::Http(418)),
        abort_ppm: 1_000_000,
        ..Fault::default()
    };
    world
        .apply(vec![told_policy("fault", Concern::Fault(fault))])
        .await;
    let mut client = world.http1("client").await;
    let before = tokio::time::Instant::now();
    let aborted = client.send_request(get("/")).await.unwrap();
    assert_eq!(aborted.status(), 418);
    assert!(before.elapsed() >= Duration::from_secs(3));
    assert!(world.connects.lock().is_empty(), "no endpoint was asked");
    let call = Request::post("/a.B/C")
        .header("host", "web.shop")
        .header("content-type", "application/grpc")
        .body(Full::default())
        .unwrap();
    let aborted = client.send_request(call).await.unwrap();
    assert_eq!(
        (aborted.status().as_u16(), &aborted.headers()["grpc-status"]),
        (200, &HeaderValue::from_static("2"))
    );
}

#[tokio::test(start_paused = true)]
async fn without_policies_every_request_passes() {
    let world = World::web_with(AppProtocol::Http11, application(echo)).await;
    assert_eq!(status(&world, "dev/client", get("/anything")).await, 200);
}

/// A route of `shop/web` that sends its requests to `shop/db`, which the waypoint stands in front of, too.
pub(crate) async fn routed() -> World {
    let world = World::web().await;
    let (web, db) = (
        "shop/web.shop.svc.cluster.local",
        "shop/db.shop.svc.cluster.local",
    );
    let rule = |n, at: &str| http_route("shop/r").rule(n).on(prefix(at)).under(web);
    world
        .apply(vec![
            MeshUpdate::Service(Arc::new(
                service("shop/db").vip("10.96.0.2").port(80, 8080).build(),
            )),
            workload("shop/db-1")
                .sa("db")
                .ip("10.0.0.8")
                .hbone()
                .serves("shop/db")
                .into(),
            front("shop/db", |_| {}),
            MeshUpdate::Route(Arc::new(rule(0, "/db").to(db, 80, 1))),
            MeshUpdate::Route(Arc::new(rule(1, "/web").to(web, 80, 1))),
        ])
        .await;
    world.serve("10.0.0.8", "db", application(echo));
    world
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_guarded_by_its_own_policies_when_a_route_leads_to_it() {
    let world = routed().await;
    assert_eq!(status(&world, "shop/client", get("/db")).await, 200);
    let mut guard = policy("guard", authz(Action::Deny, vec![from_namespace("dev")]));
    guard.targets[0].on = On::Service(service_key("shop/db"));
    world
        .apply(vec![MeshUpdate::WaypointPolicy(Arc::new(guard))])
        .await;
    assert_eq!(status(&world, "dev/client", get("/db")).await, 403);
    assert_eq!(status(&world, "dev/client", get("/web")).await, 200);
    assert_eq!(status(&world, "shop/client", get("/db")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_a_route_holds_for_its_requests_and_beats_that_of_the_service() {
    let world = routed().await;
    let abort = |status| {
        Concern::Fault(Fault {
            abort: Some(Abort::Http(status)),
            abort_ppm: 1_000_000,
            ..Fault::default()
        })
    };
    let mut near = policy("near", abort(418));
    near.targets[0].on = On::Route {
        kind: Kind::Http,
        namespace: "shop".into(),
        name: "r".into(),
    };
    world
        .apply(vec![MeshUpdate::WaypointPolicy(Arc::new(near))])
        .await;
    assert_eq!(status(&world, "client", get("/db")).await, 418);
    world.apply(vec![told_policy("far", abort(500))]).await;
    assert_eq!(status(&world, "client", get("/db")).await, 418);
    world
        .apply(vec![MeshUpdate::RemoveWaypointPolicy(
            "TestPolicy/shop/near/fault".into(),
        )])
        .await;
    assert_eq!(status(&world, "client", get("/db")).await, 500);
}

#[tokio::test(start_paused = true)]
async fn who_is_of_another_trust_domain_is_told_no_policy() {
    let world = World::web().await;
    let of = |trust_domain| Identity::new(trust_domain, "shop", "client");
    let told = |trust_domain| world.waypoint.detail_for(&of(trust_domain), false);
    assert_eq!(told("cluster.local"), ReasonDetail::Full);
    assert_eq!(told("elsewhere"), ReasonDetail::Code);
    let trust = Trust {
        aliases: vec!["elsewhere".into()],
        ..Trust::new("cluster.local", world.ca.root_pem())
    };
    world.waypoint.trust.set_pushed(vec![Arc::new(trust)]);
    assert_eq!(
        told("elsewhere"),
        ReasonDetail::Full,
        "it is another name of ours"
    );
}
