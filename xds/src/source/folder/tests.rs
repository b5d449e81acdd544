use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::watch;
use tulle_k8s::translate::MeshConfig;
use tulle_model::Str;
use tulle_model::workload::TunnelProtocol;
use tulle_runtime::tasks::Scope;

use super::*;
use crate::engine::Engine;
use crate::metrics::EngineMetrics;
use crate::snapshot::{ObjectKey, ResourceType, Snapshot, Version};
use crate::source::{FolderConfig, start};
use crate::status::Clients;

mod recorded;
mod soak;

const UID: &str = "Kubernetes/networking.istio.io/WorkloadEntry/shop/web";
const ENTRY: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: web
  namespace: shop
  annotations: {tulle.dev/node: n1, 'tulle.dev/process': 'netns:web', 'tulle.dev/addresses': '10.0.0.1,fd00::1'}
spec:
  address: 10.0.0.1
  serviceAccount: web
  labels: {app: web}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}
";

/// A folder that is being read, for as long as this lives.
struct Folder {
    config: TempDir,
    state: TempDir,
    scope: Scope,
    looks: Looks,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let (config, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for (name, text) in files {
            put(config.path(), name, text);
        }
        Self::over(config, state)
    }

    fn over(config: TempDir, state: TempDir) -> Self {
        let (scope, looks) = (Scope::new(), Looks::default());
        let folder = FolderConfig {
            config_dir: config.path().to_owned(),
            state_dir: Some(state.path().to_owned()),
            follow: false,
            looks: looks.clone(),
            namespaces: None,
            reading: None,
        };
        let trust = watch::channel(None).1;
        let snapshots = start(
            folder,
            MeshConfig::default(),
            trust,
            Clients::default(),
            EngineMetrics::default(),
            &scope,
        )
        .snapshots;
        Self {
            config,
            state,
            scope,
            looks,
            snapshots,
        }
    }

    fn put(&self, name: &str, text: &str) {
        put(self.config.path(), name, text);
    }

    async fn until(&mut self, holds: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut holds = holds;
        let wait = self
            .snapshots
            .wait_for(|snapshot| snapshot.synced() && holds(snapshot));
        let found = tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("in time");
        found.expect("the engine runs").clone()
    }

    async fn restart(mut self) -> Self {
        self.scope.cancel();
        self.scope.close();
        self.scope.wait().await;
        let config = std::mem::replace(&mut self.config, TempDir::new().unwrap());
        let state = std::mem::replace(&mut self.state, TempDir::new().unwrap());
        Self::over(config, state)
    }
}

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = path.with_extension("tmp");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn namespace(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {{istio.io/dataplane-mode: {mode}}}\n"
    )
}

fn tunnel(snapshot: &Snapshot) -> Option<TunnelProtocol> {
    let slot = snapshot.resource(ResourceType::Address, UID)?;
    match tulle_proto::convert::decode_address(&slot.name, &slot.body).unwrap() {
        tulle_proto::convert::Resource::Workload(workload) => Some(workload.tunnel_protocol),
        _ => None,
    }
}

#[tokio::test]
async fn a_label_edit_reaches_the_cut_within_100_ms() {
    let mut folder = Folder::new(&[("shop.yaml", ENTRY), ("ns.yaml", &namespace("none"))]);
    let before = folder.until(|snapshot| tunnel(snapshot).is_some()).await;
    assert_eq!(tunnel(&before), Some(TunnelProtocol::None));
    // The first scans settle which directories are watched; what else the machine does must not count.
    let mut fastest = Duration::MAX;
    for (mode, protocol) in [("ambient", TunnelProtocol::Hbone), ("none", TunnelProtocol::None)].repeat(4) {
        let started = Instant::now();
        folder.put("ns.yaml", &namespace(mode));
        folder.until(|snapshot| tunnel(snapshot) == Some(protocol)).await;
        fastest = fastest.min(started.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "took {fastest:?}");
}

#[test]
fn a_directory_that_is_too_deep_is_a_finding_and_none_is_passed_over() {
    let root = TempDir::new().unwrap();
    let deep = |directories: usize| "d/".repeat(directories);
    put(root.path(), &(deep(DIRECTORIES_DEEP_MAX) + "last.yaml"), ENTRY);
    let scan = || Scanner::new(root.path().to_owned()).scan();
    let found = scan();
    assert_eq!((found.files.len(), found.unreadable.len()), (1, 0));
    put(
        root.path(),
        &(deep(DIRECTORIES_DEEP_MAX + 1) + "deny.yaml"),
        ENTRY,
    );
    let found = scan();
    let (below, cause) = found.unreadable.first_key_value().expect("a finding");
    assert_eq!(below.split('/').count(), DIRECTORIES_DEEP_MAX + 1);
    assert!(
        cause.contains("more than 32 directories below the root"),
        "{cause}"
    );
    assert_eq!(found.files.len(), 1, "what is above it is read");
}

#[tokio::test(start_paused = true)]
async fn what_happened_during_a_look_waits_no_longer_than_what_happens_after_it() {
    let (tell, events) = mpsc::channel(1);
    let (mut watcher, looks) = (Watcher::of(events), Looks::default());
    let never = tokio::time::Instant::now() + RESCAN;
    // It is never quiet.
    let writer = tulle_runtime::tasks::spawn("writer", async move {
        while !tell.is_closed() {
            let _ = tell.try_send(tokio::time::Instant::now());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    for (looked, waits) in [(0, 250), (200, 50), (400, 0)] {
        // The first event comes when the look begins, and the one that waits keeps the others from coming.
        watcher.event().await;
        tokio::time::sleep(Duration::from_millis(5 + looked)).await;
        let begun = tokio::time::Instant::now();
        assert!(settle(&mut watcher, &looks, never).await);
        let waited = begun.elapsed().as_millis();
        assert!(
            waited.abs_diff(waits) <= 6,
            "{waited} ms after a look of {looked} ms"
        );
    }
    writer.abort();
}

#[tokio::test]
async fn a_look_that_was_asked_for_holds_what_was_written_before() {
    let mut folder = Folder::new(&[("shop.yaml", ENTRY)]);
    folder.until(|snapshot| tunnel(snapshot).is_some()).await;
    for (mode, protocol) in [("ambient", TunnelProtocol::Hbone), ("none", TunnelProtocol::None)] {
        folder.put("ns.yaml", &namespace(mode));
        let asked = folder.looks.ask();
        let cut = folder.until(|snapshot| snapshot.objects().look >= asked).await;
        assert_eq!(tunnel(&cut), Some(protocol));
    }
    let asked = folder.looks.ask();
    folder.until(|snapshot| snapshot.objects().look >= asked).await;
    // What may be half written is looked at again, and judged before the look is over.
    folder.put("shop.yaml", "{{{");
    let asked = folder.looks.ask();
    let cut = folder.until(|snapshot| snapshot.objects().look >= asked).await;
    assert_eq!(cut.objects().errors().count(), 1);
}

#[test]
fn a_replica_serves_the_same_and_writes_no_status() {
    // A runtime waits for the threads that write files when it is dropped, as a process does when it ends.
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (owner, owned) = runtime().block_on(async {
        let mut owner = Folder::new(&[("shop.yaml", ENTRY), ("ns.yaml", &namespace("none"))]);
        let owned = owner.until(|snapshot| tunnel(snapshot).is_some()).await;
        owner.scope.cancel();
        (owner, owned)
    });
    runtime().block_on(the_same_and_no_status(owner, &owned));
}

async fn the_same_and_no_status(mut owner: Folder, owned: &Snapshot) {
    let status = owner.state.path().join("status");
    let _ = std::fs::remove_dir_all(&status);
    let scope = Scope::new();
    let following = FolderConfig {
        config_dir: owner.config.path().to_owned(),
        state_dir: Some(owner.state.path().to_owned()),
        follow: true,
        looks: Looks::default(),
        namespaces: None,
        reading: None,
    };
    let (mesh, metrics) = (MeshConfig::default(), EngineMetrics::default());
    let trust = watch::channel(None).1;
    owner.snapshots = start(following, mesh, trust, Clients::default(), metrics, &scope).snapshots;
    let versions = |snapshot: &Snapshot| -> Vec<(Str, Version)> {
        let slots = snapshot.by_name(ResourceType::Address).into_iter();
        slots.map(|slot| (slot.name.clone(), slot.version)).collect()
    };
    let replica = owner.until(|snapshot| tunnel(snapshot).is_some()).await;
    assert_eq!(versions(&replica), versions(owned));
    // Several cuts, so that somebody who writes would have written.
    for (mode, protocol) in [
        ("ambient", TunnelProtocol::Hbone),
        ("none", TunnelProtocol::None),
        ("ambient", TunnelProtocol::Hbone),
    ] {
        owner.put("ns.yaml", &namespace(mode));
        owner.until(|snapshot| tunnel(snapshot) == Some(protocol)).await;
    }
    assert!(!status.exists(), "a replica writes nothing");
    scope.cancel();
}

#[test]
fn a_replica_decides_on_what_changed_and_else_on_nothing() {
    let (config, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(config.path(), "shop.yaml", ENTRY);
    let (mut scanner, mut follower) = (
        Scanner::new(config.path().to_owned()),
        Follower::new(state.path()),
    );
    let now = jiff::Timestamp::now();
    let mut decided = || follower.look(&scanner.scan(), now).step.work.decided;
    assert_eq!(decided(), 2);
    assert_eq!(decided(), 0);
    put(config.path(), "more.yaml", &namespace("none"));
    assert_eq!(decided(), 3);
    assert_eq!(decided(), 0);
}

#[test]
fn a_replica_without_a_record_serves_nothing_until_it_has_read_every_file_and_then_keeps_what_it_read() {
    let (config, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (mut scanner, mut follower) = (
        Scanner::new(config.path().to_owned()),
        Follower::new(state.path()),
    );
    let now = jiff::Timestamp::now();
    put(config.path(), "shop.yaml", "{broken");
    put(config.path(), "ns.yaml", &namespace("none"));
    let mut look = || follower.look(&scanner.scan(), now).batch;
    assert!(!look().expect("news").synced);
    put(config.path(), "shop.yaml", ENTRY);
    assert!(look().expect("news").synced);
    put(config.path(), "shop.yaml", "{broken again");
    // A young file is read twice before it is told of.
    let kept = [look(), look()].into_iter().flatten().last().expect("news");
    assert!(
        kept.synced && kept.events.iter().all(|event| event.object.is_some()),
        "{kept:?}"
    );
}

#[tokio::test]
async fn a_file_in_a_new_directory_is_found() {
    let mut folder = Folder::new(&[]);
    folder.until(|_| true).await;
    folder.put("team/a/shop.yaml", ENTRY);
    folder.until(|snapshot| tunnel(snapshot).is_some()).await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_objects_and_names_line_cause_and_fix() {
    let mut folder = Folder::new(&[("shop.yaml", ENTRY)]);
    folder.until(|snapshot| tunnel(snapshot).is_some()).await;
    folder.put("shop.yaml", "apiVersion: v1\nkind: [Service\nmetadata: {}\n");
    let snapshot = folder
        .until(|snapshot| snapshot.objects().errors().next().is_some())
        .await;
    assert!(tunnel(&snapshot).is_some());
    let problem = snapshot.objects().errors().next().unwrap().to_string();
    assert!(problem.starts_with("shop.yaml:"), "{problem}");
    assert!(problem.contains("T0202 unparsable_file"), "{problem}");
    assert!(problem.contains("correct the file"), "{problem}");
    let key = ObjectKey::new(tulle_k8s::Kind::WorkloadEntry, "shop", "web");
    assert!(snapshot.objects().object(&key).unwrap().stale_since.is_some());
}

#[tokio::test]
async fn the_last_good_form_survives_a_restart() {
    let mut folder = Folder::new(&[("shop.yaml", ENTRY)]);
    let before = folder.until(|snapshot| tunnel(snapshot).is_some()).await;
    folder.put("shop.yaml", "{{{");
    folder
        .until(|snapshot| snapshot.objects().errors().next().is_some())
        .await;
    let mut folder = folder.restart().await;
    let after = folder.until(|_| true).await;
    let version = |snapshot: &Snapshot| {
        snapshot
            .resource(ResourceType::Address, UID)
            .map(|slot| slot.version)
    };
    assert_eq!(version(&after), version(&before));
    assert!(version(&after).is_some());
}

#[tokio::test]
async fn a_missing_folder_is_not_an_empty_mesh() {
    let (config, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let root = config.path().to_owned();
    std::fs::remove_dir(&root).unwrap();
    let mut folder = Folder::over(config, state);
    let degraded = folder
        .snapshots
        .wait_for(|snapshot| snapshot.objects().degraded.is_some())
        .await
        .unwrap()
        .clone();
    assert!(!degraded.synced());
    put(&root, "shop.yaml", ENTRY);
    folder.until(|snapshot| tunnel(snapshot).is_some()).await;
}

#[tokio::test]
async fn conditions_stand_in_a_file_per_object() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {action: AUDIT}\n";
    let mut folder = Folder::new(&[("p.yaml", policy)]);
    folder.until(|_| true).await;
    let path = folder.state.path().join("status/AuthorizationPolicy/shop/p.yaml");
    let text = present(&path).await;
    assert!(
        text.contains("type: ZtunnelAccepted") && text.contains("reason: UnsupportedValue"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_file_stands_in_a_file_while_it_is() {
    let mut folder = Folder::new(&[]);
    folder.until(|_| true).await;
    folder.put("shop/p.yaml", "kind: [broken\n");
    folder
        .until(|snapshot| snapshot.objects().errors().next().is_some())
        .await;
    let path = folder.state.path().join("status/_files/shop/p.yaml.yaml");
    let text = present(&path).await;
    assert!(
        text.contains("status: \"False\"") && text.contains("T0202"),
        "{text}"
    );
    put(folder.config.path(), "shop/p.yaml", ENTRY);
    folder
        .until(|snapshot| snapshot.objects().errors().next().is_none())
        .await;
    let gone = async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("removed in time");
}

/// Waits for a file that is written beside the snapshot.
async fn present(path: &Path) -> String {
    let text = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) => return text,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    text.await.expect("in time")
}

#[tokio::test]
async fn a_link_out_of_the_folder_is_refused() {
    let outside = TempDir::new().unwrap();
    put(outside.path(), "shop.yaml", ENTRY);
    let mut folder = Folder::new(&[]);
    folder.until(|_| true).await;
    std::os::unix::fs::symlink(
        outside.path().join("shop.yaml"),
        folder.config.path().join("shop.yaml"),
    )
    .unwrap();
    let snapshot = folder
        .until(|snapshot| snapshot.objects().errors().next().is_some())
        .await;
    assert!(tunnel(&snapshot).is_none());
}

#[tokio::test]
async fn a_swap_of_linked_directories_is_seen() {
    let mut folder = Folder::new(&[
        ("..a/ns.yaml", &namespace("none")),
        ("..b/ns.yaml", &namespace("ambient")),
        ("shop.yaml", ENTRY),
    ]);
    let root = folder.config.path().to_owned();
    std::os::unix::fs::symlink("..a", root.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/ns.yaml", root.join("ns.yaml")).unwrap();
    folder
        .until(|snapshot| tunnel(snapshot) == Some(TunnelProtocol::None))
        .await;
    std::os::unix::fs::symlink("..b", root.join("..new")).unwrap();
    std::fs::rename(root.join("..new"), root.join("..data")).unwrap();
    folder
        .until(|snapshot| tunnel(snapshot) == Some(TunnelProtocol::Hbone))
        .await;
}
