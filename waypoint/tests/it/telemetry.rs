//! What is counted and told of requests and streams.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tulle_model::MeshUpdate;
use tulle_model::filter::{Filter, Mirror};
use tulle_model::policy::Concern;
use tulle_model::policy::traffic::Fault;
use tulle_model::route::{Backend, BackendTo, Retry, Route};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, service, service_key, workload};
use tulle_model::waypoint::{AccessLog, Provider, ProviderKind, Target as To, Telemetry, Waypoint as Told};
use tulle_proto::otlp::trace::{Span, Traces};
use tulle_runtime::telemetry::{LogFormat, LogHandle, to_sink};
use tulle_transport::hbone::ConnectRequest;

use super::world::{
    Application, World, application, body, echo, front, get, identity, settings, text, told_policy, web,
};

const WEB: &str = "shop/web.shop.svc.cluster.local";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

impl World {
    /// The lines of a family whose labels are these.
    pub(crate) fn series(&self, family: &str, labels: &[&str]) -> Vec<(String, f64)> {
        let text = self.registry.encode();
        let start = format!("{family}{{");
        let lines = text.lines().filter(|line| line.starts_with(&start));
        lines
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| (line.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap()))
            .collect()
    }

    pub(crate) fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        self.series(family, labels).iter().map(|(_, value)| value).sum()
    }

    /// Waits until so many are counted in all, which is when their answers have been dropped.
    pub(crate) async fn counted(&self, family: &str, number: f64) {
        for _ in 0..10_000 {
            if self.sum(family, &[]) >= number {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{family} stays below {number}:\n{}", self.registry.encode());
    }
}

/// Answers with these statuses, the last one again and again.
fn statuses(all: &'static [u16]) -> Application {
    let asked = Arc::new(AtomicUsize::new(0));
    application(move |request: Request<Incoming>| {
        let nth = asked.fetch_add(1, Ordering::Relaxed).min(all.len() - 1);
        async move {
            let _ = request.into_body().collect().await;
            let mut answer = text("four");
            *answer.status_mut() = all[nth].try_into().unwrap();
            answer
        }
    })
}

fn rule() -> Route {
    http_route("shop/web").under(WEB).to(WEB, 80, 1)
}

async fn retrying(all: &'static [u16]) -> World {
    let world = World::web_with(AppProtocol::Http11, statuses(all)).await;
    let route = Route {
        retry: Some(Retry {
            codes: vec![503],
            ..Retry::default()
        }),
        ..rule()
    };
    world.apply(vec![MeshUpdate::Route(Arc::new(route))]).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_once_whatever_its_tries() {
    let world = retrying(&[503, 200]).await;
    let request = Request::post("/a")
        .header("host", "web.shop")
        .body(Full::from("hello"))
        .unwrap();
    let answer = world.http1("client").await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(body(answer).await, "four");
    world.counted("istio_requests_total", 1.0).await;
    let all = world.series("istio_requests_total", &[]);
    assert_eq!(all.len(), 1, "{all:?}");
    for label in [
        "reporter=\"waypoint\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "source_workload_namespace=\"shop\"",
        "destination_workload=\"web-1\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(all[0].0.contains(label), "{label}: {all:?}");
    }
    assert_eq!(all[0].1, 1.0, "{all:?}");
    assert_eq!(world.sum("istio_request_duration_milliseconds_count", &[]), 1.0);
    assert_eq!(
        world.sum("istio_request_bytes_sum", &[]),
        5.0,
        "the body came once"
    );
    assert_eq!(world.sum("istio_response_bytes_sum", &[]), 4.0);
}

#[tokio::test(start_paused = true)]
async fn tries_that_all_fail_are_flagged() {
    let world = retrying(&[503]).await;
    let answer = world.http1("client").await.send_request(get("/")).await.unwrap();
    body(answer).await;
    world.counted("istio_requests_total", 1.0).await;
    let labels = ["response_code=\"503\"", "response_flags=\"URX\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_local_reply_counts_with_the_flag_of_its_reason() {
    let world = World::web().await;
    world.pipes.silence("10.0.0.7:15008");
    let mut client = world.http1("client").await;
    body(client.send_request(get("/")).await.unwrap()).await;
    world.counted("istio_requests_total", 1.0).await;
    let labels = ["response_code=\"503\"", "response_flags=\"UF\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
    let none = MeshUpdate::Route(Arc::new(
        http_route("shop/web")
            .on(tulle_model::testing::exact("/a"))
            .under(WEB),
    ));
    world.apply(vec![none]).await;
    body(client.send_request(get("/b")).await.unwrap()).await;
    world.counted("istio_requests_total", 2.0).await;
    let labels = [
        "destination_workload=\"unknown\"",
        "destination_service_name=\"web\"",
        "response_code=\"404\"",
        "response_flags=\"NR\"",
        "connection_security_policy=\"none\"",
    ];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_counts_without_a_status() {
    let (asked, mut arrived) = mpsc::channel(1);
    let silent = application(move |_| {
        let asked = asked.clone();
        async move {
            asked.send(()).await.unwrap();
            std::future::pending().await
        }
    });
    let world = World::web_with(AppProtocol::Http11, silent).await;
    let mut client = world.http2("client").await;
    let request = Request::get("http://web.shop/").body(Full::default()).unwrap();
    tokio::select! {
        _ = client.send_request(request) => panic!("nobody answers"),
        _ = arrived.recv() => {}
    }
    drop(client);
    world.counted("istio_requests_total", 1.0).await;
    let labels = ["response_code=\"0\"", "response_flags=\"DC\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
}

#[tokio::test]
async fn a_copy_is_no_request() {
    let world = World::web().await;
    let to = || BackendTo::Service {
        service: service_key("shop/web"),
        port: 80,
    };
    let mirror = Filter::Mirror(Mirror {
        backend: Backend {
            to: to(),
            weight: 1,
            filters: Vec::new(),
        },
        numerator: 1,
        denominator: 1,
    });
    let route = Route {
        filters: vec![mirror],
        ..rule()
    };
    world.apply(vec![MeshUpdate::Route(Arc::new(route))]).await;
    let answer = world.http1("client").await.send_request(get("/")).await.unwrap();
    body(answer).await;
    while world.metric("tulle_waypoint_mirror_total{outcome=\"sent\"}") < 1.0 {
        tokio::task::yield_now().await;
    }
    world.counted("istio_requests_total", 1.0).await;
    assert_eq!(world.sum("istio_requests_total", &[]), 1.0);
}

#[tokio::test(start_paused = true)]
async fn messages_of_calls_are_counted_in_both_directions() {
    let answering = application(|request: Request<Incoming>| async {
        let _ = request.into_body().collect().await;
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static("5"),
        )]);
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"\0\0\0\0\x02ab"))),
            Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))),
            Ok(Frame::trailers(trailers)),
        ];
        let frames = futures_util::stream::iter(frames);
        Response::new(StreamBody::new(frames).boxed())
    });
    let world = World::web_with(AppProtocol::Grpc, answering).await;
    let call = Request::post("http://web.shop/shop.Items/Get")
        .header("content-type", "application/grpc")
        .body(Full::from(&b"\0\0\0\0\x01x"[..]))
        .unwrap();
    let answer = world.http2("client").await.send_request(call).await.unwrap();
    let _ = answer.into_body().collect().await.unwrap();
    world.counted("istio_requests_total", 1.0).await;
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"5\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
    assert_eq!(world.sum("istio_request_messages_total", &labels), 1.0);
    assert_eq!(world.sum("istio_response_messages_total", &labels), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_counts_its_beginning_its_bytes_and_its_end() {
    let world = World::start(vec![
        web(AppProtocol::Tcp),
        workload("shop/web-1")
            .sa("web")
            .ip("10.0.0.7")
            .hbone()
            .serves("shop/web")
            .into(),
        front("shop/web", |_| {}),
    ])
    .await;
    let mut streams = world.endpoint("10.0.0.7", "web");
    let mut client = world.ask("client", "10.96.0.1:80").await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut server = streams.recv().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(b"hi").await.unwrap();
    let mut heard = [0; 2];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[]), 1.0);
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &[]), 0.0);
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(
        world.sum("istio_tcp_received_bytes_total", &[]),
        5.0,
        "also while it is open"
    );
    server.write_all(b"bye").await.unwrap();
    server.shutdown().await.unwrap();
    client.shutdown().await.unwrap();
    world.counted("istio_tcp_connections_closed_total", 1.0).await;
    let labels = [
        "destination_workload=\"web-1\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
    ];
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &labels), 1.0);
    assert_eq!(world.sum("istio_tcp_received_bytes_total", &labels), 5.0);
    assert_eq!(world.sum("istio_tcp_sent_bytes_total", &labels), 5.0);
    assert_eq!(world.sum("istio_requests_total", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_reaches_nobody_begins_and_ends_with_its_flag() {
    let world = World::start(vec![web(AppProtocol::Tcp), front("shop/web", |_| {})]).await;
    let tunnel = world.tunnel(&identity("client")).await.unwrap();
    // The answer to CONNECT and the reset race each other.
    let _opened = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await;
    world.counted("istio_tcp_connections_closed_total", 1.0).await;
    let labels = ["destination_service_name=\"web\"", "response_flags=\"UH\""];
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &labels), 1.0);
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &labels), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_series_that_nothing_touches_is_dropped() {
    let world = World::web().await;
    body(world.http1("client").await.send_request(get("/")).await.unwrap()).await;
    world.counted("istio_requests_total", 1.0).await;
    tokio::time::sleep(Duration::from_secs(17 * 60)).await;
    assert!(world.series("istio_requests_total", &[]).is_empty());
}

/// Where lines go.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A log of access lines alone.
pub(crate) struct Log {
    sink: Sink,
    pub(crate) handle: LogHandle,
    _guard: tracing::dispatcher::DefaultGuard,
}

impl Log {
    pub(crate) fn new() -> Self {
        let sink = Sink::default();
        let (dispatch, handle) = to_sink(LogFormat::Text, "off,access=info", sink.clone()).unwrap();
        Self {
            sink,
            handle,
            _guard: tracing::dispatcher::set_default(&dispatch),
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.handle.flush();
        let text = String::from_utf8(self.sink.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// A world whose settings want these lines.
    pub(crate) async fn world(&self, access_log: AccessLog, json: bool) -> World {
        let mut settings = settings();
        settings.telemetry = Telemetry {
            access_log,
            json,
            ..Telemetry::default()
        };
        let updates = vec![
            MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings)))),
            web(AppProtocol::Http11),
            workload("shop/web-1")
                .sa("web")
                .ip("10.0.0.7")
                .hbone()
                .serves("shop/web")
                .into(),
            front("shop/web", |_| {}),
        ];
        let world = World::logging(updates, Some(self.handle.clone())).await;
        world.serve("10.0.0.7", "web", application(echo));
        world
    }
}

fn denied() -> MeshUpdate {
    policy("deny", Concern::DenyAll("not readable".into()))
}

fn policy(name: &str, concern: Concern) -> MeshUpdate {
    told_policy(name, concern)
}

#[tokio::test(start_paused = true)]
async fn the_line_of_a_denied_request_says_why_and_by_whom() {
    let log = Log::new();
    let world = log.world(AccessLog::Errors, true).await;
    let mut client = world.http1("client").await;
    body(client.send_request(get("/fine")).await.unwrap()).await;
    world.counted("istio_requests_total", 1.0).await;
    assert_eq!(log.lines(), Vec::<String>::new(), "nothing is wrong with it");
    world.apply(vec![denied()]).await;
    let mut request = get("/secret?a=b");
    let fields = request.headers_mut();
    fields.insert("x-request-id", "r1".parse().unwrap());
    fields.insert("traceparent", TRACEPARENT.parse().unwrap());
    body(client.send_request(request).await.unwrap()).await;
    world.counted("istio_requests_total", 2.0).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["response_code"], 403);
    assert_eq!(line["path"], "/secret?a=b");
    assert_eq!(line["authority"], "web.shop");
    assert!(line["reason"].as_str().unwrap().starts_with('T'), "{line}");
    assert_eq!(line["response_code_details"], "policy_untranslatable", "{line}");
    assert!(line["policy"].as_str().unwrap().contains("deny"), "{line}");
    assert_eq!((&line["id"], &line["request_id"]), (&"r1".into(), &"r1".into()));
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(line["attempts"], 0);
    assert_eq!(
        line["source_principal"],
        "spiffe://cluster.local/ns/shop/sa/client"
    );
    assert!(line["generation"].as_u64().unwrap() > 0, "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_held_back_on_purpose_is_flagged() {
    let log = Log::new();
    let world = log.world(AccessLog::Errors, true).await;
    let fault = Fault {
        delay: Some(Duration::from_secs(3)),
        delay_ppm: 1_000_000,
        ..Fault::default()
    };
    world.apply(vec![policy("slow", Concern::Fault(fault))]).await;
    let answer = world.http1("client").await.send_request(get("/")).await.unwrap();
    assert_eq!(answer.status(), 200);
    body(answer).await;
    world.counted("istio_requests_total", 1.0).await;
    let labels = ["response_code=\"200\"", "response_flags=\"DI\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
    let line: serde_json::Value = serde_json::from_str(&log.lines()[0]).unwrap();
    assert_eq!(line["response_code_details"], "fault_delay");
    assert!(line["duration"].as_u64().unwrap() >= 3_000, "{line}");
}

#[tokio::test(start_paused = true)]
async fn with_all_each_request_has_a_line_of_text() {
    let log = Log::new();
    let world = log.world(AccessLog::All, false).await;
    body(
        world
            .http1("client")
            .await
            .send_request(get("/fine"))
            .await
            .unwrap(),
    )
    .await;
    world.counted("istio_requests_total", 1.0).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [
        " method=GET path=/fine protocol=HTTP/1.1 response_code=200 ",
        " upstream_host=10.0.0.7:8080 upstream_cluster=web.shop.svc.cluster.local:80 ",
        " reason=- policy=- ",
        " attempts=1 ",
    ] {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_access_lines_there_are_none() {
    let log = Log::new();
    let world = log.world(AccessLog::Off, false).await;
    world.apply(vec![denied()]).await;
    body(world.http1("client").await.send_request(get("/")).await.unwrap()).await;
    world.counted("istio_requests_total", 1.0).await;
    assert_eq!(log.lines(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_trace_of_a_client_is_passed_on() {
    let world = World::web().await;
    let mut client = world.http1("client").await;
    for (name, value) in [
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=1"),
        ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
        ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
    ] {
        let mut request = get("/");
        request.headers_mut().insert(name, value.parse().unwrap());
        let seen = body(client.send_request(request).await.unwrap()).await;
        assert!(seen.contains(&format!("{name}: {value}\n")), "{seen}");
    }
}

/// Bodies of the calls that a collector gets, of a waypoint with these settings.
pub(crate) async fn collected(world: &World, telemetry: Telemetry) -> UnboundedReceiver<Bytes> {
    let (sender, messages) = mpsc::unbounded_channel();
    let collector = application(move |request: Request<Incoming>| {
        let sender = sender.clone();
        async move {
            assert_eq!(
                request.uri().path(),
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
            );
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            sender.send(bytes).unwrap();
            let mut answer = text("");
            answer.headers_mut().insert("grpc-status", "0".parse().unwrap());
            answer
        }
    });
    let mut settings = settings();
    settings.telemetry = Telemetry {
        tracing: Some("otel".into()),
        ..telemetry
    };
    settings.providers = vec![Provider {
        name: "otel".into(),
        kind: ProviderKind::Tracing(To {
            service: service_key("shop/otel"),
            port: 4317,
        }),
    }];
    world.serve("10.0.0.8", "otel", collector);
    let otel = service("shop/otel").vip("10.96.0.3").port(4317, 4317).build();
    let pod = workload("shop/otel-1").sa("otel").ip("10.0.0.8").hbone();
    world
        .apply(vec![
            MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings)))),
            MeshUpdate::Service(Arc::new(otel)),
            pod.serves("shop/otel").into(),
        ])
        .await;
    messages
}

/// The spans of a call.
pub(crate) fn spans_of(bytes: &[u8]) -> Vec<Span> {
    let traces = Traces::decode(&bytes[5..]).unwrap();
    let scopes = traces.resource_spans.into_iter().flat_map(|one| one.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

#[tokio::test(start_paused = true)]
async fn a_collector_gets_the_span_of_a_request_and_of_each_try() {
    let world = World::web().await;
    let mut messages = collected(&world, Telemetry::default()).await;
    let mut request = get("/");
    request
        .headers_mut()
        .insert("traceparent", TRACEPARENT.parse().unwrap());
    let mut client = world.http1("client").await;
    let seen = body(client.send_request(request).await.unwrap()).await;
    let mut spans = Vec::new();
    while spans.len() < 2 {
        spans.extend(spans_of(&messages.recv().await.unwrap()));
    }
    let [attempt, request] = &spans[..] else {
        panic!("two spans: {spans:?}")
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(attempt.parent_span_id, request.span_id);
    let told = format!("00-{}-{}-01", hex(&attempt.trace_id), hex(&attempt.span_id));
    assert!(
        seen.contains(&format!("traceparent: {told}\n")),
        "the endpoint is a child of the try: {seen}"
    );
}
