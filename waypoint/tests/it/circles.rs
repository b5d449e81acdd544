//! Who is asked about a request may stand behind a waypoint that asks somebody, too: such a circle ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, advance};
use tulle_model::filter::{Ask, ExtAuthz};
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::jwt::Keys;
use tulle_model::policy::traffic::{Descriptor, Entry, GlobalRateLimit, Key};
use tulle_model::policy::{Concern, On};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{service, service_key, workload};
use tulle_model::waypoint::{ProviderKind, Target as ServicePort};
use tulle_model::{MeshUpdate, Reason};
use tulle_runtime::tasks;
use tulle_waypoint::listener::hbone;

use crate::asked::{asks, backend, provider};
use crate::beyond::{behind, refusing, sent_after, way2};
use crate::policies::authz;
use crate::tokens::{Issuer, jwt, with_token};
use crate::world::{World, application, echo, front, get, policy_on, told_policy, web};

/// What asks `shop/judge` about requests to `shop/web`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Http,
    Grpc,
    Counter,
    Keys,
}

impl Asks {
    const ALL: [Self; 4] = [Self::Http, Self::Grpc, Self::Counter, Self::Keys];

    /// As policies say it.
    fn told(self, fail_open: bool) -> Vec<MeshUpdate> {
        let judge = |ask| {
            let of = ExtAuthz {
                fail_open,
                ..asks(ask)
            };
            let known = provider("judge", ProviderKind::ExtAuthz(Box::new(of)));
            vec![known, told_policy("ask", custom())]
        };
        match self {
            Self::Http => judge(over_http("judge")),
            Self::Grpc => judge(Ask::Grpc(backend("judge"))),
            Self::Counter => {
                let entries = vec![Entry {
                    name: "method".into(),
                    key: Key::Method,
                }];
                let limit = GlobalRateLimit {
                    provider: "judge".into(),
                    descriptors: vec![Descriptor { entries }],
                    timeout: Some(Duration::from_secs(5)),
                    fail_open,
                    ..GlobalRateLimit::default()
                };
                let counter = ProviderKind::RateLimit(ServicePort {
                    service: service_key("shop/judge"),
                    port: 80,
                });
                let limit = told_policy("count", Concern::GlobalRateLimit(limit));
                vec![provider("judge", counter), limit]
            }
            Self::Keys => {
                let keys = Keys::Uri("http://judge.shop.svc.cluster.local/jwks".into());
                vec![told_policy("jwt", jwt(keys))]
            }
        }
    }
}

fn over_http(name: &str) -> Ask {
    Ask::Http {
        backend: backend(name),
        path: "/".into(),
    }
}

/// Somebody else decides about every request.
fn custom() -> Concern {
    authz(Action::Custom, vec![Rule::default()])
}

/// A request whose token is good, if somebody has the keys.
fn signed() -> Request<Full<Bytes>> {
    with_token(&Issuer::new().token(r#"{"iss":"https://issuer","sub":"anna"}"#))
}

/// `shop/web`, about which nobody is asked yet, and `shop/judge` behind the other waypoint.
async fn world() -> World {
    let world = World::web().await;
    let judge = [behind("judge", "10.96.0.9")];
    world.apply(judge.into_iter().chain(way2()).collect()).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_question_has_passed_one_waypoint_more_than_what_it_is_about() {
    for asks in Asks::ALL {
        let world = world().await;
        world.serve("10.0.0.5", "way2", application(echo));
        // Keys are fetched as soon as their rule is there, which no request causes.
        world.apply(asks.told(false)).await;
        for hops in [0, 1] {
            sent_after(&world, hops, signed()).await;
            // Until keys are asked for again.
            advance(Duration::from_secs(2)).await;
        }
        let connects = world.connects.lock();
        let questions = connects.iter().filter(|one| one.authority == "10.96.0.9:80");
        let told: Vec<u8> = questions.map(|one| one.hops).collect();
        assert_eq!(told, [1, 2], "{asks:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_beyond_the_last_waypoint_is_a_loop_and_never_a_missing_answer() {
    for asks in Asks::ALL {
        let missing = match asks {
            Asks::Http | Asks::Grpc => (403, "T0625; ext_authz_error"),
            Asks::Counter => (503, "T0606; rate_limit_unavailable"),
            Asks::Keys => (401, "T0604; jwks_unavailable"),
        };
        for (said, fail_open, expected) in [
            (Reason::LoopDetected, false, (508, "T0629; loop_detected")),
            (Reason::LoopDetected, true, (508, "T0629; loop_detected")),
            (Reason::NotFronted, false, missing),
        ] {
            let world = world().await;
            let asked = refusing(&world, 400, Some(said));
            world.apply(asks.told(fail_open)).await;
            let before = asked.load(Ordering::Relaxed);
            let (status, reason) = sent_after(&world, 1, signed()).await;
            let case = format!("{asks:?} {said:?} {fail_open} {reason}");
            assert_eq!(status, expected.0, "{case}");
            assert!(reason.starts_with(expected.1), "{case}");
            let times = asked.load(Ordering::Relaxed) - before;
            assert!(times <= 1, "whoever says 400 says it again: {case}");
            assert!(world.connects.lock().is_empty(), "it reached nobody: {case}");
        }
    }
}

/// Leads connections to the address of a waypoint to this one, as those of its peer.
fn lead(from: &World, at: &str, to: &World, peer: &str) {
    let mut sockets = from.pipes.listen(at);
    let (local, peer) = (at.parse().unwrap(), peer.parse().unwrap());
    let waypoint = Arc::clone(&to.waypoint);
    drop(tasks::spawn("waypoint", async move {
        while let Some(socket) = sockets.recv().await {
            let serving = hbone::serve_over(Arc::clone(&waypoint), socket, peer, local);
            drop(tasks::spawn("waypoint-tunnel", serving));
        }
    }));
}

/// The pod of a waypoint, as the others know it.
fn pod(account: &str, ip: &str) -> MeshUpdate {
    let name = format!("shop/{account}");
    let mut pod = workload(&format!("{name}-1")).sa(account).ip(ip).hbone();
    pod = pod.serves(&name);
    let mut pod = pod.build();
    pod.native_tunnel = true;
    MeshUpdate::Workload(Arc::new(pod))
}

/// Two waypoints, `shop/way` before `shop/web` and `shop/way2` before `shop/judge`, of which each asks behind the other.
async fn circle(ask: impl Fn(&str) -> Ask) -> [World; 2] {
    let asking = |whom: &str, about: &str| {
        let of = ExtAuthz {
            // A question of gRPC is a body.
            body_bytes_max: 0,
            ..asks(ask(whom))
        };
        let of = ProviderKind::ExtAuthz(Box::new(of));
        let policy = policy_on("ask", On::Service(service_key(about)), custom());
        [
            provider("judge", of),
            MeshUpdate::WaypointPolicy(Arc::new(policy)),
        ]
    };
    let pods = [pod("way", "10.0.0.9"), pod("way2", "10.0.0.5")];
    let first = World::start(vec![web(AppProtocol::Http11), front("shop/web", |_| {})]).await;
    first.apply(way2()).await;
    first.apply(vec![behind("judge", "10.96.0.9")]).await;
    first.apply(pods.to_vec()).await;
    first.apply(asking("judge", "shop/web").to_vec()).await;
    let own = [("SERVICE_ACCOUNT", "way2")];
    let second = World::start_under(
        Arc::clone(&first.ca),
        &own,
        vec![front("shop/judge", |_| {})],
        None,
    )
    .await;
    let way = service("shop/way").vip("10.96.0.4").port(15008, 15008);
    let web = service("shop/web").vip("10.96.0.1").port(80, 8080);
    let judge = service("shop/judge").vip("10.96.0.9").port(80, 8080);
    let services = vec![way.into(), web.waypoint("shop/way").into(), judge.into()];
    second.apply(services).await;
    second.apply(pods.to_vec()).await;
    second.apply(asking("web", "shop/judge").to_vec()).await;
    lead(&first, "10.0.0.5:15008", &second, "10.0.0.9:4000");
    lead(&second, "10.0.0.9:15008", &first, "10.0.0.5:4000");
    [first, second]
}

#[tokio::test(start_paused = true)]
async fn waypoints_that_ask_behind_each_other_end_at_the_third() {
    let looped = r#"tulle_waypoint_local_replies_total{reason="loop_detected"}"#;
    for worlds in [
        circle(over_http).await,
        circle(|name| Ask::Grpc(backend(name))).await,
    ] {
        let [first, second] = worlds;
        let begun = Instant::now();
        let (status, reason) = sent_after(&first, 0, get("/")).await;
        assert_eq!(status, 403);
        assert!(reason.starts_with("T0625; ext_authz_error"), "{reason}");
        assert!(
            begun.elapsed() < Duration::from_millis(10),
            "nobody waited in vain"
        );
        // The first refused the question of the second, who said so to the first.
        assert_eq!((first.metric(looped), second.metric(looped)), (1.0, 1.0));
    }
}
