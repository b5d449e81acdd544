//! Policies, through a whole waypoint: who passes, what applications see of it, and what ends when policies change.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{Action, Authz, From, PathPattern, Rule, To, Values};
use tulle_model::policy::traffic::{Abort, Fault, Key, LocalRateLimit};
use tulle_model::policy::{Concern, On};
use tulle_model::route::Kind;
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix, service, service_key, workload};
use tulle_model::waypoint::Waypoint as Told;
use tulle_model::{Identity, MeshUpdate, Reason, Trust};
use tulle_transport::hbone::{ConnectRequest, OpenError};
use tulle_waypoint::config::ReasonDetail;

use crate::world::{
    Answer, World, application, body, echo, front, get, identity, policy, policy_on, settings, told_policy,
    web,
};

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
async fn an_answer_on_its_way_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web_with(AppProtocol::Http11, application(endless)).await;
    let mut client = world.http2("client").await;
    let request = |path: &str| {
        Request::get(format!("http://web.shop{path}"))
            .body(Full::default())
            .unwrap()
    };
    let mut bad = client.send_request(request("/bad")).await.unwrap().into_body();
    let mut good = client.send_request(request("/good")).await.unwrap().into_body();
    for body in [&mut bad, &mut good] {
        assert!(body.frame().await.unwrap().is_ok());
    }
    let before = tokio::time::Instant::now();
    world
        .apply(vec![told_policy(
            "deny",
            authz(Action::Deny, vec![to("GET", "/bad")]),
        )])
        .await;
    let ended = bad.frame().await.unwrap();
    assert!(ended.is_err(), "reset, not ended well");
    assert!(
        before.elapsed() <= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    let still = tokio::time::timeout(Duration::from_secs(5), good.frame()).await;
    assert!(still.is_err(), "the other one is still open");
    assert!(world.metric(r#"tulle_waypoint_local_replies_total{reason="policy_changed"}"#) > 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_answer_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web_with(AppProtocol::Http11, application(|_| std::future::pending())).await;
    let (mut bad, mut good) = (world.http1("client").await, world.http1("client").await);
    let mut good = std::pin::pin!(good.send_request(get("/good")));
    let denying = async {
        while world.connects.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        let before = tokio::time::Instant::now();
        let deny = authz(Action::Deny, vec![to("GET", "/bad")]);
        world.apply(vec![told_policy("deny", deny)]).await;
        before
    };
    let (ended, before) = tokio::select! {
        ended = async { tokio::join!(bad.send_request(get("/bad")), denying) } => ended,
        _ = good.as_mut() => panic!("nobody denies it"),
    };
    let ended = ended.unwrap();
    assert_eq!(ended.status(), 403);
    let told = ended.headers()["x-tulle-reason"].to_str().unwrap();
    assert!(
        told.starts_with("T0417; policy_changed; policy=TestPolicy/shop/deny/authz"),
        "{told}"
    );
    assert!(
        before.elapsed() <= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    let still = tokio::time::timeout(Duration::from_secs(5), good).await;
    assert!(still.is_err(), "the other one waits on");
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_while_it_is_held_back_reaches_no_endpoint() {
    let world = World::web().await;
    let fault = Fault {
        delay: Some(Duration::from_secs(3)),
        delay_ppm: 1_000_000,
        ..Fault::default()
    };
    world
        .apply(vec![told_policy("fault", Concern::Fault(fault))])
        .await;
    let denying = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let deny = authz(Action::Deny, vec![Rule::default()]);
        world.apply(vec![told_policy("deny", deny)]).await;
    };
    let (answered, ()) = tokio::join!(status(&world, "client", get("/")), denying);
    assert_eq!(answered, 403);
    assert!(world.connects.lock().is_empty(), "no endpoint was asked");
}

/// An application that begins to answer and never ends.
pub(crate) async fn endless(_: Request<Incoming>) -> Answer {
    let first = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")))]);
    let rest = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    Response::new(StreamBody::new(rest).boxed())
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_ends_when_a_policy_of_its_backend_denies_it() {
    let world = routed().await;
    world.serve("10.0.0.8", "db", application(endless));
    let mut client = world.http1("client").await;
    let mut answer = client.send_request(get("/db")).await.unwrap().into_body();
    assert!(answer.frame().await.unwrap().is_ok());
    let deny = authz(Action::Deny, vec![from_namespace("shop")]);
    let guard = policy_on("guard", On::Service(service_key("shop/db")), deny);
    let before = tokio::time::Instant::now();
    world
        .apply(vec![MeshUpdate::WaypointPolicy(Arc::new(guard))])
        .await;
    assert!(answer.frame().await.unwrap().is_err(), "reset, not ended well");
    assert!(
        before.elapsed() <= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
}

/// A waypoint in front of a port of TCP.
async fn tcp() -> (
    World,
    tokio::sync::mpsc::UnboundedReceiver<tulle_transport::HboneStream>,
) {
    let world = World::start(vec![
        web(AppProtocol::Tcp),
        workload("shop/web-1")
            .sa("web")
            .ip("10.0.0.7")
            .hbone()
            .serves("shop/web")
            .into(),
        front("shop/web", |_| {}),
    ])
    .await;
    let streams = world.endpoint("10.0.0.7", "web");
    (world, streams)
}

/// Whether a stream is reset before anything comes back; the reset may overtake the answer to its CONNECT.
async fn is_reset(world: &World, who: &str) -> bool {
    let tunnel = world.tunnel(&identity(who)).await.unwrap();
    match tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await {
        Ok((mut stream, _)) => stream.read_u8().await.is_err(),
        Err(error) => matches!(error, OpenError::Reset(_)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_judged_by_what_is_known_of_it() {
    let (world, mut streams) = tcp().await;
    world
        .apply(vec![told_policy(
            "allow",
            authz(Action::Allow, vec![from_namespace("shop")]),
        )])
        .await;
    assert!(is_reset(&world, "dev/client").await);
    let mut client = world.ask("shop/client", "10.96.0.1:80").await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(streams.recv().await.unwrap().read_u8().await.unwrap(), b'x');
    assert!(streams.try_recv().is_err(), "the other one never got there");
}

#[tokio::test(start_paused = true)]
async fn r312_what_can_only_be_told_of_a_request_refuses_a_stream() {
    let (world, _streams) = tcp().await;
    world
        .apply(vec![told_policy(
            "deny",
            authz(Action::Deny, vec![to("GET", "/admin")]),
        )])
        .await;
    assert!(is_reset(&world, "client").await);
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_ends_when_a_policy_denies_it() {
    let (world, mut streams) = tcp().await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    server.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    let before = tokio::time::Instant::now();
    world
        .apply(vec![told_policy(
            "deny",
            authz(Action::Deny, vec![from_namespace("shop")]),
        )])
        .await;
    assert!(client.read_u8().await.is_err());
    assert!(
        before.elapsed() <= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_ends_when_somebody_would_have_to_be_asked_about_it() {
    let (world, mut streams) = tcp().await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    server.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    let before = tokio::time::Instant::now();
    let custom = authz(Action::Custom, vec![Rule::default()]);
    world.apply(vec![told_policy("custom", custom)]).await;
    assert!(client.read_u8().await.is_err());
    assert!(
        before.elapsed() <= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn without_policies_every_request_passes() {
    let world = World::web_with(AppProtocol::Http11, application(echo)).await;
    assert_eq!(status(&world, "dev/client", get("/anything")).await, 200);
}

/// A route of `shop/web` that sends its requests to `shop/db`, which the waypoint stands in front of, too.
async fn routed() -> World {
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

fn from_remote(network: &str) -> Rule {
    Rule {
        from: vec![From {
            remote_ips: Values {
                any: vec![network.parse().unwrap()],
                none: vec![],
            },
            ..From::default()
        }],
        ..Rule::default()
    }
}

/// A request that says it was passed on for this client.
fn forwarded(path: &str, client: &str) -> Request<Full<Bytes>> {
    let mut request = get(path);
    request
        .headers_mut()
        .insert("x-forwarded-for", client.parse().unwrap());
    request
}

/// Lets the waypoint believe what this peer says of its clients.
async fn believe(world: &World, gateway: &str) {
    let mut settings = settings();
    settings.gateway_identities = vec![gateway.into()];
    let told = Told::Settings(Box::new(settings));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_outside_is_judged_by_the_address_that_its_gateway_names() {
    for gateway in [
        "spiffe://cluster.local/ns/edge/sa/gw",
        "cluster.local/ns/edge/sa/gw",
    ] {
        for (action, network, bad, good) in [
            (Action::Deny, "203.0.113.0/24", "203.0.113.7", "198.51.100.1"),
            (Action::Allow, "198.51.100.0/24", "203.0.113.7", "198.51.100.1"),
        ] {
            let world = World::web().await;
            believe(&world, gateway).await;
            let rule = authz(action, vec![from_remote(network)]);
            world.apply(vec![told_policy("outside", rule)]).await;
            let told = |client| status(&world, "edge/gw", forwarded("/", client));
            assert_eq!(told(bad).await, 403, "{gateway} {action:?}");
            assert_eq!(told(good).await, 200, "{gateway} {action:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_than_gateways_say_of_their_clients_means_nothing() {
    let world = World::web().await;
    believe(&world, "cluster.local/ns/edge/sa/gw").await;
    let deny = authz(Action::Deny, vec![from_remote("203.0.113.0/24")]);
    world.apply(vec![told_policy("deny", deny)]).await;
    assert_eq!(status(&world, "client", forwarded("/", "203.0.113.7")).await, 200);
    let allow = authz(Action::Allow, vec![from_remote("198.51.100.0/24")]);
    world.apply(vec![told_policy("allow", allow)]).await;
    assert_eq!(
        status(&world, "client", forwarded("/", "198.51.100.1")).await,
        403
    );
}

#[tokio::test(start_paused = true)]
async fn a_backend_judges_a_client_outside_by_the_same_address() {
    let world = routed().await;
    believe(&world, "cluster.local/ns/edge/sa/gw").await;
    let deny = authz(Action::Deny, vec![from_remote("203.0.113.0/24")]);
    let guard = policy_on("guard", On::Service(service_key("shop/db")), deny);
    world
        .apply(vec![MeshUpdate::WaypointPolicy(Arc::new(guard))])
        .await;
    for (client, expect) in [("203.0.113.7", 403), ("198.51.100.1", 200)] {
        let asked = forwarded("/db", client);
        assert_eq!(status(&world, "edge/gw", asked).await, expect, "{client}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_speaks_for_clients_outside_is_told_the_code_of_a_refusal_and_no_policy() {
    let world = World::web().await;
    believe(&world, "cluster.local/ns/edge/sa/gw").await;
    let deny = authz(Action::Deny, vec![Rule::default()]);
    world.apply(vec![told_policy("deny", deny)]).await;
    for (who, names_policy) in [("edge/gw", false), ("edge/other", true)] {
        let denied = world.http1(who).await.send_request(get("/")).await.unwrap();
        let told = denied.headers()["x-tulle-reason"].to_str().unwrap();
        assert!(told.starts_with("T0412; policy_denied; "), "{told}");
        assert!(told.contains("id="), "{told}");
        assert_eq!(told.contains("policy="), names_policy, "{who}: {told}");
    }
    let needing = front("shop/web", |front| {
        front.required_policies = vec!["TestPolicy/shop/late/authz".into()];
    });
    world.apply(vec![needing]).await;
    for (who, names_policy) in [("edge/gw", false), ("edge/other", true)] {
        let refusal = world.ask(who, "10.96.0.1:80").await.map(drop).unwrap_err();
        assert_eq!(refusal.reason(), Reason::PolicyPending, "{who}");
        assert_eq!(refusal.header.unwrap().policy.is_some(), names_policy, "{who}");
    }
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
