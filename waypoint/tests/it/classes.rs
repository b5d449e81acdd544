//! What classes of known weaknesses ask of a waypoint, by their numbers. Others stand beside what they are about:
//! `websocket` (r201, r202), `timers` (r204).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::authz::{Action, PathPattern, Rule, To, Values, When};
use tulle_model::service::AppProtocol;
use tulle_model::testing::workload;
use tulle_model::{MeshUpdate, Reason};
use tulle_runtime::tasks;
use tulle_transport::HboneStream;
use tulle_waypoint::listener::hbone;

use crate::policies::authz;
use crate::world::{World, application, body, echo, front, get, read_head, read_text, told_policy, web};

fn deny(rule: Rule) -> MeshUpdate {
    told_policy("deny", authz(Action::Deny, vec![rule]))
}

async fn to_end(stream: &mut HboneStream) -> String {
    let mut answer = Vec::new();
    let ended = timeout(Duration::from_secs(3_600), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "it is still open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(start_paused = true)]
async fn r203_a_body_that_could_end_in_two_places_is_refused_and_its_connection_closed() {
    for (first, fields) in [
        ("POST /a HTTP/1.0", "Transfer-Encoding: chunked"),
        ("POST /a HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
        (
            "POST /a HTTP/1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        ("POST /a HTTP/1.1", "Transfer-Encoding: xchunked"),
        ("POST /a HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2"),
        ("POST /a HTTP/1.1", "Content-Length: +1"),
        ("POST /a HTTP/1.1", "Content-Length: 1, 2"),
        ("POST /a HTTP/1.1", "Content-Length: 0x1"),
    ] {
        let (world, mut streams) = World::raw(AppProtocol::Http11).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        let bytes = format!(
            "{first}\r\nHost: web.shop\r\n{fields}\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: web.shop\r\n\r\n"
        );
        client.write_all(bytes.as_bytes()).await.unwrap();
        let answer = to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1."), "{fields}: {answer}");
        assert!(answer[8..].starts_with(" 400 "), "{fields}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{fields}: {answer}");
        assert!(streams.try_recv().is_err(), "{fields}: something went up");
    }
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test(start_paused = true)]
async fn r205_a_body_that_is_not_as_long_as_its_head_says_is_reset() {
    // `content-length: 5`, by the static table.
    let head = b"\x83\x86\x84\x41\x08web.shop\x0f\x0d\x015";
    for (sent, whole) in [(&b"abc"[..], false), (b"abcdefg", false), (b"abcde", true)] {
        let (heard, mut bodies) = tokio::sync::mpsc::unbounded_channel();
        let reading = application(move |request: Request<hyper::body::Incoming>| {
            let heard = heard.clone();
            async move {
                let body = request.into_body().collect().await;
                let _ = heard.send(body.map(|body| body.to_bytes()).ok());
                crate::world::text("ok")
            }
        });
        let world = World::web_with(AppProtocol::Http2, reading).await;
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 4, 1, head));
        bytes.extend(frame(0, 1, 1, sent));
        client.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; 64 * 1024];
        let mut length = 0;
        while let Ok(Ok(more @ 1..)) =
            timeout(Duration::from_secs(5), client.read(&mut answer[length..])).await
        {
            length += more;
        }
        let reset = frame(3, 0, 1, &[0, 0, 0, 1]);
        let is_reset = answer[..length]
            .windows(reset.len())
            .any(|window| window == reset);
        assert_eq!(is_reset, !whole, "{}", sent.escape_ascii());
        let arrived = bodies.try_recv().ok().flatten();
        assert_eq!(arrived.is_some(), whole, "{arrived:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r206_a_preamble_of_the_proxy_protocol_is_a_failed_handshake() {
    let world = World::web().await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x09\x10\0\x3a\xa0";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\xff\xff";
    let v1 = b"PROXY TCP4 10.0.0.1 10.0.0.9 5000 15008\r\n";
    for preamble in [&v2[..], local, v1] {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let (peer, own) = (
            "10.0.0.1:5000".parse().unwrap(),
            "10.0.0.9:15008".parse().unwrap(),
        );
        let serving = hbone::serve_over(Arc::clone(&world.waypoint), far, peer, own);
        drop(tasks::spawn("waypoint-tunnel", serving));
        near.write_all(preamble).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(60), near.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "it is still open");
        // An alert at most.
        assert!(answer.is_empty() || answer[0] == 21, "{}", answer.escape_ascii());
        assert_eq!(world.metric("tulle_waypoint_tunnels"), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn r301_special_letters_in_names_are_letters() {
    for (name, alike) in [
        ("/a.b", "/aXb"),
        ("/a[0]", "/a0"),
        ("/a*b", "/aXb"),
        ("/a+", "/aa"),
        ("/(a|b)", "/a"),
        ("/^a$", "/a"),
    ] {
        let world = World::web().await;
        let exact = PathPattern::Text(StringMatch::Exact(name.into()));
        let rule = Rule {
            to: vec![To {
                paths: Values {
                    any: vec![exact],
                    none: vec![],
                },
                ..To::default()
            }],
            ..Rule::default()
        };
        world.apply(vec![deny(rule)]).await;
        for (path, expected) in [(name, 403), (alike, 200)] {
            let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
            let bytes = format!("GET {path} HTTP/1.1\r\nHost: web.shop\r\nConnection: close\r\n\r\n");
            client.write_all(bytes.as_bytes()).await.unwrap();
            let answer = to_end(&mut client).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {expected} ")),
                "{name}: {path}: {answer}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r302_each_value_of_a_repeated_field_is_judged() {
    let world = World::web().await;
    let rule = Rule {
        when: vec![When {
            key: "request.headers[x-team]".into(),
            values: Values {
                any: vec![StringMatch::Exact("evil".into())],
                none: vec![],
            },
            ips: Values::default(),
        }],
        ..Rule::default()
    };
    world.apply(vec![deny(rule)]).await;
    for (values, expected) in [
        (&["good"][..], 200),
        (&["evil"], 403),
        (&["good", "evil"], 403),
        (&["evil", "good"], 403),
        (&["good", "better"], 200),
    ] {
        let mut request = get("/");
        for value in values {
            request.headers_mut().append("x-team", value.parse().unwrap());
        }
        let answer = world.http1("client").await.send_request(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{values:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r403_an_endpoint_that_takes_tunnels_is_never_spoken_to_in_clear() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2, AppProtocol::Tcp] {
        let (world, streams) = World::raw(protocol).await;
        // Its proxy is gone; the application would answer.
        drop(streams);
        world.pipes.silence("10.0.0.7:15008");
        let mut plain = world.pipes.listen("10.0.0.7:8080");
        let mut client = match world.tunnel(&crate::world::identity("client")).await {
            Ok(tunnel) => {
                let asked = tulle_transport::hbone::ConnectRequest::new("10.96.0.1:80");
                match tunnel.open(&asked).await {
                    Ok((stream, _)) => stream,
                    Err(_) => continue,
                }
            }
            Err(error) => panic!("{error}"),
        };
        let _ = client
            .write_all(b"GET / HTTP/1.1\r\nHost: web.shop\r\nConnection: close\r\n\r\n")
            .await;
        let answer = to_end(&mut client).await;
        assert!(!answer.contains(" 200 "), "{protocol:?}: {answer}");
        assert!(plain.try_recv().is_err(), "{protocol:?}: in clear");
    }
}

#[tokio::test(start_paused = true)]
async fn r404_nobody_passes_before_the_policies_are_there() {
    let world = World::start(vec![]).await;
    let refused = world.ask("client", "10.96.0.1:80").await.map(drop).unwrap_err();
    assert_eq!((refused.status, refused.reason()), (400, Reason::NotFronted));
    let needing = front("shop/web", |front| {
        front.required_policies = vec!["TestPolicy/shop/deny/authz".into()];
    });
    let endpoint: MeshUpdate = workload("shop/web-1")
        .sa("web")
        .ip("10.0.0.7")
        .hbone()
        .serves("shop/web")
        .into();
    world
        .apply(vec![web(AppProtocol::Http11), endpoint, needing])
        .await;
    let mut streams = world.endpoint("10.0.0.7", "web");
    let refused = world.ask("client", "10.96.0.1:80").await.map(drop).unwrap_err();
    assert_eq!((refused.status, refused.reason()), (401, Reason::PolicyPending));
    assert!(streams.try_recv().is_err());
}

/// Everything that reaches the endpoint came over a tunnel in which both sides have proven who they are.
#[tokio::test(start_paused = true)]
async fn r406_every_protocol_goes_up_in_a_tunnel_to_whom_is_expected() {
    let ask = "GET / HTTP/1.1\r\nHost: web.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // An endpoint that proves to be somebody else hears nothing.
    for (protocol, first) in [
        (AppProtocol::Http11, "GET / HTTP/1.1\r\nHost: web.shop\r\n\r\n"),
        (AppProtocol::Http2, "GET / HTTP/1.1\r\nHost: web.shop\r\n\r\n"),
        (AppProtocol::Http11, ask),
    ] {
        let (world, streams) = World::raw(protocol).await;
        drop(streams);
        let mut others = world.endpoint("10.0.0.7", "evil");
        let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
        client.write_all(first.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{protocol:?}: {head}");
        assert!(others.try_recv().is_err());
        assert_eq!(world.metric("tulle_waypoint_plaintext_upstream_total"), 0.0);
    }
    // One that proves to be the right one is asked, server-first ones included.
    let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    server.write_all(b"220").await.unwrap();
    assert_eq!(read_text(&mut client, 3).await, "220");
    assert_eq!(world.metric("tulle_waypoint_plaintext_upstream_total"), 0.0);
    let world = World::web_with(AppProtocol::Http11, application(echo)).await;
    let request = Request::post("/a")
        .header("host", "web.shop")
        .body(Full::new(Bytes::from_static(b"x")))
        .unwrap();
    let answer = world.http1("client").await.send_request(request).await.unwrap();
    assert!(body(answer).await.starts_with("POST /a "));
    assert_eq!(world.metric("tulle_waypoint_plaintext_upstream_total"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn applications_are_told_of_certificates_only_where_it_is_asked_for() {
    let world = World::web().await;
    let told = |seen: String| {
        let line = seen
            .lines()
            .find(|line| line.starts_with("x-forwarded-client-cert: "));
        line.map(str::to_owned)
    };
    let mut forged = get("/");
    let evil = "By=spiffe://cluster.local/ns/a/sa/b;URI=spiffe://cluster.local/ns/a/sa/admin";
    forged
        .headers_mut()
        .insert("x-forwarded-client-cert", evil.parse().unwrap());
    let answer = world
        .http1("client")
        .await
        .send_request(forged.clone())
        .await
        .unwrap();
    assert_eq!(told(body(answer).await), None);
    let mut settings = crate::world::settings();
    settings.forward_client_cert = true;
    let telling = tulle_model::waypoint::Waypoint::Settings(Box::new(settings));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(telling))]).await;
    let answer = world.http1("client").await.send_request(forged).await.unwrap();
    let expected = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/web;\
        URI=spiffe://cluster.local/ns/shop/sa/client";
    assert_eq!(told(body(answer).await).as_deref(), Some(expected));
}
