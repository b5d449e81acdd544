//! What waits for slow readers in all: a process of its own, because the budget is the process's.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests, and some are for others"
)]

#[path = "it/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;
use tulle_model::MeshUpdate;
use tulle_model::service::AppProtocol;
use tulle_model::testing::{service, workload};
use tulle_model::waypoint::Waypoint as Told;
use tulle_runtime::tasks;
use tulle_transport::HboneStream;
use tulle_transport::hbone::held::{self, Part};
use tulle_waypoint::buffers;

use world::{World, body, front, get, read_text, settings};

const MEBIBYTE: usize = 1024 * 1024;

/// One test at a time: they share the budget.
static ONE: Mutex<()> = Mutex::new(());

/// Runs a test alone, in a process that may hold so much.
fn within(bytes: usize, test: impl Future<Output = ()>) {
    let _one = ONE.lock();
    held::set_budget(bytes);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test);
    drop(runtime);
    assert_eq!(held::bytes(), 0, "all is given back");
}

fn shown(world: &World) -> f64 {
    world.metric("tulle_waypoint_buffer_bytes")
}

/// Sends as much as is taken of a body of this size; the rest stays away.
async fn upload(mut stream: HboneStream, bytes: usize) -> HboneStream {
    let head = format!("POST /a HTTP/1.1\r\nHost: web.shop\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let sending = async {
        let piece = vec![b'x'; 64 * 1024];
        for _ in 0..bytes / piece.len() {
            if stream.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), sending).await;
    stream
}

#[test]
fn what_waits_for_an_application_that_does_not_read_is_seen_and_given_back() {
    within(256 * MEBIBYTE, async {
        let (world, mut streams) = World::raw(AppProtocol::Http11).await;
        let stream = world.ask("client", "10.96.0.1:80").await.unwrap();
        assert_eq!(shown(&world), 0.0);
        let (stream, server) = tokio::join!(upload(stream, 8 * MEBIBYTE), streams.recv());
        let held = shown(&world);
        assert!((4e6..40e6).contains(&held), "{held}: a few windows of both ends");
        drop((stream, server));
        sleep(Duration::from_secs(5)).await;
        assert!(shown(&world) < 1e6, "{}", shown(&world));
    });
}

#[test]
fn streams_and_requests_are_refused_with_a_reason_while_there_is_little_room() {
    within(100 * MEBIBYTE, async {
        let world = World::web().await;
        let mut known = world.http1("client").await;
        let mut much = Part::new();
        much.set(91 * MEBIBYTE);
        let refusal = world.ask("client", "10.96.0.1:80").await.unwrap_err();
        assert_eq!(refusal.status, 503);
        assert_eq!(refusal.reason().token(), "overload");
        let answer = known.send_request(get("/a")).await.unwrap();
        assert_eq!(answer.status(), 503);
        let told = answer.headers()["x-tulle-reason"].to_str().unwrap().to_owned();
        assert!(told.contains("; overload; id="), "{told}");
        body(answer).await;
        drop(much);
        let answer = known.send_request(get("/a")).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(world.ask("client", "10.96.0.1:80").await.is_ok());
    });
}

/// The settings of the waypoint, with this budget.
fn budget(bytes: Option<u64>) -> MeshUpdate {
    let mut told = settings();
    told.limits.buffer_bytes = bytes;
    MeshUpdate::Waypoint(Arc::new(Told::Settings(Box::new(told))))
}

#[test]
fn the_settings_say_how_much_may_wait_and_may_say_it_again() {
    within(256 * MEBIBYTE, async {
        let world = World::web().await;
        drop(tasks::spawn(
            "buffers",
            buffers::follow(Arc::clone(&world.waypoint)),
        ));
        let mut much = Part::new();
        much.set(MEBIBYTE);
        for (told, is_short) in [
            (Some(MEBIBYTE), true),
            (Some(32 * MEBIBYTE), false),
            (Some(MEBIBYTE), true),
            (None, false),
        ] {
            world.apply(vec![budget(told.map(|bytes| bytes as u64))]).await;
            sleep(Duration::from_millis(1)).await;
            assert_eq!(buffers::is_short(), is_short, "{told:?}");
            assert_eq!(
                world.ask("client", "10.96.0.1:80").await.is_err(),
                is_short,
                "{told:?}"
            );
        }
        drop(much);
    });
}

#[test]
fn who_holds_more_than_a_little_is_cut_when_there_is_no_room_and_others_are_served() {
    within(100 * MEBIBYTE, async {
        let (world, mut streams) = World::raw(AppProtocol::Tcp).await;
        let mut greedy = world.ask("greedy", "10.96.0.1:80").await.unwrap();
        let _deaf = streams.recv().await.unwrap();
        // Somebody else, with somebody else: tunnels are cut whole.
        let mut db = service("shop/db").vip("10.96.0.2").port(80, 8080).build();
        db.ports.get_mut(&80).unwrap().app_protocol = AppProtocol::Tcp;
        let pod = workload("shop/db-1")
            .sa("db")
            .ip("10.0.0.8")
            .hbone()
            .serves("shop/db");
        let told = vec![
            MeshUpdate::Service(Arc::new(db)),
            pod.into(),
            front("shop/db", |_| {}),
        ];
        world.apply(told).await;
        let mut others = world.endpoint("10.0.0.8", "db");
        let mut other = world.ask("client", "10.96.0.2:80").await.unwrap();
        let mut server = others.recv().await.unwrap();
        let mut much = Part::new();
        much.set(100 * MEBIBYTE);
        let sending = async {
            let piece = vec![b'x'; 64 * 1024];
            while greedy.write_all(&piece).await.is_ok() {}
        };
        let cut = tokio::time::timeout(Duration::from_secs(60), sending).await;
        assert!(cut.is_ok(), "it still takes more");
        other.write_all(b"ping").await.unwrap();
        assert_eq!(read_text(&mut server, 4).await, "ping");
        drop(much);
    });
}
