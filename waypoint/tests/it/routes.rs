//! Routes and their filters, through a whole waypoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tulle_model::MeshUpdate;
use tulle_model::filter::{Cors, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect, Rewrite};
use tulle_model::policy::On;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::route::{Backend, BackendTo, Kind, Route};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{exact, http_route, prefix, route, service, service_key, workload};

use super::policies::authz;
use super::world::{World, application, body, echo, front, policy_on, text};

const WEB: &str = "shop/web.shop.svc.cluster.local";

fn told(route: Route) -> MeshUpdate {
    MeshUpdate::Route(Arc::new(route))
}

fn on(path: &str) -> Route {
    http_route("shop/web").on(prefix(path)).under(WEB)
}

/// The world of `web`, with the service `other`, which answers `other: <method> <path>` and keeps what it saw.
async fn world(routes: Vec<Route>) -> (World, Arc<Mutex<Vec<String>>>) {
    let world = World::web().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut other = service("shop/other").vip("10.96.0.2").port(80, 8080).build();
    other.ports.get_mut(&80).unwrap().app_protocol = AppProtocol::Http11;
    let mut updates = vec![
        MeshUpdate::Service(Arc::new(other)),
        workload("shop/other-1")
            .sa("other")
            .ip("10.0.0.8")
            .hbone()
            .serves("shop/other")
            .into(),
    ];
    updates.extend(routes.into_iter().map(told));
    world.apply(updates).await;
    let keeping = Arc::clone(&seen);
    let answer = move |request: Request<Incoming>| {
        let seen = Arc::clone(&keeping);
        async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let line = format!("{} {} {host}", request.method(), request.uri());
            let body = http_body_util::BodyExt::collect(request.into_body())
                .await
                .unwrap()
                .to_bytes();
            seen.lock()
                .push(format!("{line} {}", String::from_utf8_lossy(&body)));
            text(format!("other: {line}"))
        }
    };
    world.serve("10.0.0.8", "other", application(answer));
    (world, seen)
}

const OTHER: &str = "shop/other.shop.svc.cluster.local";

async fn ask(world: &World, request: Request<Full<Bytes>>) -> Response<Incoming> {
    world.http1("client").await.send_request(request).await.unwrap()
}

fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "web.shop");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

fn get(target: &str) -> Request<Full<Bytes>> {
    request("GET", target, &[])
}

fn header(name: &str, value: &str) -> Header {
    Header {
        name: name.into(),
        value: value.into(),
    }
}

fn with(route: Route, filters: Vec<Filter>) -> Route {
    Route { filters, ..route }
}

#[tokio::test]
async fn requests_go_where_their_rule_says_and_nowhere_without_one() {
    let (world, _) = world(vec![on("/other").to(OTHER, 80, 1)]).await;
    let answer = ask(&world, get("/other/x")).await;
    assert_eq!(body(answer).await, "other: GET /other/x web.shop");
    let answer = ask(&world, get("/elsewhere")).await;
    assert_eq!(answer.status(), 404);
    assert!(
        answer.headers()["x-tulle-reason"]
            .to_str()
            .unwrap()
            .starts_with("T0601; route_not_found")
    );
}

#[tokio::test]
async fn rules_see_the_canonical_path_and_so_does_the_application() {
    let (world, _) = world(vec![on("/other").to(OTHER, 80, 1)]).await;
    let answer = ask(&world, get("/x/%2e%2e/%6fther/y")).await;
    assert_eq!(body(answer).await, "other: GET /other/y web.shop");
}

#[tokio::test]
async fn a_route_of_callers_is_for_callers_of_its_namespace() {
    let theirs = http_route("visitors/web").under(WEB).to(OTHER, 80, 1);
    let (world, _) = world(vec![theirs]).await;
    let own = ask(&world, get("/")).await;
    assert!(body(own).await.starts_with("GET / "));
    let visitor = world
        .http1("visitors/someone")
        .await
        .send_request(get("/"))
        .await
        .unwrap();
    assert_eq!(body(visitor).await, "other: GET / web.shop");
}

#[tokio::test]
async fn a_backend_that_is_not_there_fails_its_share() {
    let gone = on("/gone").to("shop/gone.shop.svc.cluster.local", 80, 1);
    let port = Route {
        ..on("/port").to(OTHER, 81, 1).rule(1)
    };
    let (world, _) = world(vec![gone, port, on("/none").rule(2)]).await;
    for path in ["/gone", "/port", "/none"] {
        let answer = ask(&world, get(path)).await;
        assert_eq!(answer.status(), 500, "{path}");
        let reason = answer.headers()["x-tulle-reason"].to_str().unwrap();
        assert!(
            reason.starts_with("T0602; backend_invalid; policy=HTTPRoute/shop/web/"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn filters_of_rule_and_backend_change_request_and_answer() {
    let modify = |name: &str| HeaderMod {
        set: vec![header(name, "set")],
        add: vec![header("x-both", name)],
        remove: vec!["x-gone".into()],
    };
    let mut rule = with(
        on("/a"),
        vec![
            Filter::Rewrite(Rewrite {
                host: Some("new.shop".into()),
                path: Some(PathRewrite::Prefix("/b".into())),
            }),
            Filter::RequestHeaders(modify("x-rule")),
            Filter::ResponseHeaders(modify("x-answer")),
        ],
    )
    .to(WEB, 80, 1);
    rule.backends[0].filters = vec![Filter::RequestHeaders(modify("x-backend"))];
    let (world, _) = world(vec![rule]).await;
    let answer = ask(&world, request("GET", "/a/c?d", &[("x-gone", "1")])).await;
    assert_eq!(answer.headers()["x-answer"], "set");
    let seen = body(answer).await;
    assert!(seen.starts_with("GET /b/c?d "), "{seen}");
    for line in [
        "host: new.shop",
        "x-rule: set",
        "x-backend: set",
        "x-both: x-rule",
        "x-both: x-backend",
    ] {
        assert!(seen.contains(line), "{line} in {seen}");
    }
    assert!(!seen.contains("x-gone"), "{seen}");
}

#[tokio::test]
async fn a_redirect_asks_no_application() {
    let redirect = Redirect {
        scheme: Some("https".into()),
        status: Some(301),
        ..Redirect::default()
    };
    let (world, _) = world(vec![with(on("/a"), vec![Filter::Redirect(redirect)])]).await;
    let answer = ask(&world, get("/a/b?c")).await;
    assert_eq!(answer.status(), 301);
    assert_eq!(answer.headers()["location"], "https://web.shop/a/b?c");
    assert!(world.connects.lock().is_empty());
}

fn cors() -> Filter {
    Filter::Cors(Cors {
        origins: vec!["https://page.example".into()],
        methods: vec!["PUT".into()],
        ..Cors::default()
    })
}

#[tokio::test]
async fn a_preflight_is_answered_and_answers_are_marked() {
    let mut put = with(
        http_route("shop/web").on(exact("/a").method("PUT")).under(WEB),
        vec![cors()],
    );
    put = put.to(WEB, 80, 1);
    let (world, _) = world(vec![put]).await;
    let origin = ("origin", "https://page.example");
    let asks = [origin, ("access-control-request-method", "PUT")];
    let answer = ask(&world, request("OPTIONS", "/a", &asks)).await;
    assert_eq!(answer.status(), 204);
    assert_eq!(
        answer.headers()["access-control-allow-origin"],
        "https://page.example"
    );
    assert_eq!(answer.headers()["access-control-allow-methods"], "PUT");
    assert!(world.connects.lock().is_empty());
    let answer = ask(&world, request("PUT", "/a", &[origin])).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.headers()["access-control-allow-origin"],
        "https://page.example"
    );
    let answer = ask(
        &world,
        request("PUT", "/a", &[("origin", "https://other.example")]),
    )
    .await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_preflight_borrows_no_rule_that_says_nothing_of_cors() {
    let put = http_route("shop/web")
        .on(exact("/a").method("PUT"))
        .under(WEB)
        .to(WEB, 80, 1);
    let (world, _) = world(vec![put]).await;
    let asks = [
        ("origin", "https://page.example"),
        ("access-control-request-method", "PUT"),
    ];
    let answer = ask(&world, request("OPTIONS", "/a", &asks)).await;
    assert_eq!(answer.status(), 404);
    assert!(world.connects.lock().is_empty());
}

#[tokio::test]
async fn answers_of_the_waypoint_itself_are_marked_too() {
    let gone = with(on("/a"), vec![cors()]).to("shop/gone.shop.svc.cluster.local", 80, 1);
    let (world, _) = world(vec![gone]).await;
    let answer = ask(
        &world,
        request("GET", "/a", &[("origin", "https://page.example")]),
    )
    .await;
    assert_eq!(answer.status(), 500);
    assert_eq!(
        answer.headers()["access-control-allow-origin"],
        "https://page.example"
    );
}

fn mirror(numerator: u32) -> Filter {
    Filter::Mirror(Mirror {
        backend: Backend {
            to: BackendTo::Service {
                service: service_key("shop/other"),
                port: 80,
            },
            weight: 1,
            filters: Vec::new(),
        },
        numerator,
        denominator: 100,
    })
}

#[tokio::test]
async fn a_mirror_gets_the_request_with_its_body() {
    let (world, seen) = world(vec![with(on("/"), vec![mirror(100)]).to(WEB, 80, 1)]).await;
    let request = Request::post("/a?b")
        .header("host", "web.shop")
        .body(Full::from("hello"))
        .unwrap();
    let answer = ask(&world, request).await;
    assert!(body(answer).await.ends_with("hello"));
    while world.metric("tulle_waypoint_mirror_total{outcome=\"sent\"}") < 1.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*seen.lock(), ["POST /a?b web.shop-shadow hello"]);
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_does_not_answer_is_given_up_and_nobody_notices() {
    let (world, _) = world(vec![with(on("/"), vec![mirror(100)]).to(WEB, 80, 1)]).await;
    world.serve("10.0.0.8", "other", application(|_| std::future::pending()));
    let answer = ask(&world, get("/a")).await;
    assert_eq!(answer.status(), 200);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(world.metric("tulle_waypoint_mirror_total{outcome=\"timeout\"}") >= 1.0);
}

/// Asks once, and waits until the copy has ended like this.
async fn copied(world: &World, outcome: &str) {
    assert_eq!(ask(world, get("/a")).await.status(), 200);
    let series = format!("tulle_waypoint_mirror_total{{outcome=\"{outcome}\"}}");
    while world.metric(&series) < 1.0 {
        tokio::task::yield_now().await;
    }
}

fn went_to_other(world: &World) -> bool {
    let connects = world.connects.lock();
    connects
        .iter()
        .any(|connect| connect.authority == "10.0.0.8:8080")
}

#[tokio::test]
async fn what_guards_the_backend_of_a_mirror_refuses_copies() {
    let (world, seen) = world(vec![with(on("/"), vec![mirror(100)]).to(WEB, 80, 1)]).await;
    let on_other = On::Service(service_key("shop/other"));
    let deny = policy_on("guard", on_other, authz(Action::Deny, vec![Rule::default()]));
    world
        .apply(vec![
            front("shop/other", |_| {}),
            MeshUpdate::WaypointPolicy(Arc::new(deny)),
        ])
        .await;
    copied(&world, "denied").await;
    assert!(seen.lock().is_empty() && !went_to_other(&world));
}

#[tokio::test]
async fn no_copy_goes_where_a_policy_that_is_required_has_not_arrived() {
    let (world, seen) = world(vec![with(on("/"), vec![mirror(100)]).to(WEB, 80, 1)]).await;
    let needing = front("shop/other", |front| {
        front.required_policies = vec!["TestPolicy/shop/late/authz".into()];
    });
    world.apply(vec![needing]).await;
    copied(&world, "denied").await;
    assert!(seen.lock().is_empty() && !went_to_other(&world));
}

#[tokio::test]
async fn a_copy_is_what_the_rule_makes_of_a_request_and_nothing_of_another_backend() {
    let modify = |name: &str| {
        Filter::RequestHeaders(HeaderMod {
            set: vec![header(name, "set")],
            ..HeaderMod::default()
        })
    };
    let mut rule = with(on("/"), vec![mirror(100), modify("x-rule")]).to(WEB, 80, 1);
    rule.backends[0].filters = vec![modify("x-backend")];
    let (world, _) = world(vec![rule]).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&seen);
    let answer = move |request: Request<Incoming>| {
        let has = |name: &str| request.headers().contains_key(name);
        keeping.lock().push((has("x-rule"), has("x-backend")));
        std::future::ready(text("other"))
    };
    world.serve("10.0.0.8", "other", application(answer));
    copied(&world, "sent").await;
    assert_eq!(*seen.lock(), [(true, false)]);
}

#[tokio::test]
async fn calls_without_a_rule_are_unimplemented() {
    let calls = route(Kind::Grpc, "shop/calls")
        .on(tulle_model::testing::grpc(Some("shop.Items"), None, false))
        .under(WEB)
        .to(WEB, 80, 1);
    let world = World::web_with(AppProtocol::Http2, application(echo)).await;
    world.apply(vec![told(calls)]).await;
    let mut client = world.http2("client").await;
    let call = |path: &str| {
        Request::post(format!("http://web.shop{path}"))
            .header("content-type", "application/grpc")
            .body(Full::default())
            .unwrap()
    };
    let answer = client.send_request(call("/shop.Items/Get")).await.unwrap();
    assert!(
        body(answer)
            .await
            .starts_with("POST http://web.shop/shop.Items/Get HTTP/2.0")
    );
    let answer = client.send_request(call("/shop.Other/Get")).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["grpc-status"]),
        (http::StatusCode::OK, &"12".parse().unwrap())
    );
}
