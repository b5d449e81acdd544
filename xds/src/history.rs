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

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tulle_k8s::Key;
use tulle_model::Str;

use crate::engine::InForce;
use crate::source::folder::library::{Entry, Library};
use crate::source::folder::parse;

/// Generations that are kept.
const GENERATIONS_MAX: usize = 100;
/// Bytes that their manifests may take; the newest is kept whatever it takes.
const BYTES_MAX: u64 = 256 << 20;

/// The generations on disk.
#[derive(Debug)]
pub struct History {
    root: PathBuf,
    /// Objects of the newest generation, and the generation whose file holds each.
    stored: BTreeMap<Str, u64>,
    /// Telling of a full disk once is enough.
    is_failing: bool,
}

/// One generation.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    generation: u64,
    time: Timestamp,
    objects: Vec<Recorded>,
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
            is_failing: false,
        }
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
        Ok(Library::restore(manifest.generation, entries))
    }

    /// Records what is in force. A full disk is told and does not stop anything.
    pub(crate) fn record(&mut self, library: &Library) {
        match self.write(library) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                let path = self.root.display();
                tracing::error!(%error, %path, "cannot record the generation; a restart would not know it");
            }
            Err(_) => {}
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
        let text = serde_json::to_string(&Manifest {
            generation,
            time,
            objects,
        })?;
        write_atomically(&self.manifest_path(generation), text.as_bytes(), true)?;
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
                *index == 0 || (*index < GENERATIONS_MAX && total <= BYTES_MAX)
            });
        let gone = generations.len() - kept.count();
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
