//! Backends: drawn again for each try, bounded in their connections, and policed by route.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tulle_model::MeshUpdate;
use tulle_model::policy::authz::{Action, Authz};
use tulle_model::policy::traffic::{Algorithm, CircuitBreaker, LoadBalancing, Outlier, RetryBudget};
use tulle_model::policy::{Concern, On, Policy};
use tulle_model::route::{Kind, Retry, Route};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix, service, service_key, workload};
use tulle_runtime::tasks;

use super::resilience::{Count, WEB, ask, endpoint, never, reason, retrying, rule, statuses, told, two};
use super::world::{
    Application, World, application, body, echo, front, get, policy_on, text, told_policy, web,
};

/// A further service, `shop/db`, with one endpoint.
const DB: &str = "shop/db.shop.svc.cluster.local";

fn db() -> Vec<MeshUpdate> {
    vec![
        MeshUpdate::Service(Arc::new(
            service("shop/db").vip("10.96.0.2").port(80, 8080).build(),
        )),
        workload("shop/db-1")
            .sa("db")
            .ip("10.0.0.20")
            .hbone()
            .serves("shop/db")
            .into(),
    ]
}

/// `shop/web` and `shop/db` with one endpoint each, and a route that sends to both alike.
async fn split(web_says: Application, db_says: Application, updates: Vec<MeshUpdate>) -> World {
    let route = Route {
        retry: Some(Retry {
            attempts: Some(1),
            codes: vec![503],
            ..Retry::default()
        }),
        ..http_route("shop/web").under(WEB).to(WEB, 80, 1).to(DB, 80, 1)
    };
    let mut given = db();
    given.extend([
        web(AppProtocol::Http11),
        endpoint("web-1", "10.0.0.7"),
        front("shop/web", |_| {}),
        told(route),
    ]);
    given.extend(updates);
    let world = World::start(given).await;
    world.serve("10.0.0.7", "web", web_says);
    world.serve("10.0.0.20", "db", db_says);
    world
}

fn connections(limits: CircuitBreaker) -> MeshUpdate {
    told_policy("web", Concern::Circuit(limits))
}

/// A policy on the route `shop/web`.
fn on_route(name: &str, concern: Concern) -> Policy {
    let on = On::Route {
        kind: Kind::Http,
        namespace: "shop".into(),
        name: "web".into(),
    };
    policy_on(name, on, concern)
}

fn given(policy: Policy) -> MeshUpdate {
    MeshUpdate::WaypointPolicy(Arc::new(policy))
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if what() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it does not come about");
}

#[tokio::test(start_paused = true)]
async fn a_retry_leaves_the_backend_that_failed() {
    let (broken, well) = (Count::default(), Count::default());
    let world = split(statuses(&broken, &[503]), statuses(&well, &[200]), vec![]).await;
    // The one endpoint of the backend that failed was tried: each of five further draws may bring the other.
    let mut failed = 0;
    for _ in 0..40 {
        failed += u32::from(ask(&world).await.status() == 503);
    }
    assert!(broken.get() > 0, "half of the requests begin there");
    assert!(failed <= 5, "{failed} of 40 drew the same backend six times");
}

#[tokio::test(start_paused = true)]
async fn the_policies_of_a_backend_that_a_retry_draws_are_asked() {
    let (broken, guarded) = (Count::default(), Count::default());
    let nobody = policy_on(
        "nobody",
        On::Service(service_key("shop/db")),
        Concern::Authz(Authz {
            action: Action::Deny,
            rules: vec![Default::default()],
            provider: None,
        }),
    );
    let guarded_front = front("shop/db", |_| {});
    let updates = vec![given(nobody), guarded_front];
    let world = split(statuses(&broken, &[503]), statuses(&guarded, &[200]), updates).await;
    let mut denied = 0;
    for _ in 0..40 {
        denied += u32::from(ask(&world).await.status() == 403);
    }
    assert_eq!(guarded.get(), 0, "no byte reaches a backend that denies");
    assert!(broken.get() > 0 && denied > 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_one_connection_there_may_be() {
    let count = Count::default();
    let limits = CircuitBreaker {
        connections: Some(1),
        ..CircuitBreaker::default()
    };
    let counted = count.clone();
    let slow = application(move |_| {
        counted.next();
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            text("")
        }
    });
    let world = World::web_with(AppProtocol::Http11, slow).await;
    world.apply(vec![connections(limits)]).await;
    let start = tokio::time::Instant::now();
    let all = futures_util::future::join_all((0..3).map(|_| async {
        let response = ask(&world).await;
        let status = response.status().as_u16();
        let _ = response.into_body().collect().await;
        status
    }));
    assert_eq!(all.await, [200; 3]);
    assert_eq!(
        (start.elapsed().as_secs(), count.get()),
        (3, 3),
        "one after the other"
    );
    assert_eq!(world.connects.lock().len(), 1, "all over one connection");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_for_another_caller_makes_room() {
    let limits = CircuitBreaker {
        connections: Some(1),
        ..CircuitBreaker::default()
    };
    let world = World::web().await;
    world.apply(vec![connections(limits)]).await;
    for who in ["client", "other", "client"] {
        let response = world.http1(who).await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200, "{who}");
        body(response).await;
    }
    assert_eq!(world.connects.lock().len(), 3, "two callers never share one");
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_behind_too_many_is_refused() {
    let count = Count::default();
    let limits = CircuitBreaker {
        connections: Some(1),
        pending: Some(1),
        ..CircuitBreaker::default()
    };
    let world = World::web_with(AppProtocol::Http11, never(&count)).await;
    world.apply(vec![connections(limits)]).await;
    let mut first = world.http1("client").await;
    let mut second = world.http1("client").await;
    let running = tasks::spawn("first", async move { first.send_request(get("/")).await });
    until(|| count.get() == 1).await;
    let waiting = tasks::spawn("second", async move { second.send_request(get("/")).await });
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let response = ask(&world).await;
    assert_eq!(response.status(), 503);
    assert!(reason(&response).starts_with("T0613; overflow"), "{response:?}");
    assert_eq!(response.headers()["x-envoy-overloaded"], "true");
    assert_eq!(count.get(), 1, "who waits was not sent");
    running.abort();
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_connection_takes_as_many_requests_as_it_may() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
        let limits = CircuitBreaker {
            requests_per_connection: Some(2),
            ..CircuitBreaker::default()
        };
        let world = World::web_with(protocol, application(echo)).await;
        world.apply(vec![connections(limits)]).await;
        for _ in 0..6 {
            let response = ask(&world).await;
            assert_eq!(response.status(), 200);
            body(response).await;
        }
        assert_eq!(world.connects.lock().len(), 3, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_left_at_its_age() {
    let limits = CircuitBreaker {
        age_max: Some(Duration::from_secs(30)),
        ..CircuitBreaker::default()
    };
    let world = World::web().await;
    world.apply(vec![connections(limits)]).await;
    for (wait, opened) in [(0, 1), (20, 1), (20, 2)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        let response = ask(&world).await;
        body(response).await;
        assert_eq!(world.connects.lock().len(), opened);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_comes_about_in_the_time_the_policy_gives() {
    let limits = CircuitBreaker {
        connect_timeout: Some(Duration::from_secs(3)),
        ..CircuitBreaker::default()
    };
    let world = World::start(vec![
        web(AppProtocol::Http11),
        endpoint("web-1", "10.0.0.7"),
        front("shop/web", |_| {}),
        connections(limits),
        told(Route {
            retry: Some(Retry {
                attempts: Some(0),
                ..Retry::default()
            }),
            ..rule()
        }),
    ])
    .await;
    // A socket that is taken and never spoken to.
    let _silent = world.pipes.listen("10.0.0.7:15008");
    let start = tokio::time::Instant::now();
    let response = ask(&world).await;
    assert_eq!((response.status().as_u16(), start.elapsed().as_secs()), (503, 3));
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_the_route_beats_that_of_the_service() {
    let count = Count::default();
    let none = |name: &str, percent| {
        let budget = Concern::RetryBudget(RetryBudget {
            percent: Some(percent),
            interval: Some(Duration::from_secs(10)),
            per_second_min: Some(percent),
        });
        (name.to_owned(), budget)
    };
    let (far, spends_nothing) = none("far", 0);
    let world = World::web_with(AppProtocol::Http11, statuses(&count, &[503])).await;
    world
        .apply(vec![told(retrying()), told_policy(&far, spends_nothing)])
        .await;
    assert!(
        reason(&ask(&world).await).starts_with("T0607"),
        "the service has no retries"
    );
    let (near, spends) = none("near", 100);
    world.apply(vec![given(on_route(&near, spends))]).await;
    let before = count.get();
    let response = ask(&world).await;
    assert_eq!(
        (response.status().as_u16(), reason(&response)),
        (503, String::new())
    );
    assert_eq!(count.get() - before, 3, "the route has");
}

#[tokio::test(start_paused = true)]
async fn a_route_bounds_what_it_sends_and_leaves_others_alone() {
    let count = Count::default();
    let full = Concern::Circuit(CircuitBreaker {
        requests: Some(0),
        ..CircuitBreaker::default()
    });
    let bounded = http_route("shop/web")
        .on(prefix("/bounded"))
        .under(WEB)
        .to(WEB, 80, 1);
    let world = World::web_with(AppProtocol::Http11, statuses(&count, &[200])).await;
    let other = http_route("shop/other").on(prefix("/")).under(WEB).to(WEB, 80, 1);
    world
        .apply(vec![told(bounded), told(other), given(on_route("full", full))])
        .await;
    let mut client = world.http1("client").await;
    assert_eq!(client.send_request(get("/bounded")).await.unwrap().status(), 503);
    assert_eq!(client.send_request(get("/else")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_policy_of_one_rule_beats_that_of_its_route() {
    let count = Count::default();
    let circuit = |requests| {
        Concern::Circuit(CircuitBreaker {
            requests: Some(requests),
            ..CircuitBreaker::default()
        })
    };
    let mut named = rule();
    named.origin.rule_name = "first".into();
    let mut of_rule = on_route("of-rule", circuit(5));
    of_rule.targets[0].section = Some("first".into());
    let world = World::web_with(AppProtocol::Http11, statuses(&count, &[200])).await;
    world
        .apply(vec![told(named), given(on_route("of-route", circuit(0)))])
        .await;
    assert_eq!(ask(&world).await.status(), 503);
    world.apply(vec![given(of_rule)]).await;
    assert_eq!(ask(&world).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_route_ejects_and_balances_by_its_own_policies() {
    let (broken, well) = (Count::default(), Count::default());
    let outlier = Concern::Outlier(Outlier {
        consecutive: Some(1),
        percent_max: Some(100),
        ..Outlier::default()
    });
    let in_turn = Concern::LoadBalancing(LoadBalancing {
        algorithm: Some(Algorithm::RoundRobin),
        ..LoadBalancing::default()
    });
    let updates = vec![
        told(rule()),
        given(on_route("outlier", outlier)),
        given(on_route("in-turn", in_turn)),
    ];
    let world = two(statuses(&broken, &[500]), statuses(&well, &[200]), updates).await;
    for _ in 0..10 {
        ask(&world).await;
    }
    assert_eq!((broken.get(), well.get()), (1, 9), "one failure, and it is out");
    assert!((world.metric("tulle_waypoint_ejections_total") - 1.0).abs() < 0.1);
    // The service itself has no such policy: to it both are usable.
    assert!((world.metric("tulle_waypoint_endpoints{state=\"usable\"}") - 2.0).abs() < 0.1);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_backends_is_exported() {
    let (broken, well) = (Count::default(), Count::default());
    let outlier = Concern::Outlier(Outlier {
        consecutive: Some(1),
        percent_max: Some(100),
        ..Outlier::default()
    });
    let budget = Concern::RetryBudget(RetryBudget {
        percent: Some(0),
        interval: Some(Duration::from_secs(10)),
        per_second_min: Some(1),
    });
    let updates = vec![
        told(retrying()),
        told_policy("outlier", outlier),
        told_policy("budget", budget),
    ];
    let world = two(statuses(&broken, &[503]), statuses(&well, &[503]), updates).await;
    ask(&world).await;
    for (series, value) in [
        ("tulle_waypoint_ejections_total", 1.0),
        ("tulle_waypoint_endpoints{state=\"usable\"}", 1.0),
        ("tulle_waypoint_endpoints{state=\"ejected\"}", 1.0),
        ("tulle_waypoint_retry_budget_ratio", 0.2),
    ] {
        assert!(
            (world.metric(series) - value).abs() < 0.01,
            "{series}: {}",
            world.registry.encode()
        );
    }
    assert!(
        world.metric("tulle_waypoint_ejections_skipped_total") > 0.5,
        "the last one stays"
    );
}

/// `shop/web`, whose route sends everything to `bank/db`, a service that is exported to these; its own policies guard it where
/// this waypoint stands in front of it.
async fn to_another_namespace(exported: Option<&[&str]>, by: &str, fronted: bool) -> World {
    let mut db = service("bank/db").vip("10.96.0.2").port(80, 8080);
    if let Some(namespaces) = exported {
        db = db.exported_to(namespaces);
    }
    let mut given = vec![
        db.into(),
        workload("bank/db-1")
            .sa("db")
            .ip("10.0.0.20")
            .serves("bank/db")
            .into(),
        web(AppProtocol::Http11),
        front("shop/web", |_| {}),
        told(
            http_route(&format!("{by}/web"))
                .under(WEB)
                .to("bank/db.bank.svc.cluster.local", 80, 1),
        ),
    ];
    if fronted {
        given.push(front("bank/db", |_| {}));
    }
    let world = World::start(given).await;
    world.serve_outside("10.0.0.20:8080", application(echo));
    world
}

#[tokio::test(start_paused = true)]
async fn a_route_sends_to_no_service_that_its_namespace_may_not_see() {
    for (exported, by, expect) in [
        (None, "shop", 200),
        (Some(&["shop"][..]), "shop", 200),
        (Some(&["bank"]), "shop", 500),
        (Some(&[]), "shop", 500),
        (Some(&["client"]), "shop", 500),
        // Routes of consumers, for their own callers.
        (Some(&["client"]), "client", 200),
        (Some(&["shop"]), "client", 500),
        // The service's own namespace, although it does not list itself.
        (Some(&["client"]), "bank", 200),
    ] {
        for fronted in [false, true] {
            let world = to_another_namespace(exported, by, fronted).await;
            let mut client = world.http1(&format!("{by}/app")).await;
            let answer = client.send_request(get("/")).await.unwrap();
            assert_eq!(answer.status(), expect, "{exported:?} {by} {fronted}");
            if expect == 500 {
                let reason = answer.headers()["x-tulle-reason"].to_str().unwrap();
                assert!(reason.starts_with("T0602; backend_invalid"), "{reason}");
            }
        }
    }
}
