//! Routes of streams that are not read: TLSRoutes by server name, TCPRoutes, their weights and what they refuse.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout};
use tulle_model::MeshUpdate;
use tulle_model::policy::traffic::{Algorithm, Key, LoadBalancing};
use tulle_model::policy::{Concern, On};
use tulle_model::route::{Kind, Route};
use tulle_model::service::AppProtocol;
use tulle_model::testing::{route, service, workload};
use tulle_transport::HboneStream;
use tulle_transport::hbone::{ConnectRequest, OpenError};

use crate::world::{World, front, identity, policy_on, read_text, told_policy, web};

pub(crate) const WEB: &str = "shop/web.shop.svc.cluster.local";
pub(crate) const OTHER: &str = "shop/other.shop.svc.cluster.local";

/// A ClientHello for this server, as short as there can be one.
pub(crate) fn hello(server_name: Option<&str>) -> Vec<u8> {
    let number = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        extensions.extend([0, 0]);
        extensions.extend(number(name.len() + 5));
        extensions.extend(number(name.len() + 3));
        extensions.push(0);
        extensions.extend(number(name.len()));
        extensions.extend(name.as_bytes());
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(number(extensions.len()));
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(number(body.len()));
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(number(message.len()));
    record.extend(message);
    record
}

pub(crate) struct Shop {
    pub(crate) world: World,
    web: UnboundedReceiver<HboneStream>,
    other: UnboundedReceiver<HboneStream>,
}

/// A waypoint in front of `shop/web`, and beside it `shop/other`.
pub(crate) async fn shop(protocol: AppProtocol, routes: Vec<Route>) -> Shop {
    let (world, web) = World::raw(protocol).await;
    let mut updates = vec![
        service("shop/other").vip("10.96.0.2").port(80, 8080).into(),
        workload("shop/other-1")
            .sa("other")
            .ip("10.0.0.8")
            .hbone()
            .serves("shop/other")
            .into(),
    ];
    updates.extend(routes.into_iter().map(|route| MeshUpdate::Route(Arc::new(route))));
    world.apply(updates).await;
    let other = world.endpoint("10.0.0.8", "other");
    Shop { world, web, other }
}

impl Shop {
    async fn open(&self) -> HboneStream {
        self.try_open("client").await.unwrap()
    }

    /// A reset may come as soon as the stream is open.
    async fn try_open(&self, who: &str) -> Option<HboneStream> {
        let tunnel = self.world.tunnel(&identity(who)).await.unwrap();
        match tunnel.open(&ConnectRequest::new("10.96.0.1:80")).await {
            Ok((stream, _)) => Some(stream),
            Err(OpenError::Reset(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }

    /// Says this first; gives back what came of it.
    pub(crate) async fn said(&mut self, who: &str, first: &[u8]) -> What {
        let Some(mut client) = self.try_open(who).await else {
            return What::Reset;
        };
        let _ = client.write_all(first).await;
        let ended = async {
            let mut byte = [0];
            match client.read(&mut byte).await {
                Ok(0) => What::Closed,
                Ok(_) => panic!("nobody said anything"),
                Err(_) => What::Reset,
            }
        };
        let (what, mut server) = tokio::select! {
            server = self.web.recv() => (What::Web, server.unwrap()),
            server = self.other.recv() => (What::Other, server.unwrap()),
            what = ended => return what,
        };
        let heard = read_text_bytes(&mut server, first.len()).await;
        assert_eq!(heard, first, "what was looked at goes on as it came");
        what
    }
}

async fn read_text_bytes(stream: &mut HboneStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Web,
    Other,
    Closed,
    Reset,
}

pub(crate) fn tls(name: &str, hosts: &[&str], to: &str) -> Route {
    route(Kind::Tls, name).under(WEB).named(hosts).to(to, 80, 1)
}

pub(crate) fn tcp(name: &str) -> Route {
    route(Kind::Tcp, name).under(WEB)
}

#[tokio::test(start_paused = true)]
async fn tls_goes_where_its_server_name_says() {
    for protocol in [AppProtocol::Tls, AppProtocol::Unknown, AppProtocol::Tcp] {
        let routes = vec![
            tls("shop/a", &["a.example"], OTHER),
            tls("shop/b", &["*.b.example"], WEB),
        ];
        let mut shop = shop(protocol, routes).await;
        for (name, expected) in [
            (Some("a.example"), What::Other),
            (Some("A.EXAMPLE"), What::Other),
            (Some("x.y.b.example"), What::Web),
            (Some("b.example"), What::Closed),
            (Some("c.example"), What::Closed),
            (None, What::Closed),
        ] {
            assert_eq!(
                shop.said("client", &hello(name)).await,
                expected,
                "{protocol:?} {name:?}"
            );
        }
        let bytes = b"*1\r\n$4\r\nPING\r\n";
        assert_eq!(
            shop.said("client", bytes).await,
            What::Closed,
            "{protocol:?}: no TLS"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_without_names_takes_what_no_other_does() {
    let routes = vec![tls("shop/a", &["a.example"], OTHER), tls("shop/z", &[], WEB)];
    let mut shop = shop(AppProtocol::Tls, routes).await;
    assert_eq!(shop.said("client", &hello(Some("a.example"))).await, What::Other);
    assert_eq!(shop.said("client", &hello(Some("b.example"))).await, What::Web);
    assert_eq!(shop.said("client", &hello(None)).await, What::Web);
}

#[tokio::test(start_paused = true)]
async fn without_a_rule_bytes_go_to_what_was_asked_for() {
    let mut shop = shop(AppProtocol::Tls, vec![]).await;
    assert_eq!(shop.said("client", &hello(Some("a.example"))).await, What::Web);
    assert_eq!(
        shop.said("client", b"PING").await,
        What::Web,
        "declared as TLS, and is none"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_is_heard_at_once_behind_a_rule() {
    let route = tcp("shop/a").to(OTHER, 80, 1);
    let mut shop = shop(AppProtocol::Tcp, vec![route]).await;
    let begun = Instant::now();
    let mut client = shop.open().await;
    let mut server = shop.other.recv().await.unwrap();
    server.write_all(b"220 ready\r\n").await.unwrap();
    assert_eq!(read_text(&mut client, 11).await, "220 ready\r\n");
    assert!(begun.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn connections_are_shared_out_by_weight() {
    let route = tcp("shop/a").to(WEB, 80, 3).to(OTHER, 80, 1);
    let mut shop = shop(AppProtocol::Tcp, vec![route]).await;
    let (mut web, mut other, mut held) = (0, 0, Vec::new());
    for _ in 0..400 {
        held.push(shop.open().await);
        tokio::select! {
            Some(_) = shop.web.recv() => web += 1,
            Some(_) = shop.other.recv() => other += 1,
        }
        held.clear();
    }
    assert_eq!(web + other, 400);
    // Eight standard deviations on either side of 100.
    assert!((31..170).contains(&other), "{other} of 400 for a quarter");
}

#[tokio::test(start_paused = true)]
async fn only_the_first_rule_of_tcp_counts() {
    let routes = vec![
        tcp("shop/new").created(200).to(WEB, 80, 1),
        tcp("shop/old").created(100).to(OTHER, 80, 1),
    ];
    let mut shop = shop(AppProtocol::Tcp, routes).await;
    assert_eq!(shop.said("client", b"x").await, What::Other);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_cannot_be_used_resets_the_stream() {
    let missing = tcp("shop/a").to("shop/nowhere.shop.svc.cluster.local", 80, 1);
    let port = tcp("shop/a").to(OTHER, 81, 1);
    let nothing = tcp("shop/a").to(OTHER, 80, 0);
    let mut broken = tcp("shop/a").to(OTHER, 80, 1);
    broken.error = Some("not understood".into());
    for route in [missing, port, nothing, broken] {
        let told = format!("{:?} {:?}", route.backends, route.error);
        let mut shop = shop(AppProtocol::Tcp, vec![route]).await;
        assert_eq!(shop.said("client", b"x").await, What::Reset, "{told}");
        assert_eq!(
            shop.world
                .metric("tulle_waypoint_local_replies_total{reason=\"backend_invalid\"}"),
            1.0
        );
    }
}

#[tokio::test(start_paused = true)]
async fn silence_where_a_server_name_decides_is_no_way_around_it() {
    let shop = shop(AppProtocol::Unknown, vec![tls("shop/a", &["a.example"], OTHER)]).await;
    let mut client = shop.open().await;
    let begun = Instant::now();
    let mut byte = [0];
    let ended = timeout(Duration::from_secs(60), client.read(&mut byte)).await;
    assert_eq!(ended.unwrap().unwrap(), 0, "closed");
    assert!((5..6).contains(&begun.elapsed().as_secs()));
}

/// Which of four endpoints of `shop/web` take the streams of one caller, where one of them may not be reached. What hashes
/// them is a policy on the service, or on the route they take.
async fn takers(is_on_route: bool, silent: Option<usize>) -> Vec<usize> {
    let ips = ["10.0.0.21", "10.0.0.22", "10.0.0.23", "10.0.0.24"];
    let balancing = LoadBalancing {
        algorithm: Some(Algorithm::RingHash),
        hash: vec![Key::Header("x-user".into()), Key::SourceIdentity],
        ..LoadBalancing::default()
    };
    let concern = Concern::LoadBalancing(balancing);
    let mut told = vec![web(AppProtocol::Tcp), front("shop/web", |_| {})];
    if is_on_route {
        let on = On::Route {
            kind: Kind::Tcp,
            namespace: "shop".into(),
            name: "ring".into(),
        };
        told.push(MeshUpdate::WaypointPolicy(Arc::new(policy_on(
            "ring", on, concern,
        ))));
        told.push(MeshUpdate::Route(Arc::new(tcp("shop/ring").to(WEB, 80, 1))));
    } else {
        told.push(told_policy("ring", concern));
    }
    for (n, ip) in ips.iter().enumerate() {
        let one = workload(&format!("shop/web-{n}")).sa("web").ip(ip).hbone();
        told.push(one.serves("shop/web").into());
    }
    let world = World::start(told).await;
    let mut endpoints: Vec<_> = ips.iter().map(|ip| world.endpoint(ip, "web")).collect();
    let (_kept, nobody) = unbounded_channel();
    if let Some(silent) = silent {
        world.pipes.silence(&format!("{}:15008", ips[silent]));
        endpoints[silent] = nobody;
    }
    let mut taken = Vec::new();
    for _ in 0..6 {
        let _stream = world.ask("client", "10.96.0.1:80").await.unwrap();
        let came = endpoints.iter_mut().map(|streams| Box::pin(streams.recv()));
        let (stream, index, _) = select_all(came).await;
        assert!(stream.is_some());
        taken.push(index);
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_caller_stay_with_an_endpoint_and_go_on_to_the_next_if_it_is_not_reached() {
    for is_on_route in [false, true] {
        let taken = takers(is_on_route, None).await;
        let first = taken[0];
        assert_eq!(taken, [first; 6], "on the route: {is_on_route}");
        let taken = takers(is_on_route, Some(first)).await;
        let next = taken[0];
        assert_ne!(next, first);
        assert_eq!(taken, [next; 6], "on the route: {is_on_route}");
    }
}
