//! Reading beside the process that owns the state folder: what that one recorded is in force here, with the times of
//! creation and addresses it gave, so that both serve the same versions. While nobody owns the folder, the files decide
//! on top of the last record.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::library::{Library, Settled};
use super::scan::Scan;
use crate::history::History;
use crate::state_dir::StateDir;

/// What is read beside the files, and what the engine was told.
pub(super) struct Follower {
    state_dir: PathBuf,
    history: History,
    /// The newest generation on record, and what it holds.
    record: Option<(u64, Library)>,
    told: Library,
    /// What was decided on last: the files, and whether somebody owned the folder.
    seen: Option<(Scan, bool)>,
    /// The owner has not spoken yet on what those files say.
    is_undecided: bool,
}

impl Follower {
    /// Follows the owner of this folder.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            history: History::open(state_dir),
            record: None,
            told: Library::default(),
            seen: None,
            is_undecided: false,
        }
    }

    /// The directory that tells of new records.
    pub(super) fn records(&self) -> PathBuf {
        self.history.directory().to_owned()
    }

    /// What the engine was told.
    pub(super) fn told(&self) -> &Library {
        &self.told
    }

    /// Looks once.
    pub(super) fn look(&mut self, scan: &Scan, now: Timestamp) -> Settled {
        let is_news = self.read_record(now);
        // Asked before the files are judged: an owner that comes meanwhile is heard by its record.
        let is_owned = StateDir::is_owned(&self.state_dir);
        let is_as_before = |(seen, was_owned): &(Scan, bool)| *was_owned == is_owned && seen.says(scan);
        if !is_news && self.seen.as_ref().is_some_and(is_as_before) {
            return self.nothing();
        }
        let nothing = Library::default();
        let record = self.record.as_ref().map(|(_, record)| record);
        if record.is_none() && is_owned {
            // The owner is about to say what is in force.
            self.is_undecided = true;
            return self.nothing();
        }
        // While there is no record, what was read as a whole is the last good form.
        let read = Some(&self.told).filter(|told| told.is_whole());
        let record = record.or(read).unwrap_or(&nothing);
        let mut next = record.clone();
        next.remember_files(&self.told);
        let mut settled = next.settle(scan, now);
        self.is_undecided = is_owned && next.entries() != record.entries();
        settled.is_undecided = self.is_undecided;
        if is_owned {
            next.decide_as(record);
            settled.read_again = false;
        }
        self.seen = (!settled.read_again).then(|| (scan.clone(), is_owned));
        let synced = next.is_servable(scan);
        settled.batch = self.told.replace(next, synced);
        if settled.batch.is_none() {
            settled.news.clear();
        }
        settled
    }

    /// Nothing is new.
    fn nothing(&self) -> Settled {
        Settled {
            is_undecided: self.is_undecided,
            ..Settled::default()
        }
    }

    /// Reads a newer record, and says whether there was one.
    fn read_record(&mut self, now: Timestamp) -> bool {
        let newest = self.history.newest_on_disk();
        if newest.is_none() || newest == self.record.as_ref().map(|(generation, _)| *generation) {
            return false;
        }
        let Some(mut library) = self.history.load() else {
            return false;
        };
        library.set_allocations(self.history.allocations(), now);
        self.record = Some((library.generation(), library));
        true
    }
}
