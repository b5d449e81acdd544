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
use crate::snapshot::{ObjectKey, ResourceType, Snapshot};
use crate::source::{FolderConfig, start};
use crate::status::Clients;

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
        let scope = Scope::new();
        let folder = FolderConfig {
            config_dir: config.path().to_owned(),
            state_dir: Some(state.path().to_owned()),
            follow: false,
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

#[tokio::test]
async fn a_replica_serves_the_same_and_writes_no_status() {
    let mut owner = Folder::new(&[("shop.yaml", ENTRY), ("ns.yaml", &namespace("none"))]);
    let owned = owner.until(|snapshot| tunnel(snapshot).is_some()).await;
    owner.scope.cancel();
    owner.scope.close();
    owner.scope.wait().await;
    let status = owner.state.path().join("status");
    let _ = std::fs::remove_dir_all(&status);
    let scope = Scope::new();
    let following = FolderConfig {
        config_dir: owner.config.path().to_owned(),
        state_dir: Some(owner.state.path().to_owned()),
        follow: true,
    };
    let (mesh, metrics) = (MeshConfig::default(), EngineMetrics::default());
    let trust = watch::channel(None).1;
    owner.snapshots = start(following, mesh, trust, Clients::default(), metrics, &scope).snapshots;
    let versions = |snapshot: &Snapshot| -> Vec<(Str, Str)> {
        let slots = snapshot.by_name(ResourceType::Address).into_iter();
        slots
            .map(|slot| (slot.name.clone(), slot.version.clone()))
            .collect()
    };
    let replica = owner.until(|snapshot| tunnel(snapshot).is_some()).await;
    assert_eq!(versions(&replica), versions(&owned));
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
            .map(|slot| slot.version.clone())
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
    let mut folder = Folder::new(&[("shop/p.yaml", "kind: [broken\n")]);
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

/// A configuration folder and a state folder, looked at by hand.
struct Hand {
    config: TempDir,
    state: TempDir,
    reader: Option<Reader>,
}

impl Hand {
    fn new() -> Self {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut hand = Self {
            config,
            state,
            reader: None,
        };
        hand.restart();
        hand
    }

    /// As after `kill -9`: nothing but the disk is left.
    fn restart(&mut self) {
        let history = Some(History::open(self.state.path()));
        self.reader = Some(Reader::new(self.config.path().to_owned(), history));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.config.path().join(name), text).unwrap();
    }

    fn look(&mut self) -> Settled {
        let (reader, _, settled) = self.reader.take().expect("it was put back").look();
        self.reader = Some(reader);
        settled
    }

    fn names(&self) -> Vec<String> {
        let reader = self.reader.as_ref().expect("it was put back");
        reader
            .library
            .entries()
            .keys()
            .map(|key| key.name.to_string())
            .collect()
    }

    fn view(&self) -> crate::history::View {
        crate::history::View::of(self.state.path())
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
    )
}

#[test]
fn a_generation_that_cannot_be_recorded_does_not_come_into_force_until_it_can() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    hand.look();
    let (history, aside) = (hand.state.path().join("history"), hand.state.path().join("aside"));
    std::fs::rename(&history, &aside).unwrap();
    std::fs::write(&history, "no folder").unwrap();
    hand.write("b.yaml", &service("b"));
    let batch = hand.look().batch.expect("the refusal is told");
    assert!(batch.events.is_empty());
    assert!(batch.degraded.expect("why").contains("cannot be recorded"));
    assert_eq!(hand.names(), ["a"]);
    assert!(hand.look().batch.is_none(), "it is told once");
    std::fs::remove_file(&history).unwrap();
    std::fs::rename(&aside, &history).unwrap();
    let batch = hand.look().batch.expect("it comes into force");
    assert_eq!((batch.events.len(), batch.degraded), (1, None));
    assert_eq!(hand.names(), ["a", "b"]);
}

#[test]
fn a_folder_that_is_emptied_is_kept_until_somebody_accepts_it() {
    let mut hand = Hand::new();
    let all: String = (0..12).map(|number| service(&format!("s{number}"))).collect();
    hand.write("a.yaml", &all);
    hand.look();
    std::fs::remove_file(hand.config.path().join("a.yaml")).unwrap();
    let degraded = hand.look().batch.expect("it is told").degraded.expect("why");
    assert!(degraded.contains("accept-empty"), "{degraded}");
    assert_eq!(hand.names().len(), 12);
    hand.view().accept_empty(hand.config.path()).unwrap();
    hand.look();
    assert_eq!(hand.names().len(), 0);
}

#[test]
fn a_rollback_writes_the_old_files_back_and_says_who_and_why() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    hand.look();
    hand.write("a.yaml", &service("changed"));
    hand.write("b.yaml", &service("b"));
    hand.look();
    hand.view().announce("alice", "rollback to 1: it broke").unwrap();
    let real = crate::history::Writing::Real;
    let done = hand.view().rollback(1, hand.config.path(), real).unwrap();
    assert_eq!((done.written.len(), done.removed.len()), (1, 1));
    hand.look();
    assert_eq!(hand.names(), ["a"]);
    let list = hand.view().list();
    let newest = list.last().expect("a generation");
    assert_eq!(
        (newest.generation, &*newest.actor, &*newest.message),
        (3, "alice", "rollback to 1: it broke")
    );
    assert_eq!((newest.added.len(), newest.removed.len()), (1, 2));
    assert_eq!(
        hand.view().diff(1, 3, None).unwrap(),
        crate::history::Difference::default()
    );
    let effect = hand
        .view()
        .diff(1, 2, Some(&MeshConfig::default()))
        .unwrap()
        .effect;
    assert!(
        effect.contains(&"- Address default/a.default.svc.cluster.local".to_owned()),
        "{effect:?}"
    );
}

#[test]
fn after_a_kill_every_generation_means_what_it_meant() {
    let mut hand = Hand::new();
    let mut engine = Engine::new(MeshConfig::default());
    let mut told = Vec::new();
    for number in 0..5 {
        hand.write("a.yaml", &(service("always") + &service(&format!("g{number}"))));
        let snapshot = engine.apply(hand.look().batch.expect("news"));
        told.push(versions(&snapshot));
        let mut fresh = Engine::new(MeshConfig::default());
        hand.restart();
        let after = fresh.apply(hand.look().batch.expect("everything is news to it"));
        assert_eq!(versions(&after), *told.last().expect("it was pushed"));
    }
    for (from, to) in [(1, 2), (2, 5)] {
        let effect = hand
            .view()
            .diff(from, to, Some(&MeshConfig::default()))
            .unwrap()
            .effect;
        assert!(!effect.is_empty());
    }
}

/// Names and versions of every address: virtual addresses included.
fn versions(snapshot: &Snapshot) -> Vec<(Str, Str)> {
    let slots = snapshot.resources(ResourceType::Address);
    slots
        .map(|slot| (slot.name.clone(), slot.version.clone()))
        .collect()
}

/// Runs on a thread of its own, in a mount namespace where this folder is a disk of that many bytes. Says whether it
/// could: only root may mount.
fn on_a_small_disk(folder: &Path, bytes: usize, what: impl FnOnce() + Send + 'static) -> bool {
    use nix::mount::{MsFlags, mount};
    let folder = folder.to_owned();
    let thread = std::thread::spawn(move || {
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let size = format!("size={bytes}");
        let mounted = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, private, none))
            .and_then(|()| {
                mount(
                    Some("tmpfs"),
                    &folder,
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some(&*size),
                )
            });
        if mounted.is_ok() {
            what();
        }
        mounted.is_ok()
    });
    thread.join().expect("it holds on a small disk")
}

/// Fills a disk to the last byte.
fn fill(folder: &Path) -> PathBuf {
    use std::io::Write as _;
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    path
}

#[test]
fn a_full_disk_leaves_the_last_good_generation_in_force_and_nothing_broken() {
    let mut hand = Hand::new();
    let state = hand.state.path().to_owned();
    let ran = on_a_small_disk(&state.clone(), 256 << 10, move || {
        hand.write("a.yaml", &service("a"));
        hand.look();
        let filler = fill(&state);
        hand.write("b.yaml", &service("b"));
        let degraded = hand.look().batch.expect("it is told").degraded.expect("why");
        assert!(degraded.contains("cannot be recorded"), "{degraded}");
        assert_eq!(hand.names(), ["a"]);
        // Killed, and started anew on the disk that is still full: what was recorded is in force, and told.
        hand.restart();
        let batch = hand.look().batch.expect("everything is news to it");
        assert_eq!((batch.events.len(), batch.degraded.is_some()), (1, true));
        assert_eq!(hand.names(), ["a"]);
        std::fs::remove_file(filler).unwrap();
        let batch = hand.look().batch.expect("it comes into force");
        assert_eq!((batch.events.len(), batch.degraded), (1, None));
        for generation in hand.view().list() {
            let objects = hand.view().show(generation.generation).unwrap();
            assert_eq!(
                objects.len(),
                generation.added.len() + usize::from(generation.generation > 1)
            );
        }
        hand.restart();
        hand.look();
        assert_eq!(hand.names(), ["a", "b"]);
    });
    assert!(ran || !nix::unistd::geteuid().is_root());
}

#[test]
fn a_full_disk_hands_out_no_certificate_and_loses_none_that_follow() {
    use crate::ca::issued::{Entry, Issued};
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let ran = on_a_small_disk(state.path(), 64 << 10, move || {
        let entry = |serial: String| Entry {
            serial,
            identity: tulle_model::Identity::new("cluster.local", "shop", "web"),
            node: "n1".into(),
            not_after: 1_000,
        };
        let issued = Issued::open(&path, 0).unwrap();
        let filler = fill(&path);
        // Until the last page of the log itself is full.
        let refused = (0..100_000).find(|number| issued.note(&entry(format!("{number:x}")), 0).is_err());
        let refused = refused.expect("a full disk refuses");
        std::fs::remove_file(filler).unwrap();
        issued.note(&entry("abcdef".to_owned()), 0).unwrap();
        drop(issued);
        let again = Issued::open(&path, 0).unwrap();
        let denied = again.misplaced(&crate::snapshot::Placement::default(), 0);
        let known: Vec<String> = denied.iter().map(|entry| entry.subject.to_string()).collect();
        assert!(
            known.contains(&"serial:abcdef".to_owned()),
            "{} known",
            known.len()
        );
        assert!(
            !known.contains(&format!("serial:{refused:x}")),
            "it was not handed out"
        );
    });
    assert!(ran || !nix::unistd::geteuid().is_root());
}

#[test]
fn a_start_on_a_full_disk_serves_and_signs_as_soon_as_it_can_be_written_down() {
    use crate::ca::issued::{Entry, Issued};
    use crate::ca::roots::Roots;
    use crate::state_dir::StateDir;
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    let path = hand.state.path().to_owned();
    let ran = on_a_small_disk(&path.clone(), 256 << 10, move || {
        let entry = |serial: &str| Entry {
            serial: serial.to_owned(),
            identity: tulle_model::Identity::new("cluster.local", "shop", "web"),
            node: "n1".into(),
            not_after: 1_000,
        };
        let now = time::OffsetDateTime::now_utc();
        let start = || {
            let owned = StateDir::open(&path).expect("the folder is there");
            let roots = Roots::open(&path.join("ca"), "cluster.local", now).expect("the root is there");
            let issued = Issued::open(&path, 0).expect("it can be read");
            (owned, roots, issued)
        };
        let first = start();
        first.2.note(&entry("aa"), 0).unwrap();
        hand.look();
        drop(first);
        let filler = fill(&path);
        let (_owned, _roots, issued) = start();
        hand.restart();
        assert_eq!(hand.look().batch.expect("it is told").events.len(), 1);
        let problem = issued.try_again().expect("it is still full");
        assert!(problem.contains("issued.log"), "{problem}");
        assert!(issued.note(&entry("bb"), 0).is_err(), "nothing is handed out");
        std::fs::remove_file(filler).unwrap();
        assert_eq!(issued.try_again(), None);
        issued.note(&entry("cc"), 0).unwrap();
        drop(issued);
        let again = Issued::open(&path, 0).unwrap();
        let denied = again.misplaced(&crate::snapshot::Placement::default(), 0);
        let known: Vec<String> = denied.iter().map(|entry| entry.subject.to_string()).collect();
        assert_eq!(known, ["serial:aa", "serial:cc"]);
    });
    assert!(ran || !nix::unistd::geteuid().is_root());
}
