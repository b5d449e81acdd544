//! The in-pod protocol over a real socket, with scripted proxies.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use tulle_agent::sockets::Listeners;
use tulle_agent::zds::{Announcement, Hub};
use tulle_linux::NetNs;
use tulle_proto::convert::zds::{Answer, Request, Sockets};
use tulle_proto::zds::sockets::Kind;
use tulle_runtime::tasks;

use crate::pod::World;
use crate::proxy::Proxy;

fn serve(world: &World) -> (Hub, PathBuf) {
    let path = world.folder.path().join("zds.sock");
    let hub = Hub::new();
    tasks::spawn("zds", tulle_agent::zds::serve(&path, hub.clone()).unwrap());
    (hub, path)
}

async fn web(world: &World, with_listeners: bool) -> Announcement {
    let listeners = if with_listeners {
        Some(
            Listeners::open(&world.pod, false, tulle_agent::rules::plan::ProxyMark::WellKnown)
                .await
                .unwrap(),
        )
    } else {
        None
    };
    Announcement {
        dns: None,
        uid: "u1".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        netns: world.pod.clone(),
        listeners: listeners.map(Arc::new),
    }
}

async fn until_connected(hub: &Hub, proxies: usize) {
    let mut watch = hub.watch();
    let connected = watch.wait_for(|now| now.connected.len() == proxies);
    tokio::time::timeout(crate::pod::PATIENCE, connected)
        .await
        .expect("in time")
        .unwrap();
}

fn is_netns(fd: OwnedFd, expected: &NetNs) -> bool {
    NetNs::from_fd(fd).unwrap() == *expected
}

#[tokio::test]
async fn the_snapshot_mentions_everything_and_comes_when_it_is_complete() {
    let Some(world) = World::new("the_snapshot_mentions_everything_and_comes_when_it_is_complete") else {
        return;
    };
    let (hub, path) = serve(&world);
    assert!(
        hub.announce(web(&world, true).await).await.is_err(),
        "no proxy is connected yet"
    );
    hub.keep(&"u0".into());
    let proxy = Proxy::connect(&path, Some("1")).await;
    until_connected(&hub, 1).await;
    hub.complete();
    let requests = proxy.snapshot().await;
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].0, Request::Keep { uid: "u0".into() });
    assert!(requests[0].1.is_empty());
    assert!(matches!(&requests[1].0, Request::Add(added) if added.uid.as_ref() == "u1"));
    assert!(hub.is_accepted(&"u1".into()));
}

#[tokio::test]
async fn listeners_come_with_the_namespace_to_a_proxy_that_takes_them() {
    let Some(world) = World::new("listeners_come_with_the_namespace_to_a_proxy_that_takes_them") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, Some("1")).await;
    proxy.snapshot().await;
    let pod = web(&world, true).await;
    let announcing = hub.announce(pod);
    let scripted = async {
        let (added, mut fds) = proxy.added().await;
        proxy.accept().await;
        assert_eq!(fds.len(), 4);
        assert!(is_netns(fds.remove(0), &world.pod));
        let sockets = added.sockets.unwrap();
        assert_eq!(
            sockets.kinds,
            [Kind::Outbound, Kind::InboundPlain, Kind::InboundHbone]
        );
        for (kind, fd) in sockets.kinds.into_iter().zip(fds) {
            let port = socket2::Socket::from(fd)
                .local_addr()
                .unwrap()
                .as_socket()
                .unwrap()
                .port();
            let expected = [
                (Kind::Outbound, 15001),
                (Kind::InboundPlain, 15006),
                (Kind::InboundHbone, 15008),
            ];
            assert!(expected.contains(&(kind, port)), "{kind:?} is {port}");
        }
    };
    let (announced, ()) = tokio::join!(announcing, scripted);
    announced.unwrap();
}

#[tokio::test]
async fn a_plain_proxy_gets_the_namespace_alone() {
    let Some(world) = World::new("a_plain_proxy_gets_the_namespace_alone") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, None).await;
    proxy.snapshot().await;
    let pod = web(&world, true).await;
    let announcing = hub.announce(pod);
    let scripted = async {
        let (added, mut fds) = proxy.added().await;
        proxy.answer(&Answer::refused("no"), &[]).await;
        assert_eq!((added.sockets, fds.len()), (None, 1));
        assert!(is_netns(fds.remove(0), &world.pod));
    };
    let (announced, ()) = tokio::join!(announcing, scripted);
    assert_eq!(announced.unwrap_err().reason().token(), "listeners_missing");
    assert!(!hub.is_accepted(&"u1".into()));
}

#[tokio::test]
async fn the_newest_proxy_gets_pods_the_older_hands_over_and_all_are_told_of_the_end() {
    let Some(world) = World::new("the_newest_proxy_gets_pods") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let old = Proxy::connect(&path, Some("1")).await;
    old.snapshot().await;
    let pod = web(&world, true).await;
    let (announced, ()) = tokio::join!(hub.announce(pod), async {
        old.added().await;
        old.accept().await;
    });
    announced.unwrap();

    let new = Proxy::connect(&path, Some("2")).await;
    assert_eq!(new.snapshot().await.len(), 1);
    assert_eq!(old.request().await.0, Request::HandOver { uid: "u1".into() });
    old.accept().await;

    let uid = "u1".into();
    tokio::join!(hub.withdraw(&uid), async {
        for proxy in [&new, &old] {
            assert_eq!(proxy.request().await.0, Request::Delete { uid: "u1".into() });
            proxy.accept().await;
        }
    });
}

#[tokio::test]
async fn a_cut_answer_ends_the_connection() {
    let Some(world) = World::new("a_cut_answer_ends_the_connection") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, Some("1")).await;
    proxy.snapshot().await;
    let pod = web(&world, false).await;
    let (announced, ()) = tokio::join!(hub.announce(pod), async {
        proxy.added().await;
        proxy.raw(&[0; 2000]).await;
        proxy.ended().await;
    });
    assert_eq!(announced.unwrap_err().reason().token(), "proxy_not_connected");
    until_connected(&hub, 0).await;
}

#[tokio::test]
async fn words_that_nobody_asked_for_end_the_connection() {
    let Some(world) = World::new("words_that_nobody_asked_for_end_the_connection") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, Some("1")).await;
    proxy.snapshot().await;
    proxy.accept().await;
    proxy.ended().await;
}

#[tokio::test]
async fn a_proxy_gives_listeners_back() {
    let Some(world) = World::new("a_proxy_gives_listeners_back") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, Some("1")).await;
    proxy.snapshot().await;
    let held = Listeners::open(&world.pod, false, tulle_agent::rules::plan::ProxyMark::WellKnown)
        .await
        .unwrap();
    let uid = "u1".into();
    let (returned, ()) = tokio::join!(hub.return_sockets(&uid), async {
        assert_eq!(
            proxy.request().await.0,
            Request::ReturnSockets { uid: "u1".into() }
        );
        let sockets = Some(held.announcement());
        proxy.answer(&Answer { error: None, sockets }, &held.fds()).await;
    });
    let adopted =
        Listeners::adopt(returned.unwrap(), tulle_agent::rules::plan::ProxyMark::WellKnown).unwrap();
    assert!(adopted.are_listening());
}

#[tokio::test]
async fn what_a_proxy_gives_back_is_checked() {
    let Some(world) = World::new("what_a_proxy_gives_back_is_checked") else {
        return;
    };
    let held = Listeners::open(&world.pod, false, tulle_agent::rules::plan::ProxyMark::WellKnown)
        .await
        .unwrap();
    let copy = |at: usize| held.fds()[at].try_clone_to_owned().unwrap();
    let wrong_port = vec![
        (Kind::Outbound, copy(1)),
        (Kind::InboundPlain, copy(0)),
        (Kind::InboundHbone, copy(2)),
    ];
    assert!(Listeners::adopt(wrong_port, tulle_agent::rules::plan::ProxyMark::WellKnown).is_err());
    let missing = vec![(Kind::Outbound, copy(0)), (Kind::InboundPlain, copy(1))];
    assert!(Listeners::adopt(missing, tulle_agent::rules::plan::ProxyMark::WellKnown).is_err());
    let no_socket = vec![(Kind::Outbound, world.pod.fd().try_clone_to_owned().unwrap())];
    assert!(Listeners::adopt(no_socket, tulle_agent::rules::plan::ProxyMark::WellKnown).is_err());
}

#[tokio::test]
async fn descriptors_that_are_not_named_end_the_connection() {
    let Some(world) = World::new("descriptors_that_are_not_named_end_the_connection") else {
        return;
    };
    let (hub, path) = serve(&world);
    hub.complete();
    let proxy = Proxy::connect(&path, Some("1")).await;
    proxy.snapshot().await;
    let uid = "u1".into();
    let (returned, ()) = tokio::join!(hub.return_sockets(&uid), async {
        proxy.request().await;
        let sockets = Some(Sockets {
            kinds: vec![Kind::Outbound],
            mark: 0x539,
        });
        let netns = world.pod.fd();
        proxy
            .answer(&Answer { error: None, sockets }, &[netns.as_fd(), netns.as_fd()])
            .await;
        proxy.ended().await;
    });
    assert!(returned.is_none());
}
