//! What comes before an answer and after a body: interim answers, `100 Continue`, trailers.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tulle_model::MeshUpdate;
use tulle_model::route::Retry;
use tulle_model::service::AppProtocol;
use tulle_model::testing::http_route;
use tulle_runtime::tasks;
use tulle_waypoint::upstream::pool::Tasks;

use crate::world::{World, application, read_head, read_text};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const ASK: &str = "POST /a HTTP/1.1\r\nHost: web.shop\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn a_body_goes_up_when_the_endpoint_wants_it() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    let asked = read_head(&mut server).await;
    assert!(asked.contains("\r\nexpect: 100-continue\r\n"), "{asked}");
    // Nobody has said that it is wanted.
    let early = timeout(Duration::from_millis(500), client.read_u8()).await;
    assert!(early.is_err());
    server.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_text(&mut server, 5).await, "hello");
    server.write_all(OK).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(read_text(&mut client, 2).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_endpoint_refuses_is_not_asked_for() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    server
        .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_never_says_it_wants_the_body_gets_it_after_a_second() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let begun = Instant::now();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut server = streams.recv().await.unwrap();
    read_head(&mut server).await;
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_text(&mut server, 5).await, "hello");
}

#[tokio::test(start_paused = true)]
async fn interim_answers_go_down_before_the_answer() {
    let (world, mut streams) = World::raw(AppProtocol::Http11).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let ask = "GET /a HTTP/1.1\r\nHost: web.shop\r\n\r\n";
    for _ in 0..2 {
        client.write_all(ask.as_bytes()).await.unwrap();
        if streams.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    let mut server = streams.recv().await.unwrap();
    for round in 0..2 {
        read_head(&mut server).await;
        server
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nX-Tulle-Reason: no\r\n\r\n")
            .await
            .unwrap();
        let hint = read_head(&mut client).await;
        assert_eq!(
            hint, "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n",
            "{round}"
        );
        server.write_all(OK).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(read_text(&mut client, 2).await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_eight_interim_answers_are_too_many() {
    for (count, status) in [(8, "200"), (9, "502")] {
        let (world, mut streams) = World::raw(AppProtocol::Http11).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        client
            .write_all(b"GET /a HTTP/1.0\r\nHost: web.shop\r\n\r\n")
            .await
            .unwrap();
        let mut server = streams.recv().await.unwrap();
        read_head(&mut server).await;
        for _ in 0..count {
            server
                .write_all(b"HTTP/1.1 102 Processing\r\n\r\n")
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let _ = server.write_all(OK).await;
        // A client of HTTP/1.0 is told of none.
        let head = read_head(&mut client).await;
        assert!(
            head.starts_with(&format!("HTTP/1.0 {status} ")),
            "{count}: {head}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn announced_trailers_pass_over_http1_if_the_client_takes_them() {
    for takes in [true, false] {
        let (world, mut streams) = World::raw(AppProtocol::Http11).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        let te = if takes {
            "TE: trailers\r\nConnection: te\r\n"
        } else {
            ""
        };
        let ask = format!(
            "POST /a HTTP/1.1\r\nHost: web.shop\r\n{te}Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n"
        );
        client.write_all(ask.as_bytes()).await.unwrap();
        let mut server = streams.recv().await.unwrap();
        let asked = read_head(&mut server).await;
        assert_eq!(asked.contains("te: trailers\r\n"), takes, "{asked}");
        let body = "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n";
        assert_eq!(read_text(&mut server, body.len()).await, body);
        server
            .write_all(b"HTTP/1.1 200 OK\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-end: 9\r\n\r\n")
            .await
            .unwrap();
        read_head(&mut client).await;
        let end = if takes { "x-end: 9\r\n\r\n" } else { "\r\n" };
        let body = format!("2\r\nok\r\n0\r\n{end}");
        assert_eq!(read_text(&mut client, body.len()).await, body);
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_pass_both_ways_over_http2() {
    let echoing = application(|request: Request<Incoming>| async move {
        let whole = request.into_body().collect().await.unwrap();
        let trailers = whole.trailers().cloned().unwrap_or_default();
        let frames = [
            Ok::<_, Infallible>(Frame::data(whole.to_bytes())),
            Ok(Frame::trailers(trailers)),
        ];
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed())
    });
    let world = World::web_with(AppProtocol::Http2, echoing).await;
    let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(Tasks, TokioIo::new(stream))
        .await
        .unwrap();
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
    let frames = [
        Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hi"))),
        Ok(Frame::trailers(trailers.clone())),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let request = Request::post("http://web.shop/a").body(body).unwrap();
    let answer = client.send_request(request).await.unwrap();
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers(), Some(&trailers));
    assert_eq!(whole.to_bytes(), "hi");
}

/// A body whose parts come one by one.
fn parts() -> (
    mpsc::Sender<Frame<Bytes>>,
    impl Body<Data = Bytes, Error = Infallible> + Send + Sync + Unpin + 'static,
) {
    let (sender, mut receiver) = mpsc::channel(4);
    let parts = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|part| part.map(Ok)));
    (sender, StreamBody::new(parts))
}

/// Says its head at once and each message back as it comes, until the caller has finished.
fn conversing() -> crate::world::Application {
    application(|request: Request<Incoming>| async move {
        let (sender, body) = parts();
        drop(tasks::spawn("conversation", async move {
            let mut incoming = request.into_body();
            while let Some(Ok(frame)) = incoming.frame().await {
                if frame.is_data() && sender.send(frame).await.is_err() {
                    return;
                }
            }
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let _ = sender.send(Frame::trailers(trailers)).await;
        }));
        Response::builder()
            .header("content-type", "application/grpc")
            .body(body.boxed())
            .unwrap()
    })
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_streams_hears_the_head_of_the_answer_before_it_goes_on() {
    let world = World::web_with(AppProtocol::Grpc, conversing()).await;
    // A rule that tries again by status reads trailers ahead where it can.
    let mut route = http_route("shop/web").under(WEB).to(WEB, 80, 1);
    route.retry = Some(Retry {
        grpc_codes: vec![14],
        ..Retry::default()
    });
    world
        .apply(vec![MeshUpdate::Route(std::sync::Arc::new(route))])
        .await;
    let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(Tasks, TokioIo::new(stream))
        .await
        .unwrap();
    drop(tasks::spawn("client", async move { drop(connection.await) }));
    let (sender, body) = parts();
    let request = Request::post("http://web.shop/chat.Chat/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = timeout(Duration::from_secs(60), client.send_request(request)).await;
    let mut answer = answer.expect("the head waits for nothing").unwrap();
    for round in 0..100 {
        let message = Bytes::from(format!("\0\0\0\0\x02{round:02}"));
        sender.send(Frame::data(message.clone())).await.unwrap();
        let back = answer.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(back.into_data().unwrap(), message, "{round}");
    }
    drop(sender);
    let rest = answer.into_body().collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_unknown_length_to_http1_0_ends_with_its_connection() {
    let streaming = application(|_| async {
        let (sender, body) = parts();
        drop(tasks::spawn("parts", async move {
            for part in ["one ", "two"] {
                let _ = sender
                    .send(Frame::data(Bytes::from_static(part.as_bytes())))
                    .await;
            }
        }));
        Response::new(body.boxed())
    });
    let world = World::web_with(AppProtocol::Http11, streaming).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(b"GET /a HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("\r\n\r\none two"), "{answer}");
}
