//! What of the history is kept: so many generations, so long, so many bytes; and nothing that none of them needs. Kept by
//! counting, so that dropping a generation does not mean reading the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;

use jiff::{SignedDuration, Timestamp};
use tulle_model::Str;

use super::aside::Aside;
use super::pages::{self, Pages};
use super::{Draft, FILES};

/// Age from which on a generation is dropped; the newest is kept however old it is.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Generations that are kept.
pub(super) const GENERATIONS_MAX: usize = 100;
/// Bytes that they may take with all they hold; the newest is kept whatever it takes.
const BYTES_MAX: u64 = 256 << 20;

/// Threads in which files wait for the disk side by side.
const SYNCED_AT_ONCE: usize = 64;
/// Files that are open at most until they are on the disk.
const DRAFTS_MAX: usize = 256;

/// Files of a generation that are written and in no place yet, in the order in which they are put there.
#[derive(Debug, Default)]
pub(super) struct Drafts(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    draft: Draft,
    path: PathBuf,
    bytes: u64,
}

impl Drafts {
    /// Adds a file of so many bytes that was written already.
    pub(super) fn add(&mut self, draft: Draft, path: &Path, bytes: u64) {
        self.0.push(Waiting {
            draft,
            path: path.to_owned(),
            bytes,
        });
    }

    /// Writes a file that is to be whole when it is in its place.
    pub(super) fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut draft = Draft::of(path)?;
        draft.write_all(bytes)?;
        // A buffer for each of many open files would only be kept for nothing.
        draft.flush()?;
        self.add(draft, path, bytes.len() as u64);
        Ok(())
    }

    /// Whether so many are open that they have to wait for the disk before there can be more.
    pub(super) fn are_many(&self) -> bool {
        self.0.len() >= DRAFTS_MAX
    }

    /// Bytes of all.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|waiting| waiting.bytes).sum()
    }

    /// Where each is and where it is to be.
    pub(super) fn paths(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.0
            .iter()
            .map(|waiting| (waiting.draft.path.as_path(), waiting.path.as_path()))
    }

    /// Leaves nothing in a buffer.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|waiting| waiting.draft.flush())
    }

    /// Waits until all are on the disk. The waits overlap: what a file system with a journal commits for one of them it
    /// commits for all, while one after the other each would wait for a commit of its own.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let share = self.0.len().div_ceil(SYNCED_AT_ONCE).max(1);
        let sync = |drafts: &mut [Waiting]| drafts.iter_mut().try_for_each(|waiting| waiting.draft.sync());
        thread::scope(|scope| {
            // Those that were begun are waited for, also where no further thread is to be had.
            let begun: Vec<_> = self
                .0
                .chunks_mut(share)
                .map(|drafts| thread::Builder::new().spawn_scoped(scope, move || sync(drafts)))
                .collect();
            let panicked = |_| io::Error::other("waiting for files of the history panicked");
            begun
                .into_iter()
                .try_for_each(|files| files?.join().map_err(panicked)?)
        })
    }
}

/// What lies in the folder of the history.
#[derive(Debug)]
pub(super) struct Keep {
    root: PathBuf,
    /// Bytes of everything, once they were counted.
    bytes: Option<u64>,
    /// Bytes that everything kept may take.
    pub(super) bytes_max: u64,
    /// Generations whose pages the newest has none of any more, and the last one that had some.
    pages_over: BTreeMap<u64, u64>,
    /// How many files of the newest generation have a text.
    texts: BTreeMap<Str, usize>,
    /// Texts that the newest does not have any more, and the last generation that did.
    texts_over: BTreeMap<Str, u64>,
    /// Where what is dropped goes.
    pub(super) aside: Aside,
}

impl Keep {
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            aside: Aside::new(&root),
            root,
            bytes: None,
            bytes_max: BYTES_MAX,
            pages_over: BTreeMap::new(),
            texts: BTreeMap::new(),
            texts_over: BTreeMap::new(),
        }
    }

    /// Begins with what a former process left. Of what the newest generation does not have, it is not known since when: it
    /// stays for as long as that one.
    pub(super) fn begin<'a>(&mut self, newest: u64, pages: &Pages, texts: impl Iterator<Item = &'a Str>) {
        self.texts = BTreeMap::new();
        for text in texts {
            *self.texts.entry(text.clone()).or_default() += 1;
        }
        let used = pages.stored();
        let stored = numbered(&self.root, ".pages").into_iter();
        self.pages_over = stored
            .filter(|stored| !used.contains(stored))
            .map(|stored| (stored, newest))
            .collect();
        let names = fs::read_dir(self.root.join(FILES))
            .into_iter()
            .flatten()
            .flatten();
        let names = names.filter_map(|file| Some(Str::from(file.file_name().to_str()?)));
        self.texts_over = names
            .filter(|name| !self.texts.contains_key(name))
            .map(|name| (name, newest))
            .collect();
    }

    /// Puts files in their places, the first one first, and counts them.
    pub(super) fn place(&mut self, drafts: &mut Drafts) -> io::Result<()> {
        let drafts = std::mem::take(&mut drafts.0);
        drafts.into_iter().try_for_each(|waiting| self.rename(waiting))
    }

    fn rename(&mut self, Waiting { draft, path, bytes }: Waiting) -> io::Result<()> {
        let before = fs::metadata(&path).map_or(0, |file| file.len());
        draft.place(&path)?;
        if let Some(all) = &mut self.bytes {
            *all = (*all + bytes).saturating_sub(before);
        }
        Ok(())
    }

    /// Notes which pages the newest generation has no more, `before` being the last that had them.
    pub(super) fn over(&mut self, old: &Pages, new: &Pages, before: u64) {
        let (old, new) = (old.stored(), new.stored());
        for stored in old.difference(&new) {
            self.pages_over.insert(*stored, before);
        }
        for stored in &new {
            self.pages_over.remove(stored);
        }
    }

    /// Notes that a file has another text.
    pub(super) fn text(&mut self, old: Option<&Str>, new: Option<&Str>, before: u64) {
        if let Some(new) = new {
            *self.texts.entry(new.clone()).or_default() += 1;
            self.texts_over.remove(new);
        }
        let Some(old) = old else { return };
        if let Some(count) = self.texts.get_mut(old) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.texts.remove(old);
                self.texts_over.insert(old.clone(), before);
            }
        }
    }

    /// Drops the oldest generations, and what none of the others has.
    pub(super) fn forget(&mut self, newest: u64) {
        let mut generations = numbered(&self.root, ".json");
        // What was left of a generation that could not be read comes after the newest; it is written over.
        generations.retain(|generation| *generation <= newest);
        let mut bytes = match self.bytes {
            Some(bytes) => bytes,
            None => all_bytes(&self.root),
        };
        let mut kept = generations.as_slice();
        while let [oldest, rest @ ..] = kept {
            let is_too_much = kept.len() > GENERATIONS_MAX || bytes > self.bytes_max || self.is_old(*oldest);
            if rest.is_empty() || !is_too_much {
                break;
            }
            bytes = bytes.saturating_sub(self.drop_one(*oldest, rest[0]));
            kept = rest;
        }
        self.bytes = Some(bytes);
        if kept.len() < generations.len() {
            self.aside.remove();
        }
    }

    /// Drops a generation, the next one becoming the oldest; returns the bytes that are free now.
    fn drop_one(&mut self, generation: u64, next: u64) -> u64 {
        let mut free = self.aside.take(&self.root.join(format!("{generation}.json")));
        let over: Vec<u64> = self
            .pages_over
            .iter()
            .filter(|(_, last)| **last < next)
            .map(|(at, _)| *at)
            .collect();
        for stored in over {
            self.pages_over.remove(&stored);
            free += self.aside.take(&pages::path(&self.root, stored));
        }
        let over: Vec<Str> = self
            .texts_over
            .iter()
            .filter(|(_, last)| **last < next)
            .map(|(at, _)| at.clone())
            .collect();
        for text in over {
            self.texts_over.remove(&text);
            free += self.aside.take(&self.root.join(FILES).join(&*text));
        }
        // Objects of the older form are shared by generations of that form alone, and go with the last of them.
        let objects = numbered(&self.root, ".objects");
        if !objects.is_empty() && !is_older(&self.root, next) {
            for stored in objects {
                free += self.aside.take(&self.root.join(format!("{stored}.objects")));
            }
        }
        free
    }

    /// Whether a generation is older than generations are kept. Its file is as old as it is.
    fn is_old(&self, generation: u64) -> bool {
        let modified = fs::metadata(self.root.join(format!("{generation}.json")));
        let modified = modified.and_then(|file| file.modified());
        let written = modified.ok().and_then(|time| Timestamp::try_from(time).ok());
        written.is_some_and(|written| Timestamp::now().duration_since(written) > AGE_MAX)
    }

    /// Bytes of everything, as they were counted.
    #[cfg(test)]
    pub(super) fn counted(&self) -> Option<u64> {
        self.bytes
    }

    /// Bytes of everything.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        all_bytes(&self.root)
    }
}

/// Whether a generation is of the older form, as far as that can be told.
fn is_older(root: &Path, generation: u64) -> bool {
    let text = fs::read_to_string(root.join(format!("{generation}.json"))).unwrap_or_default();
    let manifest = serde_json::from_str::<super::Manifest>(&text);
    manifest.map_or(true, |manifest| manifest.pages.is_none())
}

fn all_bytes(root: &Path) -> u64 {
    let folders = [root.to_owned(), root.join(FILES)];
    let files = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let sizes = files
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file);
    sizes.map(|file| file.len()).sum()
}

/// The numbers of the files with this ending, in order.
pub(super) fn numbered(root: &Path, ending: &str) -> Vec<u64> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(ending)?.parse().ok();
    let mut numbers: BTreeSet<u64> = entries.filter_map(number).collect();
    std::mem::take(&mut numbers).into_iter().collect()
}
