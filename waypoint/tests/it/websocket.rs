//! Requests that become streams of bytes: WebSockets over HTTP/1.1 and HTTP/2, in every pairing of client and endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::MeshUpdate;
use tulle_model::policy::Concern;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::traffic::CircuitBreaker;
use tulle_model::route::Timeouts;
use tulle_model::service::AppProtocol;
use tulle_model::testing::http_route;
use tulle_runtime::drain::DrainMode;
use tulle_runtime::tasks;
use tulle_transport::HboneStream;

use crate::held::assert_soon_after;
use crate::policies::authz;
use crate::world::{Application, World, application, body, echo, get, read_head, read_text, told_policy};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const ASK: &str = "GET /chat?a=b HTTP/1.1\r\nHost: web.shop\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A WebSocket that both sides have agreed on: the client's end and the application's.
async fn agreed(world: &World, streams: &mut UnboundedReceiver<HboneStream>) -> (HboneStream, HboneStream) {
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    server.write_all(AGREE.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    (client, server)
}

fn denying(name: &str) -> MeshUpdate {
    told_policy(name, authz(Action::Deny, vec![Rule::default()]))
}

async fn gone(stream: &mut HboneStream) {
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is still open");
}

#[tokio::test(start_paused = true)]
async fn bytes_flow_both_ways_once_both_sides_have_agreed() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    let asked = read_head(&mut server).await.to_ascii_lowercase();
    for part in [
        "get /chat?a=b http/1.1\r\n",
        "\r\nconnection: upgrade\r\n",
        "\r\nupgrade: websocket\r\n",
        "\r\nsec-websocket-version: 13\r\n",
        "\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n",
        "\r\nx-envoy-attempt-count: 1\r\n",
    ] {
        assert!(asked.contains(part), "{part:?} in {asked}");
    }
    // What the server says at once belongs to the stream.
    server
        .write_all(format!("{AGREE}first").as_bytes())
        .await
        .unwrap();
    let head = read_head(&mut client).await.to_ascii_lowercase();
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(
        head.contains(&format!(
            "\r\nsec-websocket-accept: {}\r\n",
            ACCEPT.to_ascii_lowercase()
        )),
        "{head}"
    );
    assert_eq!(read_text(&mut client, 5).await, "first");
    for round in 0..3 {
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read_text(&mut server, 4).await, "ping", "{round}");
        server.write_all(b"pong").await.unwrap();
        assert_eq!(read_text(&mut client, 4).await, "pong", "{round}");
    }
    // Each side finishes on its own.
    client.shutdown().await.unwrap();
    gone(&mut server).await;
    server.write_all(b"bye").await.unwrap();
    server.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
}

#[tokio::test(start_paused = true)]
async fn r201_nothing_goes_up_before_the_endpoint_agreed() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client
        .write_all(format!("{ASK}GET /admin HTTP/1.1\r\nHost: web.shop\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    let early = timeout(Duration::from_secs(5), server.read_u8()).await;
    assert!(early.is_err(), "bytes went up that nobody had agreed to");
    assert!(streams.try_recv().is_err());
    server.write_all(AGREE.as_bytes()).await.unwrap();
    assert_eq!(read_text(&mut server, 10).await, "GET /admin");
}

#[tokio::test(start_paused = true)]
async fn r202_a_refused_upgrade_keeps_the_framing_of_http() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let second = "GET /b HTTP/1.1\r\nHost: web.shop\r\n\r\n";
    client
        .write_all(format!("{ASK}{second}").as_bytes())
        .await
        .unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
        .await
        .unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("upgrade"), "{head}");
    assert_eq!(read_text(&mut client, 2).await, "no");
    // What followed is a request like any other: rules and policies saw it.
    let asked = read_head(&mut server).await;
    assert!(asked.starts_with("GET /b HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("x-request-id"), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_with_a_body_is_refused() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let ask = ASK.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
    client.write_all(ask.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(streams.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_agree_to_a_websocket_only() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    server
        .write_all(AGREE.replace("websocket", "h2c").as_bytes())
        .await
        .unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_ends_within_a_second_of_a_policy_that_denies_it() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let (mut client, mut server) = agreed(&world, &mut streams).await;
    let begun = Instant::now();
    world.apply(vec![denying("nobody")]).await;
    let mut byte = [0];
    assert!(matches!(client.read(&mut byte).await, Err(_) | Ok(0)));
    assert_soon_after(begun);
    gone(&mut server).await;
    assert_eq!(
        world.metric("tulle_waypoint_local_replies_total{reason=\"policy_changed\"}"),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_websocket_on_which_nothing_moves_ends_after_an_hour() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let (mut client, mut server) = agreed(&world, &mut streams).await;
    sleep(Duration::from_secs(50 * 60)).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(read_text(&mut server, 1).await, "x");
    let begun = Instant::now();
    assert!(client.read_u8().await.is_err());
    let waited = begun.elapsed().as_secs();
    assert!((3_599..=3_602).contains(&waited), "{waited}");
    assert_eq!(
        world.metric("tulle_waypoint_local_replies_total{reason=\"stream_idle\"}"),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_request_ends_when_it_becomes_a_websocket() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut route = http_route("shop/web").under(WEB).to(WEB, 80, 1);
    route.timeouts = Timeouts {
        request: Some(Duration::from_secs(2)),
        backend_request: Some(Duration::from_secs(1)),
    };
    world.apply(vec![MeshUpdate::Route(Arc::new(route))]).await;
    let (mut client, mut server) = agreed(&world, &mut streams).await;
    sleep(Duration::from_secs(30)).await;
    server.write_all(b"late").await.unwrap();
    assert_eq!(read_text(&mut client, 4).await, "late");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_counts_as_one_request_and_as_an_open_stream_until_it_ends() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let (mut client, mut server) = agreed(&world, &mut streams).await;
    client.write_all(b"four").await.unwrap();
    read_text(&mut server, 4).await;
    server.write_all(b"fifteen").await.unwrap();
    read_text(&mut client, 7).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 1.0);
    assert_eq!(world.metric("istio_requests_total{"), 0.0);
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    gone(&mut client).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 0.0);
    assert_eq!(world.metric("istio_requests_total{"), 1.0);
    let text = world.registry.encode();
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_requests_total{"))
        .unwrap();
    assert!(line.contains("response_code=\"101\""), "{line}");
    assert!(line.contains("response_flags=\"-\""), "{line}");
    assert_eq!(world.metric("istio_request_bytes_sum{"), 4.0);
    assert_eq!(world.metric("istio_response_bytes_sum{"), 7.0);
}

#[tokio::test(start_paused = true)]
async fn a_waypoint_that_ends_waits_for_websockets_and_then_resets_them() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let (mut client, mut server) = agreed(&world, &mut streams).await;
    world.drain.start(DrainMode::Graceful);
    sleep(Duration::from_secs(5)).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(read_text(&mut server, 1).await, "x");
    world.drain.start(DrainMode::Immediate);
    gone(&mut server).await;
}

/// An application that echoes WebSockets, however they are asked for, and other requests as [`echo`] does.
fn chat() -> Application {
    application(|mut request: Request<Incoming>| async move {
        let (connect, asked) = (
            request.method() == Method::CONNECT,
            request.headers().contains_key("upgrade"),
        );
        if !connect && !asked {
            return echo(request).await;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        drop(tasks::spawn("chat", async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }));
        let answer = Response::builder().header("x-path", request.uri().path());
        let answer = if connect {
            answer.status(200)
        } else {
            let key = request.headers()["sec-websocket-key"].as_bytes();
            let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
            let accept = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash);
            answer
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", accept)
        };
        answer.body(Empty::new().boxed()).unwrap()
    })
}

/// A request of extended CONNECT, sent by a client of HTTP/2.
async fn connect(world: &World) -> Response<Incoming> {
    let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (mut sender, mut connection) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
        tulle_waypoint::upstream::pool::Tasks,
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    // Its settings say that it takes such requests.
    while !connection.is_extended_connect_protocol_enabled() {
        let moving = timeout(Duration::from_millis(1), &mut connection).await;
        assert!(moving.is_err(), "the connection has ended");
    }
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    let request = Request::connect("http://web.shop/chat")
        .header("sec-websocket-version", "13")
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .body(Empty::new())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    // The connection lives as long as somebody may send on it.
    drop(tasks::spawn("client-sender", async move {
        sleep(Duration::from_secs(600)).await;
        drop(sender);
    }));
    answer
}

async fn echoes(answer: &mut Response<Incoming>) {
    let stream = hyper::upgrade::on(answer).await.unwrap();
    let mut stream = TokioIo::new(stream);
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(read_text(&mut stream, 5).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn extended_connect_becomes_an_upgrade_towards_http1() {
    for protocol in [AppProtocol::Http11, AppProtocol::Unknown] {
        let world = World::web_with(protocol, chat()).await;
        let mut answer = connect(&world).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-path"], "/chat");
        assert!(!answer.headers().contains_key("sec-websocket-accept"));
        echoes(&mut answer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn extended_connect_stays_what_it_is_towards_http2() {
    let world = World::web_with(AppProtocol::Http2, chat()).await;
    let mut answer = connect(&world).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-path"], "/chat");
    echoes(&mut answer).await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_becomes_extended_connect_towards_http2() {
    let world = World::web_with(AppProtocol::Http2, chat()).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains(ACCEPT), "{head}");
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_text(&mut client, 5).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_agreement_is_not_taken_for_one_over_http2() {
    // The endpoint does not know what it was asked for, and answers as if it had been any request.
    let world = World::web_with(AppProtocol::Http11, application(echo)).await;
    let answer = connect(&world).await;
    assert_eq!(answer.status(), 502);
    // A refusal is passed on as it is.
    let refusing = application(|_| async {
        let mut answer = crate::world::text("not here");
        *answer.status_mut() = http::StatusCode::FORBIDDEN;
        answer
    });
    let world = World::web_with(AppProtocol::Http11, refusing).await;
    let answer = connect(&world).await;
    assert_eq!(answer.status(), 403);
    assert_eq!(body(answer).await, "not here");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_denies_a_websocket_refuses_it() {
    let world = World::web_with(AppProtocol::Http11, chat()).await;
    world.apply(vec![denying("nobody")]).await;
    assert_eq!(connect(&world).await.status(), 403);
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(world.connects.lock().is_empty(), "nothing went up");
}

#[tokio::test(start_paused = true)]
async fn other_requests_follow_a_websocket_on_the_same_pool() {
    let world = World::web_with(AppProtocol::Http11, chat()).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    read_head(&mut client).await;
    let answer = world.http1("client").await.send_request(get("/a")).await.unwrap();
    assert!(body(answer).await.starts_with("GET /a "));
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_text(&mut client, 5).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_is_a_connection_and_a_request_of_its_backend() {
    for limits in [
        CircuitBreaker {
            connections: Some(1),
            pending: Some(0),
            ..CircuitBreaker::default()
        },
        CircuitBreaker {
            requests: Some(1),
            ..CircuitBreaker::default()
        },
    ] {
        let (world, mut streams) = World::raw(AppProtocol::Http11).await;
        let limited = told_policy("limits", Concern::Circuit(limits.clone()));
        world.apply(vec![limited]).await;
        let (client, mut server) = agreed(&world, &mut streams).await;
        let answer = world.http1("client").await.send_request(get("/")).await.unwrap();
        assert_eq!(answer.status(), 503, "{limits:?}");
        assert!(answer.headers().contains_key("x-envoy-overloaded"), "{limits:?}");
        drop(client);
        gone(&mut server).await;
        drop(server);
        sleep(Duration::from_secs(1)).await;
        let asking = tasks::spawn("client", {
            let mut client = world.http1("client").await;
            async move { client.send_request(get("/")).await.unwrap().status() }
        });
        let mut server = streams.recv().await.unwrap();
        read_head(&mut server).await;
        server
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(asking.await.unwrap(), 200, "{limits:?}");
    }
}
