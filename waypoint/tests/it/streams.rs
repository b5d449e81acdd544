//! Streams that are not read: how they are told from requests, and what policies say of them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tulle_model::MeshUpdate;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::service::AppProtocol;
use tulle_model::testing::service;
use tulle_transport::hbone::{ConnectRequest, OpenError};

use crate::held::assert_soon_after;
use crate::policies::{authz, from_namespace, to};
use crate::world::{World, application, echo, front, identity, told_policy};

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let begun = Instant::now();
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    server.write_all(b"220 ready\r\n").await.unwrap();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    assert!(begun.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn silence_on_an_undeclared_port_is_taken_for_bytes() {
    let (world, mut streams) = World::raw(AppProtocol::Unknown).await;
    let begun = Instant::now();
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_millis(100),
        "not before it was waited for"
    );
    server.write_all(b"hello").await.unwrap();
    server.shutdown().await.unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
}

#[tokio::test(start_paused = true)]
async fn bytes_that_were_looked_at_are_not_lost() {
    let (world, mut streams) = World::raw(AppProtocol::Unknown).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut server = streams.recv().await.unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "*1\r\n$4\r\nPING\r\n");
}

#[tokio::test(start_paused = true)]
async fn requests_on_an_undeclared_port_are_read() {
    let world = World::web_with(AppProtocol::Unknown, application(echo)).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("x-envoy-attempt-count: 1"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_takes_the_stream_to_the_endpoint_along() {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    drop(client);
    assert!(server.read_u8().await.is_err());
}

/// Whether a stream is reset before anything comes back; the reset may overtake the answer to its CONNECT.
async fn is_reset(world: &World, who: &str) -> bool {
    let tunnel = world.tunnel(&identity(who)).await.unwrap();
    match tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await {
        Ok((mut stream, _)) => stream.read_u8().await.is_err(),
        Err(error) => matches!(error, OpenError::Reset(_)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_judged_by_what_is_known_of_it() {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    world
        .apply(vec![told_policy(
            "allow",
            authz(Action::Allow, vec![from_namespace("shop")]),
        )])
        .await;
    assert!(is_reset(&world, "dev/client").await);
    let mut client = world.ask("shop/client", "10.96.0.1:80").await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(streams.recv().await.unwrap().read_u8().await.unwrap(), b'x');
    assert!(streams.try_recv().is_err(), "the other one never got there");
}

#[tokio::test(start_paused = true)]
async fn r312_what_can_only_be_told_of_a_request_refuses_a_stream() {
    let (world, _streams) = World::raw(AppProtocol::Tcp).await;
    world
        .apply(vec![told_policy(
            "deny",
            authz(Action::Deny, vec![to("GET", "/admin")]),
        )])
        .await;
    assert!(is_reset(&world, "client").await);
}

/// Brings a policy to a stream that has carried something, and sees it end.
async fn assert_ends_by(action: Action, rule: Rule) {
    assert_ends(told_policy("new", authz(action, vec![rule]))).await;
}

async fn assert_ends(update: MeshUpdate) {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    server.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    let before = Instant::now();
    world.apply(vec![update]).await;
    assert!(client.read_u8().await.is_err());
    assert_soon_after(before);
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_ends_when_a_policy_denies_it() {
    assert_ends_by(Action::Deny, from_namespace("shop")).await;
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_ends_when_its_caller_may_not_see_the_service_any_more() {
    let to_others = vec!["dev".into()];
    assert_ends(front("shop/web", |front| front.client_namespaces = to_others)).await;
    let service = service("shop/web").vip("10.96.0.1").port(80, 8080);
    assert_ends(service.exported_to(&["dev"]).into()).await;
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_ends_when_somebody_would_have_to_be_asked_about_it() {
    assert_ends_by(Action::Custom, Rule::default()).await;
}
