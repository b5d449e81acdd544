//! Requests through a waypoint: what endpoints see, and what callers do.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tulle_model::MeshUpdate;
use tulle_model::policy::Concern;
use tulle_model::service::AppProtocol;
use tulle_model::testing::workload;
use tulle_model::waypoint::Waypoint as Told;

use crate::world::{World, application, body, echo, get, identity, settings, text, told_policy};

#[tokio::test(start_paused = true)]
async fn a_request_reaches_the_endpoint_and_its_answer_comes_back() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    let response = client.send_request(get("/a?b=c")).await.unwrap();
    assert_eq!(response.status(), 200);
    let seen = body(response).await;
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("host: web.shop\n"), "{seen}");
    assert!(seen.contains("x-forwarded-for: 10.0.0.1\n"), "{seen}");
    assert!(seen.contains("x-request-id: "), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_is_told_who_asked() {
    let world = World::web().await;
    world.http1("client").await.send_request(get("/")).await.unwrap();
    let connect = world.connects.lock()[0].clone();
    assert_eq!(connect.authority, "10.0.0.7:8080");
    assert_eq!(connect.original_source, Some(identity("client")));
    let forwarded = connect.forwarded.unwrap();
    assert_eq!(forwarded.client.ip().to_string(), "10.0.0.1");
    assert_eq!(forwarded.host.as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(connect.hops, 1);
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_for_the_same_caller_and_never_shared_with_another() {
    let world = World::web().await;
    for _ in 0..3 {
        let response = world.http1("client").await.send_request(get("/")).await.unwrap();
        body(response).await;
    }
    assert_eq!(world.connects.lock().len(), 1);
    let response = world.http1("other").await.send_request(get("/")).await.unwrap();
    body(response).await;
    let sources: Vec<_> = world
        .connects
        .lock()
        .iter()
        .map(|connect| connect.original_source.clone().unwrap())
        .collect();
    assert_eq!(sources, [identity("client"), identity("other")]);
}

#[tokio::test(start_paused = true)]
async fn http2_goes_on_as_http2() {
    let world = World::web().await;
    let mut client = world.http2("client").await;
    let request = Request::post("http://web.shop/x")
        .body(Full::new(Bytes::from_static(b"hello")))
        .unwrap();
    let seen = body(client.send_request(request).await.unwrap()).await;
    assert!(seen.starts_with("POST http://web.shop/x HTTP/2.0\n"), "{seen}");
    assert!(seen.ends_with("\nhello"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn a_port_declared_http2_is_spoken_to_in_http2() {
    let world = World::web_with(AppProtocol::Http2, application(echo)).await;
    let mut client = world.http1("client").await;
    let seen = body(client.send_request(get("/")).await.unwrap()).await;
    assert!(seen.starts_with("GET http://web.shop/ HTTP/2.0\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn what_only_the_mesh_may_say_is_not_believed_of_callers() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    let mut request = get("/");
    for name in [
        "x-tulle-original-source",
        "x-envoy-attempt-count",
        "x-istio-attributes",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "forwarded",
        "proxy-connection",
    ] {
        request.headers_mut().insert(name, "evil".parse().unwrap());
    }
    let seen = body(client.send_request(request).await.unwrap()).await;
    assert!(!seen.contains("evil"), "{seen}");
    assert!(seen.contains("x-envoy-attempt-count: 1\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn answers_lose_what_only_the_mesh_may_say() {
    let answering = application(|_| async {
        let mut answer = text("ok");
        answer
            .headers_mut()
            .insert("x-tulle-reason", "mine".parse().unwrap());
        answer.headers_mut().insert("x-kept", "1".parse().unwrap());
        answer
    });
    let world = World::web_with(AppProtocol::Http11, answering).await;
    let response = world.http1("client").await.send_request(get("/")).await.unwrap();
    assert!(!response.headers().contains_key("x-tulle-reason"));
    assert_eq!(response.headers()["x-kept"], "1");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_not_there_is_passed_by() {
    let world = World::web().await;
    let gone = workload("shop/web-2")
        .sa("web")
        .ip("10.0.0.8")
        .hbone()
        .serves("shop/web");
    world.apply(vec![gone.into()]).await;
    let mut client = world.http1("client").await;
    for _ in 0..8 {
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 200);
        body(response).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_endpoint_the_caller_is_told() {
    let world = World::web().await;
    world.pipes.silence("10.0.0.7:15008");
    let mut client = world.http1("client").await;
    let response = client.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), 503);
    let reason = response.headers()["x-tulle-reason"].to_str().unwrap().to_owned();
    assert!(reason.contains("connect_failed"), "{reason}");
    assert!(world.metric("tulle_waypoint_local_replies_total{reason=\"connect_failed\"}") >= 1.0);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_another_identity_gets_nothing() {
    let world = World::web().await;
    world.serve("10.0.0.7", "thief", application(|_| async { text("stolen") }));
    let response = world.http1("client").await.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_judged_lets_nobody_pass() {
    let world = World::web().await;
    let deny = told_policy("deny", Concern::DenyAll("not readable".into()));
    let mut client = world.http1("client").await;
    world.apply(vec![deny]).await;
    let response = client.send_request(get("/")).await.unwrap();
    assert_eq!(
        response.status(),
        403,
        "also on a connection that was there before"
    );
    assert_eq!(body(response).await, "RBAC: access denied");
}

#[tokio::test(start_paused = true)]
async fn a_body_passes_in_both_directions_whatever_its_size() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    let sent = vec![b'x'; 3 * 1024 * 1024];
    let request = Request::post("/")
        .header("host", "web.shop")
        .body(Full::new(Bytes::from(sent.clone())))
        .unwrap();
    let seen = body(client.send_request(request).await.unwrap()).await;
    assert_eq!(seen.len() - seen.find("\n\n").unwrap() - 2, sent.len());
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_what_runs_end_and_says_goodbye() {
    let (asked, mut arrived) = tokio::sync::mpsc::channel(1);
    let go = Arc::new(tokio::sync::Notify::new());
    let waiting = Arc::clone(&go);
    let slow = application(move |_| {
        let (asked, waiting) = (asked.clone(), Arc::clone(&waiting));
        async move {
            asked.send(()).await.unwrap();
            waiting.notified().await;
            text("done")
        }
    });
    let world = World::web_with(AppProtocol::Http11, slow).await;
    let mut client = world.http1("client").await;
    let answering = client.send_request(get("/"));
    let draining = async {
        arrived.recv().await.unwrap();
        world.drain.start(tulle_runtime::drain::DrainMode::Graceful);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        go.notify_one();
    };
    let (answer, ()) = tokio::join!(answering, draining);
    let answer = answer.unwrap();
    assert_eq!(answer.headers()["connection"], "close");
    assert_eq!(body(answer).await, "done");
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_clear_is_not_used_once_the_endpoint_takes_tunnels() {
    let plain = workload("shop/web-1").sa("web").ip("10.0.0.7").serves("shop/web");
    let world = World::web().await;
    world.apply(vec![plain.into()]).await;
    let mut sockets = world.pipes.listen("10.0.0.7:8080");
    let answering = tulle_runtime::tasks::spawn("plain", async move {
        while let Some(socket) = sockets.recv().await {
            let service =
                hyper::service::service_fn(|_| async { Ok::<_, std::convert::Infallible>(text("in clear")) });
            let io = hyper_util::rt::TokioIo::new(socket);
            let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
            drop(tulle_runtime::tasks::spawn("plain-connection", async move {
                drop(served.await)
            }));
        }
    });
    let mut client = world.http1("client").await;
    assert_eq!(
        body(client.send_request(get("/")).await.unwrap()).await,
        "in clear"
    );
    assert!(world.metric("tulle_waypoint_plaintext_upstream_total") >= 1.0);
    let tunnelled = workload("shop/web-1")
        .sa("web")
        .ip("10.0.0.7")
        .hbone()
        .serves("shop/web");
    world.apply(vec![tunnelled.into()]).await;
    let seen = body(client.send_request(get("/")).await.unwrap()).await;
    assert!(seen.starts_with("GET / HTTP/1.1"), "{seen}");
    answering.abort();
}

#[tokio::test(start_paused = true)]
async fn applications_are_told_the_certificate_where_the_gateway_says_so() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    let silent = body(client.send_request(get("/")).await.unwrap()).await;
    assert!(!silent.contains("x-forwarded-client-cert"), "{silent}");
    let mut settings = settings();
    settings.forward_client_cert = true;
    let told = Told::Settings(Box::new(settings));
    world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
    let mut request = get("/");
    let forged = "URI=spiffe://cluster.local/ns/shop/sa/root".parse().unwrap();
    request.headers_mut().insert("x-forwarded-client-cert", forged);
    let seen = body(client.send_request(request).await.unwrap()).await;
    let line = seen
        .lines()
        .find(|line| line.starts_with("x-forwarded-client-cert: "));
    let line = line.unwrap_or_else(|| panic!("{seen}"));
    assert!(
        line.contains("URI=spiffe://cluster.local/ns/shop/sa/client"),
        "{line}"
    );
    assert!(
        line.contains("By=spiffe://cluster.local/ns/shop/sa/web"),
        "{line}"
    );
    assert!(!line.contains("root"), "{line}");
}
