//! Endpoints outside of the mesh: looked up by name, judged before they are dialled, spoken to over TLS where a policy
//! says so, and told nothing of who asks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, advance, sleep};
use tulle_identity::testing::TlsServer;
use tulle_model::network::NetworkCidr;
use tulle_model::policy::traffic::SubjectAltName;
use tulle_model::policy::{BackendTls, Concern};
use tulle_model::service::{AppProtocol, HealthPolicy, LoadBalancing, LoadBalancingMode};
use tulle_model::testing::{service, workload};
use tulle_model::waypoint::FrontOf;
use tulle_model::{MeshUpdate, NamespacedHostname, NetworkAddress};
use tulle_runtime::metrics::Registry;
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_transport::hbone::ConnectRequest;
use tulle_waypoint::admin::explain::{Question, explain};
use tulle_xds_client::on_demand::LOOKUP_MAX;
use tulle_xds_client::{Client, NodeInfo, NodeKind, Options};

use super::world::{World, body, echo, front, get, identity, read_text, settings, told_policy, web};

const OUTSIDE: &str = "203.0.113.7:8080";

/// What says something over a connection: HTTP/1.1 as [`echo`] does.
async fn answer(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(echo(request).await) });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = serving.await;
}

/// A server outside of the mesh, with TLS if it has a certificate.
fn serve(world: &World, at: &str, tls: Option<TlsServer>) {
    let mut sockets = world.pipes.listen(at);
    drop(tasks::spawn("outside", async move {
        while let Some(socket) = sockets.recv().await {
            let tls = tls.clone();
            drop(tasks::spawn("outside-connection", async move {
                match tls {
                    Some(tls) => {
                        if let Some(stream) = tls.accept(socket).await {
                            answer(stream).await;
                        }
                    }
                    None => answer(socket).await,
                }
            }));
        }
    }));
}

fn known(world: &World, name: &str, address: &str) {
    known_as(world, name, &[address]);
}

fn known_as(world: &World, name: &str, addresses: &[&str]) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|one| one.parse().unwrap()).collect();
    world.pipes.names.lock().insert(name.to_owned(), addresses);
}

/// The service `shop/web`, which stands for `api.example` outside of the mesh.
async fn named(protocol: AppProtocol) -> World {
    named_with(protocol, &[]).await
}

/// The same, where the process has this in its environment, too.
async fn named_with(protocol: AppProtocol, env: &[(&str, &str)]) -> World {
    let mut api = workload("shop/api").serves("shop/web").build();
    api.addresses.clear();
    api.hostname = "api.example".into();
    let told = vec![
        web(protocol),
        MeshUpdate::Workload(Arc::new(api)),
        workload("shop/pod").ip("198.51.100.9").into(),
        front("shop/web", |_| {}),
    ];
    let world = World::start_in(env, told, None).await;
    known(&world, "api.example", "203.0.113.7");
    world
}

async fn ask(world: &World, request: Request<Full<Bytes>>) -> (u16, String, String) {
    let answer = world.http1("client").await.send_request(request).await.unwrap();
    let reason = answer.headers().get("x-tulle-reason");
    let reason = reason.map_or("", |reason| reason.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), reason, body(answer).await)
}

#[tokio::test(start_paused = true)]
async fn a_name_outside_is_looked_up_and_no_identity_goes_there() {
    let world = named(AppProtocol::Http11).await;
    serve(&world, OUTSIDE, None);
    let (status, _, seen) = ask(&world, get("/a")).await;
    assert_eq!(status, 200);
    assert!(seen.starts_with("GET /a HTTP/1.1\n"), "{seen}");
    assert!(!seen.contains("spiffe:") && !seen.contains("x-tulle"), "{seen}");
    assert_eq!(world.metric("tulle_waypoint_plaintext_upstream_total"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_name_leads_to_no_address_that_nobody_may_be_sent_to() {
    let world = named(AppProtocol::Http11).await;
    for address in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "fe80::1",
        "::ffff:127.0.0.1",
        // Of the mesh: a workload, and a service.
        "198.51.100.9",
        "10.96.0.1",
    ] {
        let ip: IpAddr = address.parse().unwrap();
        serve(&world, &SocketAddr::new(ip, 8080).to_string(), None);
        known(&world, "api.example", address);
        // What was found before is fresh for a while.
        advance(Duration::from_secs(60)).await;
        let (status, reason, _) = ask(&world, get("/a")).await;
        assert_eq!(status, 403, "{address}");
        assert!(reason.contains("egress_address_refused"), "{address}: {reason}");
    }
}

/// The service `shop/web`, whose endpoint has no tunnels and this address; the waypoint itself is at 10.0.0.9 and 10.0.0.10.
async fn listed(protocol: AppProtocol, address: &str, env: &[(&str, &str)]) -> World {
    let mut api = workload("shop/api").serves("shop/web").build();
    api.addresses = vec![address.parse().unwrap()];
    let told = vec![
        web(protocol),
        MeshUpdate::Workload(Arc::new(api)),
        workload("shop/way-1").sa("way").ip("10.0.0.10").into(),
        front("shop/web", |_| {}),
    ];
    let own = [("INSTANCE_IP", "10.0.0.9"), ("POD_NAME", "way-1")];
    let env: Vec<_> = own.iter().chain(env).copied().collect();
    World::start_in(&env, told, None).await
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_listed_is_not_this_machine_nor_where_nobody_may_be_sent() {
    const NEAR: &str = "127.0.0.0/8,::1/128";
    for (address, allow, deny, expect) in [
        ("127.0.0.1", "", "", 403),
        ("127.8.8.8", "", "", 403),
        ("::1", "", "", 403),
        ("::ffff:127.0.0.1", "", "", 403),
        ("169.254.169.254", "", "", 403),
        ("fe80::1", "", "", 403),
        ("fd00:ec2::254", "", "", 403),
        ("0.0.0.0", "", "", 403),
        // The waypoint, as its process and as the control plane know it.
        ("10.0.0.9", "", "", 403),
        ("::ffff:10.0.0.9", "", "", 403),
        ("10.0.0.10", "", "", 403),
        ("127.0.0.1", NEAR, "", 200),
        ("::ffff:127.0.0.1", NEAR, "", 200),
        ("127.0.0.1", NEAR, "127.0.0.1", 403),
        // What names must not lead to may be listed: it is where pods without tunnels are.
        ("10.0.0.7", "", "10.0.0.0/8", 200),
        ("203.0.113.7", "", "", 200),
    ] {
        let env = [
            ("TULLE_WAYPOINT_EGRESS_ALLOW", allow),
            ("TULLE_WAYPOINT_EGRESS_DENY", deny),
        ];
        let at = SocketAddr::new(address.parse().unwrap(), 8080).to_string();
        let world = listed(AppProtocol::Http11, address, &env).await;
        serve(&world, &at, None);
        let (status, reason, _) = ask(&world, get("/a")).await;
        assert_eq!(status, expect, "{address} {allow} {deny}: {reason}");
        let refused = reason.contains("egress_address_refused");
        assert_eq!(refused, expect == 403, "{address}: {reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_do_not_go_to_this_machine_either() {
    for (address, refused) in [("127.0.0.1", true), ("10.0.0.10", true), ("203.0.113.7", false)] {
        let world = listed(AppProtocol::Tcp, address, &[]).await;
        let mut sockets = world.pipes.listen(&format!("{address}:8080"));
        let tunnel = world.tunnel(&identity("client")).await.unwrap();
        let opened = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await;
        if refused {
            // The reset may come before the answer to the CONNECT was read.
            if let Ok((mut stream, _)) = opened {
                assert!(stream.read_u8().await.is_err(), "{address}");
            }
            assert!(sockets.try_recv().is_err(), "{address} was dialled");
        } else {
            let (mut stream, _) = opened.unwrap();
            stream.write_all(b"ping").await.unwrap();
            let mut socket = sockets.recv().await.unwrap();
            assert_eq!(read_text(&mut socket, 4).await, "ping", "{address}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_leads_nowhere_is_no_endpoint() {
    let world = named(AppProtocol::Http11).await;
    world.pipes.names.lock().clear();
    let (status, reason, _) = ask(&world, get("/a")).await;
    assert_eq!(status, 503);
    assert!(
        reason.contains("no_healthy_endpoint") || reason.contains("retries"),
        "{reason}"
    );
}

#[tokio::test(start_paused = true)]
async fn bytes_go_outside_by_name_too() {
    let world = named(AppProtocol::Tcp).await;
    let mut sockets = world.pipes.listen(OUTSIDE);
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut socket = sockets.recv().await.unwrap();
    assert_eq!(read_text(&mut socket, 4).await, "ping");
    known(&world, "api.example", "127.0.0.1");
    advance(Duration::from_secs(60)).await;
    let tunnel = world.tunnel(&identity("client")).await.unwrap();
    // The reset may come before the answer to the CONNECT was read.
    if let Ok((mut refused, _)) = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await {
        assert!(refused.read_u8().await.is_err());
    }
    let counted = world.metric("tulle_waypoint_local_replies_total{reason=\"egress_address_refused\"}");
    assert_eq!(counted, 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_next_address_of_a_name_is_tried_when_one_is_not_reached() {
    for (at, reached) in [(0, true), (1, true), (2, true), (3, false)] {
        let addresses = ["2001:db8::1", "203.0.113.5", "203.0.113.6", "203.0.113.7"];
        let listening = SocketAddr::new(addresses[at].parse().unwrap(), 8080).to_string();
        let world = named(AppProtocol::Http11).await;
        known_as(&world, "api.example", &addresses);
        serve(&world, &listening, None);
        let (status, ..) = ask(&world, get("/a")).await;
        assert_eq!(status == 200, reached, "HTTP at {listening}: {status}");
        let world = named(AppProtocol::Tcp).await;
        known_as(&world, "api.example", &addresses);
        let mut sockets = world.pipes.listen(&listening);
        let tunnel = world.tunnel(&identity("client")).await.unwrap();
        let opened = tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await;
        if reached {
            let (mut stream, _) = opened.unwrap();
            stream.write_all(b"ping").await.unwrap();
            let mut socket = sockets.recv().await.unwrap();
            assert_eq!(read_text(&mut socket, 4).await, "ping", "bytes at {listening}");
        } else if let Ok((mut refused, _)) = opened {
            // Three addresses are tried, no more.
            assert!(refused.read_u8().await.is_err(), "bytes at {listening}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wildcard_takes_the_names_it_covers_and_no_other() {
    let mut wild = service("shop/wild").vip("10.96.0.1").port(80, 8080).build();
    wild.hostname = "*.wild.example".into();
    wild.ports.get_mut(&80).unwrap().app_protocol = AppProtocol::Http11;
    let key = NamespacedHostname::new("shop", "*.wild.example");
    let world = World::start(vec![
        MeshUpdate::Service(Arc::new(wild)),
        front("shop/web", |front| front.object = FrontOf::Service(key)),
    ])
    .await;
    serve(&world, OUTSIDE, None);
    known(&world, "a.wild.example", "203.0.113.7");
    known(&world, "wild.example", "203.0.113.7");
    known(&world, "evilwild.example", "203.0.113.7");
    for (host, expect) in [
        ("a.wild.example", 200),
        ("A.Wild.Example:80", 200),
        ("b.wild.example", 503),
        ("wild.example", 404),
        ("evilwild.example", 404),
        ("other.example", 404),
    ] {
        let mut request = get("/a");
        request.headers_mut().insert("host", host.parse().unwrap());
        let (status, reason, _) = ask(&world, request).await;
        assert_eq!(status, expect, "{host}: {reason}");
    }
}

fn tls(world: &World, hostname: &str, names: Vec<SubjectAltName>) -> MeshUpdate {
    let policy = BackendTls {
        hostname: hostname.into(),
        subject_alt_names: names,
        roots: vec![world.ca.root_pem().into()],
    };
    told_policy("tls", Concern::BackendTls(policy))
}

#[tokio::test(start_paused = true)]
async fn tls_begins_where_a_policy_says_so_and_the_server_has_to_prove_its_name() {
    let other = || vec![SubjectAltName::Hostname("other.example".into())];
    let both = || {
        let uri = SubjectAltName::Uri("spiffe://elsewhere".into());
        other().into_iter().chain([uri]).collect()
    };
    for (proves, asks, names, expect) in [
        ("api.example", "api.example", vec![], 200),
        ("evil.example", "api.example", vec![], 503),
        ("other.example", "api.example", other(), 200),
        ("other.example", "api.example", both(), 200),
        ("api.example", "api.example", other(), 503),
    ] {
        let world = named(AppProtocol::Http11).await;
        serve(&world, OUTSIDE, Some(world.ca.tls_server(&[proves])));
        world.apply(vec![tls(&world, asks, names.clone())]).await;
        let (status, _, seen) = ask(&world, get("/a")).await;
        assert_eq!(status, expect, "{proves} {asks} {names:?}: {seen}");
        assert_eq!(world.metric("tulle_waypoint_plaintext_upstream_total"), 0.0);
    }
}

/// How connections to the first endpoint are encrypted, and what is said of the backend, by explain.
async fn explained(world: &World) -> (&'static str, String) {
    let question = Question {
        source: identity("client"),
        source_ip: "10.0.0.1".parse().unwrap(),
        authority: "10.96.0.1:80".to_owned(),
        method: None,
        path: None,
        headers: Vec::new(),
        server_name: None,
    };
    let told = explain(&world.waypoint, &question).await;
    let said = told.steps.last().unwrap().details[0].clone();
    (told.backends[0].endpoints[0].encryption, said)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_not_encrypted_is_shown_to_be_so() {
    let world = named(AppProtocol::Http11).await;
    let (encryption, said) = explained(&world).await;
    assert_eq!(encryption, "none");
    assert!(said.ends_with(", 1 endpoints, 1 of them unencrypted"), "{said}");
    world.apply(vec![tls(&world, "api.example", vec![])]).await;
    let (encryption, said) = explained(&world).await;
    assert_eq!(encryption, "tls");
    assert!(said.ends_with(", 1 endpoints"), "{said}");
    assert_eq!(explained(&World::web().await).await.0, "mutual_tls");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_no_tls_is_not_spoken_to_in_clear() {
    let world = named(AppProtocol::Http11).await;
    serve(&world, OUTSIDE, None);
    world.apply(vec![tls(&world, "api.example", vec![])]).await;
    let (status, ..) = ask(&world, get("/a")).await;
    assert_eq!(status, 503);
}

#[tokio::test(start_paused = true)]
async fn bytes_go_outside_over_tls_too() {
    let world = named(AppProtocol::Tcp).await;
    let server = world.ca.tls_server(&["api.example"]);
    world.apply(vec![tls(&world, "api.example", vec![])]).await;
    let mut sockets = world.pipes.listen(OUTSIDE);
    let mut stream = world.ask("client", "10.96.0.1:80").await.unwrap();
    let mut secured = server.accept(sockets.recv().await.unwrap()).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read_text(&mut secured, 4).await, "ping");
    secured.write_all(b"pong").await.unwrap();
    secured.flush().await.unwrap();
    assert_eq!(read_text(&mut stream, 4).await, "pong");
}

/// Lets the waypoint ask a control plane that never answers.
fn ask_nobody(world: &World) {
    let node = NodeInfo {
        kind: NodeKind::Waypoint,
        name: "way-1".into(),
        namespace: "shop".into(),
        node_name: "n1".into(),
        instance_ips: Vec::new(),
        metadata: BTreeMap::new(),
        build_version: String::new(),
    };
    let metrics = tulle_xds_client::Metrics::register(&Registry::new(), &world.mesh);
    drop(Client::new(
        Options::waypoint(node),
        world.mesh.clone(),
        metrics,
        &Ready::new(),
    ));
}

#[tokio::test(start_paused = true)]
async fn what_the_waypoint_was_not_told_of_is_asked_for_before_it_is_dialled() {
    let world = named(AppProtocol::Http11).await;
    serve(&world, OUTSIDE, None);
    assert_eq!(ask(&world, get("/a")).await.0, 200);
    ask_nobody(&world);
    let begun = Instant::now();
    assert_eq!(
        ask(&world, get("/a")).await.0,
        503,
        "nobody says that the mesh has it not"
    );
    assert!(begun.elapsed() >= LOOKUP_MAX, "{:?}", begun.elapsed());
    let telling = async {
        sleep(Duration::from_secs(1)).await;
        let other: MeshUpdate = workload("bank/vault").ip("203.0.113.7").into();
        world.apply(vec![other]).await;
    };
    let ((status, reason, _), ()) = tokio::join!(ask(&world, get("/a")), telling);
    assert_eq!(status, 403);
    assert!(reason.contains("egress_address_refused"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_name_does_not_lead_to_the_control_plane() {
    let world = named(AppProtocol::Http11).await;
    serve(&world, OUTSIDE, None);
    assert_eq!(ask(&world, get("/a")).await.0, 200);
    let hosts: Vec<_> = world.waypoint.config.control_plane_hosts().collect();
    assert!(!hosts.is_empty());
    for host in hosts {
        known(&world, host, "203.0.113.7");
        advance(Duration::from_secs(60)).await;
        let (status, reason, _) = ask(&world, get("/a")).await;
        assert_eq!(status, 403, "{host}");
        assert!(reason.contains("egress_address_refused"), "{reason}");
        world.pipes.names.lock().remove(host);
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_denied_is_denied_although_it_is_allowed() {
    let near = "127.0.0.0/8,10.0.0.0/8";
    for (name, allow, deny, expect) in [
        ("allowed", near, "", 200),
        ("both", near, "127.0.0.1", 403),
        ("denied", "", "203.0.113.0/24", 403),
    ] {
        let env = [
            ("TULLE_WAYPOINT_EGRESS_ALLOW", allow),
            ("TULLE_WAYPOINT_EGRESS_DENY", deny),
        ];
        let world = named_with(AppProtocol::Http11, &env).await;
        let at = if allow.is_empty() {
            "203.0.113.7"
        } else {
            "127.0.0.1"
        };
        serve(&world, &format!("{at}:8080"), None);
        known(&world, "api.example", at);
        assert_eq!(ask(&world, get("/a")).await.0, expect, "{name}");
    }
}

/// A service that has its callers go where they meant to: to one address, or to any of a range.
async fn passthrough(protocol: AppProtocol) -> World {
    let mut any = service("shop/web").vip("203.0.113.7").port(80, 80).build();
    any.cidrs = vec![NetworkCidr {
        network: "".into(),
        cidr: "198.51.100.0/24".parse().unwrap(),
    }];
    any.addresses.push(NetworkAddress::new("", [127, 0, 0, 1].into()));
    any.load_balancing = Some(LoadBalancing {
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Passthrough,
        health_policy: HealthPolicy::AllowAll,
    });
    any.ports.get_mut(&80).unwrap().app_protocol = protocol;
    World::start(vec![
        MeshUpdate::Service(Arc::new(any)),
        workload("bank/vault").ip("198.51.100.9").into(),
        front("shop/web", |_| {}),
    ])
    .await
}

#[tokio::test(start_paused = true)]
async fn a_service_without_resolution_sends_each_caller_where_it_meant_to_go_and_nowhere_else() {
    for (asked, expect) in [
        ("203.0.113.7:80", Some(200)),
        ("198.51.100.77:80", Some(200)),
        // A workload of the mesh, and this machine.
        ("198.51.100.9:80", Some(403)),
        ("127.0.0.1:80", Some(403)),
        // Neither of its addresses, nor of its ports.
        ("203.0.113.8:80", None),
        ("203.0.113.7:81", None),
    ] {
        let world = passthrough(AppProtocol::Http11).await;
        serve(&world, asked, None);
        let Ok(stream) = world.ask("client", asked).await else {
            assert_eq!(expect, None, "{asked}");
            continue;
        };
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        drop(tasks::spawn("client", async move { drop(connection.await) }));
        let answer = client.send_request(get("/a")).await.unwrap();
        assert_eq!(Some(answer.status().as_u16()), expect, "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_go_where_they_were_meant_to_go() {
    let world = passthrough(AppProtocol::Tcp).await;
    let mut sockets = world.pipes.listen("198.51.100.77:80");
    let mut stream = world.ask("client", "198.51.100.77:80").await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut socket = sockets.recv().await.unwrap();
    assert_eq!(read_text(&mut socket, 4).await, "ping");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_leads_to_a_node_is_refused_unless_its_network_is_allowed() {
    for (allow, expect) in [("", 403), ("203.0.113.0/24", 200)] {
        let world = named_with(AppProtocol::Http11, &[("TULLE_WAYPOINT_EGRESS_ALLOW", allow)]).await;
        serve(&world, OUTSIDE, None);
        known(&world, "api.example", "203.0.113.7");
        assert_eq!(
            ask(&world, get("/a")).await.0,
            200,
            "nobody said that it is a node"
        );
        let mut told = settings();
        told.node_addresses = vec!["192.0.2.1".parse().unwrap(), "203.0.113.7".parse().unwrap()];
        let told = tulle_model::waypoint::Waypoint::Settings(Box::new(told));
        world.apply(vec![MeshUpdate::Waypoint(Arc::new(told))]).await;
        // What is open already is no new connection.
        advance(Duration::from_secs(120)).await;
        assert_eq!(ask(&world, get("/a")).await.0, expect, "{allow}");
    }
}
