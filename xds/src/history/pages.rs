//! Pages: objects, and files, whose names fall together. A generation writes the pages that differ from the ones before,
//! all of them into one file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tulle_k8s::Key;
use tulle_model::Str;
use tulle_proto::resume::bucket_of;

use super::{Draft, Drafts, History, Library, Step, Texts, sha256};
use crate::source::folder::library::Entry;
use crate::source::folder::parse::form_of;
use crate::source::folder::written::Written;

/// Pages that files are spread over; objects are spread over as many as there are buckets.
const FILE_PAGES: u16 = 64;
/// Digits of a page's SHA-256 that are kept, to tell a page that was damaged.
const DIGITS: usize = 16;

/// Where the pages of a generation stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pages {
    pub(super) objects: BTreeMap<u16, Place>,
    pub(super) files: BTreeMap<u16, Place>,
}

/// Where a page stands: the generation whose file has it, where in there, how many bytes, and what it is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place(pub(super) u64, u64, u64, Str);

/// One object of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `Pod shop/web-1`.
    pub(super) name: Str,
    /// File of the configuration folder that defined it.
    pub(super) file: Str,
    /// Generation that brought this form.
    pub(super) generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stale_since: Option<u64>,
    pub(super) first_seen: Timestamp,
    /// The object as it was written, as JSON.
    pub(super) written: Written,
}

impl Record {
    fn of(name: Str, entry: &Entry, written: Written) -> Self {
        let in_force = &entry.in_force;
        Self {
            name,
            file: in_force.file.clone(),
            generation: in_force.generation,
            stale_since: in_force.stale_since,
            first_seen: entry.first_seen,
            written,
        }
    }
}

impl Pages {
    /// The generations whose files have pages of this one.
    pub(super) fn stored(&self) -> BTreeSet<u64> {
        self.objects
            .values()
            .chain(self.files.values())
            .map(|place| place.0)
            .collect()
    }
}

/// The page of an object.
pub(super) fn page_of(name: &str) -> u16 {
    bucket_of(name)
}

/// The page of a file.
pub(super) fn page_of_file(path: &str) -> u16 {
    bucket_of(path) % FILE_PAGES
}

/// A file that pages are written into, one after the other; it is there once the last of them is.
struct Writer {
    generation: u64,
    file: Option<Draft>,
    path: PathBuf,
    at: u64,
    count: usize,
}

impl Writer {
    fn add(&mut self, page: &impl Serialize) -> io::Result<Place> {
        let bytes = serde_json::to_vec(page)?;
        let known_by: Str = sha256(&bytes).get(..DIGITS).unwrap_or_default().into();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Draft::of(&self.path)?),
        };
        file.write_all(&bytes)?;
        file.write_all(b"\n")?;
        let place = Place(self.generation, self.at, bytes.len() as u64, known_by);
        self.at += bytes.len() as u64 + 1;
        self.count += 1;
        Ok(place)
    }
}

impl History {
    /// Writes the pages that changed, and says where all of them stand.
    pub(super) fn write_pages(
        &mut self,
        library: &Library,
        step: &Step,
        (files, changed_files): (&BTreeMap<Str, Str>, &BTreeSet<Str>),
        drafts: &mut Drafts,
    ) -> io::Result<Pages> {
        let mut pages = self.pages.clone();
        let mut writer = Writer {
            generation: library.generation(),
            file: None,
            path: self.pages_path(library.generation()),
            at: 0,
            count: 0,
        };
        let keys: Vec<&Key> = match self.is_behind {
            true => library.entries().keys().collect(),
            false => step.objects().collect(),
        };
        let texts = library.written(keys.iter().copied());
        let mut changed: BTreeMap<u16, BTreeMap<Str, &Key>> = BTreeMap::new();
        for key in keys {
            let name: Str = key.to_string().into();
            changed.entry(page_of(&name)).or_default().insert(name, key);
        }
        if self.is_behind {
            // Whatever else stands in a page is over.
            for page in pages.objects.keys() {
                changed.entry(*page).or_default();
            }
        }
        for (page, changed) in changed {
            let old = pages
                .objects
                .get(&page)
                .map(|place| self.objects_at(place))
                .transpose()?;
            let records = self.renewed(old.unwrap_or_default(), changed, library, &texts)?;
            place(&mut pages.objects, page, records.is_empty(), || {
                writer.add(&records)
            })?;
        }
        let file_pages: BTreeSet<u16> = changed_files.iter().map(|path| page_of_file(path)).collect();
        for page in file_pages {
            let known = self
                .files
                .range((page, Str::from(""))..)
                .take_while(|((of, _), _)| *of == page);
            let known = known.filter(|((_, path), _)| !changed_files.contains(path));
            let mut now: BTreeMap<&Str, &Str> = known.map(|((_, path), sha256)| (path, sha256)).collect();
            now.extend(files.iter().filter(|(path, _)| page_of_file(path) == page));
            place(&mut pages.files, page, now.is_empty(), || writer.add(&now))?;
        }
        if let Some(file) = writer.file {
            drafts.add(file, &writer.path, writer.at);
        }
        self.work.pages = writer.count;
        Ok(pages)
    }

    /// A page's records after a change.
    fn renewed(
        &self,
        old: Vec<Record>,
        changed: BTreeMap<Str, &Key>,
        library: &Library,
        texts: &Texts,
    ) -> io::Result<Vec<Record>> {
        let mut records: BTreeMap<Str, Record> = old.into_iter().map(|one| (one.name.clone(), one)).collect();
        let before = match self.is_behind {
            true => std::mem::take(&mut records),
            false => BTreeMap::new(),
        };
        for (name, key) in changed {
            let old = records.remove(&name).or_else(|| before.get(&name).cloned());
            let Some(entry) = library.entries().get(key) else {
                continue;
            };
            let found = texts.get(&entry.form).or_else(|| self.inherited.get(&entry.form));
            let as_before = || {
                let old = old.filter(|old| form_of(&old.written) == entry.form);
                old.map(|old| old.written)
            };
            let written = found.cloned().or_else(as_before);
            let lost = || io::Error::other(format!("the text of {key} is not known any more"));
            records.insert(name.clone(), Record::of(name, entry, written.ok_or_else(lost)?));
        }
        Ok(records.into_values().collect())
    }

    /// The objects of a page.
    pub(super) fn objects_at(&self, place: &Place) -> io::Result<Vec<Record>> {
        Ok(serde_json::from_slice(&self.page(place)?)?)
    }

    /// The files of a page, with their SHA-256.
    pub(super) fn files_at(&self, place: &Place) -> io::Result<BTreeMap<Str, Str>> {
        Ok(serde_json::from_slice(&self.page(place)?)?)
    }

    fn page(&self, Place(stored, at, bytes, known_by): &Place) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(self.pages_path(*stored))?;
        file.seek(SeekFrom::Start(*at))?;
        let mut page = Vec::new();
        file.take(*bytes).read_to_end(&mut page)?;
        if sha256(&page).get(..DIGITS) != Some(known_by) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page is damaged"));
        }
        Ok(page)
    }

    fn pages_path(&self, generation: u64) -> PathBuf {
        path(&self.root, generation)
    }
}

/// The file with the pages that a generation was the first to have.
pub(super) fn path(root: &Path, generation: u64) -> PathBuf {
    root.join(format!("{generation}.pages"))
}

fn place(
    pages: &mut BTreeMap<u16, Place>,
    page: u16,
    is_empty: bool,
    write: impl FnOnce() -> io::Result<Place>,
) -> io::Result<()> {
    if is_empty {
        pages.remove(&page);
    } else {
        pages.insert(page, write()?);
    }
    Ok(())
}
