//! The deny-list: identities, certificates and nodes that are refused although they are known.
//!
//! `<state-dir>/denied.json` is the list. Commands change it, and so may an operator: it is read again whenever it
//! differs. A file that cannot be read changes nothing, because an empty list would be a permission.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tulle_model::trust::{DENIED_MAX, Denied, Subject};

use crate::state_dir::replace;

/// The file in the state folder.
pub const FILE: &str = "denied.json";
/// Largest file read.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Longest reason and author kept, in characters.
const TEXT_CHARS_MAX: usize = 256;

/// Why the list cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DenyError {
    /// The list is full.
    #[error("the deny-list holds {DENIED_MAX} entries already; remove some with `tulle ca allow`")]
    Full,
    /// A subject that is none.
    #[error(
        "`{0}` is neither spiffe://<trust domain>/ns/<namespace>/sa/<account>, serial:<hex> nor node:<name>"
    )]
    Subject(String),
    /// There is no such entry.
    #[error("{0} is not on the deny-list")]
    Absent(Subject),
    /// The file cannot be used.
    #[error("cannot use {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// One entry as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    subject: String,
    #[serde(default)]
    reason: String,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default)]
    by: String,
}

/// Reads a subject as commands and the file write it.
///
/// # Errors
/// It is none.
pub fn subject(text: &str) -> Result<Subject, DenyError> {
    let refused = || DenyError::Subject(text.chars().take(TEXT_CHARS_MAX).collect());
    if let Some(serial) = text.strip_prefix("serial:") {
        return serial.parse().map(Subject::Serial).map_err(|_| refused());
    }
    if let Some(node) = text.strip_prefix("node:") {
        let node = Some(node).filter(|node| crate::token::is_node_id(node));
        return node.map(|node| Subject::Node(node.into())).ok_or_else(refused);
    }
    text.parse().map(Subject::Identity).map_err(|_| refused())
}

/// The list. Clones share it.
#[derive(Debug, Clone)]
pub struct DenyList {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: Option<PathBuf>,
    writer: Mutex<Option<Stamp>>,
    /// Entries of the file, then those that follow from placements.
    entries: watch::Sender<Arc<Vec<Denied>>>,
    placed: Mutex<Arc<Vec<Denied>>>,
    listed: Mutex<Arc<Vec<Denied>>>,
    /// What follows from placements and has no room in the list, by subject: it is refused here, and told to nobody.
    unlisted: ArcSwap<Vec<Denied>>,
}

/// By what a change of the file is noticed.
type Stamp = (SystemTime, u64);

impl DenyList {
    /// The list of a state folder.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn open(state_dir: &Path) -> Result<Self, DenyError> {
        let list = Self::with(Some(state_dir.join(FILE)));
        list.reload()?;
        Ok(list)
    }

    /// A list that is forgotten with the process.
    #[must_use]
    pub fn memory() -> Self {
        Self::with(None)
    }

    fn with(path: Option<PathBuf>) -> Self {
        let shared = Shared {
            path,
            writer: Mutex::new(None),
            entries: watch::Sender::new(Arc::default()),
            placed: Mutex::default(),
            listed: Mutex::default(),
            unlisted: ArcSwap::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Everything denied, now and whenever it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<Denied>>> {
        self.shared.entries.subscribe()
    }

    /// The entries of operators.
    #[must_use]
    pub fn listed(&self) -> Arc<Vec<Denied>> {
        self.shared.listed.lock().clone()
    }

    /// Entries that there is room for beside those of operators.
    #[must_use]
    pub fn room(&self) -> usize {
        DENIED_MAX.saturating_sub(self.shared.listed.lock().len())
    }

    /// Entries that no proxy is told of, because the list is full.
    #[must_use]
    pub fn unlisted(&self) -> usize {
        self.shared.unlisted.load().len()
    }

    /// What to do where proxies are not told of all that is denied.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let unlisted = self.unlisted();
        (unlisted > 0).then(|| {
            format!(
                "the deny-list is full: {unlisted} certificates of workloads that left their nodes are refused here, and by no \
                 proxy, until they end; `tulle ca allow` makes room where entries of operators take it"
            )
        })
    }

    /// The entry of one of these subjects that is in force without being told to anybody.
    #[must_use]
    pub fn unlisted_of(&self, subjects: &[Subject], now: u64) -> Option<Denied> {
        let unlisted = self.shared.unlisted.load();
        let entry = |subject: &Subject| {
            let at = unlisted
                .binary_search_by(|entry| entry.subject.cmp(subject))
                .ok()?;
            unlisted.get(at).filter(|entry| entry.counts(now)).cloned()
        };
        subjects.iter().find_map(entry)
    }

    /// Everything denied, as far as the list holds it.
    #[must_use]
    pub fn entries(&self) -> Arc<Vec<Denied>> {
        self.shared.entries.borrow().clone()
    }

    /// Adds an entry, or replaces the one of the same subject.
    ///
    /// # Errors
    /// The list is full, or cannot be written; then nothing changes.
    pub fn deny(&self, entry: Denied) -> Result<(), DenyError> {
        self.change(|entries| {
            entries.retain(|old| old.subject != entry.subject);
            if entries.len() >= DENIED_MAX {
                return Err(DenyError::Full);
            }
            entries.push(Denied {
                reason: cut(&entry.reason).into(),
                by: cut(&entry.by).into(),
                ..entry
            });
            Ok(())
        })
    }

    /// Removes the entry of a subject.
    ///
    /// # Errors
    /// There is none, or the list cannot be written.
    pub fn allow(&self, subject: &Subject) -> Result<(), DenyError> {
        self.change(|entries| {
            let before = entries.len();
            entries.retain(|old| old.subject != *subject);
            if entries.len() == before {
                return Err(DenyError::Absent(subject.clone()));
            }
            Ok(())
        })
    }

    /// Replaces the entries that follow from placements.
    pub fn set_placed(&self, placed: Vec<Denied>) {
        *self.shared.placed.lock() = Arc::new(placed);
        self.publish();
    }

    /// Reads the file if it differs from what was read last; drops entries whose time is over.
    ///
    /// # Errors
    /// It cannot be read; the list stays as it is.
    pub fn reload(&self) -> Result<(), DenyError> {
        let mut writer = self.shared.writer.lock();
        let Some(path) = &self.shared.path else {
            return Ok(());
        };
        let stamp = stamp(path);
        if stamp == *writer && writer.is_some() {
            return Ok(());
        }
        let entries = read(path)?;
        *writer = stamp;
        *self.shared.listed.lock() = Arc::new(entries);
        self.publish();
        Ok(())
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Denied>) -> Result<(), DenyError>) -> Result<(), DenyError> {
        let mut writer = self.shared.writer.lock();
        let mut entries = match &self.shared.path {
            Some(path) => read(path)?,
            None => Vec::clone(&self.shared.listed.lock()),
        };
        edit(&mut entries)?;
        if let Some(path) = &self.shared.path {
            write(path, &entries).map_err(|error| unusable(path, &error))?;
            *writer = stamp(path);
        }
        *self.shared.listed.lock() = Arc::new(entries);
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let listed = self.shared.listed.lock().clone();
        let placed = self.shared.placed.lock().clone();
        let mut all = Vec::clone(&listed);
        // Those of an operator come first: the bound never cuts them.
        let room = DENIED_MAX.saturating_sub(all.len());
        let (told, rest) = placed.split_at(room.min(placed.len()));
        all.extend_from_slice(told);
        let mut rest = rest.to_vec();
        rest.sort_by(|one, other| one.subject.cmp(&other.subject));
        let before = self.shared.unlisted.load();
        let (is_other, is_first) = (**before != rest, before.is_empty() && !rest.is_empty());
        self.shared.unlisted.store(Arc::new(rest));
        if let Some(problem) = self.problem().filter(|_| is_first) {
            tracing::error!("{problem}");
        }
        self.shared.entries.send_if_modified(|entries| {
            let changed = **entries != all;
            if changed {
                *entries = Arc::new(all);
            }
            changed || is_other
        });
    }
}

fn cut(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(TEXT_CHARS_MAX)
        .collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> DenyError {
    DenyError::File {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

/// An absent file is an empty list.
fn read(path: &Path) -> Result<Vec<Denied>, DenyError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unusable(path, &error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(unusable(path, &"it is too large")),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(|error| unusable(path, &error))?;
    let lines: Vec<Line> = serde_json::from_slice(&text).map_err(|error| unusable(path, &error))?;
    if lines.len() > DENIED_MAX {
        return Err(unusable(path, &DenyError::Full));
    }
    let entry = |line: Line| {
        Ok(Denied {
            subject: subject(&line.subject).map_err(|error| unusable(path, &error))?,
            reason: cut(&line.reason).into(),
            until: line.until,
            by: cut(&line.by).into(),
        })
    };
    lines.into_iter().map(entry).collect()
}

/// Write, sync, rename: the file is whole at any time.
fn write(path: &Path, entries: &[Denied]) -> io::Result<()> {
    let line = |entry: &Denied| Line {
        subject: entry.subject.to_string(),
        reason: entry.reason.to_string(),
        until: entry.until,
        by: entry.by.to_string(),
    };
    let text = serde_json::to_vec_pretty(&entries.iter().map(line).collect::<Vec<_>>())?;
    let new = path.with_extension("json.new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    replace(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn entry(text: &str) -> Denied {
        Denied {
            subject: subject(text).unwrap(),
            reason: "lost\u{1b}[2J".into(),
            until: None,
            by: "uid 0".into(),
        }
    }

    #[test]
    fn an_entry_survives_a_restart_and_can_be_taken_back() {
        let state = tempfile::tempdir().unwrap();
        let list = DenyList::open(state.path()).unwrap();
        for text in [WEB, "serial:0A:ff", "node:n1"] {
            list.deny(entry(text)).unwrap();
        }
        let list = DenyList::open(state.path()).unwrap();
        let subjects: Vec<String> = list.entries().iter().map(|one| one.subject.to_string()).collect();
        assert_eq!(subjects, [WEB, "serial:aff", "node:n1"]);
        assert_eq!(&*list.entries()[0].reason, "lost[2J");
        list.allow(&subject("node:n1").unwrap()).unwrap();
        assert_eq!(list.entries().len(), 2);
        assert!(matches!(
            list.allow(&subject("node:n1").unwrap()),
            Err(DenyError::Absent(_))
        ));
    }

    #[test]
    fn a_broken_file_leaves_the_list_as_it_was() {
        let state = tempfile::tempdir().unwrap();
        let list = DenyList::open(state.path()).unwrap();
        list.deny(entry(WEB)).unwrap();
        for text in ["", "[{]", r#"[{"subject":"everyone"}]"#] {
            fs::write(state.path().join(FILE), text).unwrap();
            assert!(list.reload().is_err(), "{text}");
            assert_eq!(list.entries().len(), 1, "{text}");
        }
        fs::write(state.path().join(FILE), r#"[{"subject":"node:n2"}]"#).unwrap();
        list.reload().unwrap();
        assert_eq!(list.entries()[0].subject, Subject::Node("n2".into()));
    }

    #[test]
    fn what_is_no_subject_is_refused() {
        for text in ["", "*", "node:", "node:../x", "serial:", "serial:xyz", "shop/web"] {
            assert!(subject(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_list_has_no_room_for_is_denied_all_the_same_and_counted() {
        let list = DenyList::memory();
        list.deny(entry("node:n1")).unwrap();
        let serial = |number: usize| subject(&format!("serial:{number:x}")).unwrap();
        let placed = |count: usize| {
            let numbers = 1..=count;
            let of = |number| Denied {
                subject: serial(number),
                reason: "".into(),
                until: Some(100),
                by: "placement".into(),
            };
            numbers.map(of).collect::<Vec<_>>()
        };
        list.set_placed(placed(DENIED_MAX - 1));
        assert_eq!((list.entries().len(), list.unlisted()), (DENIED_MAX, 0));
        let mut changes = list.subscribe();
        changes.mark_unchanged();
        list.set_placed(placed(DENIED_MAX + 1));
        assert_eq!((list.entries().len(), list.unlisted()), (DENIED_MAX, 2));
        assert!(changes.has_changed().unwrap(), "streams look again");
        let is_denied = |number, now| list.unlisted_of(&[serial(0), serial(number)], now).is_some();
        assert!(is_denied(DENIED_MAX, 99) && is_denied(DENIED_MAX + 1, 99));
        assert!(!is_denied(DENIED_MAX, 100) && !is_denied(DENIED_MAX + 2, 99));
        list.set_placed(Vec::new());
        assert_eq!((list.entries().len(), list.unlisted()), (1, 0));
    }

    #[test]
    fn listeners_hear_of_a_change_and_of_nothing_else() {
        let list = DenyList::memory();
        let mut changes = list.subscribe();
        list.deny(entry(WEB)).unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        list.deny(entry(WEB)).unwrap();
        assert!(!changes.has_changed().unwrap());
    }
}
