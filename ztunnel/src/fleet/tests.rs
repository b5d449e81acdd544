//! A pod's proxy that ends by a fault.

use tokio::runtime::Handle;
use tulle_identity::testing::{Clock, FakeCa, TestCa};
use tulle_runtime::config::MapEnv;

use super::*;
use crate::App;
use crate::config::{Config, ProcessPorts};

/// A fleet without an agent, and the folder that its process uses.
async fn fleet() -> (App, Fleet, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let env = MapEnv::from([("LOCAL_XDS", "workloads: []")])
        .with("INPOD_UDS", &path("nobody.sock"))
        .with("TULLE_RUN_DIR", &folder.path().display().to_string());
    let config = Config {
        process_ports: ProcessPorts {
            admin: 0,
            stats: 0,
            readiness: 0,
        },
        ..Config::from_env(&env).unwrap()
    };
    let authority = Arc::new(FakeCa::new(Arc::new(TestCa::new()), Clock::system()));
    let app = App::start(config, None, Some(authority), &Handle::current())
        .await
        .unwrap();
    let fleet = Fleet::new(Arc::clone(app.node()), Ready::new());
    (app, fleet, folder)
}

fn name(pod: &str) -> WorkloadName {
    WorkloadName {
        namespace: "shop".into(),
        name: pod.into(),
        service_account: pod.into(),
    }
}

impl Fleet {
    fn running(&self, uid: &PodUid) -> &Running {
        match &self.pods[uid].state {
            State::Running(running) => running,
            State::Pending { .. } => panic!("{uid} is not served"),
        }
    }
}

#[tokio::test]
async fn a_panic_in_one_pods_proxy_is_counted_and_restarted_and_no_other_pod_notices() {
    let (Ok(first), Ok(second)) = (NetNs::create(), NetNs::create()) else {
        eprintln!("skipped: network namespaces cannot be made here");
        return;
    };
    let (app, mut fleet, _folder) = fleet().await;
    let [faulty, other] = ["faulty", "other"].map(|pod| PodUid(pod.into()));
    for (uid, netns) in [(&faulty, first), (&other, second)] {
        fleet
            .add(uid.clone(), name(&uid.0), netns, None, None)
            .await
            .unwrap();
    }
    let runs = [&faulty, &other].map(|uid| fleet.running(uid).run);
    // What is open when it happens.
    let guard = fleet.running(&faulty).pod.drain.guard();
    let panicked = tasks::spawn("pod-proxy", async { panic!("a fault, on purpose") });
    fleet.ends.push(watch_end(faulty.clone(), runs[0], panicked));
    fleet.supervise().await;
    assert_eq!(app.node().metrics.proxy_restarts.get(), 1);
    assert!(fleet.running(&faulty).accept_at.is_some(), "it is due again");
    fleet.supervise().await;
    let restarted = fleet.running(&faulty);
    assert!(restarted.run > runs[1] && restarted.accept_at.is_none());
    assert!(!restarted.pod.drain.is_draining(), "what was open lives on");
    assert_eq!(fleet.running(&other).run, runs[1]);
    drop(guard);
}
