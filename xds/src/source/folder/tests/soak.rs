//! Thousands of edits of a real folder, one after the other: what is in force is told by a model of few lines.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tulle_k8s::{Key, Kind};

use super::*;

/// Edits of the folder.
const EDITS: usize = 5_000;
/// Files that are edited, and objects that may stand in each.
const FILES: u64 = 8;
const OBJECTS: u64 = 4;

/// Numbers that look random, and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn key(file: u64, object: u64) -> Key {
    Key::new(Kind::Service, "default", format!("s{file}-{object}"))
}

fn service(name: &str, version: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{v: {version}}}}}\nspec: {{clusterIP: 10.9.0.1}}\n---\n"
    )
}

/// The version in force of each object, and whether a newer form is refused.
type InForce = BTreeMap<Key, (String, bool)>;

/// One edit: the text of a file, if it is to be there, and what of it is in force then.
fn edit(numbers: &mut Numbers, file: u64, version: &str, model: &mut InForce) -> Option<String> {
    let all: Vec<u64> = (0..OBJECTS).collect();
    let (how, one) = (numbers.below(8), numbers.below(OBJECTS));
    let here: Vec<u64> = all.iter().copied().filter(|_| numbers.below(4) > 0).collect();
    let text = |objects: &[u64]| -> String {
        let each = objects.iter();
        each.map(|object| service(&key(file, *object).name, version))
            .collect()
    };
    let good = (version.to_owned(), false);
    let keep = |model: &mut InForce, object: u64| {
        if let Some((_, is_stale)) = model.get_mut(&key(file, object)) {
            *is_stale = true;
        }
    };
    match how {
        // It cannot be read: everything stays as it was.
        0 => {
            all.iter().for_each(|object| keep(model, *object));
            Some(text(&all) + "{broken")
        }
        // One object is refused, or names no object: it stays, and its neighbours change.
        1 | 2 => {
            for object in &all {
                match *object == one {
                    true => keep(model, one),
                    false => drop(model.insert(key(file, *object), good.clone())),
                }
            }
            let name = key(file, one).name.to_string();
            let spoilt = match how {
                1 => service(&name, "7"),
                _ => service(&format!("{name}!"), version),
            };
            Some(text(&all).replace(&service(&name, version), &spoilt))
        }
        3 => {
            model.retain(|of, _| !of.name.starts_with(&format!("s{file}-")));
            None
        }
        _ => {
            for object in all {
                match here.contains(&object) {
                    true => drop(model.insert(key(file, object), good.clone())),
                    false => drop(model.remove(&key(file, object))),
                }
            }
            Some(text(&here))
        }
    }
}

#[test]
fn thousands_of_edits_leave_in_force_what_was_good_last() {
    let root = TempDir::new().unwrap();
    // The folder is never empty, which would be taken for a mistake.
    put(root.path(), "kept.yaml", &service("kept", "v0"));
    let mut model = InForce::from([(
        Key::new(Kind::Service, "default", "kept"),
        ("v0".to_owned(), false),
    )]);
    let (mut scanner, mut library) = (Scanner::new(root.path().to_owned()), Library::default());
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let (mut before, mut generation) = (BTreeMap::new(), 0);
    for number in 0..EDITS {
        let file = numbers.below(FILES);
        let name = format!("team{}/f{file}.yaml", file % 3);
        match edit(&mut numbers, file, &format!("v{number}"), &mut model) {
            Some(text) if numbers.below(2) == 0 => put(root.path(), &name, &text),
            Some(text) => {
                std::fs::create_dir_all(root.path().join(&name).parent().unwrap()).unwrap();
                std::fs::write(root.path().join(&name), text).unwrap();
            }
            None => drop(std::fs::remove_file(root.path().join(&name))),
        }
        let settled = library.settle(&scanner.scan(), Timestamp::UNIX_EPOCH);
        let in_force: InForce = library
            .entries()
            .iter()
            .map(|(key, entry)| {
                let object = &entry.in_force;
                let version = object.object.meta().label("v").unwrap_or_default();
                (key.clone(), (version.to_owned(), object.stale_since.is_some()))
            })
            .collect();
        assert_eq!(in_force, model, "after edit {number} of {name}");
        // What the engine was told leads from one to the other, and is a generation of its own.
        if let Some(batch) = settled.batch {
            assert!(batch.generation >= generation, "generations grow");
            generation = batch.generation;
            for event in batch.events {
                match event.object {
                    Some(object) => drop(before.insert(event.key, object)),
                    None => drop(before.remove(&event.key)),
                }
            }
        }
        let told = before.iter().map(|(key, object)| (key, &object.object));
        let entries = library.entries().iter();
        let entries = entries.map(|(key, entry)| (key, &entry.in_force.object));
        assert!(
            told.eq(entries),
            "the engine knows what is in force after edit {number}"
        );
    }
    assert!(generation > EDITS as u64 / 2, "{generation} generations");
}
