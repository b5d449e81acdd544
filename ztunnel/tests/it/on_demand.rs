//! Where addresses are asked for one by one, and what a connection needs is not known when it comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tulle_identity::testing::TestCa;
use tulle_model::Identity;
use tulle_transport::hbone::{ConnectRequest, HboneStream, OpenError};
use tulle_ztunnel::outbound::CONNECT_BUDGET;

use crate::outbound::{assert_reset, call};
use crate::world::{SOON, World, assert_echoes, code, identity};

const SERVES_CART: &str = "services: {shop/cart.shop.svc.cluster.local: {}}";

const DENY_VAULT: &str = "policies:\n\
    - {name: deny-vault, namespace: shop, scope: Namespace, action: Deny, \
       rules: [[[{principals: [{Exact: cluster.local/ns/bank/sa/vault}]}]]]}\n";

/// Waits until the proxy has asked for a key.
async fn asked(world: &World, key: &str) {
    let mesh = &world.app.node().mesh;
    let asking = async {
        while !mesh.asked_for().iter().any(|asked| &**asked == key) {
            tokio::task::yield_now().await;
        }
    };
    let asked = timeout(SOON, asking).await;
    assert!(asked.is_ok(), "{key} is not among {:?}", mesh.asked_for());
}

/// The service of the local workload, and whatever else is said of it.
fn cart(world: &World, more: &str) -> String {
    let port = world.echo.port();
    format!(
        "services:\n- {{name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.1.0.1], \
         ports: {{80: {port}}}, {more}}}\n"
    )
}

/// Tells of the waypoint in front of the local workload's service, one thing at a time, each when it is asked for.
async fn tell_of_waypoint(world: &World) {
    asked(world, "shop/cart.shop.svc.cluster.local").await;
    world.apply(&cart(
        world,
        "waypoint: {destination: shop/way.shop.svc.cluster.local}",
    ));
    asked(world, "shop/way.shop.svc.cluster.local").await;
    world.apply("services:\n- {name: way, namespace: shop, hostname: way.shop.svc.cluster.local, ports: {15008: 15008}}\n");
    tokio::task::yield_now().await;
    world.apply(
        "workloads:\n- {uid: way, name: way-1, namespace: shop, serviceAccount: way, workloadIps: [127.0.0.1], \
         protocol: HBONE, services: {shop/way.shop.svc.cluster.local: {}}}\n",
    );
}

/// A stream of a peer that speaks for somebody else.
async fn speak_for_vault(world: &World, peer: &Identity) -> Result<HboneStream, OpenError> {
    let connection = world.connect_as(peer).await.unwrap();
    let request = ConnectRequest {
        original_source: Some(identity("bank", "vault")),
        ..ConnectRequest::new(world.echo.to_string())
    };
    connection.open(&request).await.map(|(stream, _)| stream)
}

fn refused(error: OpenError) -> (u16, String) {
    match error {
        OpenError::Refused(refusal) => (refusal.status, code(&refusal).to_owned()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_waypoint_is_asked_for_and_then_believed_and_nobody_else_is() {
    let world = World::start(SERVES_CART).await;
    world.app.node().mesh.ask_nobody();
    let way = identity("shop", "way");
    let (opened, ()) = tokio::join!(speak_for_vault(&world, &way), tell_of_waypoint(&world));
    assert_echoes(&mut opened.unwrap(), b"through the waypoint").await;

    let impostor = speak_for_vault(&world, &identity("shop", "reviews")).await;
    assert_eq!(refused(impostor.unwrap_err()), (400, "T0422".to_owned()));

    world.apply(DENY_VAULT);
    let denied = speak_for_vault(&world, &way).await;
    assert_eq!(refused(denied.unwrap_err()), (401, "T0412".to_owned()));
}

#[tokio::test]
async fn a_host_name_leads_to_a_service_that_is_asked_for() {
    let world = World::start(SERVES_CART).await;
    world.app.node().mesh.ask_nobody();
    let telling = async {
        asked(&world, "shop/cart.shop.svc.cluster.local").await;
        world.apply(&cart(&world, ""));
    };
    let (opened, ()) = tokio::join!(world.ask("cart.shop.svc.cluster.local:80"), telling);
    assert_echoes(&mut opened.unwrap().0, b"by its name").await;
}

const SERVES_WAY: &str = "services: {shop/way.shop.svc.cluster.local: {}}";

/// A service that the local workload is no endpoint of.
fn shelf(world: &World, waypoint: &str) -> String {
    let port = world.echo.port();
    format!(
        "services:\n- {{name: shelf, namespace: store, hostname: shelf.store.svc.cluster.local, vips: [/10.1.0.9], \
         ports: {{80: {port}}}, {waypoint}}}\n"
    )
}

#[tokio::test]
async fn the_owner_of_an_authority_is_asked_for_before_its_waypoint_refuses_it() {
    for (waypoint, takes_it) in [
        ("waypoint: {destination: shop/way.shop.svc.cluster.local}", true),
        (
            "waypoint: {destination: shop/other.shop.svc.cluster.local}",
            false,
        ),
    ] {
        let world = World::start(SERVES_WAY).await;
        world.app.node().mesh.ask_nobody();
        let telling = async {
            for (key, told) in [
                (
                    "shop/way.shop.svc.cluster.local",
                    "services:\n- {name: way, namespace: shop, hostname: way.shop.svc.cluster.local, ports: {15008: 15008}}\n",
                ),
                ("/10.1.0.9", &shelf(&world, waypoint)),
            ] {
                asked(&world, key).await;
                world.apply(told);
            }
            if !takes_it {
                asked(&world, "shop/other.shop.svc.cluster.local").await;
                world.apply(
                    "services:\n- {name: other, namespace: shop, hostname: other.shop.svc.cluster.local}\n",
                );
            }
        };
        let authority = format!("10.1.0.9:{}", world.echo.port());
        let (opened, ()) = tokio::join!(world.ask(&authority), telling);
        match opened {
            Ok((mut stream, _)) if takes_it => assert_echoes(&mut stream, b"in front of it").await,
            Err(refusal) if !takes_it => assert_eq!((refusal.status, code(&refusal)), (400, "T0418")),
            other => panic!("{waypoint}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_host_name_of_a_service_of_others_is_asked_for_where_its_name_says() {
    let world = World::start("").await;
    world.app.node().mesh.ask_nobody();
    let telling = async {
        asked(&world, "store/shelf.store.svc.cluster.local").await;
        world.apply(&shelf(&world, "canonical: true"));
    };
    let (opened, ()) = tokio::join!(world.ask("shelf.store.svc.cluster.local:80"), telling);
    assert_echoes(&mut opened.unwrap().0, b"by its name").await;
}

#[tokio::test(start_paused = true)]
async fn what_has_to_be_learned_first_counts_towards_the_connect_budget() {
    let world = World::serve("shop/web-1/web", "workloads: []\n", Arc::new(TestCa::new())).await;
    world.app.node().mesh.ask_nobody();
    let began = Instant::now();
    let mut application = call(&world, "10.1.0.1:80".parse().unwrap()).await;
    let slowly = async {
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        world.apply(
            "workloads: [{uid: web, name: web-1, namespace: shop, serviceAccount: web, protocol: HBONE}]",
        );
        tokio::time::sleep(Duration::from_millis(4_500)).await;
        // Nobody tells of this one; to wait for it alone takes half of the budget.
        world.apply(&cart(
            &world,
            "waypoint: {destination: shop/way.shop.svc.cluster.local}",
        ));
    };
    tokio::join!(slowly, assert_reset(&mut application));
    let over = began.elapsed().checked_sub(CONNECT_BUDGET);
    assert!(
        over.is_some_and(|over| over < Duration::from_secs(1)),
        "{:?}",
        began.elapsed()
    );
    world.until_counted("tulle_denied_total{code=\"T0504\"").await;
}
