//! Who else is asked about a request, through a whole waypoint: external authorizers, and services that count.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message;
use tulle_model::MeshUpdate;
use tulle_model::filter::{Ask, ExtAuthz};
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::traffic::{Algorithm, Descriptor, Entry, GlobalRateLimit, Key, LoadBalancing};
use tulle_model::policy::{Concern, On};
use tulle_model::route::{Backend, BackendTo};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{service, service_key, workload};
use tulle_model::waypoint::{Provider, ProviderKind, Target as ServicePort, Waypoint as Told};
use tulle_proto::ext_authz::check_response::HttpResponse;
use tulle_proto::ext_authz::{CheckRequest, CheckResponse, HeaderValueOption, OkHttpResponse};
use tulle_proto::rate_limit::{RateLimitRequest, RateLimitResponse};
use tulle_waypoint::admin::explain::{Question, explain};

use super::policies::{authz, helper, status, to};
use super::resilience::{Count, retrying, statuses, told};
use super::world::{Answer, World, application, body, get, identity, policy_on, settings, told_policy};

pub(crate) fn backend(name: &str) -> Backend {
    Backend {
        to: BackendTo::Service {
            service: service_key(&format!("shop/{name}")),
            port: 80,
        },
        weight: 1,
        filters: vec![],
    }
}

/// One message of gRPC, and a good end.
fn grpc(message: &impl Message) -> Answer {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    bytes.extend(message.encode_to_vec());
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let frames = [Frame::data(Bytes::from(bytes)), Frame::trailers(trailers)];
    let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
    let mut response = Response::new(StreamBody::new(frames).boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

async fn asked<M: Message + Default>(request: Request<Incoming>) -> M {
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    M::decode(&bytes[5..]).unwrap()
}

pub(crate) fn asks(ask: Ask) -> ExtAuthz {
    ExtAuthz {
        ask,
        headers: vec![],
        response_headers: vec![],
        body_bytes_max: 8,
        allow_partial: false,
        timeout: None,
        fail_open: false,
        status_on_error: None,
    }
}

pub(crate) fn provider(name: &str, kind: ProviderKind) -> MeshUpdate {
    let mut settings = settings();
    settings.providers = vec![Provider {
        name: name.into(),
        kind,
    }];
    MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(settings))))
}

/// Makes `shop/judge` known as the provider `judge`.
fn judge_known() -> MeshUpdate {
    let judge = asks(Ask::Grpc(backend("judge")));
    provider("judge", ProviderKind::ExtAuthz(Box::new(judge)))
}

/// The service `shop/judge`, which lets pass what asks for `/admin/good` and keeps its questions.
async fn judge(world: &World, questions: &Arc<Mutex<Vec<CheckRequest>>>) {
    helper(world, "judge", judging(questions)).await;
}

/// What lets pass what asks for `/admin/good` and keeps its questions.
pub(crate) fn judging(
    questions: &Arc<Mutex<Vec<CheckRequest>>>,
) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync + 'static {
    let keep = Arc::clone(questions);
    move |request| {
        let keep = Arc::clone(&keep);
        async move {
            let question: CheckRequest = asked(request).await;
            let http = question
                .attributes
                .clone()
                .unwrap()
                .request
                .unwrap()
                .http
                .unwrap();
            keep.lock().push(question);
            let is_good = http.path == "/admin/good";
            let user = HeaderValueOption {
                header: Some(tulle_proto::ext_authz::HeaderValue {
                    key: "x-judged".into(),
                    value: "yes".into(),
                    raw_value: vec![],
                }),
                append: None,
                append_action: 0,
            };
            let ok = OkHttpResponse {
                headers: vec![user],
                ..OkHttpResponse::default()
            };
            grpc(&CheckResponse {
                status: Some(tulle_proto::rpc_status::Status {
                    code: if is_good { 0 } else { 7 },
                    ..Default::default()
                }),
                http_response: is_good.then_some(HttpResponse::OkResponse(ok)),
            })
        }
        .boxed()
    }
}

/// The service `shop/judge` outside of the mesh, where it stands for `judge.example` at these addresses.
async fn judge_outside(world: &World, addresses: &[&str]) {
    let mut judge = workload("shop/judge-1").serves("shop/judge").build();
    judge.addresses.clear();
    judge.hostname = "judge.example".into();
    let service = service("shop/judge").vip("10.96.0.9").port(80, 8080);
    world
        .apply(vec![service.into(), MeshUpdate::Workload(Arc::new(judge))])
        .await;
    let addresses = addresses.iter().map(|one| one.parse().unwrap()).collect();
    let mut names = world.pipes.names.lock();
    names.insert("judge.example".to_owned(), addresses);
}

#[tokio::test(start_paused = true)]
async fn an_authorizer_outside_of_the_mesh_is_asked_at_the_addresses_of_its_name() {
    for (addresses, expect) in [
        (&["203.0.113.1", "203.0.113.2", "203.0.113.3"][..], 200),
        // Three are tried, no more; and nobody is sent where nobody may be sent.
        (&["203.0.113.1", "203.0.113.2", "203.0.113.4", "203.0.113.3"], 403),
        (&["127.0.0.1"], 403),
    ] {
        let world = World::web().await;
        let questions: Arc<Mutex<Vec<CheckRequest>>> = Arc::default();
        for at in ["203.0.113.3:8080", "127.0.0.1:8080"] {
            world.serve_outside(at, application(judging(&questions)));
        }
        judge_outside(&world, addresses).await;
        world.apply(vec![judge_known()]).await;
        let custom = authz(Action::Custom, vec![Rule::default()]);
        world.apply(vec![told_policy("ask", custom)]).await;
        let got = status(&world, "client", get("/admin/good")).await;
        assert_eq!(got, expect, "{addresses:?}");
        assert_eq!(
            questions.lock().len(),
            usize::from(expect == 200),
            "{addresses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_are_asked_take_turns_by_the_policy_of_their_service() {
    let world = World::web().await;
    let questions = [(); 2].map(|()| Arc::<Mutex<Vec<CheckRequest>>>::default());
    let turns = LoadBalancing {
        algorithm: Some(Algorithm::RoundRobin),
        ..LoadBalancing::default()
    };
    let on = On::Service(service_key("shop/judge"));
    let turns = policy_on("turns", on, Concern::LoadBalancing(turns));
    judge(&world, &questions[0]).await;
    let second = workload("shop/judge-2").sa("judge").ip("10.0.0.18").hbone();
    world
        .apply(vec![
            second.serves("shop/judge").into(),
            MeshUpdate::WaypointPolicy(Arc::new(turns)),
        ])
        .await;
    world.serve("10.0.0.18", "judge", application(judging(&questions[1])));
    world.apply(vec![judge_known()]).await;
    let custom = authz(Action::Custom, vec![Rule::default()]);
    world.apply(vec![told_policy("ask", custom)]).await;
    for _ in 0..4 {
        assert_eq!(status(&world, "client", get("/admin/good")).await, 200);
    }
    assert_eq!(questions.map(|one| one.lock().len()), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_authorizer_of_the_mesh_decides_where_a_custom_policy_matches() {
    let world = World::web().await;
    let questions: Arc<Mutex<Vec<CheckRequest>>> = Arc::default();
    judge(&world, &questions).await;
    let custom = authz(Action::Custom, vec![to("GET", "/admin/"), to("POST", "/admin/")]);
    world.apply(vec![judge_known()]).await;
    world.apply(vec![told_policy("ask", custom)]).await;
    let mut client = world.http1("client").await;
    let passed = client.send_request(get("/admin/good")).await.unwrap();
    assert_eq!(passed.status(), 200);
    assert!(body(passed).await.contains("x-judged: yes\n"));
    assert_eq!(status(&world, "client", get("/admin/bad")).await, 403);
    assert_eq!(
        status(&world, "client", get("/other")).await,
        200,
        "nobody is asked about that"
    );
    let post = |text: &'static str| {
        let body = Full::new(Bytes::from_static(text.as_bytes()));
        Request::post("/admin/good")
            .header("host", "web.shop")
            .body(body)
            .unwrap()
    };
    let passed = client.send_request(post("tiny")).await.unwrap();
    assert!(
        body(passed).await.ends_with("\n\ntiny"),
        "what was read still goes on"
    );
    assert_eq!(status(&world, "client", post("far too long")).await, 413);
    let first = questions.lock()[0].attributes.clone().unwrap();
    assert_eq!(
        first.source.unwrap().principal,
        "spiffe://cluster.local/ns/shop/sa/client"
    );
}

#[tokio::test(start_paused = true)]
async fn without_its_authorizer_nobody_passes() {
    let world = World::web().await;
    world
        .apply(vec![told_policy(
            "ask",
            authz(Action::Custom, vec![Rule::default()]),
        )])
        .await;
    assert_eq!(
        status(&world, "client", get("/")).await,
        403,
        "the provider is not known"
    );
    world.apply(vec![judge_known()]).await;
    assert_eq!(status(&world, "client", get("/")).await, 403, "nobody serves it");
}

/// Has `shop/counter` count every request by this key, which is asked for so long.
pub(crate) async fn count_by(world: &World, key: Key, timeout: Duration) {
    let entry = Entry {
        name: "key".into(),
        key,
    };
    let limit = GlobalRateLimit {
        provider: "counter".into(),
        domain: "shop".into(),
        descriptors: vec![Descriptor { entries: vec![entry] }],
        timeout: Some(timeout),
        fail_open: false,
    };
    let counter = ProviderKind::RateLimit(ServicePort {
        service: service_key("shop/counter"),
        port: 80,
    });
    world.apply(vec![provider("counter", counter)]).await;
    let count = told_policy("count", Concern::GlobalRateLimit(limit));
    world.apply(vec![count]).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_of_the_mesh_counts_for_all_replicas() {
    let world = World::web().await;
    helper(&world, "counter", |request| async move {
        let question: RateLimitRequest = asked(request).await;
        let over = question.descriptors[0].entries[0].value == "heavy";
        grpc(&RateLimitResponse {
            overall_code: if over { 2 } else { 1 },
            ..RateLimitResponse::default()
        })
    })
    .await;
    count_by(&world, Key::Header("x-user".into()), Duration::from_secs(5)).await;
    let user = |name: &str| {
        let request = Request::get("/")
            .header("host", "web.shop")
            .header("x-user", name);
        request.body(Full::default()).unwrap()
    };
    assert_eq!(status(&world, "client", user("light")).await, 200);
    assert_eq!(status(&world, "client", user("heavy")).await, 429);
    assert_eq!(
        status(&world, "client", get("/")).await,
        200,
        "nothing to count, nobody asked"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_tried_again_is_asked_about_once() {
    let count = Count::default();
    let world = World::web_with(AppProtocol::Http11, statuses(&count, &[503, 503, 200])).await;
    let questions: Arc<Mutex<Vec<CheckRequest>>> = Arc::default();
    judge(&world, &questions).await;
    world.apply(vec![judge_known()]).await;
    let custom = authz(Action::Custom, vec![to("GET", "/admin/")]);
    world
        .apply(vec![told_policy("ask", custom), told(retrying())])
        .await;
    assert_eq!(status(&world, "client", get("/admin/good")).await, 200);
    assert_eq!((count.get(), questions.lock().len()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_and_who_counts_is_explained() {
    let world = World::web().await;
    world.apply(vec![judge_known()]).await;
    let limit = GlobalRateLimit {
        provider: "counter".into(),
        ..GlobalRateLimit::default()
    };
    world
        .apply(vec![
            told_policy("ask", authz(Action::Custom, vec![to("GET", "/admin/")])),
            told_policy("count", Concern::GlobalRateLimit(limit)),
        ])
        .await;
    let explained = |path: &str| Question {
        source: identity("client"),
        source_ip: [10, 0, 0, 1].into(),
        authority: "10.96.0.1:80".to_owned(),
        method: None,
        path: Some(path.to_owned()),
        headers: vec![],
        server_name: None,
    };
    let asks = |steps: &[tulle_waypoint::admin::explain::Step], stage: &str| {
        let said = steps.iter().filter(|step| step.stage == stage);
        said.map(|step| step.outcome.clone()).collect::<Vec<_>>()
    };
    let admin = explain(&world.waypoint, &explained("/admin/good")).await;
    let asked = asks(&admin.steps, "authorizer");
    assert!(
        asked.len() == 1 && asked[0].ends_with(" asks judge"),
        "{:?}",
        admin.steps
    );
    let counted = asks(&admin.steps, "limit");
    assert!(
        counted.len() == 1 && counted[0].contains("count"),
        "{:?}",
        admin.steps
    );
    let other = explain(&world.waypoint, &explained("/other")).await;
    assert_eq!(asks(&other.steps, "authorizer"), Vec::<String>::new());
}
