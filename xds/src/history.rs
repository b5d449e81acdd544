//! Generations on disk: what is in force survives a restart, also one with a broken folder.
//!
//! `<state dir>/history/objects/<sha256>.json` holds each object as it was written, once;
//! `<state dir>/history/<generation>.json` says which of them were in force, and when.

use std::collections::{BTreeMap, BTreeSet};
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

/// The generations on disk.
#[derive(Debug)]
pub struct History {
    root: PathBuf,
    /// Objects known to be on disk.
    stored: BTreeSet<String>,
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
    sha256: String,
    file: Str,
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
            stored: BTreeSet::new(),
            is_failing: false,
        }
    }

    /// The newest generation that can be read.
    pub(crate) fn load(&self) -> Option<Library> {
        self.generations().into_iter().rev().find_map(|generation| {
            let loaded = self.load_one(generation);
            if let Err(error) = &loaded {
                tracing::warn!(generation, %error, "a stored generation cannot be read");
            }
            loaded.ok()
        })
    }

    fn load_one(&self, generation: u64) -> io::Result<Library> {
        let text = fs::read_to_string(self.manifest(generation))?;
        let manifest: Manifest = serde_json::from_str(&text)?;
        let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
        for recorded in manifest.objects {
            let written = fs::read_to_string(self.object(&recorded.sha256))?;
            let (key, good) = parse::restore(&written).ok_or(io::ErrorKind::InvalidData)?;
            let mut object = good.object;
            if object.meta().creation_timestamp.is_none() {
                Arc::make_mut(&mut object).meta_mut().creation_timestamp = Some(recorded.first_seen);
            }
            let Recorded {
                file,
                generation,
                stale_since,
                first_seen,
                ..
            } = recorded;
            let in_force = InForce {
                object,
                file,
                generation,
                stale_since,
            };
            entries.insert(
                key,
                Entry {
                    in_force,
                    written: good.written,
                    first_seen,
                },
            );
        }
        Ok(Library::restore(manifest.generation, entries))
    }

    /// Records what is in force. A full disk is told and does not stop anything.
    pub(crate) fn record(&mut self, library: &Library) {
        match self.write(library) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::error!(%error, path = %self.root.display(), "cannot record the generation; a restart would not know it");
            }
            Err(_) => {}
        }
    }

    fn write(&mut self, library: &Library) -> io::Result<()> {
        let mut objects = Vec::new();
        for entry in library.entries().values() {
            let sha256 = sha256(entry.written.as_bytes());
            if !self.stored.contains(&sha256) {
                let path = self.object(&sha256);
                if !path.exists() {
                    write_atomically(&path, entry.written.as_bytes(), true)?;
                }
                self.stored.insert(sha256.clone());
            }
            let InForce {
                file,
                generation,
                stale_since,
                ..
            } = entry.in_force.clone();
            objects.push(Recorded {
                sha256,
                file,
                generation,
                stale_since,
                first_seen: entry.first_seen,
            });
        }
        let manifest = Manifest {
            generation: library.generation(),
            time: Timestamp::now(),
            objects,
        };
        let text = serde_json::to_string(&manifest)?;
        write_atomically(&self.manifest(library.generation()), text.as_bytes(), true)?;
        self.forget();
        Ok(())
    }

    /// Drops the oldest generations. Objects stay: they are small, and rollbacks may want them.
    fn forget(&self) {
        let generations = self.generations();
        for generation in generations
            .iter()
            .take(generations.len().saturating_sub(GENERATIONS_MAX))
        {
            let _ = fs::remove_file(self.manifest(*generation));
        }
    }

    fn generations(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut generations: Vec<u64> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect();
        generations.sort_unstable();
        generations
    }

    fn manifest(&self, generation: u64) -> PathBuf {
        self.root.join(format!("{generation}.json"))
    }

    fn object(&self, sha256: &str) -> PathBuf {
        self.root.join("objects").join(format!("{sha256}.json"))
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes a whole file or nothing: beside it, then in its place. `durable` waits for the disk.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
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
