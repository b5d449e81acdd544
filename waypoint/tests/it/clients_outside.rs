//! Clients outside of the mesh, for whom a gateway speaks: how they are judged, and what the gateway is told.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use tulle_model::policy::authz::{Action, From, Rule, Values};
use tulle_model::policy::{Concern, On};
use tulle_model::route::{Session, SessionBy};
use tulle_model::testing::service_key;
use tulle_model::waypoint::Waypoint as Told;
use tulle_model::{MeshUpdate, Reason};

use crate::policies::{authz, routed, status};
use crate::world::{World, front, get, policy_on, settings, told_policy};

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

/// The cookie of a session that an answer to this caller sets.
async fn cookie(world: &World, who: &str, proto: Option<&'static str>) -> String {
    let mut request = get("/");
    if let Some(proto) = proto {
        let proto = HeaderValue::from_static(proto);
        request.headers_mut().insert("x-forwarded-proto", proto);
    }
    let answer = world.http1(who).await.send_request(request).await.unwrap();
    answer.headers()["set-cookie"].to_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_cookie_is_secure_where_a_gateway_says_that_its_client_speaks_tls() {
    let world = World::web().await;
    believe(&world, "cluster.local/ns/edge/sa/gw").await;
    let by = SessionBy::Cookie {
        name: "".into(),
        path: "".into(),
    };
    let session = Session {
        by,
        absolute: None,
        idle: None,
        permanent: false,
    };
    world
        .apply(vec![told_policy("session", Concern::Session(session))])
        .await;
    for (who, proto, expect) in [
        ("edge/gw", Some("https"), true),
        ("edge/gw", Some("HTTPS"), true),
        ("edge/gw", Some("http"), false),
        ("edge/gw", None, false),
        // Nobody else is believed, and nobody else of the mesh has clients that speak TLS here.
        ("edge/other", Some("https"), false),
        ("client", None, false),
    ] {
        let cookie = cookie(&world, who, proto).await;
        let secure = cookie.split("; ").any(|part| part == "Secure");
        assert_eq!(secure, expect, "{who} {proto:?}: {cookie}");
    }
}
