//! What takes too long, what is sent too often, and how connections end.

use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tulle_model::policy::authz::Action;
use tulle_model::service::AppProtocol;
use tulle_runtime::drain::DrainMode;
use tulle_transport::hbone::{ConnectRequest, Settings};

use crate::policies::{authz, to};
use crate::world::{
    World, application, body, echo, front, get, identity, read_head, read_text, text, told_policy,
};

async fn answer_to_end(stream: &mut tulle_transport::HboneStream) -> String {
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(3_600), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "it is still open");
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_arrive_in_time_is_answered_with_408() {
    let world = World::web().await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    // A first request on the connection does not change that.
    client
        .write_all(b"GET /a HTTP/1.1\r\nHost: web.shop\r\n\r\n")
        .await
        .unwrap();
    let head = read_head(&mut client).await;
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap()
        .parse()
        .unwrap();
    read_text(&mut client, length).await;
    let begun = Instant::now();
    client.write_all(b"GET /b HTTP/1.1\r\nHo").await.unwrap();
    let answer = answer_to_end(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(
        answer.contains("x-tulle-reason: T0622; head_timeout; id="),
        "{answer}"
    );
    assert!(
        answer.ends_with("\r\n\r\nthe request's head did not arrive in time"),
        "{answer}"
    );
    assert!((10..12).contains(&begun.elapsed().as_secs()));
    assert_eq!(
        world.metric("tulle_waypoint_local_replies_total{reason=\"head_timeout\"}"),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_arriving_is_answered_with_408() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
        let world = World::web_with(protocol, application(echo)).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        let begun = Instant::now();
        client
            .write_all(b"POST /a HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 9\r\n\r\nhello")
            .await
            .unwrap();
        let answer = answer_to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
        assert!(answer.contains("body_idle"), "{answer}");
        assert!((300..303).contains(&begun.elapsed().as_secs()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_not_idle() {
    let world = World::web().await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client
        .write_all(b"POST /a HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    for _ in 0..3 {
        sleep(Duration::from_secs(250)).await;
        client.write_all(b"x").await.unwrap();
    }
    let answer = answer_to_end(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// Answers at once, whatever comes after the head.
fn hasty() -> crate::world::Application {
    application(|_| async {
        let mut answer = text("no");
        *answer.status_mut() = http::StatusCode::FORBIDDEN;
        answer
    })
}

#[tokio::test(start_paused = true)]
async fn r204_the_rest_of_a_body_that_was_answered_early_is_read_or_the_connection_closes() {
    for (length, sent, again) in [
        (1_000, 1_000, true),
        (1_000_000, 1_000_000, false),
        (1_000, 500, false),
    ] {
        let world = World::web_with(AppProtocol::Http11, hasty()).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        let head = format!("POST /a HTTP/1.1\r\nHost: web.shop\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert_eq!(read_text(&mut client, 2).await, "no");
        // The rest looks like a request, and is none.
        let evil = "GET /evil HTTP/1.1\r\nHost: web.shop\r\n\r\n".repeat(length);
        let _ = client.write_all(&evil.as_bytes()[..sent]).await;
        if sent == length {
            let _ = client
                .write_all(b"GET /b HTTP/1.1\r\nHost: web.shop\r\nConnection: close\r\n\r\n")
                .await;
        }
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(30), client.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it is still open after {sent} of {length}");
        let rest = String::from_utf8_lossy(&rest);
        assert_eq!(
            rest.matches("HTTP/1.1 403").count(),
            usize::from(again),
            "{sent} of {length}: {rest}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_bytes_on_which_nothing_moves_ends_after_an_hour() {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    sleep(Duration::from_secs(40 * 60)).await;
    server.write_all(b"x").await.unwrap();
    assert_eq!(read_text(&mut client, 1).await, "x");
    sleep(Duration::from_secs(40 * 60)).await;
    client.write_all(b"y").await.unwrap();
    assert_eq!(read_text(&mut server, 1).await, "y");
    let begun = Instant::now();
    assert!(client.read_u8().await.is_err());
    assert!(
        (3_590..3_660).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        world.metric("tulle_waypoint_local_replies_total{reason=\"stream_idle\"}"),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_bytes_that_one_side_has_finished_may_stand_still_for_ten_minutes() {
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    client.write_all(b"x").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_text(&mut server, 1).await, "x");
    sleep(Duration::from_secs(9 * 60)).await;
    server.write_all(b"y").await.unwrap();
    assert_eq!(read_text(&mut client, 1).await, "y");
    let begun = Instant::now();
    assert!(client.read_u8().await.is_err());
    assert!(
        (590..660).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

/// The frames of HTTP/2 in what a waypoint sent: kind, stream, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s, t, u, v, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(payload) = rest.get(..length) else { break };
        frames.push((*kind, u32::from_be_bytes([*s, *t, *u, *v]), payload.to_vec()));
        bytes = &rest[length..];
    }
    frames
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: u8 = 6;
const GOAWAY: u8 = 7;

fn goaways(bytes: &[u8]) -> Vec<(u32, u32)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let said = frames(bytes).into_iter().filter(|(kind, ..)| *kind == GOAWAY);
    said.map(|(_, _, payload)| (number(&payload[..4]), number(&payload[4..8])))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_ended_with_a_goaway_that_says_why() {
    let world = World::web_with(AppProtocol::Http2, application(echo)).await;
    let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let ping = [&[0, 0, 8, PING, 0, 0, 0, 0, 0][..], &[0; 8]].concat();
    let sending = async {
        let _ = write.write_all(PREFACE).await;
        let _ = write.write_all(&ping.repeat(5_000)).await;
    };
    let mut heard = Vec::new();
    let hearing = timeout(Duration::from_secs(60), async {
        let _ = read.read_to_end(&mut heard).await;
    });
    let (heard_all, ()) = tokio::join!(hearing, sending);
    assert!(heard_all.is_ok(), "it is still open");
    assert_eq!(goaways(&heard), [(0, 0xb)]);
}

/// Serves a connection of HTTP/2 by hand: answers pings, and gives back everything that came until it ended or the time
/// was over.
async fn listen(stream: &mut tulle_transport::HboneStream, time: Duration) -> (Vec<u8>, bool) {
    let (mut heard, mut answered) = (Vec::new(), 0);
    let deadline = Instant::now() + time;
    loop {
        let mut piece = [0; 4096];
        match tokio::time::timeout_at(deadline, stream.read(&mut piece)).await {
            Err(_) => return (heard, false),
            Ok(Ok(0) | Err(_)) => return (heard, true),
            Ok(Ok(length)) => heard.extend_from_slice(&piece[..length]),
        }
        let pings: Vec<_> = frames(&heard)
            .into_iter()
            .filter(|(kind, ..)| *kind == PING)
            .collect();
        for (_, _, payload) in &pings[answered..] {
            let pong = [&[0, 0, 8, PING, 1, 0, 0, 0, 0][..], payload].concat();
            let _ = stream.write_all(&pong).await;
        }
        answered = pings.len();
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http2_is_sent_away_in_two_steps_when_it_is_old() {
    let world = World::web_with(AppProtocol::Http2, application(echo)).await;
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let begun = Instant::now();
    stream.write_all(PREFACE).await.unwrap();
    // A call that stays open keeps the connection from being idle.
    let headers = b"\x83\x86\x84\x41\x08web.shop";
    let mut frame = vec![0, 0, u8::try_from(headers.len()).unwrap(), 1, 4, 0, 0, 0, 1];
    frame.extend(headers);
    stream.write_all(&frame).await.unwrap();
    let mut heard = Vec::new();
    for minute in 0.. {
        assert!(minute < 20, "nobody was sent away");
        // Something moves, so that it is the age that counts.
        let _ = stream.write_all(&[0, 0, 1, 0, 0, 0, 0, 0, 1, b'x']).await;
        let (more, ended) = listen(&mut stream, Duration::from_secs(60)).await;
        heard.extend(more);
        if ended || !goaways(&heard).is_empty() {
            break;
        }
    }
    let age = begun.elapsed().as_secs();
    assert!((8 * 60 - 1..=13 * 60).contains(&age), "{age}");
    let (more, _) = listen(&mut stream, Duration::from_secs(5)).await;
    heard.extend(more);
    let said = goaways(&heard);
    assert_eq!(said, [(0x7fff_ffff, 0), (1, 0)], "first that it ends, then where");
    // The call that was open is served to its end.
    stream.write_all(&[0, 0, 0, 0, 1, 0, 0, 0, 1]).await.unwrap();
    let (more, ended) = listen(&mut stream, Duration::from_secs(5)).await;
    assert!(
        frames(&more).iter().any(|(kind, id, _)| (*kind, *id) == (1, 1)),
        "its answer"
    );
    assert!(ended);
}

#[tokio::test(start_paused = true)]
async fn a_waypoint_that_ends_says_so_to_http1_and_serves_what_is_under_way() {
    let waiting = application(|request| async {
        sleep(Duration::from_secs(5)).await;
        echo(request).await
    });
    let world = World::web_with(AppProtocol::Http11, waiting).await;
    let mut client = world.http1("client").await;
    let asking = client.send_request(get("/a"));
    let ending = async {
        sleep(Duration::from_secs(1)).await;
        world.drain.start(DrainMode::Graceful);
    };
    let (answer, ()) = tokio::join!(asking, ending);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    assert!(body(answer).await.starts_with("GET /a "));
    sleep(Duration::from_secs(1)).await;
    assert!(client.is_closed());
}

/// A stream that says nothing, with how long it was open, where `then` happens meanwhile.
async fn silent(protocol: AppProtocol, then: impl FnOnce(&World)) -> Duration {
    let world = World::web_with(protocol, application(echo)).await;
    if protocol == AppProtocol::Unknown {
        // What reads requests makes it HTTP.
        let deny = authz(Action::Deny, vec![to("GET", "/admin")]);
        world.apply(vec![told_policy("deny", deny)]).await;
    }
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let begun = Instant::now();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 1.0);
    then(&world);
    assert_eq!(answer_to_end(&mut stream).await, "");
    let open = begun.elapsed();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.metric("tulle_waypoint_streams"), 0.0);
    open
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_waited_for_like_one_that_is_idle() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2, AppProtocol::Unknown] {
        let open = silent(protocol, |_| {}).await;
        assert_eq!(open.as_secs(), 300, "{protocol:?}");
        let open = silent(protocol, |world| world.drain.start(DrainMode::Graceful)).await;
        assert_eq!(open.as_secs(), 11, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_speaks_late_is_served_also_while_the_waypoint_drains() {
    for drains in [false, true] {
        let world = World::web().await;
        let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
        if drains {
            world.drain.start(DrainMode::Graceful);
        }
        sleep(Duration::from_secs(if drains { 9 } else { 290 })).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let answer = answer_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{drains}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_front_that_drains_is_still_served_and_judged() {
    let world = World::web().await;
    world
        .apply(vec![front("shop/web", |front| front.draining = true)])
        .await;
    let answer = world.http1("client").await.send_request(get("/a")).await.unwrap();
    assert_eq!(answer.status(), 200);
    let _ = answer.into_body().collect().await;
    let needing = front("shop/web", |front| {
        front.draining = true;
        front.required_policies = vec!["AuthorizationPolicy/shop/none/authz".into()];
    });
    let mut client = world.http1("client").await;
    world.apply(vec![needing]).await;
    let answer = client.send_request(get("/a")).await.unwrap();
    assert_eq!(answer.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_without_streams_is_kept_for_an_hour() {
    let world = World::web().await;
    let patient = Settings {
        idle_timeout: Duration::from_secs(24 * 3_600),
        ..Settings::client()
    };
    let tunnel = world.tunnel_by(&identity("client"), &patient).await.unwrap();
    let asked = ConnectRequest::new("10.96.0.1:80");
    for minutes in [0, 59, 59] {
        sleep(Duration::from_secs(minutes * 60)).await;
        assert!(tunnel.open(&asked).await.is_ok(), "after {minutes} minutes");
    }
    sleep(Duration::from_secs(61 * 60)).await;
    assert!(tunnel.open(&asked).await.is_err());
}
