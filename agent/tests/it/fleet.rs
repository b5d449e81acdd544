//! The whole node: descriptions in, pods captured and released, with a proxy that accepts everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tulle_agent::board::Board;
use tulle_agent::capture::Capture;
use tulle_agent::enroll::task::{Shared, Timing};
use tulle_agent::fleet::{self, Fleet};
use tulle_agent::grace::Grace;
use tulle_agent::host::Host;
use tulle_agent::metrics::Metrics;
use tulle_agent::probe::Probes;
use tulle_agent::rules::Backend;
use tulle_agent::rules::plan::ProxyMark;
use tulle_agent::variant::{Existing, MarkGuard, Settings};
use tulle_agent::zds::Hub;
use tulle_linux::NetNs;
use tulle_model::Mesh;
use tulle_proto::convert::zds::Request;
use tulle_runtime::metrics::Registry;
use tulle_runtime::tasks;
use tulle_xds_client::MeshState;
use tulle_xds_client::local::{Local, LocalConfig, LocalSource};

use crate::backends::with_each_backend;
use crate::pod::{PATIENCE, World};
use crate::proxy::Proxy;

with_each_backend! {
    a_pod_follows_its_description_in_and_out_and_away,
    a_clean_end_takes_every_pod_out,
    one_pod_that_cannot_be_found_does_not_hold_up_the_first_look,
}

/// Takes every pod, and lets go of it when it is told to.
async fn accept_everything(proxy: Proxy) {
    let mut held = Vec::new();
    loop {
        let Some((request, fds)) = proxy.next().await else {
            return;
        };
        match request {
            Request::Add(_) => held.extend(fds),
            Request::Delete { .. } => held.clear(),
            _ => {}
        }
        proxy.accept().await;
    }
}

async fn shared(world: &World, backend: Backend) -> Shared {
    let metrics = Metrics::register(&Registry::new());
    Shared {
        capture: Capture::new(backend.rules(), ProxyMark::WellKnown),
        hub: Hub::new(),
        board: Board::new(metrics.clone()),
        metrics,
        resolver_dir: world.folder.path().into(),
        locator: world.locator(),
        grace: Grace::default(),
        probes: Probes::default(),
        settings: Settings {
            dns: false,
            mark: ProxyMark::WellKnown,
            mark_guard: MarkGuard::Off,
            existing: Existing::Keep,
        },
        host: Host::take_over(Backend::Netlink.rules(), NetNs::create().unwrap())
            .await
            .unwrap(),
        joins: Arc::new(Semaphore::new(16)),
        timing: Timing {
            leave_notice: Duration::from_millis(1),
            ..Timing::default()
        },
    }
}

async fn proxy_for(hub: &Hub, folder: &Path) {
    let path = folder.join("zds.sock");
    tasks::spawn("zds", tulle_agent::zds::serve(&path, hub.clone()).unwrap());
    tasks::spawn("proxy", accept_everything(Proxy::connect(&path, Some("1")).await));
}

fn described(protocol: &str, netns: &str) -> LocalConfig {
    let text = format!(
        "workloads:\n- uid: u1\n  name: web\n  namespace: shop\n  serviceAccount: web\n  node: n1\n  \
         workloadIps: [10.9.0.7]\n  protocol: {protocol}\n  extensions: {{tulle.dev/process: '{netns}'}}\n\
         - uid: u2\n  name: elsewhere\n  namespace: shop\n  node: n2\n  workloadIps: [10.9.0.8]\n  protocol: HBONE\n"
    );
    LocalConfig::parse("test", &text).unwrap()
}

async fn until(board: &Board, states: &[&str]) {
    let reached = async {
        loop {
            let now: Vec<_> = board.entries().iter().map(|entry| entry.state).collect();
            if now == states {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let shown = || board.entries();
    tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap_or_else(|_| panic!("not {states:?}: {:?}", shown()));
}

async fn a_pod_follows_its_description_in_and_out_and_away(backend: Backend) {
    let Some(world) = World::new("a_pod_follows_its_description_in_and_out_and_away") else {
        return;
    };
    let shared = shared(&world, backend).await;
    let (hub, board) = (shared.hub.clone(), shared.board.clone());
    proxy_for(&hub, world.folder.path()).await;
    let state = MeshState::new(Mesh::new());
    let _local = Local::load(LocalSource::Text("workloads: []".into()), state.clone()).unwrap();
    let mut fleet = Fleet::new(shared);
    let following = state.clone();
    tasks::spawn("fleet", async move {
        fleet::follow(&mut fleet, &following, "n1", || hub.complete()).await;
    });

    let (out, captured) = (described("TCP", "netns:web"), described("HBONE", "netns:web"));
    state.apply(out.updates());
    until(&board, &["Out"]).await;
    state.apply(captured.updates_from(&out));
    until(&board, &["In"]).await;
    state.apply(out.updates_from(&captured));
    until(&board, &["Out"]).await;
    assert_eq!(world.output("nft", "list ruleset"), "");
    state.apply(captured.updates_from(&out));
    until(&board, &["In"]).await;
    state.apply(LocalConfig::default().updates_from(&captured));
    until(&board, &[]).await;
    assert!(world.output("nft", "list ruleset").contains("redirect to :15001"));
    assert!(
        tulle_agent::sock_diag::marked_sockets(&world.pod, ProxyMark::WellKnown)
            .await
            .unwrap()
            .is_empty(),
        "nothing is held"
    );
}

async fn a_clean_end_takes_every_pod_out(backend: Backend) {
    let Some(world) = World::new("a_clean_end_takes_every_pod_out") else {
        return;
    };
    let shared = Shared {
        timing: Timing::default(),
        ..shared(&world, backend).await
    };
    let (hub, board) = (shared.hub.clone(), shared.board.clone());
    proxy_for(&hub, world.folder.path()).await;
    let mut fleet = Fleet::new(shared);
    let state = MeshState::new(Mesh::new());
    state.apply(described("HBONE", "netns:web").updates());
    fleet.apply(tulle_agent::pods::of_node(&state.snapshot(), "n1"));
    hub.complete();
    until(&board, &["In"]).await;

    let before = std::time::Instant::now();
    fleet.release_all().await;
    assert_eq!(world.output("nft", "list ruleset"), "");
    assert!(
        before.elapsed() < Timing::default().leave_notice,
        "no notice is given"
    );
}

async fn one_pod_that_cannot_be_found_does_not_hold_up_the_first_look(backend: Backend) {
    let Some(world) = World::new("one_pod_that_cannot_be_found_does_not_hold_up_the_first_look") else {
        return;
    };
    let shared = shared(&world, backend).await;
    let (hub, board) = (shared.hub.clone(), shared.board.clone());
    proxy_for(&hub, world.folder.path()).await;
    let mut fleet = Fleet::new(shared);
    let state = MeshState::new(Mesh::new());
    state.apply(described("HBONE", "netns:nobody").updates());
    fleet.apply(tulle_agent::pods::of_node(&state.snapshot(), "n1"));
    hub.complete();
    tokio::time::timeout(PATIENCE, board.until_settled())
        .await
        .expect("settled in time");
    let error = board.entries().remove(0).error.unwrap();
    assert_eq!((error.code, error.token), ("T0102", "netns_not_found"));
}
