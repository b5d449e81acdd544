//! By what a change of one file finds the objects it concerns, so that it costs nothing for the others.

use std::collections::{BTreeMap, BTreeSet};

use tulle_k8s::Key;
use tulle_model::Str;

use super::{Entry, Known};
use crate::few::Few;
use crate::snapshot::FileProblem;
use crate::source::folder::allocate::Demand;
use crate::source::folder::gateways::{Instances, gateway_of};

/// The indices of a library.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Files that say something of an object, in the order in which they win.
    claimants: BTreeMap<Key, Few<Str>>,
    /// Objects in force, by the file they are from.
    held: BTreeMap<Str, BTreeSet<Key>>,
    /// Files with findings.
    faulty: BTreeSet<Str>,
    /// Files that cannot be read as a whole.
    broken: BTreeSet<Str>,
    /// Files that cannot be read as a whole, or of which a document may restrict access and nobody knows what.
    veiled: BTreeSet<Str>,
    /// Files that are not there and still have objects in force.
    homeless: BTreeSet<Str>,
    /// Findings of objects that are defined more than once, or missing where a document may be them.
    refused: BTreeMap<Key, Vec<FileProblem>>,
    /// Files that went since the homeless were found.
    moved: BTreeSet<Str>,
    pub(super) instances: Instances,
    pub(super) demand: Demand,
}

impl Index {
    /// Of these files and objects; what is wanted of addresses is counted later.
    pub(super) fn of(files: &BTreeMap<Str, Known>, entries: &BTreeMap<Key, Entry>) -> Self {
        let mut index = Self::default();
        for (path, known) in files {
            index.set_file(path, None, Some(known));
        }
        for (key, entry) in entries {
            index.set_entry(key, None, Some(entry));
        }
        index.moved = index.held.keys().cloned().collect();
        index
    }

    /// Puts what a file says in the place of what it said.
    pub(super) fn set_file(&mut self, path: &Str, old: Option<&Known>, new: Option<&Known>) {
        for statement in old.iter().flat_map(|known| &known.parsed.statements) {
            if let Some(files) = self.claimants.get_mut(&statement.key) {
                files.remove(path);
                if files.is_empty() {
                    self.claimants.remove(&statement.key);
                }
            }
        }
        for statement in new.iter().flat_map(|known| &known.parsed.statements) {
            let files = self.claimants.entry(statement.key.clone()).or_default();
            files.insert(path.clone());
        }
        if new.is_none() {
            self.moved.insert(path.clone());
        }
        put(
            &mut self.faulty,
            path,
            new.is_some_and(|known| !known.parsed.problems.is_empty()),
        );
        put(
            &mut self.broken,
            path,
            new.is_some_and(|known| known.parsed.is_broken),
        );
        put(
            &mut self.veiled,
            path,
            new.is_some_and(|known| known.parsed.is_broken || known.parsed.strays.may_restrict),
        );
    }

    /// Puts an object in the place of the one that was in force.
    pub(super) fn set_entry(&mut self, key: &Key, old: Option<&Entry>, new: Option<&Entry>) {
        let file = |entry: Option<&Entry>| entry.map(|entry| entry.in_force.file.clone());
        let (from, to) = (file(old), file(new));
        if from != to {
            if let Some(from) = from {
                take(&mut self.held, &from, key);
            }
            if let Some(to) = to {
                self.held.entry(to).or_default().insert(key.clone());
            }
        }
        let gateway = |entry: Option<&Entry>| gateway_of(key, &entry?.in_force.object);
        let (from, to) = (gateway(old), gateway(new));
        if from != to {
            if let Some(from) = from {
                take(&mut self.instances, &from, key);
            }
            if let Some(to) = to {
                self.instances.entry(to).or_default().insert(key.clone());
            }
        }
    }

    /// Notes what is to be said of an object because it is defined elsewhere, or missing.
    pub(super) fn set_refused(&mut self, key: &Key, problems: Vec<FileProblem>) {
        if problems.is_empty() {
            self.refused.remove(key);
        } else {
            self.refused.insert(key.clone(), problems);
        }
    }

    /// The files that say something of an object, in the order in which they win.
    pub(super) fn claimants(&self, key: &Key) -> impl Iterator<Item = &Str> {
        self.claimants.get(key).into_iter().flat_map(Few::iter)
    }

    /// Gives back what maps take that were filled in order: their nodes are only half full.
    pub(super) fn pack(&mut self) {
        self.claimants = std::mem::take(&mut self.claimants).into_iter().collect();
        for held in self.held.values_mut() {
            *held = std::mem::take(held).into_iter().collect();
        }
    }

    /// The objects in force that are from a file.
    pub(super) fn held(&self, file: &Str) -> impl Iterator<Item = &Key> {
        self.held.get(file).into_iter().flatten()
    }

    /// Finds the files that are not there and still have objects in force.
    pub(super) fn find_homeless(&mut self, is_there: impl Fn(&Str) -> bool) {
        let mut all = std::mem::take(&mut self.homeless);
        all.append(&mut self.moved);
        all.retain(|path| self.held.contains_key(path) && !is_there(path));
        self.homeless = all;
    }

    /// Files that are not there and still have objects in force, in order.
    pub(super) fn homeless(&self) -> impl Iterator<Item = &Str> {
        self.homeless.iter()
    }

    /// Every object that any file says something of.
    pub(super) fn claimed(&self) -> impl Iterator<Item = &Key> {
        self.claimants.keys()
    }

    /// Files with findings, in order.
    pub(super) fn faulty(&self) -> impl Iterator<Item = &Str> {
        self.faulty.iter()
    }

    /// Files that cannot be read as a whole, in order.
    pub(super) fn broken(&self) -> impl Iterator<Item = &Str> {
        self.broken.iter()
    }

    /// Files that may say something of who may talk to whom that nobody could read.
    pub(super) fn veiled(&self) -> impl Iterator<Item = &Str> {
        self.veiled.iter()
    }

    /// Findings of objects that are defined more than once, or missing where a document may be them.
    pub(super) fn refused(&self) -> impl Iterator<Item = &FileProblem> {
        self.refused.values().flatten()
    }
}

fn put(files: &mut BTreeSet<Str>, path: &Str, is_one: bool) {
    if !is_one {
        files.remove(path);
    } else if !files.contains(path) {
        files.insert(path.clone());
    }
}

fn take<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<Key>>, of: &K, key: &Key) {
    if let Some(keys) = sets.get_mut(of) {
        keys.remove(key);
        if keys.is_empty() {
            sets.remove(of);
        }
    }
}
