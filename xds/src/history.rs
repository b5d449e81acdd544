//! Generations on disk: what is in force survives a restart, also one with a broken folder.
//!
//! `<state dir>/history/<generation>.objects` holds the objects that a generation was the first to have, each as
//! it was written, on a line of its own and found by its SHA-256; `<state dir>/history/<generation>.json` says which
//! objects were in force, and since when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tulle_k8s::Key;
use tulle_k8s::document::documents;
use tulle_model::Str;

use crate::engine::InForce;
use crate::source::folder::allocate::Allocations;
use crate::source::folder::library::{Entry, Library};
use crate::source::folder::parse;

/// Virtual addresses that were given, in the state folder.
const ALLOCATIONS: &str = "allocations.yaml";
/// Says that an empty folder is meant so.
const ACCEPT_EMPTY: &str = "accept-empty";
/// Says who makes the next change, and why.
const WORD: &str = "next-change.json";
/// Texts of files, by SHA-256, below the history.
const FILES: &str = "files";

mod author;
mod view;

pub(crate) use view::put;
pub use view::{Difference, Generation, Rollback, View, ViewError, Writing};

/// Age from which on a generation is dropped; the newest is kept however old it is.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long a word about the next change waits for that change.
const WORD_KEPT: SignedDuration = SignedDuration::from_secs(60);
/// Generations that are kept.
const GENERATIONS_MAX: usize = 100;
/// Bytes that they may take with all they hold; the newest is kept whatever it takes.
const BYTES_MAX: u64 = 256 << 20;

/// The generations on disk.
#[derive(Debug)]
pub struct History {
    root: PathBuf,
    /// Objects of the newest generation, and the generation whose file holds each.
    stored: BTreeMap<Str, u64>,
    /// SHA-256 of each file of the newest generation.
    files: BTreeMap<Str, Str>,
    newest: Option<u64>,
    /// Telling of a full disk once is enough.
    is_failing: bool,
    /// The folder that is read, to see whose files changed.
    config_dir: Option<PathBuf>,
    /// Bytes that everything kept may take.
    bytes_max: u64,
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
    /// SHA-256 of each file of the folder.
    #[serde(default)]
    files: BTreeMap<Str, Str>,
    /// Objects whose newest form is refused.
    #[serde(default)]
    rejected: Vec<String>,
    objects: Vec<Recorded>,
}

/// What somebody says of the change they are about to make.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Word {
    actor: Str,
    message: Str,
    time: Timestamp,
}

/// One object of a generation.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    sha256: Str,
    /// Generation whose file holds the object.
    stored: u64,
    /// File of the configuration folder that defined it.
    file: Str,
    /// Generation that brought this form.
    generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stale_since: Option<u64>,
    first_seen: Timestamp,
}

impl History {
    /// The history below a state folder.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("history"),
            stored: BTreeMap::new(),
            files: BTreeMap::new(),
            newest: None,
            is_failing: false,
            config_dir: None,
            bytes_max: BYTES_MAX,
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

    /// The newest generation that can be read.
    pub(crate) fn load(&mut self) -> Option<Library> {
        self.generations().into_iter().rev().find_map(|generation| {
            let loaded = self.load_one(generation);
            if let Err(error) = &loaded {
                tracing::warn!(generation, %error, "a stored generation cannot be read");
            }
            loaded.ok()
        })
    }

    fn load_one(&mut self, generation: u64) -> io::Result<Library> {
        let manifest = self.manifest(generation)?;
        let files: BTreeSet<u64> = manifest.objects.iter().map(|recorded| recorded.stored).collect();
        let mut written: BTreeMap<Str, String> = BTreeMap::new();
        for file in files {
            let text = fs::read_to_string(self.objects_path(file))?;
            written.extend(
                text.lines()
                    .map(|line| (sha256(line.as_bytes()), line.to_owned())),
            );
        }
        let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
        let mut stored = BTreeMap::new();
        for recorded in manifest.objects {
            let written = written.get(&recorded.sha256).ok_or(io::ErrorKind::InvalidData)?;
            let (key, entry) = restore(&recorded, written).ok_or(io::ErrorKind::InvalidData)?;
            entries.insert(key, entry);
            stored.insert(recorded.sha256, recorded.stored);
        }
        self.stored = stored;
        self.files = manifest.files;
        self.newest = Some(manifest.generation);
        Ok(Library::restore(manifest.generation, entries))
    }

    /// Records what is to come into force.
    ///
    /// # Errors
    /// The disk does not take it. That is told once.
    pub(crate) fn record(&mut self, library: &Library) -> io::Result<()> {
        let written = self.write(library);
        match &written {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                let path = self.root.display();
                tracing::error!(%error, %path, "cannot record the generation; a restart would not know it");
            }
            Err(_) => {}
        }
        written
    }

    /// Stores the texts of files that are not stored yet, and returns the SHA-256 of each.
    fn store_files(&self, library: &Library) -> io::Result<BTreeMap<Str, Str>> {
        let mut files = BTreeMap::new();
        for (path, text) in library.texts() {
            let sha256 = sha256(text.as_bytes());
            let stored = self.root.join(FILES).join(&*sha256);
            if self.files.get(path) != Some(&sha256) && !stored.exists() {
                write_atomically(&stored, text.as_bytes(), true)?;
            }
            files.insert(path.clone(), sha256);
        }
        Ok(files)
    }

    /// Who makes this change, and why: as they said shortly before, else as the files tell.
    fn word(&self, now: Timestamp, files: &BTreeMap<Str, Str>) -> Word {
        let path = self.state_dir().join(WORD);
        let said = fs::read_to_string(&path)
            .ok()
            .and_then(|text| serde_json::from_str::<Word>(&text).ok());
        // It is for one change.
        let _ = fs::remove_file(path);
        let said = said.filter(|word| now.duration_since(word.time) < WORD_KEPT);
        said.unwrap_or_else(|| self.word_of_files(files))
    }

    fn word_of_files(&self, files: &BTreeMap<Str, Str>) -> Word {
        let Some(root) = &self.config_dir else {
            return Word::default();
        };
        let changed = files
            .iter()
            .filter(|(file, sha256)| self.files.get(*file) != Some(*sha256));
        Word {
            actor: author::owners(root, changed.map(|(file, _)| &**file)).into(),
            message: author::commit(root).unwrap_or_default().into(),
            ..Word::default()
        }
    }

    fn write(&mut self, library: &Library) -> io::Result<()> {
        let generation = library.generation();
        let (mut objects, mut new, mut lines) = (Vec::new(), BTreeMap::new(), String::new());
        for entry in library.entries().values() {
            let sha256 = sha256(entry.written.as_bytes());
            let known = self.stored.get(&sha256).or_else(|| new.get(&sha256)).copied();
            let stored = known.unwrap_or_else(|| {
                lines.push_str(&entry.written);
                lines.push('\n');
                new.insert(sha256.clone(), generation);
                generation
            });
            objects.push(record(entry, sha256, stored));
        }
        if !new.is_empty() {
            write_atomically(&self.objects_path(generation), lines.as_bytes(), true)?;
        }
        let time = Timestamp::now();
        let files = self.store_files(library)?;
        let allocations = serde_saphyr::to_string(library.allocations()).map_err(io::Error::other)?;
        write_atomically(&self.state_dir().join(ALLOCATIONS), allocations.as_bytes(), true)?;
        let word = self.word(time, &files);
        let rejected = library
            .entries()
            .iter()
            .filter(|(_, entry)| entry.in_force.stale_since.is_some());
        let text = serde_json::to_string(&Manifest {
            generation,
            time,
            parent: self.newest.filter(|newest| *newest != generation),
            actor: word.actor,
            message: word.message,
            files: files.clone(),
            rejected: rejected.map(|(key, _)| key.to_string()).collect(),
            objects,
        })?;
        write_atomically(&self.manifest_path(generation), text.as_bytes(), true)?;
        (self.files, self.newest) = (files, Some(generation));
        // An object that comes back later is stored anew: what only older generations hold may go with them.
        self.stored.extend(new);
        let held: BTreeSet<Str> = library
            .entries()
            .values()
            .map(|entry| sha256(entry.written.as_bytes()))
            .collect();
        self.stored.retain(|sha256, _| held.contains(sha256));
        self.forget();
        Ok(())
    }

    /// Drops the oldest generations, and the objects that none of the others has.
    fn forget(&self) {
        let generations = self.generations();
        let bytes =
            |generation: &u64| fs::metadata(self.manifest_path(*generation)).map_or(0, |file| file.len());
        let mut total = 0;
        let kept = generations
            .iter()
            .rev()
            .enumerate()
            .take_while(|(index, generation)| {
                total += bytes(generation);
                let fits = *index < GENERATIONS_MAX && total <= self.bytes_max && !self.is_old(**generation);
                *index == 0 || fits
            });
        let gone = generations.len() - kept.count();
        self.drop_oldest(&generations, gone);
        // What they hold counts, too; what the next one shares stays, so that it shows only after each.
        for gone in gone..generations.len().saturating_sub(1) {
            if self.bytes() <= self.bytes_max {
                return;
            }
            self.drop_oldest(&generations, gone + 1);
        }
    }

    /// Bytes of manifests, objects and texts of files.
    fn bytes(&self) -> u64 {
        let folders = [self.root.clone(), self.root.join(FILES)];
        let files = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        let sizes = files
            .filter_map(|file| file.metadata().ok())
            .filter(fs::Metadata::is_file);
        sizes.map(|file| file.len()).sum()
    }

    /// Drops this many generations, and what none of the others holds.
    fn drop_oldest(&self, generations: &[u64], gone: usize) {
        if gone == 0 {
            return;
        }
        for generation in &generations[..gone] {
            let _ = fs::remove_file(self.manifest_path(*generation));
        }
        let oldest = generations
            .get(gone)
            .and_then(|generation| self.manifest(*generation).ok());
        let Some(oldest) = oldest else { return };
        // What a newer generation shares with the dropped ones, the oldest kept one shares too.
        let needed: BTreeSet<u64> = oldest.objects.iter().map(|recorded| recorded.stored).collect();
        let files = self
            .numbered(".objects")
            .into_iter()
            .filter(|file| *file < oldest.generation);
        for file in files.filter(|file| !needed.contains(file)) {
            let _ = fs::remove_file(self.objects_path(file));
        }
        self.forget_files();
    }

    /// Whether a generation is older than generations are kept. Its file is as old as it is.
    fn is_old(&self, generation: u64) -> bool {
        let modified = fs::metadata(self.manifest_path(generation)).and_then(|file| file.modified());
        let written = modified.ok().and_then(|time| Timestamp::try_from(time).ok());
        written.is_some_and(|written| Timestamp::now().duration_since(written) > AGE_MAX)
    }

    /// Drops the texts that no generation has any more.
    fn forget_files(&self) {
        let manifests = self
            .generations()
            .into_iter()
            .filter_map(|generation| self.manifest(generation).ok());
        let needed: BTreeSet<Str> = manifests
            .flat_map(|manifest| manifest.files.into_values())
            .collect();
        for file in fs::read_dir(self.root.join(FILES))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| !needed.contains(name)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn generations(&self) -> Vec<u64> {
        self.numbered(".json")
    }

    /// The numbers of the files with this ending, in order.
    fn numbered(&self, ending: &str) -> Vec<u64> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(ending)?.parse().ok();
        let mut numbers: Vec<u64> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn manifest(&self, generation: u64) -> io::Result<Manifest> {
        let text = fs::read_to_string(self.manifest_path(generation))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn manifest_path(&self, generation: u64) -> PathBuf {
        self.root.join(format!("{generation}.json"))
    }

    fn objects_path(&self, generation: u64) -> PathBuf {
        self.root.join(format!("{generation}.objects"))
    }
}

fn record(entry: &Entry, sha256: Str, stored: u64) -> Recorded {
    let InForce {
        file,
        generation,
        stale_since,
        ..
    } = entry.in_force.clone();
    Recorded {
        sha256,
        stored,
        file,
        generation,
        stale_since,
        first_seen: entry.first_seen,
    }
}

/// Reads an object back; `None` if it is none any more.
fn restore(recorded: &Recorded, written: &str) -> Option<(Key, Entry)> {
    let (key, good) = parse::restore(written)?;
    let mut object = good.object;
    if object.meta().creation_timestamp.is_none() {
        Arc::make_mut(&mut object).meta_mut().creation_timestamp = Some(recorded.first_seen);
    }
    let in_force = InForce {
        object,
        file: recorded.file.clone(),
        generation: recorded.generation,
        stale_since: recorded.stale_since,
    };
    let entry = Entry {
        in_force,
        written: good.written,
        first_seen: recorded.first_seen,
    };
    Some((key, entry))
}

fn sha256(bytes: &[u8]) -> Str {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut text = String::with_capacity(64);
    for byte in digest.as_ref() {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text.into()
}

/// Writes a whole file or nothing: beside it, then in its place. `durable` waits for the disk.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests;
