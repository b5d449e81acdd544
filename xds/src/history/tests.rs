use tempfile::TempDir;

use super::*;

fn library(generation: u64, services: &[&str]) -> Library {
    let entries = services.iter().map(|name| {
        let written = format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}}}}"#);
        let (key, good) = parse::restore(&written).expect("an object");
        let in_force = InForce {
            object: good.object,
            file: "a.yaml".into(),
            generation,
            stale_since: None,
        };
        let (written, first_seen) = (good.written, Timestamp::UNIX_EPOCH);
        (
            key,
            Entry {
                in_force,
                written,
                first_seen,
            },
        )
    });
    Library::restore(generation, entries.collect())
}

fn names(library: &Library) -> Vec<String> {
    library.entries().keys().map(|key| key.name.to_string()).collect()
}

#[test]
fn the_newest_generation_is_loaded() {
    let folder = TempDir::new().unwrap();
    let mut history = History::open(folder.path());
    history.record(&library(1, &["a"])).unwrap();
    history.record(&library(2, &["a", "b"])).unwrap();
    let loaded = History::open(folder.path()).load().expect("a generation");
    assert_eq!(
        (loaded.generation(), names(&loaded)),
        (2, vec!["a".to_owned(), "b".to_owned()])
    );
}

#[test]
fn a_generation_that_cannot_be_read_is_passed_over() {
    let folder = TempDir::new().unwrap();
    let mut history = History::open(folder.path());
    history.record(&library(1, &["a"])).unwrap();
    history.record(&library(2, &["b"])).unwrap();
    fs::write(folder.path().join("history/2.json"), "{half").unwrap();
    let loaded = History::open(folder.path()).load().expect("a generation");
    assert_eq!(names(&loaded), ["a"]);
}

#[test]
fn old_generations_go_and_what_newer_ones_share_stays() {
    let folder = TempDir::new().unwrap();
    let mut history = History::open(folder.path());
    for generation in 1..=GENERATIONS_MAX as u64 + 5 {
        history
            .record(&library(generation, &["always", &format!("g{generation}")]))
            .unwrap();
    }
    assert_eq!(history.numbered(".json").len(), GENERATIONS_MAX);
    let first_kept: Vec<u64> = history.numbered(".objects").into_iter().take(2).collect();
    assert_eq!(first_kept, [1, 6], "the first one holds what all have");
    let mut restarted = History::open(folder.path());
    let loaded = restarted.load().expect("a generation");
    assert_eq!(names(&loaded), ["always", "g105"]);
    restarted.record(&library(106, &["always"])).unwrap();
    let loaded = History::open(folder.path()).load().expect("a generation");
    assert_eq!(names(&loaded), ["always"]);
}

#[test]
fn contents_count_towards_the_bytes_kept() {
    let folder = TempDir::new().unwrap();
    let mut history = History::open(folder.path());
    history.bytes_max = 40_000;
    for generation in 1..=20 {
        let names: Vec<String> = (0..20).map(|name| format!("g{generation}-{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        history.record(&library(generation, &names)).unwrap();
    }
    assert!(history.bytes() <= 40_000, "{}", history.bytes());
    let kept = history.numbered(".json");
    assert!(kept.len() > 1 && kept.ends_with(&[20]), "{kept:?}");
    history.bytes_max = 1;
    history.record(&library(21, &["a"])).unwrap();
    assert_eq!(history.numbered(".json"), [21], "the newest is kept");
    assert!(History::open(folder.path()).load().is_some());
}

#[test]
fn a_disk_that_takes_nothing_refuses_the_generation() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("history"), "a file in its place").unwrap();
    assert!(History::open(folder.path()).record(&library(1, &["a"])).is_err());
}
