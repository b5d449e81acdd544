//! What is left of the newest generations when the process, or the machine, ends in the middle of something.

use super::*;

/// The files of the journal.
fn journals(paper: &Paper) -> Vec<PathBuf> {
    let folder = paper.history.root.join(journal::FOLDER);
    let numbers = keep::numbered(&folder, "").into_iter();
    numbers.map(|number| folder.join(number.to_string())).collect()
}

/// A file of 3 MiB, most of it comments: one of them is written down in the journal, two are too much.
fn put_large(paper: &mut Paper, name: &str) {
    let comment = format!("# {name}{}\n---\n", "x".repeat(1_000_000));
    let text = comment.repeat(3) + &service(name);
    paper.files.insert(format!("{name}.yaml").into(), Ok(text.into()));
}

#[test]
fn a_generation_waits_for_the_disk_once() {
    let mut paper = Paper::new();
    for file in 0..100 {
        paper.put(&format!("{file}.yaml"), &[&format!("s{file}")]);
    }
    paper.look().unwrap();
    let work = paper.history.work();
    assert_eq!((work.texts, work.waits), (100, 1), "texts, pages and manifest");
    for file in 0..300 {
        paper.put(&format!("{file}.yaml"), &[&format!("t{file}")]);
    }
    paper.look().unwrap();
    let work = paper.history.work();
    assert_eq!((work.texts, work.waits), (300, 2), "not all are open at once");
}

#[test]
fn the_manifest_comes_to_its_place_after_all_that_it_names() {
    let text = format!("{FILES}/{}.new", sha256(service("b").as_bytes()));
    for in_the_way in ["2.pages", &text] {
        let mut paper = Paper::new();
        paper.put("a.yaml", &["a"]);
        paper.look().unwrap();
        fs::create_dir(paper.history.root.join(in_the_way)).unwrap();
        paper.put("b.yaml", &["b"]);
        assert!(paper.look().is_err(), "{in_the_way}");
        assert_eq!(paper.numbered(".json"), [1], "{in_the_way}");
        assert_eq!(names(&paper.loaded()), ["a"], "{in_the_way}");
        fs::remove_dir(paper.history.root.join(in_the_way)).unwrap();
        let left = [paper.history.root.clone(), paper.history.root.join(FILES)];
        let left = left.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
        let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
        let is_draft = |name: &&std::ffi::OsString| name.to_string_lossy().ends_with(".new");
        assert_eq!(left.iter().find(is_draft), None, "a full disk gets its room back");
    }
}

#[test]
fn what_a_crash_of_the_machine_took_is_written_again_from_the_journal() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    paper.put("b.yaml", &["b"]);
    paper.look().unwrap();
    let root = paper.history.root.clone();
    let text = root.join(FILES).join(&*sha256(service("b").as_bytes()));
    // Names without content, and content without a name.
    fs::write(&text, "").unwrap();
    fs::write(root.join("2.pages"), "").unwrap();
    fs::remove_file(root.join("2.json")).unwrap();
    assert_eq!(names(&paper.loaded()), ["a"], "whoever only reads mends nothing");
    paper.restart();
    assert_eq!(names(&paper.library), ["a", "b"]);
    assert_eq!(fs::read_to_string(text).unwrap(), service("b"));
    assert!(journals(&paper).is_empty(), "all of it is on the disk now");
    paper.put("c.yaml", &["c"]);
    paper.look().unwrap();
    assert_eq!(names(&paper.loaded()), ["a", "b", "c"]);
}

#[test]
fn a_record_that_was_not_written_to_its_end_says_nothing() {
    let mut paper = Paper::new();
    for name in ["a", "b"] {
        paper.put(&format!("{name}.yaml"), &[name]);
        paper.look().unwrap();
    }
    let [journal] = &journals(&paper)[..] else {
        panic!("one file");
    };
    let whole = fs::read(journal).unwrap();
    let manifests = [1, 2].map(|generation| paper.history.root.join(format!("{generation}.json")));
    let head = br#"{"files":[["files/"#;
    let second = whole
        .windows(head.len())
        .rposition(|bytes| bytes == head)
        .unwrap();
    assert!(second > 0);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [
        whole[..second].to_vec(),
        whole[..second + 9].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        flipped,
    ] {
        fs::write(journal, damaged).unwrap();
        for manifest in &manifests {
            let _ = fs::remove_file(manifest);
        }
        journal::recover(&paper.history.root).unwrap();
        assert_eq!(manifests.each_ref().map(|path| path.exists()), [true, false]);
    }
}

#[test]
fn a_record_leads_nowhere_else() {
    let paper = Paper::new();
    let folder = paper.history.root.join(journal::FOLDER);
    fs::create_dir_all(&folder).unwrap();
    let head = serde_json::json!({"files": [["../out", 1]], "sha256": sha256(b"x")});
    fs::write(folder.join("1"), format!("{head}\nx")).unwrap();
    assert!(journal::recover(&paper.history.root).is_err());
    assert!(!paper.state.path().join("out").exists());
}

#[test]
fn a_generation_that_was_refused_does_not_come_back_from_the_journal() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    let in_the_way = paper.history.root.join("2.pages");
    fs::create_dir(&in_the_way).unwrap();
    paper.put("b.yaml", &["b"]);
    assert!(paper.look().is_err());
    fs::remove_dir(&in_the_way).unwrap();
    paper.restart();
    assert_eq!(
        (names(&paper.library), paper.numbered(".json")),
        (vec!["a".to_owned()], vec![1])
    );
}

#[test]
fn a_journal_that_cannot_be_believed_is_begun_anew_before_the_next_generation() {
    let mut paper = Paper::new();
    paper.put("a.yaml", &["a"]);
    paper.look().unwrap();
    paper.history.journal.distrust();
    for name in ["b", "c"] {
        put_large(&mut paper, name);
    }
    paper.look().unwrap();
    assert!(journals(&paper).is_empty(), "also where the next one is large");
    paper.put("d.yaml", &["d"]);
    paper.look().unwrap();
    fs::remove_file(paper.history.root.join("3.json")).unwrap();
    paper.restart();
    assert_eq!(names(&paper.library), ["a", "b", "c", "d"]);
}

#[test]
fn the_journal_holds_the_newest_generations_and_no_large_one() {
    let mut paper = Paper::new();
    for generation in 0..keep::GENERATIONS_MAX {
        paper.put("a.yaml", &[&format!("g{generation}")]);
        paper.look().unwrap();
        let files = journals(&paper).len();
        assert!((1..=2).contains(&files), "{files} files");
    }
    paper.history.journal.retired().unwrap();
    assert_eq!(journals(&paper).len(), 1);
    paper.restart();
    assert_eq!(paper.numbered(".json").len(), keep::GENERATIONS_MAX);
    put_large(&mut paper, "b");
    paper.look().unwrap();
    assert_eq!(journals(&paper).len(), 1, "it is less than a record may have");
    paper.restart();
    for name in ["c", "d"] {
        put_large(&mut paper, name);
    }
    paper.look().unwrap();
    assert!(journals(&paper).is_empty());
    assert_eq!(paper.loaded().entries().len(), 4);
}
