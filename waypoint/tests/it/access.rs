//! What access lines say of policies on trial, and of our end of connections; and what neither they nor spans say.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::SET_COOKIE;
use http_body_util::Full;
use tulle_model::MeshUpdate;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::jwt::{FromHeader, Jwt, JwtRule, Keys};
use tulle_model::policy::{Concern, On};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, service, service_key, workload};
use tulle_model::waypoint::{AccessLog, Telemetry, Waypoint as Told};

use super::policies::authz;
use super::resilience::told;
use super::telemetry::{Log, collected, spans_of};
use super::tokens::Issuer;
use super::world::{
    World, application, body, echo, front, get, policy, policy_on, settings, text, told_policy, web,
};

/// A policy that would refuse everything.
fn on_trial() -> MeshUpdate {
    let mut dry = policy("try", authz(Action::Deny, vec![Rule::default()]));
    dry.dry_run = true;
    MeshUpdate::WaypointPolicy(Arc::new(dry))
}

/// The first line of a log.
fn first(log: &Log) -> serde_json::Value {
    serde_json::from_str(&log.lines()[0]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_policy_on_trial_stands_in_the_line_of_what_it_would_have_refused() {
    for (updates, expect) in [
        (vec![on_trial()], serde_json::json!("true")),
        (vec![], serde_json::Value::Null),
    ] {
        let log = Log::new();
        let world = log.world(AccessLog::All, true).await;
        world.apply(updates).await;
        let answer = world.http1("client").await.send_request(get("/")).await.unwrap();
        assert_eq!(answer.status(), 200);
        body(answer).await;
        world.counted("istio_requests_total", 1.0).await;
        let line = first(&log);
        assert_eq!(line["dry_run_denied"], expect, "{line}");
        assert!(
            line["upstream_local_address"].is_null(),
            "a tunnel has one for all: {line}"
        );
    }
}

/// A service without tunnels, whose log has all lines.
async fn plain(log: &Log, protocol: AppProtocol) -> World {
    let mut settings = settings();
    settings.telemetry = Telemetry {
        access_log: AccessLog::All,
        json: true,
        ..Telemetry::default()
    };
    let updates = vec![
        MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings)))),
        web(protocol),
        workload("shop/web-1").ip("10.0.0.7").serves("shop/web").into(),
        front("shop/web", |_| {}),
    ];
    let world = World::logging(updates, Some(log.handle.clone())).await;
    world.serve_outside("10.0.0.7:8080", application(echo));
    world
}

#[tokio::test(start_paused = true)]
async fn our_end_of_a_connection_to_an_endpoint_stands_in_the_line() {
    let log = Log::new();
    let world = plain(&log, AppProtocol::Http11).await;
    body(world.http1("client").await.send_request(get("/")).await.unwrap()).await;
    world.counted("istio_requests_total", 1.0).await;
    let line = first(&log);
    assert_eq!(line["upstream_host"], "10.0.0.7:8080");
    assert_eq!(line["upstream_local_address"], "10.0.0.9:40000");
}

#[tokio::test(start_paused = true)]
async fn the_line_of_a_stream_says_both_too() {
    let log = Log::new();
    let world = plain(&log, AppProtocol::Tcp).await;
    world.apply(vec![on_trial()]).await;
    drop(world.http1("client").await);
    world.counted("istio_tcp_connections_closed_total", 1.0).await;
    let line = first(&log);
    assert_eq!(line["dry_run_denied"], "true");
    assert_eq!(line["upstream_host"], "10.0.0.7:8080");
    assert_eq!(line["upstream_local_address"], "10.0.0.9:40000");
    assert_eq!(line["attempts"], 1);
}

/// What no line and no span may say, wherever a client or an application writes it.
const PLANTED: &str = "pLaNtEd";

/// Tokens in these parameters are read, and none is valid but those of this issuer.
fn tokens(params: &[&'static str], issuer: &Issuer) -> Concern {
    Concern::Jwt(Jwt {
        rules: vec![JwtRule {
            issuer: "https://issuer".into(),
            keys: Keys::Inline(issuer.jwks().into()),
            from_params: params.iter().map(|param| (*param).into()).collect(),
            from_headers: vec![FromHeader {
                name: "x-token".into(),
                prefix: "".into(),
            }],
            from_cookies: vec!["session".into()],
            ..JwtRule::default()
        }],
    })
}

/// All lines and spans are wanted.
fn everything() -> Telemetry {
    Telemetry {
        access_log: AccessLog::All,
        json: true,
        sampling_ppm: Some(1_000_000),
        ..Telemetry::default()
    }
}

fn planted(target: &str) -> Request<Full<Bytes>> {
    Request::post(target)
        .header("host", format!("user:{PLANTED}@web.shop"))
        .header("authorization", format!("Bearer {PLANTED}"))
        .header("x-token", PLANTED)
        .header("cookie", format!("session={PLANTED}"))
        .body(Full::from(PLANTED))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn tokens_cookies_and_bodies_stand_in_no_line_and_in_no_span() {
    let (log, issuer) = (Log::new(), Issuer::new());
    let world = log.world(AccessLog::All, true).await;
    world.serve(
        "10.0.0.7",
        "web",
        application(|_| async {
            let mut answer = text(PLANTED);
            answer.headers_mut().insert(SET_COOKIE, PLANTED.parse().unwrap());
            answer
        }),
    );
    let mut spans = collected(&world, everything()).await;
    let mut client = world.http1("client").await;
    let valid = issuer.token(r#"{"iss":"https://issuer","sub":"me","exp":9999999999}"#);
    let signature = valid.rsplit('.').next().unwrap().to_owned();
    let usual = format!("/a?access_token={PLANTED}&x=1&%61ccess%5ftoken={PLANTED}");
    let known = format!("/a?key={PLANTED}&x=1&%6bey={PLANTED}&access_token={PLANTED}");
    let good = format!("/a?x=1&key={valid}");
    let jwt = || told_policy("jwt", tokens(&["key"], &issuer));
    let pending = front("shop/web", |front| {
        front.required_policies = vec!["policy/shop/none/authz".into()]
    });
    let (mut number, mut shown) = (0.0, Vec::new());
    for (updates, request, expect) in [
        (vec![], planted(&usual), 400),
        (vec![], get(&usual), 200),
        (vec![jwt()], planted(&known), 400),
        (vec![], get(&known), 401),
        (vec![], get(&good), 200),
        // Which policies there will be, nobody knows yet.
        (vec![pending], get(&format!("/a?other={PLANTED}&x=1")), 403),
    ] {
        world.apply(updates).await;
        let (target, answer) = (request.uri().clone(), client.send_request(request).await.unwrap());
        assert_eq!(answer.status(), expect, "{target}");
        body(answer).await;
        number += 1.0;
        world.counted("istio_requests_total", number).await;
        let line = log.lines().pop().unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        shown.push(line["path"].as_str().unwrap().to_owned());
        assert_eq!(line["authority"], "web.shop", "{target}");
    }
    let usual = "/a?access_token=redacted&x=1&%61ccess%5ftoken=redacted";
    let known = "/a?key=redacted&x=1&%6bey=redacted&access_token=redacted";
    let expect = [
        usual,
        usual,
        known,
        known,
        "/a?x=1&key=redacted",
        "/a?other=redacted&x=redacted",
    ];
    assert_eq!(shown, expect);
    // One of each request, and one of each of the two tries.
    let (mut said, mut number) = (Vec::new(), 0);
    while number < 8 {
        let message = spans.recv().await.unwrap();
        number += spans_of(&message).len();
        said.extend(message);
    }
    let told = format!("{}{}", log.lines().concat(), String::from_utf8_lossy(&said));
    for secret in [PLANTED, &signature] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_only_a_backend_reads_stands_in_no_line_either() {
    let (log, issuer) = (Log::new(), Issuer::new());
    let world = log.world(AccessLog::All, true).await;
    let db = service("shop/db").vip("10.96.0.2").port(80, 8080).build();
    let jwt = tokens(&["dbkey"], &issuer);
    let jwt = policy_on("jwt", On::Service(service_key("shop/db")), jwt);
    let (web, db_host) = (
        "shop/web.shop.svc.cluster.local",
        "shop/db.shop.svc.cluster.local",
    );
    world
        .apply(vec![
            MeshUpdate::Service(Arc::new(db)),
            front("shop/db", |_| {}),
            MeshUpdate::WaypointPolicy(Arc::new(jwt)),
            told(http_route("shop/web").under(web).to(db_host, 80, 1)),
        ])
        .await;
    let mut client = world.http1("client").await;
    let target = format!("/a?dbkey={PLANTED}&x=1");
    let answer = client.send_request(get(&target)).await.unwrap();
    assert_eq!(answer.status(), 401);
    body(answer).await;
    world.counted("istio_requests_total", 1.0).await;
    assert_eq!(first(&log)["path"], "/a?dbkey=redacted&x=1");
}
