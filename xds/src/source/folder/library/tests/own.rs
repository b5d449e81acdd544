//! A look decides on what changed and on nothing else, and comes to what deciding on everything would come to.

use proptest::prelude::*;

use super::*;

/// Something that happens to the folder.
#[derive(Debug, Clone)]
enum Happens {
    /// A file has this text.
    Write(usize, usize),
    /// A file is gone.
    Remove(usize),
    /// A directory can be read no more, or again.
    Directory(bool),
    /// Nothing: the folder is looked at all the same.
    Nothing,
}

const FILES: &[&str] = &["a.yaml", "b.yaml", "team/c.yaml", "team/d.yaml"];

/// Texts that share objects, name none, cannot be read, or are refused.
fn texts() -> Vec<String> {
    let open = "apiVersion: v1\nkind: Service\nmetadata: {name: open}\nspec: {ports: [{port: 80}]}\n---\n";
    let deny = policy("{action: DENY, rules: [{}]}");
    let given = given(&Paper::new().put("a.yaml", open).settled(), "open");
    vec![
        String::new(),
        service("a", "v1"),
        service("a", "v2") + &service("b", "v1"),
        service("b", "v2") + &deny,
        service("a", "7"),
        service("a", "v1") + &service("a", "v2"),
        deny.clone() + "{broken",
        policy("{rulez: []}") + &service("c", "v1"),
        "{broken".to_owned(),
        open.to_owned() + &service("c", "v2"),
        open.replace("open", "other") + open,
        GATEWAY.to_owned(),
        instance("10.0.0.7") + "---\n" + &service("b", "v1"),
        instance("10.0.0.8"),
        service("c", "v1").replace("10.9.0.1", &given) + open,
        format!("{GATEWAY}status: {{addresses: [{{value: 10.0.0.1}}]}}\n"),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    let (files, texts) = (0..FILES.len(), 0..texts().len());
    prop_oneof![
        8 => (files.clone(), texts).prop_map(|(file, text)| Happens::Write(file, text)),
        2 => files.prop_map(Happens::Remove),
        1 => any::<bool>().prop_map(Happens::Directory),
        1 => Just(Happens::Nothing),
    ]
}

/// The folder as it is found: what is in a directory that cannot be read is not.
fn found(files: &BTreeMap<&str, &str>, is_unreadable: bool) -> Scan {
    let mut scan = Scan::default();
    for (path, text) in files {
        if !(is_unreadable && path.starts_with("team/")) {
            let file = File {
                text: Ok(Arc::new(Packed::of(text))),
                is_fresh: false,
                changed: None,
            };
            scan.files.insert((*path).into(), file);
        }
    }
    if is_unreadable {
        scan.unreadable.insert("team".into(), "permission denied".into());
    }
    scan
}

proptest! {
    #[test]
    fn deciding_on_what_changed_comes_to_what_deciding_on_everything_does(
        steps in prop::collection::vec(happens(), 1..25),
    ) {
        let texts = texts();
        let (mut own, mut whole) = (Library::default(), Library::default());
        let (mut files, mut is_unreadable) = (BTreeMap::new(), false);
        for (at, step) in steps.iter().enumerate() {
            match step {
                Happens::Write(file, text) => drop(files.insert(FILES[*file], texts[*text].as_str())),
                Happens::Remove(file) => drop(files.remove(FILES[*file])),
                Happens::Directory(unreadable) => is_unreadable = *unreadable,
                Happens::Nothing => {}
            }
            let scan = found(&files, is_unreadable);
            let now = Timestamp::from_second(at as i64).unwrap();
            whole.is_unindexed = true;
            let (one, other) = (own.settle(&scan, now), whole.settle(&scan, now));
            prop_assert_eq!(&one.batch, &other.batch);
            prop_assert_eq!(&one.news, &other.news);
            prop_assert_eq!(&own.entries, &whole.entries);
            prop_assert_eq!(&own.problems, &whole.problems);
            prop_assert_eq!(&own.allocations, &whole.allocations);
            // What is refused leaves no trace either.
            let mut refused = own.clone();
            let scan = found(&BTreeMap::from([("a.yaml", texts[2].as_str())]), false);
            let settled = refused.settle(&scan, now);
            refused.refuse(settled.step, "no");
            prop_assert_eq!(&refused.entries, &own.entries);
            prop_assert_eq!(refused.generation, own.generation);
        }
    }
}

#[test]
fn an_edit_is_decided_for_its_own_file_whatever_else_there_is() {
    let mut paper = Paper::new();
    for file in 0..200 {
        let all: String = (0..10)
            .map(|number| service(&format!("s{file}-{number}"), "v1"))
            .collect();
        paper = paper.put(&format!("f{file}.yaml"), &all);
    }
    let work = paper.settle().step.work;
    assert_eq!((work.parsed, work.decided), (200, 2_000));
    let work = paper.settle().step.work;
    assert_eq!((work.parsed, work.decided), (0, 0));
    let mut paper = paper.put("f7.yaml", &service("s7-3", "v2"));
    let settled = paper.settle();
    let work = settled.step.work;
    assert_eq!((work.parsed, work.decided), (1, 10));
    assert_eq!(settled.batch.expect("news").events.len(), 10);
}

#[test]
fn an_object_is_held_once() {
    let mut paper = Paper::new().put("a.yaml", &policy("{rules: [{}]}"));
    let settled = paper.settle();
    paper.library.drop_texts(&settled.step);
    let known = &paper.library.files["a.yaml"].parsed.statements[0];
    let good = known.good().expect("it is good");
    let in_force = paper.object(&policy_key()).expect("in force");
    assert!(Arc::ptr_eq(&good.object, &in_force.object));
    assert_eq!(good.written, None);
}

#[test]
fn a_text_that_is_not_on_record_holds_no_other() {
    let both = policy("{rules: [{}]}") + &service("a", "v1");
    let mut paper = Paper::new().put("a.yaml", &policy("{}")).put("b.yaml", &both);
    let settled = paper.settle();
    paper.library.drop_texts(&settled.step);
    let statements = &paper.library.files["b.yaml"].parsed.statements;
    let texts = statements.iter().filter_map(|one| one.good()?.written.as_ref());
    let texts: Vec<_> = texts.collect();
    assert_eq!(texts.len(), 1, "the policy of the other file is in force");
    assert_eq!(texts[0].held(), texts[0].len());
}
