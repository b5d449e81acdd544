//! The stored generations as people look at them: list, show, compare, go back. Also what they say to the running
//! control plane through its folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use tulle_k8s::translate::MeshConfig;
use tulle_model::Str;

use super::{ACCEPT_EMPTY, FILES, History, Manifest, Record, WORD, Word, sha256, write_atomically};
use crate::engine::{Batch, Engine, Event};
use crate::snapshot::{ResourceType, Snapshot};
use crate::source::folder::library::Library;
use crate::source::folder::parse::{Form, form_of};

/// Why something cannot be shown or done.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no such generation.
    #[error("generation {0} is not stored; `tulle config history` lists those that are")]
    NoGeneration(u64),
    /// The generation was stored without the texts of its files.
    #[error("generation {0} has no stored files to go back to")]
    NoFiles(u64),
    /// A path of a stored generation leads out of the folder.
    #[error("{0:?} is no path below the configuration folder")]
    Path(Str),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One generation, in short.
#[derive(Debug, Clone, Serialize)]
pub struct Generation {
    /// Number.
    pub generation: u64,
    /// When it came into force.
    pub time: Timestamp,
    /// The one before it.
    pub parent: Option<u64>,
    /// Who made the change.
    pub actor: Str,
    /// Why.
    pub message: Str,
    /// Files with their SHA-256.
    pub files: BTreeMap<Str, Str>,
    /// Objects that came.
    pub added: Vec<String>,
    /// Objects that changed.
    pub changed: Vec<String>,
    /// Objects that went.
    pub removed: Vec<String>,
    /// Objects whose newest form is refused.
    pub rejected: Vec<String>,
}

/// What differs between two generations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Objects of the second that the first has not.
    pub added: Vec<String>,
    /// Objects that both have, in different forms.
    pub changed: Vec<String>,
    /// Objects of the first that the second has not.
    pub removed: Vec<String>,
    /// Resources that proxies would be sent anew, or told of as gone: `<sign> <type> <name>`.
    pub effect: Vec<String>,
}

/// What going back would write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rollback {
    /// Files that are written.
    pub written: Vec<Str>,
    /// Files that are removed.
    pub removed: Vec<Str>,
    /// Files that differ and stay as they are: they hold secrets, whose texts are not stored.
    pub kept: Vec<Str>,
}

/// Whether something is done, or only said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// It is done.
    Real,
    /// It is only said.
    Dry,
}

/// The stored generations of a state folder.
#[derive(Debug, Clone)]
pub struct View {
    state_dir: PathBuf,
}

impl View {
    /// The view of a state folder.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
        }
    }

    fn history(&self) -> History {
        History::open(&self.state_dir)
    }

    /// Every stored generation, the newest last.
    #[must_use]
    pub fn list(&self) -> Vec<Generation> {
        let history = self.history();
        let mut before: Option<Manifest> = None;
        let mut list = Vec::new();
        for number in history.generations() {
            let Ok(manifest) = history.manifest(number) else {
                continue;
            };
            let read = difference(&history, before.as_ref(), &manifest)
                .and_then(|difference| Ok((difference, history.files_of(&manifest)?)));
            let Ok((difference, files)) = read else { continue };
            list.push(Generation {
                generation: number,
                time: manifest.time,
                parent: manifest.parent,
                actor: manifest.actor.clone(),
                message: manifest.message.clone(),
                files,
                added: difference.added,
                changed: difference.changed,
                removed: difference.removed,
                rejected: manifest.rejected.clone(),
            });
            before = Some(manifest);
        }
        list
    }

    /// The objects of a generation as they were written, by name.
    ///
    /// # Errors
    /// It is not stored.
    pub fn show(&self, generation: u64) -> Result<BTreeMap<String, String>, ViewError> {
        let records = self.records(generation)?.into_iter();
        Ok(records
            .map(|record| (record.name.to_string(), record.written.to_string()))
            .collect())
    }

    fn records(&self, generation: u64) -> Result<Vec<Record>, ViewError> {
        let history = self.history();
        let read = history
            .manifest(generation)
            .and_then(|manifest| history.objects(&manifest));
        read.map_err(|_| ViewError::NoGeneration(generation))
    }

    /// What differs between two generations; with `mesh`, also what proxies would see of it.
    ///
    /// # Errors
    /// One of them is not stored.
    pub fn diff(&self, from: u64, to: u64, mesh: Option<&MeshConfig>) -> Result<Difference, ViewError> {
        let mut difference = compare(&forms(self.records(from)?), &forms(self.records(to)?));
        if let Some(mesh) = mesh {
            let (from, to) = (self.library(from)?, self.library(to)?);
            difference.effect = effect(&computed(&from, mesh), &computed(&to, mesh));
        }
        Ok(difference)
    }

    /// Writes the files of a generation back, and says who does and why. The running control plane takes that for a new
    /// generation.
    ///
    /// # Errors
    /// It is not stored, or the folder cannot be written.
    pub fn rollback(
        &self,
        generation: u64,
        config_dir: &Path,
        (actor, message): (&str, &str),
        writing: Writing,
    ) -> Result<Rollback, ViewError> {
        let history = self.history();
        let manifest = history
            .manifest(generation)
            .map_err(|_| ViewError::NoGeneration(generation))?;
        let missing = |generation: u64| move |_| ViewError::NoGeneration(generation);
        let old = history.files_of(&manifest).map_err(missing(generation))?;
        if old.is_empty()
            && !history
                .objects(&manifest)
                .map_err(missing(generation))?
                .is_empty()
        {
            return Err(ViewError::NoFiles(generation));
        }
        let newest = history.generations().last().copied().unwrap_or(generation);
        let present = history
            .manifest(newest)
            .and_then(|newest| history.files_of(&newest))
            .map_err(missing(newest))?;
        let (mut texts, mut kept): (Vec<(Str, String)>, Vec<Str>) = (Vec::new(), Vec::new());
        for (path, sha256) in &old {
            is_below(path)?;
            let stored = self.state_dir.join("history").join(FILES).join(&**sha256);
            let now = fs::read_to_string(config_dir.join(&**path)).ok();
            if now.is_some_and(|now| super::sha256(now.as_bytes()) == *sha256) {
                continue;
            }
            match fs::read_to_string(&stored) {
                Ok(text) => texts.push((path.clone(), text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => kept.push(path.clone()),
                Err(source) => return Err(ViewError::Io { path: stored, source }),
            }
        }
        let mut gone = Vec::new();
        for (path, sha256) in present.iter().filter(|(path, _)| !old.contains_key(*path)) {
            let stored = self.state_dir.join("history").join(FILES).join(&**sha256);
            match is_below(path).is_ok() {
                // It could not be had back.
                true if !stored.exists() => kept.push(path.clone()),
                true => gone.push(path.clone()),
                false => {}
            }
        }
        let done = Rollback {
            written: texts.iter().map(|(path, _)| path.clone()).collect(),
            removed: gone,
            kept,
        };
        if writing == Writing::Dry || texts.is_empty() && done.removed.is_empty() {
            return Ok(done);
        }
        let written = texts.iter().map(|(path, text)| (path.clone(), Some(&**text)));
        let gone = done.removed.iter().map(|path| (path.clone(), None));
        self.announce(actor, message, written.chain(gone))?;
        for (path, text) in texts {
            put(config_dir, &path, &text)?;
        }
        for path in &done.removed {
            let path = config_dir.join(&**path);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ViewError::Io { path, source });
                }
                _ => {}
            }
        }
        Ok(done)
    }

    /// Says who makes a change and why, shortly before it is made; the generation that these files become keeps that, and no
    /// other does. Files come with the text they are to hold; those that go have none.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn announce<'a>(
        &self,
        actor: &str,
        message: &str,
        files: impl IntoIterator<Item = (Str, Option<&'a str>)>,
    ) -> Result<(), ViewError> {
        let files = files.into_iter();
        let word = Word {
            actor: actor.into(),
            message: message.into(),
            time: Timestamp::now(),
            files: files
                .map(|(path, text)| (path, text.map(|text| sha256(text.as_bytes()))))
                .collect(),
        };
        let text = serde_json::to_string(&word).unwrap_or_default();
        self.put(WORD, &text)
    }

    /// Says that an empty folder is meant so. It is heard at the next look at the folder.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn accept_empty(&self, config_dir: &Path) -> Result<(), ViewError> {
        self.put(ACCEPT_EMPTY, "")?;
        wake(config_dir);
        Ok(())
    }

    fn put(&self, name: &str, text: &str) -> Result<(), ViewError> {
        let path = self.state_dir.join(name);
        write_atomically(&path, text.as_bytes(), false).map_err(|source| ViewError::Io { path, source })
    }

    fn library(&self, generation: u64) -> Result<Library, ViewError> {
        let mut history = self.history();
        let mut library = history
            .load_one(generation)
            .map_err(|_| ViewError::NoGeneration(generation))?;
        library.set_allocations(history.allocations(), Timestamp::now());
        Ok(library)
    }
}

/// Writes a file of the configuration folder as a whole. It keeps the mode that manifests usually have.
///
/// # Errors
/// The path leads out of the folder, or cannot be written.
pub(crate) fn put(config_dir: &Path, path: &Str, text: &str) -> Result<(), ViewError> {
    is_below(path)?;
    let path = config_dir.join(&**path);
    write_atomically(&path, text.as_bytes(), true).map_err(|source| ViewError::Io { path, source })
}

/// Makes the folder source look again: something happened in the folder.
pub(crate) fn wake(config_dir: &Path) {
    let path = config_dir.join(".tulle-look");
    let _ = fs::write(&path, "");
    let _ = fs::remove_file(path);
}

fn is_below(path: &Str) -> Result<(), ViewError> {
    let plain = Path::new(&**path)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain && !path.is_empty() {
        Ok(())
    } else {
        Err(ViewError::Path(path.clone()))
    }
}

/// What of a generation differs from the one before it. Pages that both have are not read.
fn difference(history: &History, before: Option<&Manifest>, now: &Manifest) -> io::Result<Difference> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    match (before.map(|before| (before, &before.pages)), &now.pages) {
        (Some((_, Some(before))), Some(now)) => {
            let pages: BTreeSet<&u16> = before.objects.keys().chain(now.objects.keys()).collect();
            for page in pages {
                let (from, to) = (before.objects.get(page), now.objects.get(page));
                for (place, records) in [(from, &mut old), (to, &mut new)] {
                    if let Some(place) = place.filter(|_| from != to) {
                        records.append(&mut history.objects_at(place)?);
                    }
                }
            }
        }
        (before, _) => {
            if let Some((before, _)) = before {
                old = history.objects(before)?;
            }
            new = history.objects(now)?;
        }
    }
    Ok(compare(&forms(old), &forms(new)))
}

/// Objects by name, with what their form is known by.
fn forms(records: Vec<Record>) -> BTreeMap<Str, Form> {
    let records = records.into_iter();
    records
        .map(|record| (record.name.clone(), form_of(&record.written)))
        .collect()
}

fn compare(from: &BTreeMap<Str, Form>, to: &BTreeMap<Str, Form>) -> Difference {
    let mut difference = Difference::default();
    for (name, form) in to {
        match from.get(name) {
            None => difference.added.push(name.to_string()),
            Some(old) if old != form => difference.changed.push(name.to_string()),
            Some(_) => {}
        }
    }
    let gone = from.keys().filter(|name| !to.contains_key(*name));
    difference.removed = gone.map(ToString::to_string).collect();
    difference
}

/// What a generation means, by an engine of its own.
fn computed(library: &Library, mesh: &MeshConfig) -> Snapshot {
    let events = library.entries().iter().map(|(key, entry)| Event {
        key: key.clone(),
        object: Some(entry.in_force.clone()),
    });
    let batch = Batch {
        events: events.collect(),
        synced: true,
        ..Batch::default()
    };
    Engine::new(mesh.clone()).apply(batch)
}

fn effect(from: &Snapshot, to: &Snapshot) -> Vec<String> {
    let mut effect = Vec::new();
    let types = ResourceType::ALL
        .into_iter()
        .filter(|ty| *ty != ResourceType::Workload);
    for ty in types {
        let short = ty.type_url().rsplit('.').next().unwrap_or_default();
        for slot in to.by_name(ty) {
            match from.resource(ty, &slot.name) {
                None => effect.push(format!("+ {short} {}", slot.name)),
                Some(old) if old.version != slot.version => effect.push(format!("~ {short} {}", slot.name)),
                Some(_) => {}
            }
        }
        let gone = from.by_name(ty).into_iter();
        let gone = gone.filter(|slot| to.resource(ty, &slot.name).is_none());
        effect.extend(gone.map(|slot| format!("- {short} {}", slot.name)));
    }
    effect
}
