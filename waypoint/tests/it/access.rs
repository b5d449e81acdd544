//! What access lines say of policies on trial, and of our end of connections.

use std::sync::Arc;

use tulle_model::MeshUpdate;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::service::AppProtocol;
use tulle_model::testing::workload;
use tulle_model::waypoint::{AccessLog, Telemetry, Waypoint as Told};

use super::policies::authz;
use super::telemetry::Log;
use super::world::{World, application, body, echo, front, get, policy, settings, web};

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
