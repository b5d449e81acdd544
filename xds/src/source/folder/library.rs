//! What is in force: decided from what the files say now and what they said before. Pure.
//!
//! A file that cannot be read keeps every object it had; an object that cannot be used keeps its last good form; one that
//! is missing from a file stays while a document of it may be that object with its name or kind spoilt; a security object
//! that never had a good form denies what it selects. Nothing is forgotten because something is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tulle_k8s::document::node::Place;
use tulle_k8s::{Key, Object};
use tulle_model::{Reason, Str};

use super::allocate::{Allocations, Change, Demand};
use super::gateways;
use super::parse::{Form, Parsed};
use super::scan::Scan;
use crate::engine::{Batch, Event, InForce};
use crate::snapshot::{FileProblem, Severity};

mod decide;
mod index;
mod known;
mod step;

use index::Index;
use known::Known;
pub(crate) use known::{Text, Texts};
pub(crate) use step::Step;

/// Objects from which on an empty folder is taken for a mistake.
const OBJECTS_KEPT_MIN: usize = 10;

/// Objects that change at once from which on maps are packed.
const PACKED_MIN: usize = 1_000;

/// An object in force, with what is needed to keep it over a restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// What the engine is told.
    pub(crate) in_force: InForce,
    /// What the text that says it is known by.
    pub(crate) form: Form,
    /// When it was first seen; stands in for its time of creation.
    pub(crate) first_seen: Timestamp,
    /// A Gateway whose own text says where it is.
    pub(crate) says_where: bool,
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
    /// What is in force stands for every file there is: all were read at least once, now or by a former process.
    is_whole: bool,
    /// Virtual addresses that were given.
    allocations: Arc<Allocations>,
    /// An empty folder is meant so.
    accepts_empty: bool,
    index: Index,
    /// The indices say nothing of what is in force: everything is decided once.
    is_unindexed: bool,
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
    /// The files say something that the process that decides has not spoken on yet.
    pub(super) is_undecided: bool,
    /// What changed, to be recorded or taken back.
    pub(crate) step: Step,
}

impl Library {
    /// What a former process left behind.
    pub(crate) fn restore(generation: u64, entries: BTreeMap<Key, Entry>) -> Self {
        Self {
            generation,
            entries,
            is_whole: true,
            is_unindexed: true,
            ..Self::default()
        }
    }

    /// Number of the newest generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether what is in force stands for every file there is. Before that nothing may be served, and nothing is worth a
    /// record: what an unread file denies would be allowed.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The virtual addresses that were given.
    pub(crate) fn allocations(&self) -> &Arc<Allocations> {
        &self.allocations
    }

    /// Takes over the virtual addresses that a former process gave.
    pub(crate) fn set_allocations(&mut self, allocations: Allocations, now: Timestamp) {
        self.allocations = Arc::new(allocations);
        self.reindex();
        let mut step = Step::default();
        self.assign(true, now, &mut step);
        let gateways: Vec<Key> = self
            .entries
            .keys()
            .filter(|key| key.kind == tulle_k8s::Kind::Gateway)
            .cloned()
            .collect();
        self.place(gateways.into_iter().collect(), &mut step);
    }

    /// Takes an empty folder for meant, until it holds something again.
    pub(crate) fn accept_empty(&mut self, accepts: bool) {
        self.accepts_empty = accepts;
    }

    /// Knows already what these files say.
    pub(super) fn remember_files(&mut self, of: &Self) {
        self.files.clone_from(&of.files);
        self.is_unindexed = true;
    }

    /// Takes back what was just decided of objects, in favour of this decision.
    pub(super) fn decide_as(&mut self, of: &Self) {
        self.entries.clone_from(&of.entries);
        self.allocations.clone_from(&of.allocations);
        self.generation = of.generation;
        self.is_unindexed = true;
    }

    /// Puts another decision in force, and says what of it the engine has not been told.
    pub(super) fn replace(&mut self, next: Self, synced: bool) -> Option<Batch> {
        let nothing = BTreeMap::new();
        let old = if self.is_told { &self.entries } else { &nothing };
        let events = changes(old, &next.entries);
        let says = |of: &Self| {
            (
                of.generation,
                of.problems.clone(),
                of.degraded.clone(),
                of.is_whole,
            )
        };
        let is_same = self.is_told && events.is_empty() && says(self) == says(&next);
        *self = Self {
            is_told: true,
            ..next
        };
        (!is_same).then(|| self.batch(events, synced))
    }

    /// Refuses what was just decided: everything stays as it was, for this reason.
    pub(crate) fn refuse(&mut self, step: Step, cause: &str) -> Settled {
        self.undo(step);
        let is_news = !self.is_told || self.degraded.as_deref() != Some(cause);
        // After a restart the engine has not heard yet of what a former process left in force.
        let events = match self.is_told {
            true => Vec::new(),
            false => changes(&BTreeMap::new(), &self.entries),
        };
        (self.degraded, self.is_told) = (Some(cause.into()), true);
        Settled {
            batch: is_news.then(|| self.batch(events, self.is_whole)),
            ..Settled::default()
        }
    }

    /// Whether what is in force may be served. Without a root and without a past, nothing is known: that is not an empty
    /// mesh. And neither is a part of the files the mesh.
    pub(super) fn is_servable(&self, scan: &Scan) -> bool {
        self.is_whole && (scan.no_root.is_none() || !self.entries.is_empty())
    }

    fn batch(&self, events: Vec<Event>, synced: bool) -> Batch {
        Batch {
            generation: self.generation,
            events,
            problems: self.problems.clone(),
            degraded: self.degraded.clone(),
            synced,
            written: BTreeMap::new(),
            look: None,
        }
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

    /// Decides what is in force now. What no file that changed concerns is not looked at.
    pub(crate) fn settle(&mut self, scan: &Scan, now: Timestamp) -> Settled {
        let mut step = Step::of(self);
        if let Some(degraded) = self.degraded_by(scan) {
            let problems = self.problems.as_ref().clone();
            return self.conclude(step, problems, Some(degraded), scan);
        }
        let mut touched = BTreeSet::new();
        let read_again = self.read(scan, &mut touched, &mut step);
        let everything = std::mem::take(&mut self.is_unindexed);
        if everything {
            self.reindex();
            touched.extend(self.index.claimed().cloned());
            touched.extend(self.entries.keys().cloned());
        }
        self.is_whole |= self.index.veiled().next().is_none() && scan.unreadable.is_empty();
        self.touch_unsure(&mut touched);
        self.decide(&touched, scan, now, &mut step);
        let gateways = self.gateways_of(&step);
        self.assign(everything, now, &mut step);
        self.place(gateways, &mut step);
        let problems = self.findings(scan);
        if step.objects().len() >= PACKED_MIN {
            self.pack();
        }
        let mut settled = self.conclude(step, problems, None, scan);
        settled.read_again = read_again;
        settled
    }

    /// Gives back what maps take that were filled in order: their nodes are only half full.
    fn pack(&mut self) {
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        self.index.pack();
    }

    fn reindex(&mut self) {
        self.index = Index::of(&self.files, &self.entries);
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

    /// What hangs on more than the text of a file: broken files, and those that are missing and still hold objects.
    fn touch_unsure(&self, touched: &mut BTreeSet<Key>) {
        for path in self.index.broken() {
            let statements = self.files.get(path).into_iter();
            let statements = statements.flat_map(|known| &known.parsed.statements);
            touched.extend(statements.map(|statement| statement.key.clone()));
            touched.extend(self.index.held(path).cloned());
        }
        for path in self.index.homeless() {
            touched.extend(self.index.held(path).cloned());
        }
    }

    /// Gives virtual addresses to what needs some.
    fn assign(&mut self, everything: bool, now: Timestamp, step: &mut Step) {
        let entries = &self.entries;
        let object = |key: &Key| entries.get(key).map(|entry| entry.in_force.object.clone());
        let demand = &mut self.index.demand;
        let completed = if everything {
            *demand = Demand::default();
            let all = entries.iter().map(|(key, entry)| Change {
                key,
                new: Some(entry.in_force.object.as_ref()),
            });
            self.allocations.assign(demand, all, object, now)
        } else {
            let changed = step.entries.keys().map(|key| Change {
                key,
                new: entries.get(key).map(|entry| entry.in_force.object.as_ref()),
            });
            self.allocations.assign(demand, changed, object, now)
        };
        for (key, object) in completed {
            self.complete(&key, object, step);
        }
    }

    /// The gateways that changed, or whose instances did.
    fn gateways_of(&self, step: &Step) -> BTreeSet<Key> {
        let mut gateways = BTreeSet::new();
        for (key, old) in &step.entries {
            if key.kind == tulle_k8s::Kind::Gateway {
                gateways.insert(key.clone());
            }
            for entry in old.as_deref().into_iter().chain(self.entries.get(key)) {
                if let Some((namespace, name)) = gateways::gateway_of(key, &entry.in_force.object) {
                    gateways.insert(Key::new(tulle_k8s::Kind::Gateway, namespace, name));
                }
            }
        }
        gateways
    }

    /// Gives gateways the addresses of their instances.
    fn place(&mut self, gateways: BTreeSet<Key>, step: &mut Step) {
        for key in gateways {
            if let Some(object) = gateways::place(&key, &self.entries, &self.index.instances) {
                self.complete(&key, object, step);
            }
        }
    }

    /// Puts an object in the place of what a file says of it.
    fn complete(&mut self, key: &Key, object: Object, step: &mut Step) {
        if let Some(mut entry) = self.entries.get(key).cloned() {
            entry.in_force.object = Arc::new(object);
            self.set_entry(key, Some(entry), step);
        }
    }

    /// Everything that is to be said of the files, by file and line.
    fn findings(&self, scan: &Scan) -> Vec<FileProblem> {
        let files = self.index.faulty().filter_map(|path| self.files.get(path));
        let told = files.filter(|known| !known.is_waited_for());
        let mut problems: Vec<FileProblem> = told
            .flat_map(|known| known.parsed.problems.iter().cloned())
            .collect();
        problems.extend(
            scan.unreadable
                .iter()
                .map(|(path, cause)| unreadable_directory(path, cause)),
        );
        problems.extend(self.index.refused().cloned());
        problems.sort_by(|a, b| place(a).cmp(&place(b)));
        problems
    }

    /// Takes over the decision and says what of it is new.
    fn conclude(
        &mut self,
        step: Step,
        problems: Vec<FileProblem>,
        degraded: Option<Str>,
        scan: &Scan,
    ) -> Settled {
        // What a former process left behind is the same generation, although the engine has yet to hear of it.
        let changed = self.changed_by(&step);
        let differs = !changed.is_empty();
        let events = match self.is_told {
            true => changed,
            false => changes(&BTreeMap::new(), &self.entries),
        };
        let news = news(&self.problems, &problems);
        let is_same = events.is_empty()
            && problems == *self.problems
            && degraded == self.degraded
            && step.was_whole() == self.is_whole;
        if is_same && self.is_told {
            return Settled {
                step,
                ..Settled::default()
            };
        }
        let synced = self.is_servable(scan);
        self.generation += u64::from(differs || problems != *self.problems || self.generation == 0);
        (self.problems, self.degraded, self.is_told) = (Arc::new(problems), degraded, true);
        Settled {
            batch: Some(self.batch(events, synced)),
            news,
            step,
            ..Settled::default()
        }
    }

    /// The events that what was decided comes to.
    fn changed_by(&self, step: &Step) -> Vec<Event> {
        let (mut gone, mut set) = (Vec::new(), Vec::new());
        for (key, old) in &step.entries {
            match (old, self.entries.get(key)) {
                (Some(_), None) => gone.push(Event {
                    key: key.clone(),
                    object: None,
                }),
                (old, Some(new)) if old.as_ref().is_none_or(|old| old.in_force != new.in_force) => {
                    set.push(Event {
                        key: key.clone(),
                        object: Some(new.in_force.clone()),
                    });
                }
                _ => {}
            }
        }
        gone.append(&mut set);
        gone
    }
}

/// Where a finding belongs.
fn place(problem: &FileProblem) -> (&Str, u64, u64) {
    (&problem.file, problem.line, problem.column)
}

/// The findings that were not there before; both come by file and line.
fn news(before: &[FileProblem], now: &[FileProblem]) -> Vec<FileProblem> {
    let is_known = |problem: &&FileProblem| {
        let from = before.partition_point(|known| place(known) < place(problem));
        let same = before[from..]
            .iter()
            .take_while(|known| place(known) == place(problem));
        same.clone().any(|known| known == *problem)
    };
    now.iter().filter(|problem| !is_known(problem)).cloned().collect()
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

fn unreadable_directory(path: &Str, cause: &str) -> FileProblem {
    FileProblem {
        file: path.clone(),
        line: 0,
        column: 0,
        severity: Severity::Error,
        reason: Reason::UnparsableFile,
        object: None,
        cause: cause.to_owned(),
        fix: "make it readable for the control plane, or move it out of the folder".to_owned(),
    }
}

#[cfg(test)]
mod tests;
