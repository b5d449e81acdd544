//! What a request costs in allocations beyond a proxy of the HTTP library alone, between the same tunnels.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client_http1;
use hyper::server::conn::http1 as server_http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tulle_model::MeshUpdate;
use tulle_model::authz::policy::StringMatch;
use tulle_model::policy::Concern;
use tulle_model::policy::authz::{Action, Authz, Rule, To, Values};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{http_route, prefix};
use tulle_runtime::tasks;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, ConnectResponse, Settings, client, server};
use tulle_waypoint::http::pace::REST_AFTER;
use tulle_waypoint::upstream::dial::Network;

use crate::world::{World, application, identity, text, told_policy};

/// Allocations of our own for one request with a route and an ALLOW policy: the record it is counted and told by, what
/// makes the name of a field shared that goes on, and three inside of the library, whose heads are longer.
const OWN_MAX: u64 = 5;
/// Bytes of a connection of HTTP/1.1 that has served a request and rests, in an unoptimised build.
const IDLE_MAX: u64 = 12 * 1024;
const CONNECTIONS: usize = 64;
const REQUESTS: u64 = 200;
const ROUNDS: usize = 3;
/// A large body, and what it may hold at any time on its way from the endpoint to the caller: the windows of two tunnels, of
/// 4 MiB each, at both ends. Caller and endpoint are in this figure, and one thread, where each fills its window before the
/// next has its turn.
const BODY: usize = 64 * 1024 * 1024;
const BODY_HELD_MAX: u64 = 16 * 1024 * 1024;
const WEB: &str = "shop/web.shop.svc.cluster.local";

type Sender = client_http1::SendRequest<Full<Bytes>>;

fn request() -> Request<Full<Bytes>> {
    Request::get("/items/7?page=2")
        .header("host", "web.shop")
        .header("user-agent", "test")
        .header("accept", "*/*")
        .header("x-kind", "test")
        .header("x-request-id", "f058ebd6-02f7-4d3f-942e-904344e8cde5")
        .body(Full::default())
        .unwrap()
}

async fn ask(sender: &mut Sender) {
    sender.ready().await.unwrap();
    let answer = sender.send_request(request()).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
}

/// The tunnel of a caller whose requests a proxy of the library alone passes on.
async fn bare(world: &World) -> ClientConnection {
    let to: SocketAddr = "10.0.0.7:15008".parse().unwrap();
    let certificate = world.ca.certificate(&identity("way"));
    let socket = world.pipes.connect(to).await.unwrap();
    let tls = certificate.client_config(&[identity("web")]);
    let up = client::connect_over(socket, to, tls, &Settings::client())
        .await
        .unwrap();
    let (stream, _) = up.open(&ConnectRequest::new("10.0.0.7:8080")).await.unwrap();
    let (sender, connection) = client_http1::handshake::<_, Incoming>(TokioIo::new(stream))
        .await
        .unwrap();
    drop(tasks::spawn("bare-up", connection));
    let sender = Arc::new(Mutex::new(sender));
    let (near, far) = tokio::io::duplex(256 * 1024);
    let from: SocketAddr = "10.0.0.1:5000".parse().unwrap();
    let tls = certificate.server_config();
    drop(tasks::spawn("bare", async move {
        let _up = up;
        let mut accepted = server::accept_over(far, from, tls, &Settings::server())
            .await
            .unwrap();
        while let Some(incoming) = accepted.connection.accept().await {
            let stream = incoming.accept(&ConnectResponse::default()).unwrap();
            let sender = Arc::clone(&sender);
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = Arc::clone(&sender);
                async move {
                    let mut sender = sender.lock().await;
                    sender.ready().await.unwrap();
                    Ok::<_, Infallible>(sender.send_request(request).await.unwrap())
                }
            });
            let serving = server_http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            drop(tasks::spawn("bare-down", serving));
        }
    }));
    let tls = world
        .ca
        .certificate(&identity("client"))
        .client_config(&[identity("way")]);
    client::connect_over(near, to, tls, &Settings::client())
        .await
        .unwrap()
}

/// A connection in a tunnel.
async fn connect(tunnel: &ClientConnection) -> Sender {
    let (stream, _) = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await.unwrap();
    let (sender, connection) = client_http1::handshake(TokioIo::new(stream)).await.unwrap();
    drop(tasks::spawn("client", connection));
    sender
}

fn configuration() -> Vec<MeshUpdate> {
    let route = http_route("shop/web").on(prefix("/items").header("x-kind", "test"));
    let methods = Values {
        any: vec![StringMatch::Exact("GET".into())],
        none: vec![],
    };
    let rule = Rule {
        to: vec![To {
            methods,
            ..To::default()
        }],
        ..Rule::default()
    };
    let allow = Authz {
        action: Action::Allow,
        rules: vec![rule],
        provider: None,
    };
    vec![
        MeshUpdate::Route(Arc::new(route.under(WEB).to(WEB, 80, 1))),
        told_policy("allow", Concern::Authz(allow)),
    ]
}

#[test]
fn a_request_allocates_little_beyond_what_the_library_does() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answering = application(|_| async { text("x".repeat(1_024)) });
    let (world, mut ours, mut bare, _tunnel) = runtime.block_on(async {
        let world = World::web_with(AppProtocol::Http11, answering).await;
        world.apply(configuration()).await;
        let (ours, tunnel) = (world.http1("client").await, bare(&world).await);
        let bare = connect(&tunnel).await;
        (world, ours, bare, tunnel)
    });
    let measured = |sender: &mut Sender| {
        let asking = |sender: &mut Sender, times| {
            runtime.block_on(async {
                for _ in 0..times {
                    ask(sender).await;
                }
            });
        };
        asking(sender, 20);
        let counted =
            || allocation_counter::measure(|| asking(&mut *sender, REQUESTS)).count_total / REQUESTS;
        // What else has its turn on this thread meanwhile, timers say, only adds; on a slow machine it has more turns.
        std::iter::repeat_with(counted).take(ROUNDS).min().unwrap()
    };
    let (with, without) = (measured(&mut ours), measured(&mut bare));
    let own = with.saturating_sub(without);
    assert!(
        own <= OWN_MAX,
        "{with} with a waypoint, {without} with the library alone"
    );
    drop(world);
}

#[test]
fn an_idle_connection_holds_little() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let answering = application(|_| async { text("x".repeat(1_024)) });
    let (world, ours, bare) = runtime.block_on(async {
        let world = World::web_with(AppProtocol::Http11, answering).await;
        world.apply(configuration()).await;
        let ours = world.tunnel(&identity("client")).await.unwrap();
        let bare = bare(&world).await;
        (world, ours, bare)
    });
    let held = |tunnel: &ClientConnection| {
        let mut kept = Vec::new();
        let mut open = |count| {
            runtime.block_on(async {
                for _ in 0..count {
                    let mut sender = connect(tunnel).await;
                    ask(&mut sender).await;
                    kept.push(sender);
                }
                tokio::time::sleep(2 * REST_AFTER).await;
            });
        };
        open(8);
        let grown = allocation_counter::measure(|| open(CONNECTIONS)).bytes_current;
        u64::try_from(grown).unwrap() / CONNECTIONS as u64
    };
    let (with, without) = (held(&ours), held(&bare));
    // Half of what one takes that the library alone serves is its client's, which is in both.
    let own = with.saturating_sub(without / 2);
    assert!(
        own <= IDLE_MAX,
        "{with} bytes with a waypoint, {without} with the library alone, clients included"
    );
    drop(world);
}

#[test]
fn a_large_body_holds_no_more_than_windows_do() {
    static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let endless = application(|_| async {
        let chunks = (0..BODY / CHUNK.len()).map(|_| Ok(Frame::data(Bytes::from_static(&CHUNK))));
        http::Response::new(StreamBody::new(futures_util::stream::iter(chunks)).boxed())
    });
    let (world, mut sender) = runtime.block_on(async {
        let world = World::web_with(AppProtocol::Http11, endless).await;
        let sender = world.http1("client").await;
        (world, sender)
    });
    let download = |sender: &mut Sender| {
        runtime.block_on(async {
            sender.ready().await.unwrap();
            let mut body = sender.send_request(request()).await.unwrap().into_body();
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.unwrap().data_ref().map_or(0, Bytes::len);
            }
            assert_eq!(read, BODY);
        });
    };
    let held = allocation_counter::measure(|| download(&mut sender)).bytes_max;
    assert!(held <= BODY_HELD_MAX, "{held} bytes at once");
    drop(world);
}
