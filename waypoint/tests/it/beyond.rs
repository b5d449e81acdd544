//! Backends that are not reached at their own address: behind a waypoint of their own, or in another network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix, service, workload};
use tulle_model::waypoint::{SourceIdentity, Waypoint as Told};
use tulle_model::{MeshUpdate, Reason};
use tulle_runtime::tasks;
use tulle_transport::hbone::{ConnectRequest, ConnectResponse, Settings, server};
use tulle_transport::{HboneStream, ReasonHeader};

use crate::world::{World, application, body, echo, get, identity, read_head, settings};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// `shop/web`, whose rules send `/a` to `shop/a` and `/b` to `shop/b`.
async fn world(backends: [MeshUpdate; 2]) -> World {
    let (world, streams) = World::raw(AppProtocol::Http11).await;
    drop(streams);
    let rule = |path: &str, to: &str| {
        let to = format!("shop/{to}.shop.svc.cluster.local");
        let route = http_route(&format!("shop/{path}")).under(WEB).to(&to, 80, 1);
        MeshUpdate::Route(Arc::new(route.on(prefix(&format!("/{path}")))))
    };
    world
        .apply(
            [rule("a", "a"), rule("b", "b")]
                .into_iter()
                .chain(backends)
                .collect(),
        )
        .await;
    world
}

/// The service `shop/<name>` behind the other waypoint.
pub(crate) fn behind(name: &str, vip: &str) -> MeshUpdate {
    service(&format!("shop/{name}"))
        .vip(vip)
        .port(80, 8080)
        .waypoint("shop/way2")
        .into()
}

/// The other waypoint, at 10.0.0.5.
pub(crate) fn way2() -> Vec<MeshUpdate> {
    vec![
        service("shop/way2").vip("10.96.0.5").port(15008, 15008).into(),
        workload("shop/way2-1")
            .sa("way2")
            .ip("10.0.0.5")
            .hbone()
            .serves("shop/way2")
            .into(),
    ]
}

async fn status(world: &World, path: &str) -> u16 {
    let answer = world.http1("client").await.send_request(get(path)).await.unwrap();
    let status = answer.status().as_u16();
    body(answer).await;
    status
}

/// Answers every request on the next stream.
async fn answer_next(streams: &mut UnboundedReceiver<HboneStream>) -> String {
    let mut stream = streams.recv().await.unwrap();
    let head = read_head(&mut stream).await;
    stream.write_all(OK).await.unwrap();
    // It stays open, so that it could be used again.
    drop(tasks::spawn("kept", async move {
        let _ = read_head(&mut stream).await;
    }));
    head
}

#[tokio::test(start_paused = true)]
async fn a_backend_behind_another_waypoint_is_asked_for_there() {
    let world = world([behind("a", "10.96.0.3"), behind("b", "10.96.0.4")]).await;
    // Its endpoints are there, and nobody goes past the waypoint.
    let direct: MeshUpdate = workload("shop/a-1")
        .sa("a")
        .ip("10.0.0.3")
        .hbone()
        .serves("shop/a")
        .into();
    world.apply(vec![direct]).await;
    assert_eq!(status(&world, "/a").await, 503);
    world.apply(way2()).await;
    let mut streams = world.endpoint("10.0.0.5", "way2");
    for (path, asked) in [("/a", "10.96.0.3:80"), ("/b", "10.96.0.4:80")] {
        let (status, head) = tokio::join!(status(&world, path), answer_next(&mut streams));
        assert_eq!(status, 200);
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
        let connect = world.connects.lock().pop().unwrap();
        assert_eq!((&*connect.authority, connect.hops), (asked, 1));
        assert_eq!(connect.original_source, None, "it asks for itself");
    }
}

/// What `shop/client` gets at `/a`, by a stream that has passed so many waypoints.
async fn after(world: &World, hops: u8) -> u16 {
    sent_after(world, hops, get("/a")).await.0
}

/// Status and reason that a request of `shop/client` gets, by a stream that has passed so many waypoints.
pub(crate) async fn sent_after(world: &World, hops: u8, what: Request<Full<Bytes>>) -> (u16, String) {
    let request = ConnectRequest {
        hops,
        ..ConnectRequest::new("10.96.0.1:80")
    };
    let stream = world.ask_by("client", &request).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    let answer = client.send_request(what).await.unwrap();
    let status = answer.status().as_u16();
    let reason = answer.headers().get("x-tulle-reason");
    let reason = reason.map(|reason| reason.to_str().unwrap().to_owned());
    body(answer).await;
    (status, reason.unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_another_waypoint_is_for_requests_that_passed_as_many() {
    let world = world([behind("a", "10.96.0.3"), behind("b", "10.96.0.4")]).await;
    world.apply(way2()).await;
    // Nobody is told for whom: the number alone tells streams apart.
    let mut off = settings();
    off.source_identity = SourceIdentity::Off;
    let told = Told::Settings(Box::new(off));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
    world.serve("10.0.0.5", "way2", application(echo));
    for hops in [0, 0, 1, 0, 1] {
        assert_eq!(after(&world, hops).await, 200);
    }
    let told: Vec<u8> = world.connects.lock().iter().map(|connect| connect.hops).collect();
    assert_eq!(told, [1, 2]);
}

/// Lets the other waypoint refuse whatever it is asked for, and counts how often it was asked.
pub(crate) fn refusing(world: &World, status: u16, reason: Option<Reason>) -> Arc<AtomicU32> {
    let certificate = world.ca.certificate(&identity("way2"));
    let mut sockets = world.pipes.listen("10.0.0.5:15008");
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    drop(tasks::spawn("refusing", async move {
        while let Some(socket) = sockets.recv().await {
            let from = "10.0.0.9:4000".parse().unwrap();
            let mut accepted =
                server::accept_over(socket, from, certificate.server_config(), &Settings::server())
                    .await
                    .unwrap();
            while let Some(incoming) = accepted.connection.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                incoming.reject(status, reason.map(ReasonHeader::new));
            }
        }
    }));
    asked
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_the_next_waypoint_finds_is_told_as_one() {
    for (said, told) in [
        (Some(Reason::LoopDetected), (508, "T0629; loop_detected")),
        (Some(Reason::NotFronted), (503, "T0501; connect_failed")),
        (None, (503, "T0501; connect_failed")),
    ] {
        let world = world([behind("a", "10.96.0.3"), behind("b", "10.96.0.4")]).await;
        world.apply(way2()).await;
        let asked = refusing(&world, 400, said);
        let answer = world.http1("client").await.send_request(get("/a")).await.unwrap();
        let reason = answer.headers()["x-tulle-reason"].to_str().unwrap().to_owned();
        assert_eq!(answer.status(), told.0, "{reason}");
        assert!(reason.starts_with(told.1), "{reason}");
        assert_eq!(asked.load(Ordering::Relaxed), 1, "whoever says 400 says it again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_in_another_network_is_reached_through_its_gateway() {
    let far = service("shop/a")
        .vip("10.96.0.3")
        .port(80, 8080)
        .subject_alt_name(identity("far"));
    let world = world([far.into(), service("shop/b").port(80, 80).into()]).await;
    world
        .apply(vec![
            workload("shop/a-far")
                .sa("far")
                .network("east")
                .network_gateway("10.0.0.6")
                .hbone()
                .serves("shop/a")
                .into(),
        ])
        .await;
    assert_eq!(status(&world, "/a").await, 503, "without its gateway");
    world
        .apply(vec![
            workload("shop/east").sa("east").ip("10.0.0.6").hbone().into(),
        ])
        .await;
    let mut outer = world.endpoint("10.0.0.6", "east");
    let certificate = world.ca.certificate(&identity("far"));
    let answering = async {
        let tunnel = outer.recv().await.unwrap();
        let from = "10.0.0.6:4000".parse().unwrap();
        let mut inner = server::accept_over(tunnel, from, certificate.server_config(), &Settings::server())
            .await
            .unwrap();
        let incoming = inner.connection.accept().await.unwrap();
        let asked: ConnectRequest = incoming.request().unwrap().clone();
        let mut stream = incoming.accept(&ConnectResponse::default()).unwrap();
        let serving = async {
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = serving => {}
            _ = inner.connection.accept() => {}
        }
        asked
    };
    let (status, asked) = tokio::join!(status(&world, "/a"), answering);
    assert_eq!(status, 200);
    assert_eq!(asked.authority, "a.shop.svc.cluster.local:80");
    assert_eq!(asked.original_source, Some(identity("client")));
    let through = world.connects.lock().pop().unwrap();
    assert_eq!(through.authority, "a.shop.svc.cluster.local:80");
    assert_eq!(through.original_source, None, "the gateway is told of nobody");
}
