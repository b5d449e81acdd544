//! Reading a generation back.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rayon::iter::ParallelIterator as _;
use rayon::slice::ParallelSlice as _;
use tulle_k8s::Key;
use tulle_k8s::object::Pool;
use tulle_model::Str;

use super::pages::page_of_file;
use super::{History, Library, Manifest, Record};
use crate::engine::InForce;
use crate::source::folder::gateways::says_where;
use crate::source::folder::library::Entry;
use crate::source::folder::parse;

/// Records that are read back together.
const TOGETHER: usize = 10_000;

impl History {
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

    pub(super) fn load_one(&mut self, generation: u64) -> io::Result<Library> {
        let manifest = self.manifest(generation)?;
        let records = self.objects(&manifest)?;
        let restored: Option<Vec<Vec<(Key, Entry)>>> =
            records.par_chunks(TOGETHER).map(restore_all).collect();
        let restored = restored.ok_or(io::ErrorKind::InvalidData)?;
        let entries: BTreeMap<Key, Entry> = restored.into_iter().flatten().collect();
        let files = self.files_of(&manifest)?.into_iter();
        self.files = files
            .map(|(path, sha256)| ((page_of_file(&path), path), sha256))
            .collect();
        self.newest = Some(manifest.generation);
        match manifest.pages {
            Some(pages) => (self.pages, self.is_behind) = (pages, false),
            None => {
                let texts = records
                    .into_iter()
                    .map(|one| (parse::form_of(&one.written), one.written));
                self.inherited = texts.collect();
            }
        }
        let texts = self.files.values();
        self.keep.begin(manifest.generation, &self.pages, texts);
        Ok(Library::restore(manifest.generation, entries))
    }

    /// The objects of a generation.
    pub(super) fn objects(&self, manifest: &Manifest) -> io::Result<Vec<Record>> {
        let Some(pages) = &manifest.pages else {
            return self.older_objects(manifest);
        };
        let mut records = Vec::new();
        for place in pages.objects.values() {
            records.append(&mut self.objects_at(place)?);
        }
        Ok(records)
    }

    /// The files of a generation, with their SHA-256.
    pub(super) fn files_of(&self, manifest: &Manifest) -> io::Result<BTreeMap<Str, Str>> {
        let Some(pages) = &manifest.pages else {
            return Ok(manifest.files.clone());
        };
        let mut files = BTreeMap::new();
        for place in pages.files.values() {
            files.append(&mut self.files_at(place)?);
        }
        Ok(files)
    }
}

/// Reads objects back, with what they have in common held once; `None` if one is none any more.
fn restore_all(records: &[Record]) -> Option<Vec<(Key, Entry)>> {
    let mut pool = Pool::default();
    records.iter().map(|record| restore(record, &mut pool)).collect()
}

fn restore(record: &Record, pool: &mut Pool) -> Option<(Key, Entry)> {
    let (key, good) = parse::restore(&record.written, pool)?;
    let says_where = says_where(&good.object);
    let mut object = good.object;
    if object.meta().creation_timestamp.is_none() {
        Arc::make_mut(&mut object).meta_mut().creation_timestamp = Some(record.first_seen);
    }
    let mut file = record.file.clone();
    pool.text(&mut file);
    let in_force = InForce {
        object,
        file,
        generation: record.generation,
        stale_since: record.stale_since,
    };
    let entry = Entry {
        in_force,
        form: good.form,
        first_seen: record.first_seen,
        says_where,
    };
    Some((key, entry))
}
