//! Scripts of clients that mean harm over HTTP/2: their connection ends, what they cost is bounded, others are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_model::service::AppProtocol;

use super::world::{World, application, body, echo};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://web.shop/`, compressed by the table that everybody has.
const GET: &[u8] = b"\x82\x86\x84\x41\x08web.shop";
/// `POST http://web.shop/`.
const POST: &[u8] = b"\x83\x86\x84\x41\x08web.shop";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A preface, settings, and then this.
fn script(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(parts.into_iter().flatten());
    bytes
}

/// What became of a script.
struct Outcome {
    /// The waypoint ended the connection.
    ended: bool,
    /// Bytes that came back.
    answered: usize,
    /// Requests that reached the application.
    reached: usize,
}

/// Runs a script, and sees that others are served afterwards.
async fn attack(bytes: Vec<u8>) -> Outcome {
    let reached = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&reached);
    let counted = application(move |request| {
        counting.fetch_add(1, Ordering::Relaxed);
        echo(request)
    });
    let world = World::web_with(AppProtocol::Http2, counted).await;
    let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut answer));
    let writing = async {
        // Who is thrown out cannot send the rest.
        let _ = write.write_all(&bytes).await;
        let _ = write.flush().await;
    };
    let (ended, ()) = tokio::join!(reading, writing);
    let outcome = Outcome {
        ended: ended.is_ok(),
        answered: answer.len(),
        reached: reached.load(Ordering::Relaxed),
    };
    let mut neighbour = world.http2("neighbour").await;
    let request = http::Request::get("http://web.shop/after")
        .body(http_body_util::Full::default())
        .unwrap();
    let served = body(neighbour.send_request(request).await.unwrap()).await;
    assert!(served.starts_with("GET "), "others are served: {served}");
    outcome
}

fn odd(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| 2 * n + 1)
}

#[tokio::test(start_paused = true)]
async fn floods_of_frames_that_carry_nothing_end_the_connection() {
    for (name, flood) in [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
    ] {
        let outcome = attack(script(std::iter::repeat_n(flood, 20_000))).await;
        assert!(outcome.ended, "{name}");
        assert!(
            outcome.answered < 64 << 10,
            "{name}: {} bytes back",
            outcome.answered
        );
    }
}

#[tokio::test(start_paused = true)]
async fn empty_data_without_end_ends_the_connection() {
    let mut parts = vec![frame(HEADERS, END_HEADERS, 1, POST)];
    parts.extend(std::iter::repeat_n(frame(DATA, 0, 1, &[]), 20_000));
    assert!(attack(script(parts)).await.ended);
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_opened_and_reset_at_once_end_the_connection() {
    let pair = |id| {
        [
            frame(HEADERS, END_HEADERS | END_STREAM, id, GET),
            frame(RST_STREAM, 0, id, &[0, 0, 0, 8]),
        ]
        .concat()
    };
    let outcome = attack(script(odd(10_000).map(pair))).await;
    assert!(outcome.ended);
    assert!(
        outcome.reached <= 400,
        "{} requests went upstream",
        outcome.reached
    );
}

#[tokio::test(start_paused = true)]
async fn a_head_without_end_ends_the_connection() {
    let mut parts = vec![frame(HEADERS, END_STREAM, 1, GET)];
    // A literal field of which each frame carries a part that is never indexed.
    let field = b"\x00\x01x\x7f\x81\x7f";
    let mut piece = field.to_vec();
    piece.extend(std::iter::repeat_n(b'a', 256));
    parts.extend((0..5_000).map(|_| frame(CONTINUATION, 0, 1, &piece)));
    let outcome = attack(script(parts)).await;
    assert!(outcome.ended);
    assert_eq!(outcome.reached, 0);
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_are_allowed_are_refused() {
    let open = |id| frame(HEADERS, END_HEADERS, id, POST);
    let outcome = attack(script(odd(5_000).map(open))).await;
    assert!(
        outcome.reached <= 256,
        "{} requests went upstream",
        outcome.reached
    );
}

#[tokio::test(start_paused = true)]
async fn windows_that_are_no_windows_end_the_connection() {
    let update = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    assert!(attack(script([update(0, 0)])).await.ended, "by nothing");
    let twice = std::iter::repeat_n(update(0, 0x7fff_ffff), 2);
    assert!(attack(script(twice)).await.ended, "beyond what a window can be");
    let wide = [0, 4, 0xff, 0xff, 0xff, 0xff];
    assert!(
        attack(script([frame(SETTINGS, 0, 0, &wide)])).await.ended,
        "an initial window too wide"
    );
}

#[tokio::test(start_paused = true)]
async fn who_gives_no_window_gets_no_answer_and_holds_nobody_up() {
    let none = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let asks = odd(100).map(|id| frame(HEADERS, END_HEADERS | END_STREAM, id, GET));
    let outcome = attack(script(std::iter::once(none).chain(asks))).await;
    assert!(outcome.answered < 64 << 10, "{} bytes back", outcome.answered);
}

#[tokio::test(start_paused = true)]
async fn a_body_in_the_smallest_pieces_arrives_or_ends_the_connection() {
    let mut parts = vec![frame(HEADERS, END_HEADERS, 1, POST)];
    parts.extend(std::iter::repeat_n(frame(DATA, 0, 1, b"x"), 50_000));
    parts.push(frame(DATA, END_STREAM, 1, b"x"));
    let outcome = attack(script(parts)).await;
    assert!(outcome.ended || outcome.reached == 1);
    assert!(outcome.answered < 256 << 10, "{} bytes back", outcome.answered);
}
