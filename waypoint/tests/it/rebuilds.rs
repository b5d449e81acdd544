//! What a change builds anew: the fronts it concerns, and no other.

use std::collections::HashMap;
use std::sync::Arc;

use tulle_model::MeshUpdate;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::traffic::CircuitBreaker;
use tulle_model::policy::{Concern, On};
use tulle_model::route::Kind;
use tulle_model::testing::{http_route, service, service_key, workload};
use tulle_model::waypoint::FrontOf;
use tulle_waypoint::snapshot::FrontState;

use super::policies::authz;
use super::world::{World, front, policy_on};

const SERVICES: [&str; 4] = ["shop/a", "shop/b", "shop/c", "shop/d"];

/// Four services behind the waypoint; requests for the first go to the second.
async fn world() -> World {
    let mut updates: Vec<MeshUpdate> = Vec::new();
    for (n, name) in SERVICES.into_iter().enumerate() {
        updates.push(
            service(name)
                .vip(&format!("10.96.0.{}", n + 1))
                .port(80, 8080)
                .into(),
        );
        updates.push(
            workload(&format!("{name}-1"))
                .ip(&format!("10.0.0.{}", n + 1))
                .serves(name)
                .into(),
        );
        updates.push(front(name, |_| {}));
    }
    let (a, b) = ("shop/a.shop.svc.cluster.local", "shop/b.shop.svc.cluster.local");
    let route = http_route("shop/r").under(a).to(b, 80, 1);
    updates.push(MeshUpdate::Route(Arc::new(route)));
    World::start(updates).await
}

fn states(world: &World) -> HashMap<FrontOf, Arc<FrontState>> {
    let snapshot = world.waypoint.view.load();
    snapshot
        .fronts()
        .map(|front| (front.key().clone(), Arc::clone(front)))
        .collect()
}

/// The fronts that a change builds anew, in order.
async fn rebuilt(world: &World, update: MeshUpdate) -> Vec<&'static str> {
    let before = states(world);
    world.apply(vec![update]).await;
    let after = states(world);
    assert_eq!(after.len(), SERVICES.len());
    let anew = |name: &&str| {
        let of = FrontOf::Service(service_key(name));
        !Arc::ptr_eq(&before[&of], &after[&of])
    };
    SERVICES.into_iter().filter(anew).collect()
}

fn told(name: &str, on: On, concern: Concern) -> MeshUpdate {
    MeshUpdate::WaypointPolicy(Arc::new(policy_on(name, on, concern)))
}

#[tokio::test(start_paused = true)]
async fn a_policy_builds_the_fronts_anew_that_it_concerns() {
    let world = world().await;
    let deny = || authz(Action::Deny, vec![Rule::default()]);
    let of_service = told("one", On::Service(service_key("shop/c")), deny());
    assert_eq!(rebuilt(&world, of_service).await, ["shop/c"]);
    let route = On::Route {
        kind: Kind::Http,
        namespace: "shop".into(),
        name: "r".into(),
    };
    let limits = || {
        Concern::Circuit(CircuitBreaker {
            requests: Some(1),
            ..CircuitBreaker::default()
        })
    };
    assert_eq!(rebuilt(&world, told("two", route, limits())).await, ["shop/a"]);
    assert_eq!(rebuilt(&world, told("three", On::Mesh, deny())).await, SERVICES);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_builds_no_front_anew() {
    let world = world().await;
    let more = workload("shop/d-2").ip("10.0.0.9").serves("shop/d").into();
    assert_eq!(
        rebuilt(&world, more).await,
        Vec::<&str>::new(),
        "its backend alone learns of it"
    );
}
