//! Streams that are not read, and how they are told from requests.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tulle_model::service::AppProtocol;

use crate::world::{World, application, echo};

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
