//! What becomes of one object: what the files say of it, in the order in which they win, and what was in force before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tulle_k8s::document::node::Place;
use tulle_k8s::{Key, Kind};
use tulle_model::{Reason, Str};

use super::{Entry, Known, Library, Step};
use crate::engine::InForce;
use crate::snapshot::{FileProblem, Severity};
use crate::source::folder::gateways::says_where;
use crate::source::folder::parse::{Good, Says, Statement};
use crate::source::folder::scan::Scan;

/// What is to become of an object.
enum Decision {
    /// It comes into force as this statement of this file says.
    Take { file: Str, at: usize },
    /// It stays as it was.
    Keep,
    /// Nobody says anything of it any more.
    Drop,
}

/// What one file says of an object, in the order in which files win.
enum Claim<'a> {
    Says(&'a Str, usize, &'a Says),
    /// The file is broken, or a document of it may be this object: whatever it said before.
    AsBefore,
}

/// The statements of files, by object; made for the files that are asked of.
#[derive(Default)]
struct Statements<'a> {
    by_file: BTreeMap<&'a str, BTreeMap<&'a Key, Vec<usize>>>,
}

impl<'a> Statements<'a> {
    fn of(&mut self, path: &'a str, known: &'a Known, key: &Key) -> impl Iterator<Item = usize> + use<> {
        let by_key = self.by_file.entry(path).or_insert_with(|| {
            let mut by_key: BTreeMap<&Key, Vec<usize>> = BTreeMap::new();
            for (at, statement) in known.parsed.statements.iter().enumerate() {
                by_key.entry(&statement.key).or_default().push(at);
            }
            by_key
        });
        by_key.get(key).cloned().unwrap_or_default().into_iter()
    }
}

impl Library {
    /// Decides on these objects.
    pub(super) fn decide(&mut self, touched: &BTreeSet<Key>, scan: &Scan, now: Timestamp, step: &mut Step) {
        step.work.decided += touched.len();
        let generation = self.generation + 1;
        let mut statements = Statements::default();
        let decisions: Vec<_> = touched
            .iter()
            .map(|key| self.decision(key, scan, &mut statements))
            .collect();
        drop(statements);
        for (key, (decision, refused)) in touched.iter().zip(decisions) {
            self.index.set_refused(key, refused);
            let entry = match decision {
                Decision::Take { file, at } => self.taken(key, &file, at, generation, now),
                Decision::Keep => self.entries.get(key).map(|old| kept(old, generation)),
                Decision::Drop => None,
            };
            self.set_entry(key, entry, step);
        }
        let files = &self.files;
        self.index.find_homeless(|path| files.contains_key(path));
    }

    fn decision<'a>(
        &'a self,
        key: &Key,
        scan: &Scan,
        statements: &mut Statements<'a>,
    ) -> (Decision, Vec<FileProblem>) {
        let (claim, refused) = self.claim(key, scan, statements);
        let old = self.entries.get(key);
        let take = |file: &Str, at: usize| Decision::Take {
            file: file.clone(),
            at,
        };
        let decision = match (claim, old) {
            (Some(Claim::Says(file, at, Says::Good(_))), _) => take(file, at),
            (Some(Claim::Says(_, _, Says::Bad(_))), Some(old)) if !old.in_force.object.is_stand_in() => {
                Decision::Keep
            }
            (Some(Claim::Says(file, at, Says::Bad(Some(_)))), _) => take(file, at),
            (Some(Claim::AsBefore), Some(_)) => Decision::Keep,
            (Some(Claim::Says(_, _, Says::Bad(None)) | Claim::AsBefore) | None, _) => Decision::Drop,
        };
        (decision, refused)
    }

    /// What the files say about an object: the first path in byte order wins, the others are refused.
    fn claim<'a>(
        &'a self,
        key: &Key,
        scan: &Scan,
        statements: &mut Statements<'a>,
    ) -> (Option<Claim<'a>>, Vec<FileProblem>) {
        let home = self.entries.get(key).map(|entry| &entry.in_force.file);
        let (mut first, mut refused): (Option<(&Str, Claim<'_>)>, _) = (None, Vec::new());
        let asked: BTreeSet<&Str> = self.index.claimants(key).chain(home).collect();
        for path in asked {
            let Some((path, known)) = self.files.get_key_value(path) else {
                continue;
            };
            let is_broken = known.parsed.is_broken;
            if is_broken && home == Some(path) && first.is_none() {
                first = Some((path, Claim::AsBefore));
            }
            for at in statements.of(path, known, key) {
                if is_broken && (!key.kind.is_security() || home.is_some()) {
                    continue;
                }
                let Statement { place, says, .. } = &known.parsed.statements[at];
                match &first {
                    Some((winner, _)) => refused.push(duplicate(path, *place, key, winner)),
                    None => first = Some((path, Claim::Says(path, at, says))),
                }
            }
        }
        // Files of a directory that cannot be read are not gone.
        let is_unreadable = |file: &&Str| {
            let mut directories = scan.unreadable.keys();
            !self.files.contains_key(*file) && directories.any(|directory| is_below(file, directory))
        };
        if first.is_none() && home.as_ref().is_some_and(is_unreadable) {
            return (Some(Claim::AsBefore), refused);
        }
        let known = home.and_then(|path| self.files.get_key_value(path));
        let veiling = known.filter(|(_, known)| first.is_none() && known.parsed.strays.may_be(key));
        if let Some((path, known)) = veiling {
            if !known.is_waited_for() {
                refused.push(missing(path, key));
            }
            return (Some(Claim::AsBefore), refused);
        }
        (first.map(|(_, claim)| claim), refused)
    }

    /// An object comes into force, or stays in it unchanged.
    fn taken(&mut self, key: &Key, file: &Str, at: usize, generation: u64, now: Timestamp) -> Option<Entry> {
        let known = self.files.get_mut(file)?;
        let old = self.entries.get(key);
        let first_seen = old.map_or(now, |old| old.first_seen);
        let good = known.parsed.statements.get(at)?.good()?;
        let form = good.form;
        // Most objects are as they were: to see that must not cost a copy.
        let (object, generation, says_where) = match old.filter(|old| old.form == form) {
            Some(old) => {
                let object = old.in_force.object.clone();
                if is_left_alone(key.kind) && !Arc::ptr_eq(&object, &good.object) {
                    edit(known, at, |good| good.object = object.clone());
                }
                (object, old.in_force.generation, old.says_where)
            }
            None => {
                let says_where = says_where(&good.object);
                if good.object.meta().creation_timestamp.is_none() {
                    // Without a time of creation, the time it was first seen counts.
                    edit(known, at, |good| {
                        Arc::make_mut(&mut good.object).meta_mut().creation_timestamp = Some(first_seen);
                    });
                }
                let good = known.parsed.statements.get(at)?.good()?;
                (good.object.clone(), generation, says_where)
            }
        };
        let in_force = InForce {
            object,
            file: file.clone(),
            generation,
            stale_since: None,
        };
        Some(Entry {
            in_force,
            form,
            first_seen,
            says_where,
        })
    }
}

/// Whether nothing is added to objects of this kind, so that what is in force is what the file says.
fn is_left_alone(kind: Kind) -> bool {
    !matches!(kind, Kind::Service | Kind::ServiceEntry | Kind::Gateway)
}

fn edit(known: &mut Known, at: usize, edit: impl FnOnce(&mut Good)) {
    let statement = Arc::make_mut(&mut known.parsed).statements.get_mut(at);
    if let Some(good) = statement.and_then(Statement::good_mut) {
        edit(good);
    }
}

/// An object whose new form is refused stays in force.
fn kept(old: &Entry, generation: u64) -> Entry {
    let mut entry = old.clone();
    entry.in_force.stale_since.get_or_insert(generation);
    entry
}

fn duplicate(file: &Str, place: Place, key: &Key, first: &Str) -> FileProblem {
    let cause = if file == first {
        "it stands in this file for the second time".to_owned()
    } else {
        format!("{first} defines it too, and comes first")
    };
    FileProblem {
        file: file.clone(),
        line: place.line,
        column: place.column,
        severity: Severity::Error,
        reason: Reason::DuplicateObject,
        object: Some(key.clone()),
        cause,
        fix: "keep one of the two".to_owned(),
    }
}

/// A document of the file may be what became of the object.
fn missing(file: &Str, key: &Key) -> FileProblem {
    FileProblem {
        file: file.clone(),
        line: 0,
        column: 0,
        severity: Severity::Error,
        reason: Reason::ResourceRejected,
        object: Some(key.clone()),
        cause: "it is missing, and may be a document of this file that names no object; it stays as it was"
            .to_owned(),
        fix: "correct that document, or move it to another file".to_owned(),
    }
}

fn is_below(file: &str, directory: &str) -> bool {
    file.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}
