//! What the HTTP library refuses by itself, or drops without a word: clients are told in our words, and it is counted.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::world::World;

/// Sends bytes; all that comes back until the waypoint ends the connection.
async fn said(world: &World, bytes: &[u8]) -> String {
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut answer = Vec::new();
    let talking = async {
        // Who is refused in the middle may not take the rest.
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    assert!(
        timeout(Duration::from_secs(60), talking).await.is_ok(),
        "it is still open"
    );
    String::from_utf8(answer).unwrap()
}

fn counted(world: &World, reason: &str) -> f64 {
    world.metric(&format!(
        "tulle_waypoint_local_replies_total{{reason=\"{reason}\"}}"
    ))
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_refused_in_our_words() {
    let world = World::web().await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(100_000));
    for (bytes, status, reason) in [
        (
            "GET /\0 HTTP/1.1\r\n\r\n",
            "400 Bad Request",
            "T0614; bad_framing",
        ),
        (
            "GET / HTTP/1.1\r\na b: c\r\n\r\n",
            "400 Bad Request",
            "T0614; bad_framing",
        ),
        (&many, "431 Request Header Fields Too Large", "headers_too_large"),
        (&long, "431 Request Header Fields Too Large", "headers_too_large"),
    ] {
        let answer = said(&world, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        let told = answer.lines().find(|line| line.starts_with("x-tulle-reason: "));
        assert!(told.is_some_and(|told| told.contains(reason)), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert_eq!(counted(&world, "bad_framing"), 2.0);
    assert_eq!(counted(&world, "headers_too_large"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_before_is_left_alone() {
    let world = World::web().await;
    let answer = said(
        &world,
        b"GET /a HTTP/1.1\r\nHost: web.shop\r\n\r\nnonsense\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (first, second) = answer.split_once("HTTP/1.1 400 Bad Request\r\n").unwrap();
    assert!(first.contains("GET /a "), "{answer}");
    assert!(
        second.contains("\r\nx-tulle-reason: T0614; bad_framing; id="),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_fragment_is_refused_and_the_connection_ends() {
    let world = World::web().await;
    let pipelined = "GET /a HTTP/1.1\r\nHost: web.shop\r\n\r\nGET /b#c HTTP/1.1\r\nHost: web.shop\r\n\r\n\
        GET /d HTTP/1.1\r\nHost: web.shop\r\n\r\n";
    let answer = said(&world, pipelined.as_bytes()).await;
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "400"], "{answer}");
    assert!(
        answer.contains("\r\nx-tulle-reason: T0616; bad_path; id="),
        "{answer}"
    );
    assert_eq!(counted(&world, "bad_path"), 1.0);
}
