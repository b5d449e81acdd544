//! What is in force: decided from what the files say now and what they said before. Pure.
//!
//! A file that cannot be read keeps every object it had; an object that cannot be used keeps its last good form; a
//! security object that never had one denies what it selects. Nothing is forgotten because something is broken.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tulle_k8s::document::node::Place;
use tulle_k8s::{Key, Object};
use tulle_model::{Reason, Str};

use super::allocate::Allocations;
use super::gateways;
use super::parse::{self, Form, Good, Parsed, Statement};
use super::scan::{File, Scan};
use crate::engine::{Batch, Event, InForce};
use crate::snapshot::{FileProblem, Severity};

/// Objects from which on an empty folder is taken for a mistake.
const OBJECTS_KEPT_MIN: usize = 10;

/// An object in force, with what is needed to keep it over a restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// What the engine is told.
    pub(crate) in_force: InForce,
    /// The object as it was written, as JSON.
    pub(crate) written: Arc<str>,
    /// When it was first seen; stands in for its time of creation.
    pub(crate) first_seen: Timestamp,
}

/// Everything in force, and what the files say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Library {
    generation: u64,
    entries: BTreeMap<Key, Entry>,
    files: BTreeMap<Str, Known>,
    problems: Arc<Vec<FileProblem>>,
    degraded: Option<Str>,
    /// The engine has been told.
    is_told: bool,
    /// Virtual addresses that were given.
    allocations: Allocations,
    /// An empty folder is meant so.
    accepts_empty: bool,
}

/// A file as it was parsed last.
#[derive(Debug, Clone)]
struct Known {
    text: Result<Arc<str>, String>,
    parsed: Arc<Parsed>,
    /// It was broken and read a second time.
    read_twice: bool,
}

/// What came of looking at the files.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// What the engine is to be told, if anything changed.
    pub(crate) batch: Option<Batch>,
    /// Findings that were not there before.
    pub(super) news: Vec<FileProblem>,
    /// A file may be in the middle of being written: look again soon.
    pub(super) read_again: bool,
}

/// What one path says about an object, in the order in which paths win.
struct Claim<'a> {
    file: &'a Str,
    says: Says<'a>,
}

enum Says<'a> {
    Good(&'a Good),
    Bad(Option<&'a Good>),
    /// The file is broken: whatever it said before.
    AsBefore,
}

impl Library {
    /// What a former process left behind.
    pub(crate) fn restore(generation: u64, entries: BTreeMap<Key, Entry>) -> Self {
        Self {
            generation,
            entries,
            ..Self::default()
        }
    }

    /// Number of the newest generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The virtual addresses that were given.
    pub(crate) fn allocations(&self) -> &Allocations {
        &self.allocations
    }

    /// Takes over the virtual addresses that a former process gave.
    pub(crate) fn set_allocations(&mut self, allocations: Allocations, now: Timestamp) {
        self.allocations = allocations;
        self.allocations.assign(&mut self.entries, now);
        gateways::place(&mut self.entries);
    }

    /// Takes an empty folder for meant, until it holds something again.
    pub(crate) fn accept_empty(&mut self, accepts: bool) {
        self.accepts_empty = accepts;
    }

    /// Whether anything is in force, be it that a former process left it.
    pub(crate) fn holds_anything(&self) -> bool {
        self.is_told || !self.entries.is_empty()
    }

    /// Knows already what these files say.
    pub(super) fn remember_files(&mut self, of: &Self) {
        self.files.clone_from(&of.files);
    }

    /// Takes back what was just decided of objects, in favour of this decision.
    pub(super) fn decide_as(&mut self, of: &Self) {
        self.entries.clone_from(&of.entries);
        self.allocations.clone_from(&of.allocations);
        self.generation = of.generation;
    }

    /// Puts another decision in force, and says what of it the engine has not been told.
    pub(super) fn replace(&mut self, next: Self, synced: bool) -> Option<Batch> {
        let nothing = BTreeMap::new();
        let old = if self.is_told { &self.entries } else { &nothing };
        let events = changes(old, &next.entries);
        let says = |of: &Self| (of.generation, of.problems.clone(), of.degraded.clone());
        let is_same = self.is_told && events.is_empty() && says(self) == says(&next);
        *self = Self {
            is_told: true,
            ..next
        };
        (!is_same).then(|| Batch {
            generation: self.generation,
            events,
            problems: self.problems.clone(),
            degraded: self.degraded.clone(),
            synced,
            written: BTreeMap::new(),
        })
    }

    /// Refuses what was just decided: everything stays as it was, for this reason.
    pub(crate) fn refuse(&mut self, before: Self, cause: &str) -> Settled {
        let is_news = !before.is_told || before.degraded.as_deref() != Some(cause);
        // After a restart the engine has not heard yet of what a former process left in force.
        let nothing = BTreeMap::new();
        let known = if before.is_told { &before.entries } else { &nothing };
        let events = changes(known, &before.entries);
        *self = Self {
            degraded: Some(cause.into()),
            is_told: true,
            ..before
        };
        let batch = is_news.then(|| Batch {
            generation: self.generation,
            events,
            problems: self.problems.clone(),
            degraded: self.degraded.clone(),
            synced: true,
            written: BTreeMap::new(),
        });
        Settled {
            batch,
            ..Settled::default()
        }
    }

    /// The text of each file that could be read.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&Str, &Arc<str>)> {
        let files = self.files.iter();
        files.filter_map(|(path, known)| known.text.as_ref().ok().map(|text| (path, text)))
    }

    /// Findings that hold now.
    pub(crate) fn problems(&self) -> &[FileProblem] {
        &self.problems
    }

    /// Where each object is written.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Key, &Str, Place)> {
        self.files.iter().flat_map(|(path, known)| {
            let statements = known.parsed.statements.iter();
            statements.map(move |statement| (&statement.key, path, statement.place))
        })
    }

    /// Everything in force.
    pub(crate) fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    /// Decides what is in force now.
    pub(crate) fn settle(&mut self, scan: &Scan, now: Timestamp) -> Settled {
        let degraded = self.degraded_by(scan);
        if degraded.is_some() {
            return self.conclude(None, self.problems.as_ref().clone(), degraded, scan);
        }
        let read_again = self.read(scan);
        let mut problems: Vec<FileProblem> = Vec::new();
        for known in self
            .files
            .values()
            .filter(|known| known.read_twice || !known.parsed.is_broken)
        {
            problems.extend(known.parsed.problems.iter().cloned());
        }
        problems.extend(
            scan.unreadable
                .iter()
                .map(|(path, cause)| unreadable_directory(path, cause)),
        );
        let (claims, refused) = self.claims(scan);
        problems.extend(refused);
        let mut entries = self.decide(&claims, now);
        self.allocations.assign(&mut entries, now);
        gateways::place(&mut entries);
        problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        let mut settled = self.conclude(Some(entries), problems, None, scan);
        settled.read_again = read_again;
        settled
    }

    /// Why what the folder says now is rather a mistake than meant.
    fn degraded_by(&self, scan: &Scan) -> Option<Str> {
        if let Some(cause) = &scan.no_root {
            return Some(cause.as_str().into());
        }
        let empty = scan.files.is_empty() && scan.unreadable.is_empty();
        (empty && !self.accepts_empty && self.entries.len() >= OBJECTS_KEPT_MIN).then(|| {
            let count = self.entries.len();
            format!("the configuration folder is empty; its {count} objects stay in force until `tulle config accept-empty`").into()
        })
    }

    /// Parses what changed; says whether a broken file deserves a second look.
    fn read(&mut self, scan: &Scan) -> bool {
        self.files.retain(|path, _| scan.files.contains_key(path));
        let mut read_again = false;
        for (path, file) in &scan.files {
            let known = self.files.get(path);
            if let Some(known) = known.filter(|known| known.text == file.text) {
                if known.parsed.is_broken && !known.read_twice {
                    let parsed = known.parsed.clone();
                    self.files.insert(
                        path.clone(),
                        Known {
                            text: file.text.clone(),
                            parsed,
                            read_twice: true,
                        },
                    );
                }
                continue;
            }
            let was_waited_for = known.is_some_and(|known| known.parsed.is_broken && !known.read_twice);
            let parsed = parse_file(path, file);
            let read_twice = was_waited_for || !file.is_fresh;
            read_again |= parsed.is_broken && !read_twice;
            let known = Known {
                text: file.text.clone(),
                parsed: Arc::new(parsed),
                read_twice,
            };
            self.files.insert(path.clone(), known);
        }
        read_again
    }

    /// What the files say about each object: the first path in byte order wins, the others are refused.
    fn claims<'a>(&'a self, scan: &'a Scan) -> (BTreeMap<&'a Key, Claim<'a>>, Vec<FileProblem>) {
        let mut claims: BTreeMap<&Key, Claim<'_>> = BTreeMap::new();
        let mut refused = Vec::new();
        let mut held: BTreeMap<&Str, Vec<&Key>> = BTreeMap::new();
        for (key, entry) in &self.entries {
            held.entry(&entry.in_force.file).or_default().push(key);
        }
        for (file, known) in &self.files {
            for key in held
                .remove(file)
                .unwrap_or_default()
                .into_iter()
                .filter(|_| known.parsed.is_broken)
            {
                claims.entry(key).or_insert(Claim {
                    file,
                    says: Says::AsBefore,
                });
            }
            for statement in &known.parsed.statements {
                let Statement { key, place, form } = statement;
                if known.parsed.is_broken && (!key.kind.is_security() || self.entries.contains_key(key)) {
                    continue;
                }
                let says = match form {
                    Form::Good(good) => Says::Good(good),
                    Form::Bad(stand_in) => Says::Bad(stand_in.as_ref()),
                };
                match claims.get(key) {
                    Some(first) => refused.push(duplicate(file, *place, key, first.file)),
                    None => {
                        claims.insert(key, Claim { file, says });
                    }
                }
            }
        }
        // Files of a directory that cannot be read are not gone.
        for (file, keys) in held {
            if scan.unreadable.keys().any(|directory| is_below(file, directory)) {
                for key in keys {
                    claims.entry(key).or_insert(Claim {
                        file,
                        says: Says::AsBefore,
                    });
                }
            }
        }
        (claims, refused)
    }

    fn decide(&self, claims: &BTreeMap<&Key, Claim<'_>>, now: Timestamp) -> BTreeMap<Key, Entry> {
        let generation = self.generation + 1;
        let entries = claims.iter().filter_map(|(key, claim)| {
            let old = self.entries.get(*key);
            let entry = match (&claim.says, old) {
                (Says::Good(good), old) => taken(good, claim.file, old, generation, now),
                (Says::Bad(_), Some(old)) if !old.in_force.object.is_stand_in() => kept(old, generation),
                (Says::Bad(Some(stand_in)), old) => taken(stand_in, claim.file, old, generation, now),
                (Says::AsBefore, Some(old)) => kept(old, generation),
                (Says::Bad(None) | Says::AsBefore, _) => return None,
            };
            Some(((*key).clone(), entry))
        });
        entries.collect()
    }

    /// Takes over the decision and says what of it is new.
    fn conclude(
        &mut self,
        entries: Option<BTreeMap<Key, Entry>>,
        problems: Vec<FileProblem>,
        degraded: Option<Str>,
        scan: &Scan,
    ) -> Settled {
        let nothing = BTreeMap::new();
        let old = if self.is_told { &self.entries } else { &nothing };
        let entries = entries.unwrap_or_else(|| self.entries.clone());
        let events = changes(old, &entries);
        let news: Vec<_> = problems
            .iter()
            .filter(|problem| !self.problems.contains(problem))
            .cloned()
            .collect();
        let is_same = events.is_empty() && problems == *self.problems && degraded == self.degraded;
        if is_same && self.is_told {
            return Settled::default();
        }
        // Without a root and without a past, nothing is known: that is not an empty mesh.
        let synced = scan.no_root.is_none() || !entries.is_empty();
        // What a former process left behind is the same generation, although the engine has yet to hear of it.
        let differs = !changes(&self.entries, &entries).is_empty();
        self.generation += u64::from(differs || problems != *self.problems || self.generation == 0);
        (self.entries, self.problems, self.degraded, self.is_told) =
            (entries, Arc::new(problems), degraded, true);
        let batch = Batch {
            generation: self.generation,
            events,
            problems: self.problems.clone(),
            degraded: self.degraded.clone(),
            synced,
            written: BTreeMap::new(),
        };
        Settled {
            batch: Some(batch),
            news,
            read_again: false,
        }
    }
}

fn parse_file(path: &Str, file: &File) -> Parsed {
    match &file.text {
        Ok(text) => parse::parse(path, text),
        Err(cause) => parse::unreadable(path, cause),
    }
}

/// An object comes into force, or stays in it unchanged.
fn taken(good: &Good, file: &Str, old: Option<&Entry>, generation: u64, now: Timestamp) -> Entry {
    let first_seen = old.map_or(now, |old| old.first_seen);
    // Most objects are as they were: to see that must not cost a copy.
    let same = old.filter(|old| old.written == good.written);
    let (object, generation) = match same {
        Some(old) => (old.in_force.object.clone(), old.in_force.generation),
        None => (aged(&good.object, first_seen), generation),
    };
    let in_force = InForce {
        object,
        file: file.clone(),
        generation,
        stale_since: None,
    };
    Entry {
        in_force,
        written: good.written.clone(),
        first_seen,
    }
}

/// An object whose new form is refused stays in force.
fn kept(old: &Entry, generation: u64) -> Entry {
    let mut entry = old.clone();
    entry.in_force.stale_since.get_or_insert(generation);
    entry
}

/// Gives an object without a time of creation the time it was first seen.
fn aged(object: &Arc<Object>, first_seen: Timestamp) -> Arc<Object> {
    if object.meta().creation_timestamp.is_some() {
        return object.clone();
    }
    let mut object = Object::clone(object);
    object.meta_mut().creation_timestamp = Some(first_seen);
    Arc::new(object)
}

fn changes(old: &BTreeMap<Key, Entry>, new: &BTreeMap<Key, Entry>) -> Vec<Event> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| Event {
        key: key.clone(),
        object: None,
    });
    let set = new
        .iter()
        .filter(|(key, entry)| old.get(*key).is_none_or(|old| old.in_force != entry.in_force));
    let set = set.map(|(key, entry)| Event {
        key: key.clone(),
        object: Some(entry.in_force.clone()),
    });
    gone.chain(set).collect()
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

fn unreadable_directory(path: &Str, cause: &str) -> FileProblem {
    FileProblem {
        file: path.clone(),
        line: 0,
        column: 0,
        severity: Severity::Error,
        reason: Reason::UnparsableFile,
        object: None,
        cause: cause.to_owned(),
        fix: "make it readable for the control plane".to_owned(),
    }
}

fn is_below(file: &str, directory: &str) -> bool {
    file.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
