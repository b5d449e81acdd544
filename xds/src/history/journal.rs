//! What generations consist of, one behind the other in one file: whatever a change touches, it waits for the disk once
//! before it is in force. The files that are read stand in their places at once and reach the disk later; what a crash of the
//! machine takes of them is written again from here.
//!
//! `<state dir>/history/journal/<number>` has a record for each generation: a line of JSON that lists its files, in the order
//! in which they come to their places, with their lengths and the SHA-256 of all they hold; then that, one after the other.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};
use tulle_model::Str;

use super::keep::{Drafts, numbered};
use super::{sha256, write_atomically};

/// Bytes of a generation up to which it is written down here; the files of a larger one are waited for one by one.
pub(super) const RECORD_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a file of the journal from which on the next one is begun …
const BYTES_MAX: u64 = 8 << 20;
/// … and records. Two files of them are fewer than generations are kept, so that none comes back that was dropped.
const RECORDS_MAX: usize = 32;
/// The journal, below the history.
pub(super) const FOLDER: &str = "journal";

/// The records since what they hold was last known to be on the disk.
#[derive(Debug)]
pub(super) struct Journal {
    root: PathBuf,
    /// Number of the newest file.
    newest: u64,
    open: Option<Open>,
    /// Waits until all that older files hold is on the disk, and removes them.
    retiring: Option<JoinHandle<io::Result<()>>>,
    /// It holds what must not be read, or nobody knows what.
    is_void: bool,
}

/// The file that records are written to.
#[derive(Debug)]
struct Open {
    file: fs::File,
    bytes: u64,
    /// Where the last record begins.
    last: u64,
    records: usize,
}

/// What a record begins with.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// Paths below the history, with the bytes of each.
    files: Vec<(String, u64)>,
    /// Of all they hold.
    sha256: Str,
}

impl Journal {
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            newest: 0,
            open: None,
            retiring: None,
            is_void: false,
        }
    }

    /// Writes down what a generation consists of, and waits until that is on the disk.
    pub(super) fn append(&mut self, drafts: &Drafts) -> io::Result<()> {
        if self.is_full() {
            self.retire();
        }
        let record = record_of(&self.root, drafts)?;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        open.last = open.bytes;
        let written = open.file.write_all_at(&record, open.last);
        let written = written.and_then(|()| open.file.sync_data());
        open.bytes += record.len() as u64;
        open.records += 1;
        self.open = Some(open);
        if written.is_err() {
            self.take_back();
        }
        written
    }

    /// Takes the last record back, whole or not: its generation is refused. What of its files came to their places is on no
    /// disk for sure, and another generation may share it: the journal is begun anew before that.
    pub(super) fn take_back(&mut self) {
        self.is_void = true;
        if let Some(open) = &mut self.open {
            let cut = open.file.set_len(open.last);
            if let Err(error) = cut.and_then(|()| open.file.sync_data()) {
                tracing::warn!(%error, "a generation that was refused stands in the journal of the history until the next one");
            }
        }
    }

    /// Says that some of what it holds is not to be read.
    pub(super) fn distrust(&mut self) {
        self.is_void = true;
    }

    /// Begins anew where some of it is not to be read: before there is another generation, of whatever size.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        match self.is_void {
            true => self.clear(),
            false => Ok(()),
        }
    }

    /// Begins the next file.
    fn begin(&mut self) -> io::Result<Open> {
        let folder = self.root.join(FOLDER);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let there = numbered(&folder, "").last().copied();
        self.newest = self.newest.max(there.unwrap_or_default()) + 1;
        let mut options = fs::OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(folder.join(self.newest.to_string()))?;
        // Its name is on the disk before the first record is.
        fs::File::open(&folder)?.sync_all()?;
        Ok(Open {
            file,
            bytes: 0,
            last: 0,
            records: 0,
        })
    }

    fn is_full(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.bytes >= BYTES_MAX || open.records >= RECORDS_MAX)
    }

    /// Begins a new file, and removes the others as soon as what they hold is on the disk. Nobody waits for that, unless it
    /// takes longer than to fill a file.
    fn retire(&mut self) {
        if let Err(error) = self.retired() {
            let path = self.root.join(FOLDER);
            tracing::warn!(%error, path = %path.display(), "the journal of the history cannot be shortened");
        }
        self.open = None;
        let root = self.root.clone();
        let numbers = numbered(&root.join(FOLDER), "");
        let begun = thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || remove(&root, &numbers));
        self.retiring = begun.ok();
    }

    /// Waits for what retires.
    pub(super) fn retired(&mut self) -> io::Result<()> {
        let ended = self.retiring.take().map(JoinHandle::join);
        ended.map_or(Ok(()), |ended| {
            ended.map_err(|_| io::Error::other("the thread that waits for the disk ended"))?
        })
    }

    /// Removes all of it, once what it holds is on the disk.
    fn clear(&mut self) -> io::Result<()> {
        // What it could not remove is removed now.
        let _ = self.retired();
        self.open = None;
        remove(&self.root, &numbered(&self.root.join(FOLDER), ""))?;
        self.is_void = false;
        Ok(())
    }
}

/// Removes files of the journal once everything on their file system is on the disk, and so is what they hold.
fn remove(root: &Path, numbers: &[u64]) -> io::Result<()> {
    if numbers.is_empty() {
        return Ok(());
    }
    rustix::fs::syncfs(fs::File::open(root)?)?;
    for number in numbers {
        match fs::remove_file(root.join(FOLDER).join(number.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn record_of(root: &Path, drafts: &Drafts) -> io::Result<Vec<u8>> {
    let (mut files, mut held) = (Vec::new(), Vec::new());
    for (draft, path) in drafts.paths() {
        let bytes = fs::File::open(draft)?.read_to_end(&mut held)?;
        let below = path.strip_prefix(root).ok().and_then(Path::to_str);
        files.push((below.ok_or(io::ErrorKind::InvalidInput)?.to_owned(), bytes as u64));
    }
    let sha256 = sha256(&held);
    let mut record = serde_json::to_vec(&Head { files, sha256 })?;
    record.push(b'\n');
    record.append(&mut held);
    Ok(record)
}

/// Writes what the journal holds where it is not in its place as it should be, and removes the journal.
pub(super) fn recover(root: &Path) -> io::Result<()> {
    let folder = root.join(FOLDER);
    let numbers = numbered(&folder, "");
    for number in &numbers {
        let journal = match fs::read(folder.join(number.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let mut rest = journal.as_slice();
        while let Some((head, mut held, after)) = first_record(rest) {
            for (path, bytes) in head.files {
                let (own, others) = held.split_at(usize::try_from(bytes).map_err(io::Error::other)?);
                put(root, &path, own)?;
                held = others;
            }
            rest = after;
        }
    }
    remove(root, &numbers)
}

/// The first record of so many bytes, what its files hold, and what follows; none if it is not whole.
fn first_record(bytes: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
    let all = head
        .files
        .iter()
        .try_fold(0_u64, |sum, (_, bytes)| sum.checked_add(*bytes))?;
    let (held, after) = bytes[end + 1..].split_at_checked(usize::try_from(all).ok()?)?;
    (sha256(held) == head.sha256).then_some((head, held, after))
}

fn put(root: &Path, below: &str, bytes: &[u8]) -> io::Result<()> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !Path::new(below).components().all(is_plain) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let path = root.join(below);
    match fs::read(&path).is_ok_and(|there| there == bytes) {
        true => Ok(()),
        false => write_atomically(&path, bytes, false),
    }
}
