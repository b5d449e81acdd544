//! One look at the tree: which files there are and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tulle_k8s::Kind;
use tulle_k8s::document::FILE_BYTES_MAX;
use tulle_model::Str;

use super::WRITING_MAX;
use super::packed::Packed;
use crate::engine::Batch;

/// Most files that are read.
const FILES_MAX: usize = 20_000;
/// Directories below each other that are read, the root not counted.
pub const DIRECTORIES_DEEP_MAX: usize = 32;
/// Files younger than this are read again although they look unchanged: two writes may share a time stamp.
const STAMP_RESOLUTION: Duration = Duration::from_secs(2);

/// What one look found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scan {
    /// Files by path below the root.
    pub(super) files: BTreeMap<Str, File>,
    /// Directories that could not be read, by path below the root.
    pub(super) unreadable: BTreeMap<Str, String>,
    /// Why the root itself could not be read.
    pub(super) no_root: Option<String>,
    directories: BTreeSet<PathBuf>,
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// Its text, or why there is none.
    pub(super) text: Result<Arc<Packed>, String>,
    /// It may still be in the middle of being written.
    pub(super) is_fresh: bool,
    /// When it was last changed or put in its place.
    pub(super) changed: Option<SystemTime>,
}

impl Scan {
    /// What some texts would look like as files of a folder.
    pub(crate) fn of_texts(texts: impl IntoIterator<Item = (Str, Result<Arc<str>, String>)>) -> Self {
        let file = |text| File {
            text,
            is_fresh: false,
            changed: None,
        };
        Self {
            files: texts
                .into_iter()
                .map(|(path, text)| (path, file(text.map(|text| Arc::new(Packed::of(&text))))))
                .collect(),
            ..Self::default()
        }
    }

    /// The text of each file.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&Str, Result<Arc<str>, String>)> {
        let text = |file: &File| {
            file.text
                .as_ref()
                .map(|text| text.text().into())
                .map_err(Clone::clone)
        };
        self.files.iter().map(move |(path, file)| (path, text(file)))
    }

    /// Whether another look found the same: the same files with the same texts, and the same that cannot be read.
    pub(super) fn says(&self, other: &Self) -> bool {
        let same = |((path, one), (other_path, other)): ((&Str, &File), (&Str, &File))| {
            path == other_path
                && match (&one.text, &other.text) {
                    (Ok(one), Ok(other)) => Arc::ptr_eq(one, other) || one == other,
                    (one, other) => one == other,
                }
        };
        self.no_root == other.no_root
            && self.unreadable == other.unreadable
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(same)
    }

    /// When the newest of the objects that a batch brings was written, by kind.
    pub(super) fn written(&self, batch: &Batch) -> BTreeMap<Kind, SystemTime> {
        let mut newest = BTreeMap::new();
        for event in &batch.events {
            let file = event
                .object
                .as_ref()
                .and_then(|object| self.files.get(&object.file));
            if let Some(changed) = file.and_then(|file| file.changed) {
                let newest = newest.entry(event.key.kind).or_insert(changed);
                *newest = changed.max(*newest);
            }
        }
        newest
    }

    /// Every directory that was read.
    pub(super) fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }
}

/// What tells that a file is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

/// Looks at the tree; remembers files that have not changed.
#[derive(Debug)]
pub(crate) struct Scanner {
    root: PathBuf,
    known: BTreeMap<Str, (Stamp, Arc<Packed>)>,
}

impl Scanner {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            known: BTreeMap::new(),
        }
    }

    /// Looks at the whole tree.
    pub(crate) fn scan(&mut self) -> Scan {
        let mut scan = Scan::default();
        match self.root.canonicalize() {
            Ok(root) => {
                let mut walk = Walk {
                    root: &root,
                    open: Vec::new(),
                    known: &mut self.known,
                    scan: &mut scan,
                };
                if let Err(error) = walk.directory(&self.root, "") {
                    scan.no_root = Some(format!("{} cannot be read: {error}", self.root.display()));
                }
            }
            Err(error) => scan.no_root = Some(format!("{} cannot be read: {error}", self.root.display())),
        }
        self.known.retain(|path, _| scan.files.contains_key(path));
        scan
    }
}

struct Walk<'a> {
    /// The root, with every symlink resolved.
    root: &'a Path,
    /// The directories being read, resolved: one of them found again is a loop.
    open: Vec<PathBuf>,
    known: &'a mut BTreeMap<Str, (Stamp, Arc<Packed>)>,
    scan: &'a mut Scan,
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, below: &str) -> io::Result<()> {
        let real = path.canonicalize()?;
        if self.open.contains(&real) {
            return Ok(());
        }
        if self.open.len() > DIRECTORIES_DEEP_MAX {
            let cause = format!("it is more than {DIRECTORIES_DEEP_MAX} directories below the root");
            return Err(io::Error::other(cause));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // What is no link stays where it is found: asking where it leads costs a call per step of its path.
            let is_link = entry.file_type().map_or(true, |found| found.is_symlink());
            names.push((entry.file_name(), is_link));
        }
        names.sort();
        self.scan.directories.insert(path.to_owned());
        self.open.push(real);
        for (name, is_link) in names {
            let Some(name) = name.to_str().filter(|name| !is_skipped(name)) else {
                continue;
            };
            let below = if below.is_empty() {
                name.to_owned()
            } else {
                format!("{below}/{name}")
            };
            self.entry(&path.join(name), &below, is_link);
        }
        self.open.pop();
        Ok(())
    }

    fn entry(&mut self, path: &Path, below: &str, is_link: bool) {
        let fail = |scan: &mut Scan, cause: String| {
            let file = File {
                text: Err(cause),
                is_fresh: false,
                changed: None,
            };
            scan.files.insert(below.into(), file);
        };
        let is_manifest = is_manifest(below);
        let metadata = match self.resolve(path, is_link) {
            Ok(metadata) => metadata,
            Err(error) if is_manifest && error.kind() != io::ErrorKind::NotFound => {
                return fail(self.scan, format!("it cannot be read: {error}"));
            }
            Err(_) => return,
        };
        if metadata.is_dir() {
            if let Err(error) = self.directory(path, below) {
                self.scan
                    .unreadable
                    .insert(below.into(), format!("the directory cannot be read: {error}"));
            }
        } else if metadata.is_file() && is_manifest {
            if self.scan.files.len() >= FILES_MAX {
                return fail(self.scan, format!("there are more than {FILES_MAX} files"));
            }
            let file = self.file(path, below, &metadata);
            self.scan.files.insert(below.into(), file);
        }
    }

    /// Follows symlinks, as long as they stay inside of the root.
    fn resolve(&self, path: &Path, is_link: bool) -> io::Result<Metadata> {
        if !is_link {
            let found = fs::symlink_metadata(path)?;
            if !found.is_symlink() {
                return Ok(found);
            }
        }
        let real = path.canonicalize()?;
        if !real.starts_with(self.root) {
            let message = "it is a link to something outside of the configuration folder";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        fs::metadata(real)
    }

    fn file(&mut self, path: &Path, below: &str, metadata: &Metadata) -> File {
        let age = SystemTime::now().duration_since(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        let age = age.unwrap_or(Duration::ZERO);
        let is_fresh = age < WRITING_MAX;
        let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
        let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
        let changed = Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        let stamp = Stamp {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        let known = self
            .known
            .get(below)
            .filter(|(known, _)| *known == stamp && age > STAMP_RESOLUTION);
        if let Some((_, text)) = known {
            return File {
                text: Ok(text.clone()),
                is_fresh,
                changed,
            };
        }
        if metadata.len() > FILE_BYTES_MAX as u64 {
            let cause = format!("it has {} bytes, more than {FILE_BYTES_MAX}", metadata.len());
            return File {
                text: Err(cause),
                is_fresh,
                changed,
            };
        }
        let text = fs::read_to_string(path)
            .map(|text| Arc::new(Packed::of(&text)))
            .map_err(|error| format!("it cannot be read: {error}"));
        if let Ok(text) = &text {
            self.known.insert(below.into(), (stamp, text.clone()));
        }
        File {
            text,
            is_fresh,
            changed,
        }
    }
}

/// Names that editors and mounted volumes use for themselves.
fn is_skipped(name: &str) -> bool {
    name.starts_with('.') || name.ends_with('~') || name.ends_with(".swp")
}

fn is_manifest(path: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| path.ends_with(end))
}
