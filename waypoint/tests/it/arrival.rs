//! Who is let in: fronts, visibility, required policies, the waypoint's own limits.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tulle_model::policy::Concern;
use tulle_model::route::Kind;
use tulle_model::service::AppProtocol;
use tulle_model::testing::{route, service, workload};
use tulle_model::waypoint::FrontOf;
use tulle_model::{MeshUpdate, Reason};
use tulle_runtime::tasks;
use tulle_transport::hbone::ConnectRequest;

use crate::held::{assert_soon_after, endless};
use crate::resilience::{WEB, told};
use crate::world::{World, application, front, get, told_policy, web};

/// What a CONNECT is refused with: status and reason.
async fn refused(world: &World, who: &str, authority: &str) -> (u16, Reason) {
    let refusal = world.ask(who, authority).await.map(drop).unwrap_err();
    (refusal.status, refusal.reason())
}

fn fault(name: &str) -> MeshUpdate {
    told_policy(name, Concern::Fault(Default::default()))
}

#[tokio::test(start_paused = true)]
async fn only_fronts_and_their_ports_are_let_in() {
    let world = World::web().await;
    world
        .apply(vec![service("shop/other").vip("10.96.0.2").port(80, 80).into()])
        .await;
    assert!(world.ask("client", "10.96.0.1:80").await.is_ok());
    assert!(world.ask("client", "web.shop.svc.cluster.local:80").await.is_ok());
    for authority in [
        "10.96.0.1:81",
        "10.96.0.2:80",
        "10.0.0.7:8080",
        "127.0.0.1:15000",
        "10.0.0.9:15008",
        "169.254.169.254:80",
        "nowhere.shop:80",
    ] {
        assert_eq!(
            refused(&world, "client", authority).await,
            (400, Reason::NotFronted),
            "{authority}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_has_an_id_of_its_own() {
    let world = World::web().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let refusal = world.ask("client", "10.96.0.2:80").await.map(drop).unwrap_err();
        ids.push(refusal.header.unwrap().id.expect("an id"));
    }
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|id| id.len() == 36), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn callers_who_may_not_see_a_front_are_not_let_in() {
    let world = World::web().await;
    let narrow = front("shop/web", |front| front.client_namespaces = vec!["shop".into()]);
    world.apply(vec![narrow]).await;
    assert!(world.ask("client", "10.96.0.1:80").await.is_ok());
    assert_eq!(
        refused(&world, "dev/client", "10.96.0.1:80").await,
        (401, Reason::NotVisible)
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_lets_in_the_namespaces_it_is_exported_to_alone() {
    let world = World::web().await;
    let exported = |to: &[&str]| {
        service("shop/web")
            .vip("10.96.0.1")
            .port(80, 8080)
            .exported_to(to)
    };
    let hidden = (401, Reason::NotVisible);
    world.apply(vec![exported(&["dev", "shop"]).into()]).await;
    assert!(world.ask("client", "10.96.0.1:80").await.is_ok());
    assert!(world.ask("dev/client", "10.96.0.1:80").await.is_ok());
    assert_eq!(refused(&world, "other/client", "10.96.0.1:80").await, hidden);
    world.apply(vec![exported(&["dev"]).into()]).await;
    assert_eq!(refused(&world, "client", "10.96.0.1:80").await, hidden, "its own");
    assert!(world.ask("dev/client", "10.96.0.1:80").await.is_ok());
    world.apply(vec![exported(&[]).into()]).await;
    assert_eq!(refused(&world, "dev/client", "10.96.0.1:80").await, hidden);
}

/// What makes `shop/web` invisible to all namespaces but its own.
fn hides() -> [MeshUpdate; 2] {
    let exported = service("shop/web").vip("10.96.0.1").port(80, 8080);
    let mut exported = exported.exported_to(&["shop"]).build();
    exported.ports.get_mut(&80).unwrap().app_protocol = AppProtocol::Http11;
    let listed = front("shop/web", |front| front.client_namespaces = vec!["shop".into()]);
    [MeshUpdate::Service(Arc::new(exported)), listed]
}

#[tokio::test(start_paused = true)]
async fn who_may_not_see_a_front_any_more_is_not_answered_on_an_open_connection_either() {
    for hide in hides() {
        let world = World::web().await;
        let (mut own, mut dev) = (world.http1("client").await, world.http1("dev/client").await);
        assert_eq!(own.send_request(get("/")).await.unwrap().status(), 200);
        assert_eq!(dev.send_request(get("/")).await.unwrap().status(), 200);
        world.apply(vec![hide]).await;
        let answer = dev.send_request(get("/")).await.unwrap();
        assert_eq!(answer.status(), 401);
        let reason = answer.headers()["x-tulle-reason"].to_str().unwrap();
        assert!(reason.starts_with("T0424; not_visible"), "{reason}");
        assert_eq!(own.send_request(get("/")).await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_ends_when_who_asked_may_not_see_the_front_any_more() {
    for hide in hides() {
        let world = World::web_with(AppProtocol::Http11, application(endless)).await;
        let begin = async |who: &str| {
            let answer = world.http1(who).await.send_request(get("/")).await.unwrap();
            let mut answer = answer.into_body();
            assert!(answer.frame().await.unwrap().is_ok(), "{who}");
            answer
        };
        let (mut own, mut dev) = (begin("client").await, begin("dev/client").await);
        let before = Instant::now();
        world.apply(vec![hide]).await;
        assert!(dev.frame().await.unwrap().is_err(), "reset, not ended well");
        assert_soon_after(before);
        let going_on = tokio::time::timeout(Duration::from_secs(5), own.frame()).await;
        assert!(going_on.is_err(), "nothing has ended");
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_let_in_by_its_address_where_it_is_fronted() {
    let world = World::web().await;
    let uid = workload("shop/web-1").build().uid;
    let pod = front("shop/web", |front| front.object = FrontOf::Workload(uid));
    world.apply(vec![pod]).await;
    assert!(world.ask("client", "10.0.0.7:8080").await.is_ok());
    assert!(world.ask("client", "10.0.0.7:9").await.is_ok(), "any port of it");
}

#[tokio::test(start_paused = true)]
async fn a_stream_waits_for_a_required_policy_and_not_for_ever() {
    let world = World::web().await;
    let needing = front("shop/web", |front| {
        front.required_policies = vec!["TestPolicy/shop/slow/fault".into()];
    });
    world.apply(vec![needing]).await;
    let begun = Instant::now();
    assert_eq!(
        refused(&world, "client", "10.96.0.1:80").await,
        (401, Reason::PolicyPending)
    );
    assert_eq!(begun.elapsed().as_secs(), 2);

    let tunnel = world.ask("client", "10.96.0.1:80");
    let arriving = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.apply(vec![fault("slow")]).await;
    };
    let (asked, ()) = tokio::join!(tunnel, arriving);
    assert!(asked.is_ok(), "it arrived in time");
}

#[tokio::test(start_paused = true)]
async fn nobody_passes_without_the_rule_by_which_somebody_else_is_asked() {
    let world = World::web().await;
    let checked = route(Kind::Http, "shop/checked").under(WEB);
    let needing = front("shop/web", |front| {
        front.required_routes = vec!["HTTPRoute/shop/checked/0".into()];
    });
    world.apply(vec![needing]).await;
    let pending = (401, Reason::PolicyPending);
    assert_eq!(refused(&world, "client", "10.96.0.1:80").await, pending);
    world.apply(vec![told(checked)]).await;
    assert!(world.ask("client", "10.96.0.1:80").await.is_ok());
    let gone = MeshUpdate::RemoveRoute("HTTPRoute/shop/checked/0".into());
    world.apply(vec![gone]).await;
    assert_eq!(refused(&world, "client", "10.96.0.1:80").await, pending, "again");
}

#[tokio::test(start_paused = true)]
async fn one_caller_does_not_take_all_streams() {
    let world = World::start(vec![web(AppProtocol::Http11), front("shop/web", |_| {})]).await;
    let mut few = crate::world::settings();
    few.limits.streams = Some(4);
    let told = tulle_model::waypoint::Waypoint::Settings(Box::new(few));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
    let _held = world
        .waypoint
        .limits
        .stream(&crate::world::identity("client"), Some(4));
    assert_eq!(
        refused(&world, "client", "10.96.0.1:80").await,
        (503, Reason::Overload)
    );
    assert!(world.ask("dev/other", "10.96.0.1:80").await.is_ok());
}

/// What becomes of a CONNECT of `shop/client` that says it has passed so many waypoints: the number that the endpoint is
/// told, or the status and reason of the refusal.
async fn passed(world: &World, hops: u8) -> Result<u8, (u16, Reason)> {
    let request = ConnectRequest {
        hops,
        ..ConnectRequest::new("10.96.0.1:80")
    };
    let asked = world.ask_by("client", &request).await;
    let stream = asked.map_err(|refusal| (refusal.status, refusal.reason()))?;
    world.connects.lock().clear();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    let answer = client.send_request(get("/")).await.unwrap();
    assert_eq!(answer.status(), 200);
    Ok(world.connects.lock().pop().unwrap().hops)
}

/// What is known of whoever connects from 10.0.0.1.
fn at_the_callers_address(account: &str, takes_tunnels: bool) -> MeshUpdate {
    let mut known = workload("shop/client").sa(account).ip("10.0.0.1").hbone().build();
    known.native_tunnel = takes_tunnels;
    MeshUpdate::Workload(Arc::new(known))
}

const TOO_MANY: Result<u8, (u16, Reason)> = Err((400, Reason::LoopDetected));

#[tokio::test(start_paused = true)]
async fn the_third_waypoint_of_a_request_refuses_it() {
    for (who, known) in [
        ("nobody knows the caller", None),
        (
            "the caller is a waypoint",
            Some(at_the_callers_address("client", true)),
        ),
        (
            "the address is that of another's pod",
            Some(at_the_callers_address("other", false)),
        ),
    ] {
        let world = World::web().await;
        world.apply(known.into_iter().collect()).await;
        assert_eq!(passed(&world, 1).await, Ok(2), "{who}");
        assert_eq!(passed(&world, 2).await, TOO_MANY, "{who}");
        assert_eq!(passed(&world, u8::MAX).await, TOO_MANY, "{who}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_cannot_count_waypoints() {
    for hops in [1, 2, u8::MAX] {
        let world = World::web().await;
        world.apply(vec![at_the_callers_address("client", false)]).await;
        assert_eq!(passed(&world, hops).await, Ok(1), "it begins anew");
    }
}
