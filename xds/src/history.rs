//! Generations on disk: what is in force survives a restart, also one with a broken folder.
//!
//! `<state dir>/history/<generation>.json` says what was in force and where it stands: in pages, each with the objects or
//! the files whose names fall together. `<state dir>/history/<generation>.pages` holds the pages that a generation was the
//! first to have, so that a change costs its own pages, whatever the size of the mesh; `files/<sha256>` are the texts of
//! files; `journal/` holds all of the newest ones once more until it is on the disk; `dropped/` holds what is in none any more
//! until it is removed. A generation of an older form lists every object, and `<generation>.objects` holds their texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tulle_k8s::document::documents;
use tulle_model::Str;

use crate::source::folder::allocate::Allocations;
use crate::source::folder::library::{Library, Settled, Step, Text, Texts};

mod aside;
mod author;
mod journal;
mod keep;
mod older;
mod pages;
mod stored;
mod view;

use journal::Journal;
use keep::{Drafts, Keep};
use older::Recorded;
use pages::{Pages, Record};
pub(crate) use view::put;
pub use view::{Difference, Generation, Rollback, View, ViewError, Writing};

/// Virtual addresses that were given, in the state folder.
const ALLOCATIONS: &str = "allocations.yaml";
/// Says that an empty folder is meant so.
const ACCEPT_EMPTY: &str = "accept-empty";
/// Says who makes the next change, and why.
const WORD: &str = "next-change.json";
/// Texts of files, by SHA-256, below the history.
const FILES: &str = "files";
/// How long a word about the next change waits for that change.
const WORD_KEPT: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// The generations on disk.
#[derive(Debug)]
pub struct History {
    root: PathBuf,
    /// Pages of the newest generation.
    pages: Pages,
    /// SHA-256 of each file of the newest generation, by page.
    files: BTreeMap<(u16, Str), Str>,
    newest: Option<u64>,
    /// Texts of a generation of the older form, until they stand in pages.
    inherited: Texts,
    /// Files that changed without a generation.
    unrecorded: BTreeSet<Str>,
    /// Pages do not say what is in force: all of them are written anew.
    is_behind: bool,
    /// There is a generation since the oldest ones were dropped.
    is_grown: bool,
    allocations: Arc<Allocations>,
    /// Telling of a full disk once is enough.
    is_failing: bool,
    /// The folder that is read, to see whose files changed.
    config_dir: Option<PathBuf>,
    keep: Keep,
    journal: Journal,
    /// What the last generation took.
    work: Work,
}

/// What recording a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Pages that were written.
    pub(crate) pages: usize,
    /// Texts of files that were written.
    pub(crate) texts: usize,
    /// Times that files were waited for until they were on the disk.
    pub(crate) waits: usize,
}

/// One generation.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    generation: u64,
    time: Timestamp,
    /// The generation before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<u64>,
    /// Who made the change, as far as that is known.
    #[serde(default)]
    actor: Str,
    /// Why, in their words.
    #[serde(default)]
    message: Str,
    /// Objects whose newest form is refused.
    #[serde(default)]
    rejected: Vec<String>,
    /// Where the rest stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pages: Option<Pages>,
    /// In the older form: SHA-256 of each file of the folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<Str, Str>,
    /// In the older form: every object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    objects: Vec<Recorded>,
}

/// What somebody says of the change they are about to make.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Word {
    actor: Str,
    message: Str,
    time: Timestamp,
    /// The files of the change: SHA-256 of what they are to hold, `None` for those that go.
    #[serde(default)]
    files: BTreeMap<Str, Option<Str>>,
}

impl Word {
    /// Whether it is said of a generation that changed these files: of some of its own, and those are as it says. Of nobody
    /// else's, that is, and of none that did not come to be.
    fn is_of<'a>(&self, changed: &BTreeSet<Str>, holds: impl Fn(&Str) -> Option<&'a Str>) -> bool {
        let mut own = self.files.iter().filter(|(path, _)| changed.contains(*path));
        let touches = own.clone().next().is_some();
        touches && own.all(|(path, sha256)| holds(path) == sha256.as_ref())
    }

    /// Whether all that was announced is there: nothing is left that it could be said of.
    fn is_done<'a>(&self, holds: impl Fn(&Str) -> Option<&'a Str>) -> bool {
        let mut files = self.files.iter();
        files.all(|(path, sha256)| holds(path) == sha256.as_ref())
    }
}

impl History {
    /// The history below a state folder.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let root = state_dir.join("history");
        Self {
            keep: Keep::new(root.clone()),
            journal: Journal::new(root.clone()),
            root,
            pages: Pages::default(),
            files: BTreeMap::new(),
            newest: None,
            inherited: Texts::new(),
            unrecorded: BTreeSet::new(),
            is_behind: true,
            is_grown: false,
            allocations: Arc::default(),
            is_failing: false,
            config_dir: None,
            work: Work::default(),
        }
    }

    /// Of this folder.
    #[must_use]
    pub fn of(self, config_dir: &Path) -> Self {
        Self {
            config_dir: Some(config_dir.to_owned()),
            ..self
        }
    }

    /// Writes again what a crash of the machine took of the newest generations. Whoever owns the folder does so before it
    /// reads any.
    pub(crate) fn recover(&mut self) {
        // What a former process dropped.
        self.keep.aside.remove();
        if let Err(error) = journal::recover(&self.root) {
            let path = self.root.display();
            tracing::error!(%error, %path, "what the journal of the history holds cannot be written, and generations may be missing: make room there and start again");
            self.journal.distrust();
        }
    }

    /// Where generations lie.
    pub(crate) fn directory(&self) -> &Path {
        &self.root
    }

    /// Number of the newest generation that lies there.
    pub(crate) fn newest_on_disk(&self) -> Option<u64> {
        self.generations().pop()
    }

    /// The virtual addresses that were given.
    pub(crate) fn allocations(&self) -> Allocations {
        let text = fs::read_to_string(self.state_dir().join(ALLOCATIONS)).unwrap_or_default();
        let read = documents(&text).into_iter().next().and_then(Result::ok);
        read.and_then(|node| node.read().ok()).unwrap_or_default()
    }

    /// Whether somebody said that an empty folder is meant so; asked once.
    pub(crate) fn take_accept_empty(&self) -> bool {
        fs::remove_file(self.state_dir().join(ACCEPT_EMPTY)).is_ok()
    }

    fn state_dir(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// What the last generation took.
    #[cfg(test)]
    pub(crate) fn work(&self) -> Work {
        self.work
    }

    /// Takes what came of looking at the folder: a generation is recorded, anything else is remembered for the next.
    ///
    /// # Errors
    /// The disk does not take it. That is told once.
    pub(crate) fn take(&mut self, library: &Library, settled: &Settled) -> io::Result<()> {
        if settled.batch.is_none() {
            self.unrecorded.extend(settled.step.files().cloned());
            return Ok(());
        }
        self.record(library, &settled.step)
    }

    /// Records what is to come into force.
    ///
    /// # Errors
    /// The disk does not take it. That is told once.
    pub(crate) fn record(&mut self, library: &Library, step: &Step) -> io::Result<()> {
        self.work = Work::default();
        if self.newest == Some(library.generation()) && step.objects().next().is_none() {
            // After a restart the newest generation is in force as it stands. One of the older form becomes one of this.
            if self.is_behind {
                let written = self.write(library, step);
                self.is_behind = written.is_err();
            }
            self.unrecorded.extend(step.files().cloned());
            return Ok(());
        }
        let written = self.write(library, step);
        match &written {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                let path = self.root.display();
                tracing::error!(%error, %path, "cannot record the generation; a restart would not know it");
            }
            Err(_) => {}
        }
        self.is_behind = written.is_err();
        written
    }

    fn write(&mut self, library: &Library, step: &Step) -> io::Result<()> {
        let generation = library.generation();
        let everything = self.is_behind;
        let changed: BTreeSet<Str> = match everything {
            true => library
                .paths()
                .chain(self.files.keys().map(|(_, path)| path))
                .cloned()
                .collect(),
            false => step.files().chain(&self.unrecorded).cloned().collect(),
        };
        let time = Timestamp::now();
        // The manifest, which says that the rest is there, comes to its place last.
        let mut drafts = Drafts::default();
        let files = self.store_texts(library, &changed, &mut drafts)?;
        let pages = self.write_pages(library, step, (&files, &changed), &mut drafts)?;
        self.store_allocations(library)?;
        // The same generation, written anew: what was said of it stays.
        let same = self.newest.filter(|newest| *newest == generation);
        let same = same.and_then(|newest| self.manifest(newest).ok());
        let (time, parent, word) = match same {
            Some(same) => (
                same.time,
                same.parent,
                Word {
                    actor: same.actor,
                    message: same.message,
                    time,
                    ..Word::default()
                },
            ),
            None => (time, self.newest, self.word(time, &files, &changed)),
        };
        let entries = library.entries().iter();
        let rejected = entries.filter(|(_, entry)| entry.in_force.stale_since.is_some());
        let text = serde_json::to_string(&Manifest {
            generation,
            time,
            parent,
            actor: word.actor,
            message: word.message,
            rejected: rejected.map(|(key, _)| key.to_string()).collect(),
            pages: Some(pages.clone()),
            files: BTreeMap::new(),
            objects: Vec::new(),
        })?;
        drafts.write(&self.manifest_path(generation), text.as_bytes())?;
        self.place(&mut drafts)?;
        let before = self.newest.unwrap_or_default();
        self.keep.over(&self.pages, &pages, before);
        for path in &changed {
            let at = (pages::page_of_file(path), path.clone());
            let old = match files.get(path) {
                Some(sha256) => self.files.insert(at, sha256.clone()),
                None => self.files.remove(&at),
            };
            self.keep.text(old.as_ref(), files.get(path), before);
        }
        (self.pages, self.newest) = (pages, Some(generation));
        self.inherited.clear();
        self.unrecorded.clear();
        self.is_grown = true;
        Ok(())
    }

    /// Drops the oldest generations once there are too many. That is for after the newest is in force, which has not to wait
    /// for it.
    pub(crate) fn forget(&mut self) {
        if let Some(newest) = self.newest.filter(|_| self.is_grown) {
            self.keep.forget(newest);
            self.is_grown = false;
        }
    }

    /// Writes the texts of files that are not stored yet, and returns the SHA-256 of each that is there.
    fn store_texts(
        &mut self,
        library: &Library,
        changed: &BTreeSet<Str>,
        drafts: &mut Drafts,
    ) -> io::Result<BTreeMap<Str, Str>> {
        let (mut files, mut written) = (BTreeMap::new(), BTreeSet::new());
        for path in changed {
            let Some((text, sha256)) = library.text(path) else {
                continue;
            };
            let stored = self.root.join(FILES).join(&**sha256);
            let known = self.files.get(&(pages::page_of_file(path), path.clone()));
            match text {
                Text::Open(text) if known != Some(sha256) && !stored.exists() && written.insert(sha256) => {
                    drafts.write(&stored, text.as_bytes())?;
                    self.work.texts += 1;
                }
                _ => {}
            }
            files.insert(path.clone(), sha256.clone());
            if drafts.are_many() {
                self.place(drafts)?;
            }
        }
        Ok(files)
    }

    /// Puts files in their places once what they hold is on the disk: in the journal, where it waits for nothing else, or,
    /// if it is too much for that, as it is.
    fn place(&mut self, drafts: &mut Drafts) -> io::Result<()> {
        self.work.waits += 1;
        self.journal.renew()?;
        if drafts.bytes() > journal::RECORD_BYTES_MAX {
            drafts.sync()?;
            return self.keep.place(drafts);
        }
        drafts.flush()?;
        self.journal.append(drafts)?;
        let placed = self.keep.place(drafts);
        if placed.is_err() {
            self.journal.take_back();
        }
        placed
    }

    fn store_allocations(&mut self, library: &Library) -> io::Result<()> {
        if Arc::ptr_eq(&self.allocations, library.allocations()) {
            return Ok(());
        }
        let allocations = serde_saphyr::to_string(&**library.allocations()).map_err(io::Error::other)?;
        write_atomically(&self.state_dir().join(ALLOCATIONS), allocations.as_bytes(), true)?;
        self.allocations = library.allocations().clone();
        Ok(())
    }

    /// Who makes this change, and why: as they said shortly before, else as the files tell.
    fn word(&self, now: Timestamp, files: &BTreeMap<Str, Str>, changed: &BTreeSet<Str>) -> Word {
        let path = self.state_dir().join(WORD);
        let said = fs::read_to_string(&path)
            .ok()
            .and_then(|text| serde_json::from_str::<Word>(&text).ok());
        let said = said.filter(|word| now.duration_since(word.time) < WORD_KEPT);
        let holds = |path: &Str| match changed.contains(path) {
            true => files.get(path),
            false => self.files.get(&(pages::page_of_file(path), path.clone())),
        };
        if said.as_ref().is_none_or(|word| word.is_done(holds)) {
            let _ = fs::remove_file(path);
        }
        let said = said.filter(|word| word.is_of(changed, holds));
        said.unwrap_or_else(|| self.word_of_files(files, changed))
    }

    fn word_of_files(&self, files: &BTreeMap<Str, Str>, changed: &BTreeSet<Str>) -> Word {
        let Some(root) = &self.config_dir else {
            return Word::default();
        };
        let known = |path: &Str| self.files.get(&(pages::page_of_file(path), path.clone()));
        let changed = changed
            .iter()
            .filter(|path| files.get(*path).is_some_and(|sha256| known(path) != Some(sha256)));
        Word {
            actor: author::owners(root, changed.map(|file| &**file)).into(),
            message: author::commit(root).unwrap_or_default().into(),
            ..Word::default()
        }
    }

    fn generations(&self) -> Vec<u64> {
        keep::numbered(&self.root, ".json")
    }

    fn manifest(&self, generation: u64) -> io::Result<Manifest> {
        let text = fs::read_to_string(self.manifest_path(generation))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn manifest_path(&self, generation: u64) -> PathBuf {
        self.root.join(format!("{generation}.json"))
    }
}

/// The SHA-256 of bytes, in hex.
pub(crate) fn sha256(bytes: &[u8]) -> Str {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut text = String::with_capacity(64);
    for byte in digest.as_ref() {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text.into()
}

/// A file that is written beside the place it is for. One that does not get there goes with the value: the disk may be full.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    file: io::BufWriter<fs::File>,
    is_placed: bool,
}

impl Draft {
    /// Begins the file that is to stand there.
    fn of(path: &Path) -> io::Result<Self> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let mut options = fs::OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        Ok(Self {
            path: new.into(),
            file: io::BufWriter::new(file),
            is_placed: false,
        })
    }

    /// Puts it in its place.
    fn place(mut self, path: &Path) -> io::Result<()> {
        self.flush()?;
        fs::rename(&self.path, path)?;
        self.is_placed = true;
        Ok(())
    }

    /// Waits until it is on the disk.
    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.get_ref().sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file or nothing: beside it, then in its place. `durable` waits for the disk.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut draft = Draft::of(path)?;
    draft.write_all(bytes)?;
    if durable {
        draft.sync()?;
    }
    draft.place(path)
}

#[cfg(test)]
mod tests;
