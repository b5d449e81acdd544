//! What is known of each pod's sandbox on this node: written when a pod starts, kept through restarts of the agent.
//!
//! A record is where to look first for a pod's network namespace, never a proof: whoever uses one proves it again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tulle_model::Str;

use crate::resolver::Resolver;

/// Version of the files.
const VERSION: u32 = 1;
/// Sandboxes of one node; far above what a node runs.
pub const RECORDS_MAX: usize = 4096;
/// Ended sandboxes that are remembered.
const ENDED_MAX: usize = 256;
/// Bytes of one file; no file of ours comes near.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Whose sandbox it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodId {
    /// The pod's namespace.
    pub namespace: Str,
    /// The pod's name.
    pub name: Str,
    /// The pod's uid; the sandbox's id where the runtime gave none.
    pub uid: Str,
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A process by which a namespace was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Its id.
    pub pid: u32,
    /// When it started, in ticks since boot: tells it from a later process with the same id.
    pub start_time: u64,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Whose it is.
    pub pod: PodId,
    /// The runtime's id of it; empty when no runtime told.
    pub container_id: Str,
    /// Where its network namespace is.
    pub netns: PathBuf,
    /// Inode of the namespace.
    pub inode: u64,
    /// The addresses it was given.
    pub addresses: Vec<IpAddr>,
    /// The process by which it was found, if it was found so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// What its resolv.conf says, if its runtime told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
}

/// A record as a file.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    record: Record,
}

/// Namespace and name of a pod.
type Key = (Str, Str);

/// The sandboxes of this node. Clones share them.
#[derive(Debug, Clone)]
pub struct Records {
    folder: Arc<Path>,
    held: Arc<Mutex<BTreeMap<Key, Held>>>,
    ended: Arc<Mutex<VecDeque<Str>>>,
    moved: Arc<watch::Sender<()>>,
}

#[derive(Debug)]
struct Held {
    record: Record,
    /// The pod is being started: its runtime waits for it to be captured.
    starting: bool,
}

impl Records {
    /// Reads what an earlier run left in `folder`, which is made if it is missing. A file that cannot be read is
    /// removed: its pod is found in other ways.
    ///
    /// # Errors
    /// When the folder cannot be made or listed.
    pub fn load(folder: &Path) -> io::Result<Self> {
        make_private(folder)?;
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(folder)?.take(RECORDS_MAX) {
            let path = entry?.path();
            match read(&path) {
                Ok(record) => {
                    held.insert(
                        key(&record.pod),
                        Held {
                            record,
                            starting: false,
                        },
                    );
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a pod's record cannot be read and is removed");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(Self {
            folder: folder.into(),
            held: Arc::new(Mutex::new(held)),
            ended: Arc::default(),
            moved: Arc::new(watch::Sender::new(())),
        })
    }

    /// The sandbox of a pod.
    #[must_use]
    pub fn of(&self, namespace: &Str, name: &Str) -> Option<Record> {
        let held = self.held.lock();
        let found = held.get(&(namespace.clone(), name.clone()))?;
        Some(found.record.clone())
    }

    /// Whether a pod is being started just now.
    #[must_use]
    pub fn is_starting(&self, namespace: &Str, name: &Str) -> bool {
        let held = self.held.lock();
        held.get(&(namespace.clone(), name.clone()))
            .is_some_and(|held| held.starting)
    }

    /// Every record.
    #[must_use]
    pub fn all(&self) -> Vec<Record> {
        self.held
            .lock()
            .values()
            .map(|held| held.record.clone())
            .collect()
    }

    /// Learns of a sandbox; one of the same pod is forgotten.
    ///
    /// # Errors
    /// When the file cannot be written, or there are too many.
    pub fn put(&self, record: Record, starting: bool) -> io::Result<()> {
        let key = key(&record.pod);
        {
            let held = self.held.lock();
            if held.len() >= RECORDS_MAX && !held.contains_key(&key) {
                return Err(io::Error::other(format!(
                    "more than {RECORDS_MAX} sandboxes on one node"
                )));
            }
        }
        self.write(&record)?;
        let file = self.file(&record.pod);
        let before = self.held.lock().insert(key, Held { record, starting });
        if let Some(before) = before
            .map(|before| self.file(&before.record.pod))
            .filter(|before| *before != file)
        {
            remove_if_there(&before);
        }
        self.moved.send_replace(());
        Ok(())
    }

    /// A pod's start is over, in whatever way.
    pub fn started(&self, container_id: &str) {
        let mut held = self.held.lock();
        let of_container = held
            .values_mut()
            .filter(|held| held.record.container_id.as_ref() == container_id);
        of_container.for_each(|held| held.starting = false);
    }

    /// Forgets a sandbox that ended. A newer one of the same pod stays.
    pub fn remove(&self, container_id: &str, pod: Option<&PodId>) -> Option<Record> {
        {
            let mut ended = self.ended.lock();
            ended.push_front(container_id.into());
            ended.truncate(ENDED_MAX);
        }
        // What was found without its runtime has no sandbox id; it is the pod's own if the uid fits.
        let is_meant = |record: &Record| {
            let unnamed = record.container_id.is_empty() && pod.is_some_and(|pod| *pod == record.pod);
            record.container_id.as_ref() == container_id || unnamed
        };
        let removed = {
            let mut held = self.held.lock();
            let key = held.iter().find(|(_, held)| is_meant(&held.record))?.0.clone();
            held.remove(&key)?.record
        };
        remove_if_there(&self.file(&removed.pod));
        self.moved.send_replace(());
        Some(removed)
    }

    /// Forgets every sandbox whose id is not among `keep`; those without an id stay.
    pub fn retain(&self, keep: &BTreeSet<&str>) -> Vec<Record> {
        let held = self.all().into_iter().map(|record| record.container_id);
        let gone = held.filter(|id| !id.is_empty() && !keep.contains(id.as_ref()));
        gone.filter_map(|id| self.remove(&id, None)).collect()
    }

    /// Whether a sandbox ended a short time ago; its runtime may still call it ready.
    #[must_use]
    pub fn has_ended(&self, container_id: &str) -> bool {
        self.ended
            .lock()
            .iter()
            .any(|ended| ended.as_ref() == container_id)
    }

    /// Wakes whenever a sandbox was learned of or forgotten.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    fn file(&self, pod: &PodId) -> PathBuf {
        self.folder.join(format!("{}.json", file_stem(&pod.uid)))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&Versioned {
            version: VERSION,
            record: record.clone(),
        })?;
        write_whole(&self.file(&record.pod), &text)
    }
}

fn key(pod: &PodId) -> Key {
    (pod.namespace.clone(), pod.name.clone())
}

/// A uid as a file's name: what is none becomes one step down the folder, never a way out of it.
fn file_stem(uid: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    uid.chars()
        .take(128)
        .map(|c| if plain(c) { c } else { '_' })
        .collect()
}

fn read(path: &Path) -> io::Result<Record> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too long"));
    }
    let read: Versioned = serde_json::from_slice(&fs::read(path)?)?;
    if read.version != VERSION {
        return Err(io::Error::other(format!("version {} is unknown", read.version)));
    }
    Ok(read.record)
}

/// Writes a file so that readers see it whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, content)?;
    fs::rename(&draft, path)
}

/// Makes a folder that only its owner may look into.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn remove_if_there(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a pod's record cannot be removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, uid: &str, container: &str) -> Record {
        Record {
            pod: PodId {
                namespace: "shop".into(),
                name: name.into(),
                uid: uid.into(),
            },
            container_id: container.into(),
            netns: "/run/netns/cni-1".into(),
            inode: 7,
            addresses: vec!["10.0.0.7".parse().unwrap()],
            process: None,
            resolver: None,
        }
    }

    fn of(records: &Records, name: &str) -> Option<Record> {
        records.of(&"shop".into(), &name.into())
    }

    #[test]
    fn a_record_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let web = record("web", "u1", "c1");
        Records::load(folder.path())
            .unwrap()
            .put(web.clone(), true)
            .unwrap();
        let reloaded = Records::load(folder.path()).unwrap();
        assert_eq!(of(&reloaded, "web"), Some(web));
        assert!(!reloaded.is_starting(&"shop".into(), &"web".into()));
    }

    #[test]
    fn the_end_of_an_older_sandbox_leaves_the_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load(folder.path()).unwrap();
        records.put(record("web", "u1", "c1"), false).unwrap();
        records.put(record("web", "u1", "c2"), false).unwrap();
        assert_eq!(records.remove("c1", None), None);
        assert_eq!(of(&records, "web"), Some(record("web", "u1", "c2")));
        assert!(records.remove("c2", None).is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_pod_made_anew_under_its_name_leaves_no_file_of_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load(folder.path()).unwrap();
        records.put(record("web-0", "u1", "c1"), false).unwrap();
        records.put(record("web-0", "u2", "c2"), false).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_found_without_a_runtime_ends_with_its_pod() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::load(folder.path()).unwrap();
        let found = record("web", "u1", "");
        records.put(found.clone(), false).unwrap();
        assert!(records.retain(&BTreeSet::new()).is_empty());
        let other = record("web", "u2", "").pod;
        assert_eq!(records.remove("c1", Some(&other)), None);
        assert!(records.remove("c1", Some(&found.pod)).is_some());
    }

    #[test]
    fn a_broken_file_is_removed_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        Records::load(folder.path())
            .unwrap()
            .put(record("web", "u1", "c1"), false)
            .unwrap();
        fs::write(folder.path().join("u2.json"), b"{").unwrap();
        let records = Records::load(folder.path()).unwrap();
        assert_eq!(records.all().len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_uid_is_never_a_path() {
        assert_eq!(file_stem("../../etc/passwd"), "______etc_passwd");
        assert_eq!(file_stem("4f0c-1"), "4f0c-1");
    }
}
