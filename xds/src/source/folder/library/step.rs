//! What one look changed: enough to record it, and to take it back.

use std::collections::BTreeMap;
use std::sync::Arc;

use tulle_k8s::Key;
use tulle_model::Str;

use super::{Entry, Known, Library};
use crate::snapshot::FileProblem;
use crate::source::folder::allocate::Allocations;

/// What one look changed.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Objects that changed, as they were; apart, as the first step holds every object, and nothing of any.
    pub(super) entries: BTreeMap<Key, Option<Box<Entry>>>,
    /// Files that changed, as they were known.
    pub(super) files: BTreeMap<Str, Option<Known>>,
    before: Option<Before>,
    /// What it took.
    pub(crate) work: Work,
}

/// What a look took: what it did not touch is not in here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Files that were parsed.
    pub(crate) parsed: usize,
    /// Objects that were decided on.
    pub(crate) decided: usize,
}

/// Everything else that a look may change.
#[derive(Debug)]
struct Before {
    /// Something was in force, be it that a former process left it.
    held_anything: bool,
    is_whole: bool,
    generation: u64,
    problems: Arc<Vec<FileProblem>>,
    degraded: Option<Str>,
    is_told: bool,
    allocations: Arc<Allocations>,
}

impl Step {
    /// Nothing changed yet of this.
    pub(super) fn of(library: &Library) -> Self {
        Self {
            before: Some(Before {
                held_anything: library.is_told || !library.entries.is_empty(),
                is_whole: library.is_whole,
                generation: library.generation,
                problems: library.problems.clone(),
                degraded: library.degraded.clone(),
                is_told: library.is_told,
                allocations: library.allocations.clone(),
            }),
            ..Self::default()
        }
    }

    /// Whether anything was in force before, as a whole.
    pub(crate) fn held_anything(&self) -> bool {
        self.before
            .as_ref()
            .is_some_and(|before| before.held_anything && before.is_whole)
    }

    /// Whether what was in force before stood for every file.
    pub(super) fn was_whole(&self) -> bool {
        self.before.as_ref().is_some_and(|before| before.is_whole)
    }

    /// The objects that changed, came or went.
    pub(crate) fn objects(&self) -> impl ExactSizeIterator<Item = &Key> {
        self.entries.keys()
    }

    /// The files that changed, came or went.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Str> {
        self.files.keys()
    }
}

impl Library {
    /// Puts an object in force, or takes it out of force.
    pub(super) fn set_entry(&mut self, key: &Key, new: Option<Entry>, step: &mut Step) {
        if self.entries.get(key) == new.as_ref() {
            return;
        }
        self.index.set_entry(key, self.entries.get(key), new.as_ref());
        let old = match new {
            Some(new) => self.entries.insert(key.clone(), new),
            None => self.entries.remove(key),
        };
        step.entries
            .entry(key.clone())
            .or_insert_with(|| old.map(Box::new));
    }

    /// Takes everything back that a step changed.
    pub(super) fn undo(&mut self, step: Step) {
        for (path, old) in step.files {
            match old {
                Some(old) => drop(self.files.insert(path, old)),
                None => drop(self.files.remove(&path)),
            }
        }
        for (key, old) in step.entries {
            match old {
                Some(old) => drop(self.entries.insert(key, *old)),
                None => drop(self.entries.remove(&key)),
            }
        }
        if let Some(before) = step.before {
            self.generation = before.generation;
            self.problems = before.problems;
            self.degraded = before.degraded;
            self.is_told = before.is_told;
            self.is_whole = before.is_whole;
            self.allocations = before.allocations;
        }
        // This is rare enough to begin anew.
        self.is_unindexed = true;
    }
}
