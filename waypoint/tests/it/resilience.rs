//! Requests to servers that fail: tried again, given up in time, kept away from who is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_model::MeshUpdate;
use tulle_model::policy::Concern;
use tulle_model::policy::traffic::{Algorithm, CircuitBreaker, LoadBalancing, Outlier, RetryBudget};
use tulle_model::route::{Retry, Route, Session, SessionBy, Timeouts};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, workload};
use tulle_runtime::tasks;
use tulle_transport::HboneStream;

use super::world::{Answer, Application, World, application, body, echo, front, get, text, told_policy, web};

/// How often an application was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count(Arc<AtomicU32>);

impl Count {
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

pub(crate) fn status(status: u16) -> Answer {
    let mut answer = text("");
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

/// Answers with these statuses, the last one again and again.
pub(crate) fn statuses(count: &Count, all: &'static [u16]) -> Application {
    let count = count.clone();
    application(move |request: Request<Incoming>| {
        let nth = count.next() as usize;
        async move {
            let _ = request.into_body().collect().await;
            status(all[(nth - 1).min(all.len() - 1)])
        }
    })
}

pub(crate) fn never(count: &Count) -> Application {
    let count = count.clone();
    application(move |_| {
        count.next();
        std::future::pending()
    })
}

/// The service, as routes name it.
pub(crate) const WEB: &str = "shop/web.shop.svc.cluster.local";

pub(crate) fn rule() -> Route {
    http_route("shop/web").under(WEB).to(WEB, 80, 1)
}

pub(crate) fn retrying() -> Route {
    Route {
        retry: Some(Retry {
            codes: vec![503],
            ..Retry::default()
        }),
        ..rule()
    }
}

pub(crate) fn told(route: Route) -> MeshUpdate {
    MeshUpdate::Route(Arc::new(route))
}

pub(crate) fn policy(concern: Concern) -> MeshUpdate {
    told_policy("web", concern)
}

pub(crate) fn endpoint(name: &str, ip: &str) -> MeshUpdate {
    let endpoint = workload(&format!("shop/{name}")).sa("web").ip(ip).hbone();
    endpoint.serves("shop/web").into()
}

/// The service `shop/web` with one endpoint, which is this application.
pub(crate) async fn one(application: Application, updates: Vec<MeshUpdate>) -> World {
    let world = World::web_with(AppProtocol::Http11, application).await;
    if !updates.is_empty() {
        world.apply(updates).await;
    }
    world
}

/// The service `shop/web` with two endpoints.
pub(crate) async fn two(first: Application, second: Application, updates: Vec<MeshUpdate>) -> World {
    let given = vec![
        web(AppProtocol::Http11),
        endpoint("web-1", "10.0.0.7"),
        endpoint("web-2", "10.0.0.8"),
        front("shop/web", |_| {}),
    ];
    let world = World::start(given.into_iter().chain(updates).collect()).await;
    world.serve("10.0.0.7", "web", first);
    world.serve("10.0.0.8", "web", second);
    world
}

pub(crate) async fn ask(world: &World) -> Response<Incoming> {
    world.http1("client").await.send_request(get("/")).await.unwrap()
}

fn post(size: usize) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(vec![b'x'; size]));
    Request::post("/").header("host", "web.shop").body(body).unwrap()
}

pub(crate) fn reason(response: &Response<Incoming>) -> String {
    let header = response.headers().get("x-tulle-reason");
    header
        .map(|value| value.to_str().unwrap().to_owned())
        .unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_status_that_the_route_names_is_tried_again() {
    let count = Count::default();
    let world = one(statuses(&count, &[503, 503, 200]), vec![told(retrying())]).await;
    assert_eq!(ask(&world).await.status(), 200);
    assert_eq!(count.get(), 3);
    assert!((world.metric("tulle_waypoint_retries_total{outcome=\"made\"}") - 2.0).abs() < 0.1);
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_is_passed_on_when_tries_run_out() {
    let count = Count::default();
    let world = one(statuses(&count, &[503]), vec![told(retrying())]).await;
    let response = ask(&world).await;
    assert_eq!(response.status(), 503);
    assert_eq!(reason(&response), "", "the application's own answer");
    assert_eq!(count.get(), 3, "one try and two more");
}

#[tokio::test(start_paused = true)]
async fn without_a_stanza_no_status_is_tried_again() {
    let count = Count::default();
    let world = one(statuses(&count, &[503, 200]), vec![]).await;
    assert_eq!(ask(&world).await.status(), 503);
    assert_eq!(count.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_to_the_other_endpoint() {
    let broken = Count::default();
    let world = two(
        statuses(&broken, &[503]),
        application(echo),
        vec![told(retrying())],
    )
    .await;
    for _ in 0..10 {
        assert_eq!(ask(&world).await.status(), 200);
    }
    assert!(broken.get() <= 10);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_cannot_be_reached_costs_nobody_a_request() {
    let count = Count::default();
    let world = two(statuses(&count, &[200]), statuses(&count, &[200]), vec![]).await;
    world.pipes.silence("10.0.0.7:15008");
    for _ in 0..6 {
        let response = world.http1("client").await.send_request(post(9)).await.unwrap();
        assert_eq!(response.status(), 200, "also with a body: no byte of it was sent");
    }
    assert_eq!(count.get(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_again_up_to_the_limit() {
    let count = Count::default();
    let world = one(statuses(&count, &[503, 200]), vec![told(retrying())]).await;
    let mut client = world.http1("client").await;
    assert_eq!(client.send_request(post(60_000)).await.unwrap().status(), 200);
    assert_eq!(count.get(), 2);
    let count = Count::default();
    let world = one(statuses(&count, &[503, 200]), vec![told(retrying())]).await;
    let mut client = world.http1("client").await;
    assert_eq!(client.send_request(post(70_000)).await.unwrap().status(), 503);
    assert_eq!(count.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_when_its_time_is_over() {
    let count = Count::default();
    let timeouts = Timeouts {
        request: Some(Duration::from_secs(2)),
        backend_request: None,
    };
    let world = one(
        never(&count),
        vec![told(Route {
            timeouts,
            ..retrying()
        })],
    )
    .await;
    let start = tokio::time::Instant::now();
    let response = ask(&world).await;
    assert_eq!(response.status(), 504);
    assert!(
        reason(&response).starts_with("T0609; request_timeout"),
        "{response:?}"
    );
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(count.get(), 1, "there was no time for another try");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_takes_too_long_is_made_again() {
    let count = Count::default();
    let counted = count.clone();
    let slow_once = application(move |request| {
        let nth = counted.next();
        async move {
            if nth == 1 {
                std::future::pending::<()>().await;
            }
            echo(request).await
        }
    });
    let timeouts = Timeouts {
        request: None,
        backend_request: Some(Duration::from_secs(1)),
    };
    let world = one(
        slow_once,
        vec![told(Route {
            timeouts,
            ..retrying()
        })],
    )
    .await;
    assert_eq!(ask(&world).await.status(), 200);
    assert_eq!(count.get(), 2);
    let response = world.http1("client").await.send_request(post(1)).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn tries_that_all_take_too_long_end_with_504() {
    let count = Count::default();
    let timeouts = Timeouts {
        request: None,
        backend_request: Some(Duration::from_secs(1)),
    };
    let world = one(
        never(&count),
        vec![told(Route {
            timeouts,
            ..retrying()
        })],
    )
    .await;
    let response = ask(&world).await;
    assert_eq!(response.status(), 504);
    assert!(
        reason(&response).starts_with("T0610; backend_timeout"),
        "{response:?}"
    );
    assert_eq!(count.get(), 3);
    let response = world.http1("client").await.send_request(post(1)).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), count.get()),
        (504, 4),
        "a POST is not repeated"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_in_time_is_broken_off() {
    let endless = application(|_| async {
        let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
        let rest = futures_util::stream::pending();
        let stream = futures_util::StreamExt::chain(first, rest);
        Response::new(BodyExt::boxed(StreamBody::new(stream)))
    });
    let timeouts = Timeouts {
        request: Some(Duration::from_secs(3)),
        backend_request: None,
    };
    let world = one(endless, vec![told(Route { timeouts, ..rule() })]).await;
    let start = tokio::time::Instant::now();
    let response = ask(&world).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "never a clean end");
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_says_when_it_wants_to_be_asked_again() {
    let count = Count::default();
    let counted = count.clone();
    let busy = application(move |_| {
        let nth = counted.next();
        async move {
            let mut answer = status(if nth == 1 { 503 } else { 200 });
            answer.headers_mut().insert("retry-after", "4".parse().unwrap());
            answer
        }
    });
    let world = one(busy, vec![told(retrying())]).await;
    let start = tokio::time::Instant::now();
    assert_eq!(ask(&world).await.status(), 200);
    assert_eq!(start.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_their_budget() {
    let count = Count::default();
    let budget = Concern::RetryBudget(RetryBudget {
        percent: Some(0),
        interval: Some(Duration::from_secs(10)),
        per_second_min: Some(0),
    });
    let world = one(statuses(&count, &[503]), vec![told(retrying()), policy(budget)]).await;
    let response = ask(&world).await;
    assert!(
        reason(&response).starts_with("T0607; retry_budget_spent"),
        "{response:?}"
    );
    assert_eq!(count.get(), 1, "no further hit");
}

#[tokio::test(start_paused = true)]
async fn a_full_backend_refuses_at_once() {
    let count = Count::default();
    let circuit = Concern::Circuit(CircuitBreaker {
        requests: Some(1),
        ..CircuitBreaker::default()
    });
    let world = one(never(&count), vec![policy(circuit)]).await;
    let mut first = world.http1("client").await;
    let mut waits = Box::pin(first.send_request(get("/")));
    let arrived = async {
        while count.get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut waits => panic!("nobody answers"),
        () = arrived => {}
    }
    let response = ask(&world).await;
    assert_eq!(response.status(), 503);
    assert!(reason(&response).starts_with("T0613; overflow"), "{response:?}");
    assert_eq!(response.headers()["x-envoy-overloaded"], "true");
    drop(waits);
}

#[tokio::test(start_paused = true)]
async fn a_failing_endpoint_is_left_out_and_comes_back() {
    let (broken, well) = (Count::default(), Count::default());
    let outlier = Concern::Outlier(Outlier {
        consecutive: Some(2),
        percent_max: Some(100),
        ..Outlier::default()
    });
    // In turn, so that who is asked next is no chance.
    let in_turn = Concern::LoadBalancing(LoadBalancing {
        algorithm: Some(Algorithm::RoundRobin),
        ..LoadBalancing::default()
    });
    let updates = vec![policy(outlier), policy(in_turn)];
    let recovers = statuses(&broken, &[500, 500, 200]);
    let world = two(recovers, statuses(&well, &[200]), updates).await;
    let mut failed = 0;
    for _ in 0..4 {
        failed += u32::from(ask(&world).await.status() == 500);
    }
    assert_eq!((failed, broken.get()), (2, 2));
    for _ in 0..10 {
        assert_eq!(ask(&world).await.status(), 200);
    }
    assert_eq!(broken.get(), 2, "nobody goes to who is out");
    tokio::time::advance(Duration::from_secs(40)).await;
    assert_eq!(ask(&world).await.status(), 200);
    assert_eq!(broken.get(), 3, "the first request after its time is the probe");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_a_session_stays_with_its_endpoint() {
    let session = Some(Session {
        by: SessionBy::Cookie {
            name: "".into(),
            path: "".into(),
        },
        absolute: None,
        idle: None,
        permanent: false,
    });
    let name = |name: &'static str| application(move |_| async move { text(name) });
    let world = two(name("one"), name("two"), vec![told(Route { session, ..rule() })]).await;
    let response = ask(&world).await;
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let first = body(response).await;
    for _ in 0..12 {
        let mut request = get("/");
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        let response = world.http1("client").await.send_request(request).await.unwrap();
        assert!(!response.headers().contains_key("set-cookie"));
        assert_eq!(body(response).await, first);
    }
}

/// A server of gRPC that ends its calls with these statuses in the trailers, without a message.
fn calls(count: &Count, all: &'static [&'static str]) -> Application {
    let count = count.clone();
    application(move |_| {
        let nth = count.next() as usize;
        async move {
            let status = all[(nth - 1).min(all.len() - 1)];
            let trailers =
                http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
            let frames = futures_util::stream::iter([Ok(Frame::trailers(trailers))]);
            let mut answer = Response::new(BodyExt::boxed(StreamBody::new(frames)));
            answer
                .headers_mut()
                .insert("content-type", "application/grpc".parse().unwrap());
            answer
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_status_of_grpc_in_the_trailers_is_tried_again() {
    let count = Count::default();
    let world = World::web_with(AppProtocol::Grpc, calls(&count, &["14", "0"])).await;
    world.apply(vec![told(retrying())]).await;
    let request = Request::post("http://web.shop/a.B/C")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(Full::default())
        .unwrap();
    let response = world.http2("client").await.send_request(request).await.unwrap();
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(count.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_with_the_callers_deadline_and_the_server_is_told_of_it() {
    let count = Count::default();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let counted = count.clone();
    let silent = application(move |request: Request<Incoming>| {
        counted.next();
        let _ = told.send(request.headers()["grpc-timeout"].clone());
        std::future::pending()
    });
    let world = World::web_with(AppProtocol::Grpc, silent).await;
    let request = Request::post("http://web.shop/a.B/C")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "2S")
        .body(Full::default())
        .unwrap();
    let start = tokio::time::Instant::now();
    let response = world.http2("client").await.send_request(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(start.elapsed().as_secs(), 2);
    let left = heard.recv().await.unwrap();
    assert!(
        left.to_str().unwrap().ends_with(['u', 'n']),
        "{left:?}: what is left of two seconds"
    );
}

/// Serves one connection of HTTP/2 with 200 to everything.
async fn serve_http2(stream: HboneStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        respond.send_response(Response::new(()), true).unwrap();
    }
}

fn post_over_http2() -> Request<Full<Bytes>> {
    Request::post("http://web.shop/a")
        .body(Full::from("body"))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_refused_is_tried_again_whatever_its_method() {
    let (world, mut streams) = World::raw(AppProtocol::Http2).await;
    drop(tasks::spawn("endpoint", async move {
        let mut connection = h2::server::handshake(streams.recv().await.unwrap())
            .await
            .unwrap();
        let mut count = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            count += 1;
            if count == 1 {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                respond.send_response(Response::new(()), true).unwrap();
            }
        }
    }));
    let mut client = world.http2("client").await;
    let answer = client.send_request(post_over_http2()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        world.metric("tulle_waypoint_retries_total{outcome=\"made\"}"),
        1.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_reset_may_have_been_processed() {
    let (world, mut streams) = World::raw(AppProtocol::Http2).await;
    drop(tasks::spawn("endpoint", async move {
        let mut connection = h2::server::handshake(streams.recv().await.unwrap())
            .await
            .unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }));
    let mut client = world.http2("client").await;
    let answer = client.send_request(post_over_http2()).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        world.metric("tulle_waypoint_retries_total{outcome=\"made\"}"),
        0.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_above_the_last_of_a_goaway_is_tried_again() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// NO_ERROR, and no stream was processed.
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (world, mut streams) = World::raw(AppProtocol::Http2).await;
    drop(tasks::spawn("endpoint", async move {
        let mut leaving = streams.recv().await.unwrap();
        leaving.write_all(&SETTINGS).await.unwrap();
        // The request is on its way once more has arrived than preface and settings.
        let (mut seen, mut piece) = (0, [0; 4096]);
        while seen < 150 {
            seen += leaving.read(&mut piece).await.unwrap();
        }
        leaving.write_all(&GOAWAY).await.unwrap();
        serve_http2(streams.recv().await.unwrap()).await;
    }));
    let mut client = world.http2("client").await;
    let answer = client.send_request(post_over_http2()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        world.metric("tulle_waypoint_retries_total{outcome=\"made\"}"),
        1.0
    );
}
