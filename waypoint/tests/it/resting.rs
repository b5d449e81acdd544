//! Connections of HTTP/1 that are quiet give back what serves them. Nothing of that is to be seen: the next request is
//! served, and ends come when they would have.

use std::time::Duration;

use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use tulle_model::service::AppProtocol;
use tulle_runtime::drain::DrainMode;
use tulle_transport::HboneStream;
use tulle_waypoint::http::pace::{HEAD_MAX, IDLE_MAX, REST_AFTER};

use crate::world::{World, application, echo, read_head, read_text, text};

const GET: &str = "GET /a HTTP/1.1\r\nHost: web.shop\r\n\r\n";
const SIZED: &str = "POST /b HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str =
    "POST /c HTTP/1.1\r\nHost: web.shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
/// Long enough to rest.
const QUIET: Duration = Duration::from_secs(2 * REST_AFTER.as_secs());

/// Sends this, and reads one answer: its head and its body.
async fn ask(stream: &mut HboneStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(stream).await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let body = read_text(stream, length.unwrap_or("0").parse().unwrap()).await;
    (head, body)
}

/// A connection that has served a request, and rests.
async fn rested(world: &World) -> HboneStream {
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (head, _) = ask(&mut stream, GET).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    sleep(QUIET).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn one_that_rested_serves_requests_of_every_kind() {
    let world = World::web().await;
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    for (request, target, sent) in [
        (GET, "/a", ""),
        (SIZED, "/b", "hello"),
        (CHUNKED, "/c", "hello"),
        (GET, "/a", ""),
    ] {
        let (head, body) = ask(&mut stream, request).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(body.contains(&format!(" {target} ")) && body.ends_with(&format!("\n{sent}")));
        sleep(QUIET).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_line_after_a_request_is_no_part_of_the_next() {
    let world = World::web().await;
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    for _ in 0..2 {
        let (head, body) = ask(&mut stream, &format!("{SIZED}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(body.ends_with("\nhello"), "{body}");
        sleep(QUIET).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_in_pieces_after_a_rest_is_one_request() {
    let world = World::web().await;
    let mut stream = rested(&world).await;
    for piece in CHUNKED.as_bytes().chunks(7) {
        stream.write_all(piece).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let (head, body) = ask(&mut stream, "").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.ends_with("\nhello"), "{body}");
}

#[tokio::test(start_paused = true)]
async fn a_head_after_a_rest_has_its_time_from_its_first_byte_on() {
    let world = World::web().await;
    let mut stream = rested(&world).await;
    let begun = Instant::now();
    let (head, _) = ask(&mut stream, &GET[..9]).await;
    assert!(head.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{head}");
    let late = begun.elapsed().checked_sub(HEAD_MAX).unwrap();
    assert!(late < QUIET, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_is_never_taken_for_a_request() {
    let evil = "GET /evil HTTP/1.1\r\nHost: web.shop\r\n\r\n";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&seen);
    let hasty = application(move |request| {
        keeping.lock().push(request.uri().path().to_owned());
        async { text("no") }
    });
    let world = World::web_with(AppProtocol::Http11, hasty).await;
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let length = 2 * evil.len();
    let head = format!("POST /a HTTP/1.1\r\nHost: web.shop\r\nContent-Length: {length}\r\n\r\n{evil}");
    ask(&mut stream, &head).await;
    sleep(QUIET).await;
    let _ = stream.write_all(evil.as_bytes()).await;
    sleep(QUIET).await;
    assert_eq!(*seen.lock(), ["/a"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_rests_is_closed_in_order_when_it_was_idle_for_long() {
    let world = World::web().await;
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    ask(&mut stream, GET).await;
    let begun = Instant::now();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    let late = begun.elapsed().checked_sub(IDLE_MAX).unwrap();
    assert!(late < QUIET, "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_rests_when_the_waypoint_ends_is_told_with_its_next_answer() {
    let world = World::web_with(AppProtocol::Http11, application(echo)).await;
    let (mut asks, mut silent) = (rested(&world).await, rested(&world).await);
    world.drain.start(DrainMode::Graceful);
    sleep(Duration::from_secs(3)).await;
    let (head, _) = ask(&mut asks, GET).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert_eq!(asks.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0, "its time is over");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_it_rests_is_gone() {
    let world = World::web().await;
    let stream = rested(&world).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 1.0);
    drop(stream);
    sleep(QUIET).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 0.0);
}
