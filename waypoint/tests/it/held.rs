//! Requests that are held back, or open, when policies come that deny them or have somebody else decide.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tulle_model::MeshUpdate;
use tulle_model::filter::Ask;
use tulle_model::policy::authz::{Action, Rule};
use tulle_model::policy::jwt::Keys;
use tulle_model::policy::traffic::{Fault, Key};
use tulle_model::policy::{Concern, On};
use tulle_model::service::AppProtocol;
use tulle_model::testing::service_key;
use tulle_model::waypoint::ProviderKind;
use tulle_proto::ext_authz::CheckRequest;

use super::asked::{asks, backend, count_by, judging, provider};
use super::policies::{authz, from_namespace, helper, routed, status, to};
use super::tokens::{Issuer, jwt, of_admins, with_token};
use super::world::{Answer, World, application, get, policy_on, text, told_policy};

/// What policies end has ended within a second of them.
#[track_caller]
pub(crate) fn assert_soon_after(change: Instant) {
    let took = change.elapsed();
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

/// Holds every request back for this time.
fn slow(delay: Duration) -> MeshUpdate {
    let fault = Fault {
        delay: Some(delay),
        delay_ppm: 1_000_000,
        ..Fault::default()
    };
    told_policy("slow", Concern::Fault(fault))
}

/// Lets `judge` decide, which answers after this time at most.
async fn judged_within(world: &World, limit: Duration) {
    let mut judge = asks(Ask::Grpc(backend("judge")));
    judge.timeout = Some(limit);
    judge.body_bytes_max = 0;
    let judge = ProviderKind::ExtAuthz(Box::new(judge));
    world.apply(vec![provider("judge", judge)]).await;
}

/// Has somebody decide about what asks for `/admin/…`.
async fn ask_about_admin(world: &World) {
    let custom = authz(Action::Custom, vec![to("GET", "/admin/")]);
    world.apply(vec![told_policy("ask", custom)]).await;
}

/// Denies everything after a second; how long a request took from then on, and its status.
async fn denied_meanwhile(world: &World, request: Request<Full<Bytes>>) -> (Duration, u16) {
    let denying = async {
        sleep(Duration::from_secs(1)).await;
        let deny = authz(Action::Deny, vec![from_namespace("shop")]);
        world.apply(vec![told_policy("deny", deny)]).await;
        Instant::now()
    };
    let answering = async {
        let answered = status(world, "client", request).await;
        (answered, Instant::now())
    };
    let ((answered, ended), denied) = tokio::join!(answering, denying);
    (ended - denied, answered)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_back_on_purpose_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web().await;
    world.apply(vec![slow(Duration::from_secs(60))]).await;
    let (took, answered) = denied_meanwhile(&world, get("/")).await;
    assert_eq!(answered, 403);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert!(world.connects.lock().is_empty(), "no endpoint was asked");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_who_decides_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web().await;
    helper(&world, "judge", |_| std::future::pending()).await;
    judged_within(&world, Duration::from_secs(60)).await;
    ask_about_admin(&world).await;
    let (took, answered) = denied_meanwhile(&world, get("/admin/good")).await;
    assert_eq!(answered, 403);
    assert!(took <= Duration::from_secs(1), "{took:?}");
}

/// Tokens are valid by the keys of `shop/keys`, which come after this time.
async fn keys_after(world: &World, issuer: &Issuer, wait: Duration) {
    let jwks = issuer.jwks();
    helper(world, "keys", move |_| {
        let jwks = jwks.clone();
        async move {
            sleep(wait).await;
            text(jwks)
        }
    })
    .await;
    let keys = Keys::Uri("http://keys.shop.svc.cluster.local/jwks".into());
    world.apply(vec![told_policy("jwt", jwt(keys))]).await;
}

fn token_of(issuer: &Issuer, role: &str) -> Request<Full<Bytes>> {
    let claims = format!(r#"{{"iss":"https://issuer","sub":"anna","role":"{role}"}}"#);
    with_token(&issuer.token(&claims))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_keys_ends_within_a_second_of_a_policy_that_denies_it() {
    let (world, issuer) = (World::web().await, Issuer::new());
    keys_after(&world, &issuer, Duration::from_secs(4)).await;
    let (took, answered) = denied_meanwhile(&world, token_of(&issuer, "admin")).await;
    assert_eq!(answered, 403);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert!(!reached(&world), "no endpoint was asked");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_asks_for_what_a_token_says_waits_for_its_keys() {
    for (role, expect) in [("admin", 200), ("guest", 403)] {
        let (world, issuer) = (World::web().await, Issuer::new());
        keys_after(&world, &issuer, Duration::from_secs(4)).await;
        let before = Instant::now();
        let needing = async {
            sleep(Duration::from_secs(1)).await;
            let need = authz(Action::Allow, vec![of_admins()]);
            world.apply(vec![told_policy("need", need)]).await;
        };
        let answering = status(&world, "client", token_of(&issuer, role));
        let (answered, ()) = tokio::join!(answering, needing);
        assert_eq!(answered, expect, "{role}");
        assert!(
            before.elapsed() >= Duration::from_secs(3),
            "{:?}",
            before.elapsed()
        );
        assert_eq!(reached(&world), expect == 200, "{role}");
    }
}

/// Whether anything was sent to an endpoint of `shop/web`.
fn reached(world: &World) -> bool {
    let connects = world.connects.lock();
    connects
        .iter()
        .any(|connect| connect.authority == "10.0.0.7:8080")
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_to_be_counted_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web().await;
    helper(&world, "counter", |_| std::future::pending()).await;
    count_by(&world, Key::Method, Duration::from_secs(60)).await;
    let (took, answered) = denied_meanwhile(&world, get("/")).await;
    assert_eq!(answered, 403);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert!(!reached(&world), "no endpoint was asked");
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web_with(AppProtocol::Http11, application(endless)).await;
    let mut client = world.http2("client").await;
    let request = |path: &str| {
        Request::get(format!("http://web.shop{path}"))
            .body(Full::default())
            .unwrap()
    };
    let mut bad = client.send_request(request("/bad")).await.unwrap().into_body();
    let mut good = client.send_request(request("/good")).await.unwrap().into_body();
    for body in [&mut bad, &mut good] {
        assert!(body.frame().await.unwrap().is_ok());
    }
    let before = Instant::now();
    world
        .apply(vec![told_policy(
            "deny",
            authz(Action::Deny, vec![to("GET", "/bad")]),
        )])
        .await;
    let ended = bad.frame().await.unwrap();
    assert!(ended.is_err(), "reset, not ended well");
    assert_soon_after(before);
    let still = timeout(Duration::from_secs(5), good.frame()).await;
    assert!(still.is_err(), "the other one is still open");
    assert!(world.metric(r#"tulle_waypoint_local_replies_total{reason="policy_changed"}"#) > 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_answer_ends_within_a_second_of_a_policy_that_denies_it() {
    let world = World::web_with(AppProtocol::Http11, application(|_| std::future::pending())).await;
    let (mut bad, mut good) = (world.http1("client").await, world.http1("client").await);
    let mut good = std::pin::pin!(good.send_request(get("/good")));
    let denying = async {
        while world.connects.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
        let before = Instant::now();
        let deny = authz(Action::Deny, vec![to("GET", "/bad")]);
        world.apply(vec![told_policy("deny", deny)]).await;
        before
    };
    let (ended, before) = tokio::select! {
        ended = async { tokio::join!(bad.send_request(get("/bad")), denying) } => ended,
        _ = good.as_mut() => panic!("nobody denies it"),
    };
    let ended = ended.unwrap();
    assert_eq!(ended.status(), 403);
    let told = ended.headers()["x-tulle-reason"].to_str().unwrap();
    assert!(
        told.starts_with("T0417; policy_changed; policy=TestPolicy/shop/deny/authz"),
        "{told}"
    );
    assert_soon_after(before);
    let still = timeout(Duration::from_secs(5), good).await;
    assert!(still.is_err(), "the other one waits on");
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_while_it_is_held_back_reaches_no_endpoint() {
    let world = World::web().await;
    world.apply(vec![slow(Duration::from_secs(3))]).await;
    let denying = async {
        sleep(Duration::from_secs(1)).await;
        let deny = authz(Action::Deny, vec![Rule::default()]);
        world.apply(vec![told_policy("deny", deny)]).await;
    };
    let (answered, ()) = tokio::join!(status(&world, "client", get("/")), denying);
    assert_eq!(answered, 403);
    assert!(world.connects.lock().is_empty(), "no endpoint was asked");
}

/// An application that begins to answer and never ends.
pub(crate) async fn endless(_: Request<Incoming>) -> Answer {
    let first = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")))]);
    let rest = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    Response::new(StreamBody::new(rest).boxed())
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_ends_when_a_policy_of_its_backend_denies_it() {
    let world = routed().await;
    world.serve("10.0.0.8", "db", application(endless));
    let mut client = world.http1("client").await;
    let mut answer = client.send_request(get("/db")).await.unwrap().into_body();
    assert!(answer.frame().await.unwrap().is_ok());
    let deny = authz(Action::Deny, vec![from_namespace("shop")]);
    let guard = policy_on("guard", On::Service(service_key("shop/db")), deny);
    let before = Instant::now();
    world
        .apply(vec![MeshUpdate::WaypointPolicy(Arc::new(guard))])
        .await;
    assert!(answer.frame().await.unwrap().is_err(), "reset, not ended well");
    assert_soon_after(before);
}

/// Questions that `judge` was asked.
type Questions = Arc<Mutex<Vec<CheckRequest>>>;

/// A world whose answers never end, and `judge`, which lets pass what asks for `/admin/good`.
async fn open_answers() -> (World, Questions) {
    let world = World::web_with(AppProtocol::Http11, application(endless)).await;
    let questions = Questions::default();
    helper(&world, "judge", judging(&questions)).await;
    judged_within(&world, Duration::from_secs(1)).await;
    (world, questions)
}

/// An answer that has begun, with what its connection needs to go on.
struct Begun {
    _client: SendRequest<Full<Bytes>>,
    body: Incoming,
}

impl Begun {
    /// Whether it is reset, and soon.
    async fn is_cut(&mut self) -> bool {
        let ended = timeout(Duration::from_secs(10), self.body.frame()).await;
        ended.is_ok_and(|frame| frame.is_some_and(|frame| frame.is_err()))
    }
}

async fn begun(world: &World, path: &str) -> Begun {
    let mut client = world.http1("client").await;
    let mut body = client.send_request(get(path)).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    Begun {
        _client: client,
        body,
    }
}

#[tokio::test(start_paused = true)]
async fn who_decides_is_asked_about_open_requests_too_and_once() {
    let (world, questions) = open_answers().await;
    let mut bad = begun(&world, "/admin/bad").await;
    let mut good = begun(&world, "/admin/good").await;
    let mut other = begun(&world, "/other").await;
    let before = Instant::now();
    ask_about_admin(&world).await;
    assert!(bad.is_cut().await, "it is refused now");
    assert_soon_after(before);
    for n in 0..3 {
        let unrelated = authz(Action::Deny, vec![to("GET", &format!("/unrelated/{n}"))]);
        world.apply(vec![told_policy("unrelated", unrelated)]).await;
        for still in [&mut good, &mut other] {
            let ended = timeout(Duration::from_secs(2), still.body.frame()).await;
            assert!(ended.is_err(), "it goes on");
        }
    }
    let mut paths: Vec<_> = questions.lock().iter().map(path_of).collect();
    paths.sort();
    assert_eq!(paths, ["/admin/bad", "/admin/good"]);
}

#[tokio::test(start_paused = true)]
async fn who_decides_is_asked_about_the_next_request_of_a_connection() {
    let world = World::web().await;
    let questions = Questions::default();
    helper(&world, "judge", judging(&questions)).await;
    judged_within(&world, Duration::from_secs(1)).await;
    let mut client = world.http1("client").await;
    for expect in [200, 403] {
        let answer = client.send_request(get("/admin/bad")).await.unwrap();
        assert_eq!(answer.status(), expect);
        let _ = answer.into_body().collect().await;
        ask_about_admin(&world).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_decides_is_asked_about_a_request_that_waits_for_its_answer() {
    let world = World::web_with(AppProtocol::Http11, application(|_| std::future::pending())).await;
    let questions = Questions::default();
    helper(&world, "judge", judging(&questions)).await;
    judged_within(&world, Duration::from_secs(1)).await;
    let asking = async {
        sleep(Duration::from_secs(1)).await;
        ask_about_admin(&world).await;
        Instant::now()
    };
    let answering = timeout(
        Duration::from_secs(10),
        status(&world, "client", get("/admin/bad")),
    );
    let (answered, asked) = tokio::join!(answering, asking);
    assert_eq!(answered.ok(), Some(403));
    assert_soon_after(asked);
    assert_eq!(questions.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_decides_about_ends() {
    let (world, _questions) = open_answers().await;
    let mut answer = begun(&world, "/admin/good").await;
    world.pipes.silence("10.0.0.8:15008");
    let other = provider(
        "other",
        ProviderKind::ExtAuthz(Box::new(asks(Ask::Grpc(backend("nobody"))))),
    );
    world.apply(vec![other]).await;
    let before = Instant::now();
    let custom = authz(Action::Custom, vec![Rule::default()]);
    world.apply(vec![told_policy("ask", custom)]).await;
    assert!(answer.body.frame().await.unwrap().is_err());
    assert_soon_after(before);
}

fn path_of(question: &CheckRequest) -> String {
    let attributes = question.attributes.clone().unwrap();
    attributes.request.unwrap().http.unwrap().path
}
