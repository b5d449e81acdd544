use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::source::folder::scan::Scan;

mod crash;

/// Who goes back, and why.
const BACK: (&str, &str) = ("alice", "back");

/// A configuration folder on paper, whose generations are recorded on disk.
struct Paper {
    state: TempDir,
    history: History,
    library: Library,
    files: BTreeMap<Str, Result<Arc<str>, String>>,
}

impl Paper {
    fn new() -> Self {
        let state = TempDir::new().unwrap();
        Self {
            history: History::open(state.path()),
            state,
            library: Library::default(),
            files: BTreeMap::new(),
        }
    }

    fn put(&mut self, file: &str, services: &[&str]) {
        let text: String = services.iter().map(|name| service(name)).collect();
        self.files.insert(file.into(), Ok(text.into()));
    }

    /// Looks once, as the folder source does.
    fn look(&mut self) -> io::Result<()> {
        let taken = self.take();
        self.history.forget();
        taken
    }

    fn take(&mut self) -> io::Result<()> {
        let scan = Scan::of_texts(self.files.iter().map(|(path, text)| (path.clone(), text.clone())));
        let settled = self.library.settle(&scan, Timestamp::UNIX_EPOCH);
        let taken = self.history.take(&self.library, &settled);
        self.library.drop_texts(&settled.step);
        taken
    }

    /// As after a kill: nothing but the disk is left.
    fn restart(&mut self) {
        self.history = History::open(self.state.path());
        self.history.recover();
        self.library = self.history.load().expect("a generation");
    }

    fn loaded(&self) -> Library {
        History::open(self.state.path()).load().expect("a generation")
    }

    fn view(&self) -> View {
        View::of(self.state.path())
    }

    fn numbered(&self, ending: &str) -> Vec<u64> {
        keep::numbered(&self.history.root, ending)
    }
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.9.0.1}}\n---\n")
}

fn names(library: &Library) -> Vec<String> {
    library.entries().keys().map(|key| key.name.to_string()).collect()
}

#[test]
fn the_newest_generation_is_loaded() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    paper.put("b.yaml", &["b"]);
    paper.look().unwrap();
    let loaded = paper.loaded();
    assert_eq!(
        (loaded.generation(), names(&loaded)),
        (2, vec!["a".to_owned(), "b".to_owned()])
    );
}

#[test]
fn a_generation_that_cannot_be_read_is_passed_over() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    paper.put("a.yaml", &["b"]);
    paper.look().unwrap();
    let newest = paper.state.path().join("history/2.pages");
    let pages = fs::read_to_string(&newest).unwrap();
    fs::write(&newest, pages.replace("10.9.0.1", "10.9.0.2")).unwrap();
    assert_eq!(names(&paper.loaded()), ["a"], "a damaged page is seen");
    fs::write(paper.state.path().join("history/2.json"), "{half").unwrap();
    assert_eq!(names(&paper.loaded()), ["a"]);
    paper.restart();
    paper.look().unwrap();
    assert_eq!(names(&paper.loaded()), ["b"], "its number is given anew");
}

#[test]
fn a_change_writes_its_own_pages_and_a_restart_writes_none() {
    let mut paper = Paper::new();
    for file in 0..100 {
        let names: Vec<String> = (0..20).map(|name| format!("s{file}-{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        paper.put(&format!("f{file}.yaml"), &names);
    }
    paper.look().unwrap();
    assert_eq!(paper.history.work().texts, 100);
    paper.put("f7.yaml", &["s7-0", "s7-1"]);
    paper.look().unwrap();
    let work = paper.history.work();
    assert!(
        work.pages <= 18 + 1,
        "{work:?}: the pages of 18 objects that went, and of one file"
    );
    assert_eq!(work.texts, 1);
    paper.put("f8.yaml", &["new"]);
    paper.files.remove("f9.yaml");
    paper.look().unwrap();
    let before = paper.numbered(".pages");
    paper.restart();
    paper.look().unwrap();
    assert_eq!(paper.history.work(), Work::default());
    assert_eq!(paper.numbered(".pages"), before);
    let expected = names(&paper.library);
    assert_eq!((expected.len(), names(&paper.loaded())), (97 * 20 + 3, expected));
}

#[test]
fn a_comment_is_no_generation_and_stands_in_the_next_one() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    let text: Arc<str> = format!("# why\n{}", service("a")).into();
    paper.files.insert("a.yaml".into(), Ok(text.clone()));
    paper.look().unwrap();
    assert_eq!(paper.numbered(".json"), [1]);
    paper.put("b.yaml", &["b"]);
    paper.look().unwrap();
    let list = paper.view().list();
    assert_eq!(list[1].files["a.yaml"], sha256(text.as_bytes()));
    assert_eq!((list[1].added.len(), list[1].changed.len()), (1, 0));
}

#[test]
fn a_generation_is_recorded_without_waiting_for_what_goes_because_of_it() {
    let mut paper = Paper::new();
    for generation in 1..=keep::GENERATIONS_MAX {
        paper.put("g.yaml", &[&format!("g{generation}")]);
        paper.look().unwrap();
    }
    paper.put("g.yaml", &["last"]);
    paper.take().unwrap();
    let texts = |paper: &Paper| fs::read_dir(paper.history.root.join(FILES)).unwrap().count();
    assert_eq!(paper.numbered(".json").len(), keep::GENERATIONS_MAX + 1);
    assert_eq!(texts(&paper), keep::GENERATIONS_MAX + 1);
    paper.history.forget();
    assert_eq!(paper.numbered(".json").len(), keep::GENERATIONS_MAX);
    assert_eq!(texts(&paper), keep::GENERATIONS_MAX);
    paper.restart();
    assert_eq!(names(&paper.library), ["last"]);
}

#[test]
fn old_generations_go_and_what_newer_ones_share_stays() {
    let mut paper = Paper::new();
    paper.put("always.yaml", &["always"]);
    for generation in 1..=keep::GENERATIONS_MAX + 5 {
        paper.put("g.yaml", &[&format!("g{generation}")]);
        paper.look().unwrap();
    }
    let kept = paper.numbered(".json");
    assert_eq!((kept.len(), kept[0]), (keep::GENERATIONS_MAX, 6));
    // The first one holds what all have; the others that went have left nothing.
    let pages = paper.numbered(".pages");
    assert!(
        pages[0] == 1 && pages.iter().filter(|stored| **stored < 5).count() == 1,
        "{pages:?}"
    );
    let texts = fs::read_dir(paper.history.root.join(FILES)).unwrap().count();
    assert_eq!(texts, keep::GENERATIONS_MAX + 1);
    for generation in paper.view().list() {
        let shown = paper.view().show(generation.generation).unwrap();
        assert_eq!(shown.len(), 2, "{}", generation.generation);
    }
    paper.restart();
    assert_eq!(names(&paper.library), ["always", "g105"]);
    paper.files.remove("g.yaml");
    paper.look().unwrap();
    assert_eq!(names(&paper.loaded()), ["always"]);
}

#[test]
fn contents_count_towards_the_bytes_kept() {
    let mut paper = Paper::new();
    paper.history.keep.bytes_max = 80_000;
    for generation in 1..=20 {
        let names: Vec<String> = (0..20).map(|name| format!("g{generation}-{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        paper.put("a.yaml", &names);
        paper.look().unwrap();
        let bytes = paper.history.keep.bytes();
        assert!(bytes <= 80_000, "{bytes} bytes");
        assert_eq!(paper.history.keep.counted(), Some(bytes));
    }
    let kept = paper.numbered(".json");
    assert!(kept.len() > 1 && kept.ends_with(&[20]), "{kept:?}");
    paper.history.keep.bytes_max = 1;
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    assert_eq!(paper.numbered(".json"), [21], "the newest is kept");
    assert_eq!(names(&paper.loaded()), ["a"]);
}

#[test]
fn a_disk_that_takes_nothing_refuses_the_generation() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    let history = paper.state.path().join("history");
    fs::write(&history, "a file in its place").unwrap();
    assert!(paper.look().is_err());
    // What could not be recorded is made up for.
    fs::remove_file(&history).unwrap();
    paper.put("b.yaml", &["b"]);
    paper.look().unwrap();
    assert_eq!(names(&paper.loaded()), ["a", "b"]);
}

#[test]
fn many_files_of_one_generation_are_all_stored_and_alike_ones_once() {
    let mut paper = Paper::new();
    for file in 0..200 {
        paper.put(&format!("{file}.yaml"), &[&format!("s{file}")]);
    }
    // Comments, alike: texts without an object.
    for file in ["x.yaml", "y.yaml"] {
        paper.files.insert(file.into(), Ok("# nothing here\n".into()));
    }
    paper.look().unwrap();
    assert_eq!(paper.loaded().entries().len(), 200);
    let stored = fs::read_dir(paper.history.root.join(FILES)).unwrap();
    let names: Vec<_> = stored.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(
        names.len(),
        201,
        "each text by its hash, and no draft is left: {names:?}"
    );
    let back = paper.view().show(1).unwrap();
    assert!(back.contains_key("Service default/s199"));
}

#[test]
fn an_object_that_was_defined_elsewhere_for_a_while_is_recorded_when_it_comes_back() {
    let mut paper = Paper::new();
    let labelled = |label: &str| -> Arc<str> {
        let text = service("a");
        text.replace("name: a", &format!("name: a, labels: {{v: {label}}}"))
            .into()
    };
    paper.files.insert("b.yaml".into(), Ok(labelled("b")));
    paper.look().unwrap();
    paper.files.insert("a.yaml".into(), Ok(labelled("a")));
    paper.look().unwrap();
    paper.files.remove("a.yaml");
    paper.look().unwrap();
    let shown = paper.view().show(3).unwrap();
    assert!(shown["Service default/a"].contains(r#""v":"b""#), "{shown:?}");
    assert_eq!(paper.view().diff(1, 3, None).unwrap(), Difference::default());
}

/// Two generations as the version before wrote them.
fn older(state: &Path) {
    let object = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"10.9.0.1"}}}}"#
        )
    };
    let (a, b) = (object("a"), object("b"));
    let history = state.join("history");
    fs::create_dir_all(history.join(FILES)).unwrap();
    let recorded = |text: &str, stored: u64| {
        serde_json::json!({"sha256": sha256(text.as_bytes()), "stored": stored, "file": "a.yaml",
            "generation": stored, "first_seen": "2026-01-01T00:00:00Z"})
    };
    let one = [recorded(&a, 1)];
    let two = [recorded(&a, 1), recorded(&b, 2)];
    for (generation, text, objects, new) in [
        (1, service("a"), &one[..], &a),
        (2, service("a") + &service("b"), &two[..], &b),
    ] {
        let sha256 = sha256(text.as_bytes());
        let manifest = serde_json::json!({"generation": generation, "time": "2026-01-02T00:00:00Z", "parent": generation - 1,
            "actor": "alice", "message": "as before", "files": {"a.yaml": sha256}, "rejected": [], "objects": objects});
        fs::write(history.join(format!("{generation}.json")), manifest.to_string()).unwrap();
        fs::write(history.join(format!("{generation}.objects")), format!("{new}\n")).unwrap();
        fs::write(history.join(FILES).join(&*sha256), text).unwrap();
    }
}

#[test]
fn generations_of_the_version_before_are_read_shown_compared_and_gone_back_to() {
    let mut paper = Paper::new();
    older(paper.state.path());
    let list = paper.view().list();
    assert_eq!((list.len(), &*list[1].actor), (2, "alice"));
    assert_eq!(list[1].added, ["Service default/b"]);
    // The same generation becomes one of this form, and what was said of it stays.
    paper.restart();
    paper.put("a.yaml", &["a", "b"]);
    paper.look().unwrap();
    let list = paper.view().list();
    assert_eq!(
        (list.len(), &*list[1].actor, list[1].parent),
        (2, "alice", Some(1))
    );
    assert_eq!(paper.numbered(".pages"), [2]);
    let first_seen = paper.loaded().entries().values().next().unwrap().first_seen;
    assert_eq!(first_seen, "2026-01-01T00:00:00Z".parse().unwrap());
    paper.put("a.yaml", &["a", "b", "c"]);
    paper.look().unwrap();
    assert_eq!(paper.view().show(1).unwrap().len(), 1);
    let difference = paper.view().diff(1, 3, None).unwrap();
    assert_eq!((difference.added.len(), difference.changed.len()), (2, 0));
    let config = TempDir::new().unwrap();
    let done = paper
        .view()
        .rollback(1, config.path(), BACK, Writing::Real)
        .unwrap();
    assert_eq!(done.written, [Str::from("a.yaml")]);
    assert_eq!(
        fs::read_to_string(config.path().join("a.yaml")).unwrap(),
        service("a")
    );
    // With the last of the older form go its objects.
    paper.history.keep.bytes_max = 1;
    paper.put("a.yaml", &["d"]);
    paper.look().unwrap();
    assert_eq!(
        (paper.numbered(".json"), paper.numbered(".objects")),
        (vec![4], vec![])
    );
    assert_eq!(names(&paper.loaded()), ["d"]);
}

#[test]
fn secrets_are_not_kept_and_their_files_are_left_alone() {
    let secret = |planted: &str| -> Arc<str> {
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\nstringData: {{ca.crt: c, tls.key: {planted}}}\n---\n"
        );
        (text + &service("a")).into()
    };
    let mut paper = Paper::new();
    paper.put("b.yaml", &["b"]);
    paper.look().unwrap();
    let config = TempDir::new().unwrap();
    for (number, text) in [
        secret("planted-1"),
        secret("planted-2"),
        format!("{}{{broken", secret("planted-3")).into(),
        "kind: ConfigMap\nmetadata: {name: k}\ndata: {k: '-----BEGIN PRIVATE KEY----- planted-4'}\n".into(),
        "kind: ConfigMap\nmetadata: {name: k}\ndata: {k: LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tplanted-5}\n"
            .into(),
    ]
    .into_iter()
    .enumerate()
    {
        paper.files.insert("secret.yaml".into(), Ok(text.clone()));
        paper.put("b.yaml", &["b", &format!("c{number}")]);
        paper.look().unwrap();
        fs::write(config.path().join("secret.yaml"), &*text).unwrap();
    }
    let newest = *paper.numbered(".json").last().unwrap();
    let done = paper
        .view()
        .rollback(2, config.path(), BACK, Writing::Real)
        .unwrap();
    assert_eq!(
        (done.written, done.kept),
        (vec!["b.yaml".into()], vec!["secret.yaml".into()])
    );
    let done = paper
        .view()
        .rollback(1, config.path(), BACK, Writing::Dry)
        .unwrap();
    assert_eq!((done.removed, done.kept), (vec![], vec!["secret.yaml".into()]));
    assert!(newest > 2);
    let mut read = 0;
    let root = &paper.history.root;
    for folder in [root.clone(), root.join(FILES), root.join(journal::FOLDER)] {
        for file in fs::read_dir(folder).unwrap().flatten() {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            // What a ConfigMap says is no secret to those who read objects.
            assert!(
                !["planted-1", "planted-2", "planted-3"]
                    .iter()
                    .any(|planted| text.contains(planted)),
                "{file:?}"
            );
            read += text.len();
        }
    }
    assert!(read > 0);
}
