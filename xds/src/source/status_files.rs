//! What became of each object, as a file beside it: `<state dir>/status/<kind>/<namespace>/<name>.yaml`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::history::write_atomically;
use crate::snapshot::{ObjectKey, ObjectStatus, Objects, Snapshot};

/// Directory for objects without a namespace.
const NO_NAMESPACE: &str = "_cluster";

/// Keeps the files as the newest cut says, until the engine is gone.
pub(super) async fn run(state_dir: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut files = Files {
        root: state_dir.join("status"),
        written: BTreeMap::new(),
        is_clean: false,
    };
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.synced() {
            files = match spawn_blocking(move || files.update(snapshot.objects())).await {
                Ok(files) => files,
                Err(error) => return tracing::error!(%error, "the status of objects is not written any more"),
            };
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

struct Files {
    root: PathBuf,
    written: BTreeMap<ObjectKey, Arc<ObjectStatus>>,
    /// What a former process left behind has been looked at.
    is_clean: bool,
}

impl Files {
    fn update(mut self, objects: &Objects) -> Self {
        if !self.is_clean {
            // What an earlier process wrote about objects that are gone would stay for ever.
            let removed = std::fs::remove_dir_all(&self.root);
            self.is_clean =
                removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        }
        let mut failed = None;
        let gone: Vec<_> = self
            .written
            .keys()
            .filter(|key| objects.object(key).is_none())
            .cloned()
            .collect();
        for key in gone {
            let _ = std::fs::remove_file(path(&self.root, &key));
            self.written.remove(&key);
        }
        for (key, status) in objects.objects.iter() {
            if self
                .written
                .get(key)
                .is_some_and(|written| Arc::ptr_eq(written, status))
            {
                continue;
            }
            match write(&self.root, key, status) {
                Ok(()) => drop(self.written.insert(key.clone(), status.clone())),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            tracing::warn!(%error, path = %self.root.display(), "cannot write the status of objects");
        }
        self
    }
}

/// Names were checked when the object was read, so that they lead nowhere else.
fn path(root: &Path, key: &ObjectKey) -> PathBuf {
    let namespace = if key.namespace.is_empty() {
        NO_NAMESPACE
    } else {
        &key.namespace
    };
    root.join(key.kind.as_str())
        .join(namespace)
        .join(format!("{}.yaml", key.name))
}

fn write(root: &Path, key: &ObjectKey, status: &ObjectStatus) -> io::Result<()> {
    let text = serde_saphyr::to_string(status).map_err(io::Error::other)?;
    write_atomically(&path(root, key), text.as_bytes(), false)
}
