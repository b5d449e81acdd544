//! Generations as they are recorded: refused, rolled back, cut off by a kill, and on a full disk.

use super::*;

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
        let (mut reader, _, settled) = self.reader.take().expect("it was put back").look();
        reader.record_first(&settled.step);
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
fn the_first_generation_is_told_before_it_is_on_record_and_later_ones_after() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    let recorded = |hand: &Hand| History::open(hand.state.path()).newest_on_disk();
    let (mut reader, _, settled) = hand.reader.take().expect("it is there").look();
    assert_eq!(settled.batch.map(|batch| batch.events.len()), Some(1));
    assert_eq!(recorded(&hand), None);
    reader.record_first(&settled.step);
    assert_eq!(recorded(&hand), Some(1));
    hand.write("b.yaml", &service("b"));
    let (mut reader, _, settled) = reader.look();
    assert_eq!(recorded(&hand), Some(2));
    reader.record_first(&settled.step);
    assert_eq!(recorded(&hand), Some(2));
}

#[test]
fn a_first_start_with_a_broken_file_serves_and_records_nothing_until_it_is_mended() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    hand.write("b.yaml", "{broken");
    assert!(!hand.look().batch.expect("it is told").synced);
    hand.write("a.yaml", &service("changed"));
    assert!(!hand.look().batch.expect("it is told").synced);
    assert_eq!(hand.view().list().len(), 0);
    hand.write("b.yaml", &service("b"));
    assert!(hand.look().batch.expect("it is told").synced);
    let list = hand.view().list();
    assert_eq!((list.len(), list[0].added.len()), (1, 2));
    // With something on record a broken file is one that has a last good form.
    hand.write("b.yaml", "{broken");
    hand.restart();
    assert!(hand.look().batch.expect("everything is news to it").synced);
    assert_eq!(hand.names(), ["b", "changed"]);
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
    let (real, said) = (
        crate::history::Writing::Real,
        ("alice", "rollback to 1: it broke"),
    );
    let done = hand.view().rollback(1, hand.config.path(), said, real).unwrap();
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
fn a_word_is_said_of_its_own_change_and_of_no_other() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    hand.look();
    let text = service("alice");
    let files = [("alice.yaml".into(), Some(&*text)), ("a.yaml".into(), None)];
    hand.view().announce("alice", "mine", files).unwrap();
    let newest = |hand: &Hand| hand.view().list().pop().expect("a generation");
    // Somebody else's change comes first, and one that is not what was announced.
    hand.write("b.yaml", &service("b"));
    hand.write("alice.yaml", &service("mallory"));
    hand.look();
    assert_ne!(
        (&*newest(&hand).actor, &*newest(&hand).message),
        ("alice", "mine")
    );
    hand.write("alice.yaml", &text);
    std::fs::remove_file(hand.config.path().join("a.yaml")).unwrap();
    hand.look();
    assert_eq!(
        (&*newest(&hand).actor, &*newest(&hand).message),
        ("alice", "mine")
    );
    assert!(!hand.state.path().join("next-change.json").exists(), "it is done");
}

#[test]
fn a_change_that_is_seen_in_two_parts_is_the_same_persons_twice() {
    let mut hand = Hand::new();
    let (one, other) = (service("one"), service("other"));
    let files = [
        ("one.yaml".into(), Some(&*one)),
        ("other.yaml".into(), Some(&*other)),
    ];
    hand.view().announce("alice", "both", files).unwrap();
    hand.write("one.yaml", &one);
    hand.look();
    hand.write("other.yaml", &other);
    hand.look();
    let actors: Vec<_> = hand.view().list().into_iter().map(|one| one.actor).collect();
    assert_eq!(actors, ["alice".into(), Str::from("alice")]);
    assert!(!hand.state.path().join("next-change.json").exists(), "it is done");
}

#[test]
fn a_rollback_to_what_is_there_says_nothing_of_the_next_change() {
    let mut hand = Hand::new();
    hand.write("a.yaml", &service("a"));
    hand.look();
    let real = crate::history::Writing::Real;
    hand.view()
        .rollback(1, hand.config.path(), ("alice", "nothing"), real)
        .unwrap();
    assert!(
        hand.view()
            .rollback(7, hand.config.path(), ("alice", "none"), real)
            .is_err()
    );
    assert!(!hand.state.path().join("next-change.json").exists());
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
fn versions(snapshot: &Snapshot) -> Vec<(Str, Version)> {
    let slots = snapshot.resources(ResourceType::Address);
    slots.map(|slot| (slot.name.clone(), slot.version)).collect()
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
    let mut options = std::fs::File::options();
    let mut file = options.create(true).append(true).open(&path).unwrap();
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
        let refused = (0..100_000).find(|number| issued.note(&[entry(format!("{number:x}"))], 0).is_err());
        let refused = refused.expect("a full disk refuses");
        std::fs::remove_file(filler).unwrap();
        issued.note(&[entry("abcdef".to_owned())], 0).unwrap();
        drop(issued);
        let again = Issued::open(&path, 0).unwrap();
        let denied = again.misplaced(&crate::snapshot::Placement::default(), 0, 100);
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
        first.2.note(&[entry("aa")], 0).unwrap();
        hand.look();
        drop(first);
        let filler = fill(&path);
        let (_owned, _roots, issued) = start();
        hand.restart();
        // What the journal of the history gave back is gone, too.
        fill(&path);
        assert_eq!(hand.look().batch.expect("it is told").events.len(), 1);
        let problem = issued.try_again().expect("it is still full");
        assert!(problem.contains("issued.log"), "{problem}");
        assert!(issued.note(&[entry("bb")], 0).is_err(), "nothing is handed out");
        std::fs::remove_file(filler).unwrap();
        assert_eq!(issued.try_again(), None);
        issued.note(&[entry("cc")], 0).unwrap();
        drop(issued);
        let again = Issued::open(&path, 0).unwrap();
        let denied = again.misplaced(&crate::snapshot::Placement::default(), 0, 100);
        let known: Vec<String> = denied.iter().map(|entry| entry.subject.to_string()).collect();
        assert_eq!(known, ["serial:aa", "serial:cc"]);
    });
    assert!(ran || !nix::unistd::geteuid().is_root());
}
