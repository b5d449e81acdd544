//! Tunnels of peers to a local workload.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tulle_identity::testing::TestCa;
use tulle_identity::{KeyExchange, WorkloadCertificate};
use tulle_model::{Identity, Reason};
use tulle_transport::hbone::{OpenError, Settings, client};
use tulle_ztunnel::shed::{Pressure, Pressures, Resource};

use crate::world::{SOON, World, assert_echoes, code, identity};

pub(crate) const DENY_REVIEWS: &str = "policies:\n\
    - {name: deny-reviews, namespace: shop, scope: Namespace, action: Deny, \
       rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/reviews}]}]]]}\n";

const ALLOW_REVIEWS: &str = "policies:\n\
    - {name: allow-reviews, namespace: shop, scope: WorkloadSelector, action: Allow, \
       rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/reviews}]}]]]}\n";

#[tokio::test]
async fn a_tunnel_reaches_the_application_and_is_answered_with_baggage() {
    let world = World::start("").await;
    let (mut stream, response) = world.ask_echo().await.unwrap();
    assert_echoes(&mut stream, b"through the tunnel").await;
    assert_eq!(response.baggage.namespace.as_deref(), Some("shop"));
    assert_eq!(response.baggage.service_name.as_deref(), Some("web"));
}

#[tokio::test]
async fn half_close_is_carried_both_ways() {
    let world = World::start("").await;
    let (mut stream, _) = world.ask_echo().await.unwrap();
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(SOON, stream.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(back, b"last words");
}

#[tokio::test]
async fn what_is_not_for_this_workload_is_400() {
    let world = World::start("").await;
    let refusal = world.ask("10.9.9.9:80").await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (400, "T0418"));
    let refusal = world.ask("no_host_at_all!:80").await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (400, "T0420"));
}

#[tokio::test]
async fn an_original_source_is_believed_from_a_waypoint_only() {
    let world = World::start("").await;
    let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
    let mut request = tulle_transport::hbone::ConnectRequest::new(world.echo.to_string());
    request.original_source = Some(identity("bank", "vault"));
    let Err(OpenError::Refused(refusal)) = connection.open(&request).await else {
        panic!("refused")
    };
    assert_eq!((refusal.status, code(&refusal)), (400, "T0422"));
}

#[tokio::test]
async fn what_cannot_be_reached_is_503() {
    let world = World::start("").await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let refusal = world.ask(&closed.to_string()).await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (503, "T0501"));
    let refusal = world.ask("unknown.example.com:80").await.unwrap_err();
    assert_eq!(refusal.status, 503);
}

#[tokio::test]
async fn a_denied_peer_gets_401_and_learns_the_policy() {
    let world = World::start("").await;
    world.apply(DENY_REVIEWS);
    let refusal = world.ask_echo().await.unwrap_err();
    let header = refusal.header.clone().unwrap();
    assert_eq!(
        (refusal.status, header.reason()),
        (401, Some(Reason::PolicyDenied))
    );
    assert_eq!(header.policy.as_deref(), Some("shop/deny-reviews"));
    assert!(header.id.is_some());
    let metrics = world.metrics();
    let counted = "tulle_denied_total{code=\"T0412\",reason=\"policy_denied\",direction=\"inbound\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_denied_peer_learns_no_more_than_it_may() {
    for (detail, code) in [("code", Some("T0412")), ("none", None)] {
        let world = World::start_with("", &[("TULLE_REASON_DETAIL", detail)]).await;
        world.apply(DENY_REVIEWS);
        let refusal = world.ask_echo().await.unwrap_err();
        assert_eq!(refusal.status, 401);
        let header = refusal.header.as_ref();
        assert_eq!(header.map(tulle_transport::ReasonHeader::code), code, "{detail}");
        assert!(header.is_none_or(|header| header.policy.is_none() && header.id.is_none()));
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let world = World::start("").await;
    let socket = tokio::net::TcpStream::connect(world.hbone).await.unwrap();
    let stranger = TestCa::new().certificate(&identity("shop", "reviews"));
    let connected = client::connect(
        socket,
        stranger.client_config(&[identity("shop", "web")]),
        &Settings::client(),
    )
    .await;
    assert!(connected.is_err(), "neither side trusts the other");
}

#[tokio::test]
async fn a_peer_of_another_trust_domain_is_refused() {
    let world = World::start("").await;
    let foreign = Identity::new("elsewhere.example", "shop", "reviews");
    // TLS 1.3 lets a client believe in success until it reads: the refusal may come with the first stream.
    let refused = match world.connect_as(&foreign).await {
        Err(_) => true,
        Ok(connection) => {
            let request = tulle_transport::hbone::ConnectRequest::new(world.echo.to_string());
            connection.open(&request).await.is_err()
        }
    };
    assert!(refused);
}

#[tokio::test]
async fn a_tunnel_takes_no_stream_after_its_client_s_certificate_has_expired() {
    let world = World::start("").await;
    let reviews = identity("shop", "reviews");
    // Long enough for a handshake on a busy machine, and the shortest that ends in whole seconds.
    let (now, lifetime) = (SystemTime::now(), Duration::from_secs(4));
    let issued = world.ca.issue(&reviews, now, lifetime);
    let certificate = WorkloadCertificate::new(&reviews, &issued, KeyExchange::Standard, now).unwrap();
    let socket = tokio::net::TcpStream::connect(world.hbone).await.unwrap();
    let tls = certificate.client_config(&[identity("shop", "web")]);
    let connection = client::connect(socket, tls, &Settings::client()).await.unwrap();
    let request = tulle_transport::hbone::ConnectRequest::new(world.echo.to_string());
    let (mut stream, _) = connection.open(&request).await.unwrap();
    assert_echoes(&mut stream, b"while it is valid").await;
    // Nothing here retires the connection but the server's goodbye.
    timeout(SOON, connection.retired())
        .await
        .expect("the server says goodbye");
    assert!(SystemTime::now() >= certificate.not_after());
    assert!(matches!(
        connection.open(&request).await,
        Err(OpenError::GoingAway)
    ));
    assert_echoes(&mut stream, b"what is open goes on").await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_talked_to() {
    let world = World::start("").await;
    let socket = tokio::net::TcpStream::connect(world.hbone).await.unwrap();
    let certificate = world.ca.certificate(&identity("shop", "reviews"));
    let tls = certificate.client_config(&[identity("shop", "ratings")]);
    let error = client::connect(socket, tls, &Settings::client())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::PeerIdentityMismatch);
}

#[tokio::test]
async fn f24_a_changed_policy_ends_an_open_connection() {
    let world = World::start("").await;
    let (mut stream, _) = world.ask_echo().await.unwrap();
    assert_echoes(&mut stream, b"allowed").await;
    world.apply(DENY_REVIEWS);
    let mut buffer = [0; 16];
    let ended = timeout(Duration::from_secs(1), stream.read(&mut buffer)).await;
    assert!(
        ended.expect("within a second").is_err(),
        "a reset, not an orderly end"
    );
    world.until_counted("tulle_denied_total{code=\"T0417\"").await;
}

#[tokio::test]
async fn a_policy_for_others_leaves_an_open_connection_alone() {
    let world = World::start("").await;
    let (mut stream, _) = world.ask_echo().await.unwrap();
    world.apply(&DENY_REVIEWS.replace("sa/reviews", "sa/ratings"));
    world.apply(&DENY_REVIEWS.replace("namespace: shop", "namespace: bank"));
    assert_echoes(&mut stream, b"still allowed").await;
}

#[tokio::test]
async fn f23_a_connection_waits_for_a_policy_that_is_named_but_missing() {
    let world = World::start("authorizationPolicies: [shop/allow-reviews]").await;
    let asking = world.ask_echo();
    let arriving = async {
        tokio::task::yield_now().await;
        world.apply(ALLOW_REVIEWS);
    };
    let (asked, ()) = tokio::join!(asking, arriving);
    assert_echoes(&mut asked.unwrap().0, b"after the barrier").await;
}

#[tokio::test]
async fn f23_a_policy_that_stays_missing_refuses() {
    let world = World::start("authorizationPolicies: [shop/allow-reviews]").await;
    let refusal = world.ask_echo().await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (401, "T0414"));
}

#[tokio::test]
async fn traffic_is_counted_with_both_identities() {
    let world = World::start("").await;
    let (mut stream, _) = world.ask_echo().await.unwrap();
    assert_echoes(&mut stream, b"12345").await;
    let metrics = world.metrics();
    let received = metrics
        .lines()
        .find(|line| line.starts_with("istio_tcp_received_bytes_total{"))
        .expect("a series for received bytes");
    for label in [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/reviews\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "destination_workload=\"web\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(received.contains(label), "{label} is missing in {received}");
    }
    assert!(received.ends_with("} 5"), "{received}");
}

#[tokio::test]
async fn f17_while_descriptors_are_scarce_the_heaviest_is_refused_and_what_is_open_lives() {
    let scarce = Pressures {
        descriptors: Pressure {
            of: Resource::Descriptors,
            used: 95,
            limit: 100,
        },
        memory: None,
    };
    let world = World::start("").await;
    let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
    let request = tulle_transport::hbone::ConnectRequest::new(world.echo.to_string());
    let (mut open, _) = connection.open(&request).await.unwrap();
    world.until_counted("tulle_tunnels 1").await;
    // The process itself finds its descriptors plenty, a quarter of a second later at the latest.
    let refusal = async {
        loop {
            world.app.node().shedder.judge(scarce);
            if let Err(OpenError::Refused(refusal)) = connection.open(&request).await {
                return refusal;
            }
        }
    };
    let refusal = timeout(SOON, refusal).await.unwrap();
    assert_eq!((refusal.status, code(&refusal)), (503, "T0515"));
    assert_echoes(&mut open, b"still open").await;
    let resumed = async { while connection.open(&request).await.is_err() {} };
    timeout(SOON, resumed).await.expect("it is served again");
    assert!(world.metrics().contains("tulle_denied_total{code=\"T0515\""));
    drop((open, connection));
    world.until_counted("tulle_tunnels 0").await;
}

#[tokio::test]
async fn a_port_of_the_proxy_itself_is_no_target() {
    let world = World::start("").await;
    let refusal = world.ask(&world.hbone.to_string()).await.unwrap_err();
    assert_eq!((refusal.status, code(&refusal)), (503, "T0421"));
}

#[tokio::test]
async fn draining_says_goodbye_and_resets_what_is_left_at_the_deadline() {
    let world = World::start("").await;
    let connection = world.connect_as(&identity("shop", "reviews")).await.unwrap();
    let request = tulle_transport::hbone::ConnectRequest::new(world.echo.to_string());
    let (mut stream, _) = connection.open(&request).await.unwrap();
    assert_echoes(&mut stream, b"open").await;
    let World { app, .. } = world;
    let (stopped, ()) = tokio::join!(app.stop(), async {
        assert_echoes(&mut stream, b"while draining").await;
        // GOAWAY travels; until it is there, another stream may still be taken.
        let refused = async { while connection.open(&request).await.is_ok() {} };
        timeout(SOON, refused)
            .await
            .expect("no stream is taken while draining");
    });
    stopped.unwrap();
    let mut buffer = [0; 16];
    let ended = timeout(SOON, stream.read(&mut buffer)).await.unwrap();
    assert!(ended.is_err(), "a reset, not an orderly end");
}
