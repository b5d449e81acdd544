//! Peers that say of themselves what their certificate does not: nothing of it is believed, nothing of it reaches the
//! application.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::proxy_protocol::Header;

use crate::world::{SOON, World, identity};

/// Only this account may call.
const ONLY_TRUSTED: &str = "policies:\n\
    - {name: only-trusted, namespace: shop, scope: Namespace, action: Allow, \
       rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/trusted}]}]]]}\n";

/// A waypoint of another service, and the workload that may call; each at an address of its own.
const OTHERS: &str = "workloads:\n\
    - {uid: way, name: way, namespace: shop, serviceAccount: way, workloadIps: [127.0.0.9]}\n\
    - {uid: trusted, name: trusted, namespace: shop, serviceAccount: trusted, workloadIps: [127.0.0.5]}\n\
    services:\n\
    - {name: other, namespace: shop, hostname: other.mesh, vips: [/10.1.0.9], ports: {80: 80}, \
       waypoint: {destination: /127.0.0.9, hboneMtlsPort: 15008}}\n";

const TRUSTED: &str = "spiffe://cluster.local/ns/shop/sa/trusted";

/// Every way to claim to be the one that may call, or to come from it.
const CLAIMS: [(&str, &str); 10] = [
    (
        "x-forwarded-client-cert",
        "By=spiffe://cluster.local/ns/shop/sa/web;URI=spiffe://cluster.local/ns/shop/sa/trusted",
    ),
    ("forwarded", "for=\"127.0.0.5:4711\";host=web.mesh"),
    ("x-forwarded-for", "127.0.0.5"),
    ("x-forwarded-network", "elsewhere"),
    (
        "baggage",
        "k8s.namespace.name=shop,k8s.deployment.name=trusted,service.name=trusted",
    ),
    ("x-tulle-original-source", TRUSTED),
    ("x-tulle-source", TRUSTED),
    ("x-tulle-identity", TRUSTED),
    ("x-tulle-reason", "T0000; allowed"),
    ("x-envoy-peer-metadata", "trusted"),
];

/// What a CONNECT with these headers is answered with, from an address of loopback, and what came back of `payload`.
async fn ask(
    world: &World,
    who: &Identity,
    from: [u8; 4],
    claims: &[(&str, &str)],
    payload: &[u8],
) -> (u16, Vec<u8>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let socket = socket.connect(world.hbone).await.unwrap();
    let tls = world
        .ca
        .certificate(who)
        .client_config(&[identity("shop", "web")]);
    let stream = tulle_identity::tls::connect(tls, socket).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tasks::spawn("forging-client", async move {
        // It ends with the peer's connection.
        let _ = connection.await;
    });
    let mut request = http::Request::connect(world.echo.to_string());
    for (name, value) in claims {
        request = request.header(*name, *value);
    }
    let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    let response = timeout(SOON, response).await.unwrap().unwrap();
    let status = response.status().as_u16();
    let mut back = Vec::new();
    if status == 200 {
        body.send_data(Bytes::copy_from_slice(payload), true).unwrap();
        let mut answer = response.into_body();
        while let Some(chunk) = timeout(SOON, answer.data()).await.unwrap() {
            back.extend(chunk.unwrap());
        }
    }
    (status, back)
}

#[tokio::test]
async fn f34_no_claim_of_any_peer_stands_in_for_its_certificate() {
    let world = World::start("").await;
    world.apply(OTHERS);
    world.apply(ONLY_TRUSTED);
    let (status, back) = ask(
        &world,
        &identity("shop", "trusted"),
        [127, 0, 0, 5],
        &[],
        b"really",
    )
    .await;
    assert_eq!(
        (status, &back[..]),
        (200, &b"really"[..]),
        "the policy lets it in"
    );
    let mut believed = 0;
    // A peer of the namespace, one of another, a waypoint that is not this workload's, and one at a trusted address.
    for (who, from) in [
        (identity("shop", "reviews"), [127, 0, 0, 7]),
        (identity("bank", "vault"), [127, 0, 0, 8]),
        (identity("shop", "way"), [127, 0, 0, 9]),
        (identity("shop", "reviews"), [127, 0, 0, 5]),
    ] {
        let all = [CLAIMS.as_slice()];
        for claims in CLAIMS.chunks(1).chain(all) {
            let (status, _) = ask(&world, &who, from, claims, b"x").await;
            let spoke_for_others = claims.iter().any(|(name, _)| *name == "x-tulle-original-source");
            let expected = if spoke_for_others { 400 } else { 401 };
            assert_eq!(status, expected, "{who} from {from:?}: {claims:?}");
            believed += usize::from(status == 200);
        }
    }
    assert_eq!(believed, 0);
}

#[tokio::test]
async fn f34_an_application_gets_the_payload_and_no_claim() {
    let world = World::start("").await;
    world.apply(OTHERS);
    let header = Header::new(SocketAddr::from(([127, 0, 0, 5], 1)), world.echo);
    let mut payload = header.identity(&identity("shop", "trusted")).encode();
    payload.extend(b"what follows");
    for claim in CLAIMS
        .iter()
        .filter(|(name, _)| *name != "x-tulle-original-source")
    {
        let (status, back) = ask(
            &world,
            &identity("shop", "reviews"),
            [127, 0, 0, 7],
            &[*claim],
            &payload,
        )
        .await;
        assert_eq!(status, 200, "{claim:?}");
        assert_eq!(
            back, payload,
            "{claim:?}: the stream's bytes, and nothing before them"
        );
    }
    let metrics = world.metrics();
    assert!(
        !metrics.contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/trusted\""),
        "{metrics}"
    );
}
