//! What became of each object, as a file of its own: `<state dir>/status/<kind>/<namespace>/<name>.yaml`; and what is
//! wrong with a file of the folder: `<state dir>/status/_files/<path>.yaml`, for as long as something is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tulle_model::Str;

use crate::history::write_atomically;
use crate::snapshot::{FileProblem, ObjectKey, ObjectStatus, Objects, Severity, Snapshot};

/// Directory for objects without a namespace.
const NO_NAMESPACE: &str = "_cluster";

/// Directory for files that something is wrong with; no kind is called so.
const FILES: &str = "_files";

/// Keeps the files as the newest cut says, until the engine is gone.
pub(super) async fn run(state_dir: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut files = Files {
        root: state_dir.join("status"),
        written: BTreeMap::new(),
        faulty: BTreeMap::new(),
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
    /// Findings written, by file of the folder.
    faulty: BTreeMap<Str, Vec<FileProblem>>,
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
        failed = self.update_faulty(objects).err().or(failed);
        if let Some(error) = failed {
            tracing::warn!(%error, path = %self.root.display(), "cannot write the status of objects");
        }
        self
    }
}

impl Files {
    /// Writes the findings of each file that has some, and removes those of files that have none any more.
    fn update_faulty(&mut self, objects: &Objects) -> io::Result<()> {
        let mut found: BTreeMap<Str, Vec<FileProblem>> = BTreeMap::new();
        for problem in objects.problems.iter() {
            found
                .entry(problem.file.clone())
                .or_default()
                .push(problem.clone());
        }
        for file in self.faulty.keys().filter(|file| !found.contains_key(*file)) {
            let _ = std::fs::remove_file(faulty_path(&self.root, file));
        }
        self.faulty.retain(|file, _| found.contains_key(file));
        for (file, problems) in found {
            if self.faulty.get(&file) != Some(&problems) {
                write_faulty(&self.root, &file, &problems)?;
                self.faulty.insert(file, problems);
            }
        }
        Ok(())
    }
}

/// A file's findings, in the form of conditions.
#[derive(Serialize)]
struct FileStatus<'a> {
    file: &'a Str,
    conditions: Vec<FileCondition>,
}

#[derive(Serialize)]
struct FileCondition {
    r#type: &'static str,
    status: &'static str,
    severity: Severity,
    reason: String,
    message: String,
}

/// The path was found below the folder, so it holds no step upwards.
fn faulty_path(root: &Path, file: &str) -> PathBuf {
    root.join(FILES).join(format!("{file}.yaml"))
}

fn write_faulty(root: &Path, file: &Str, problems: &[FileProblem]) -> io::Result<()> {
    let condition = |problem: &FileProblem| FileCondition {
        r#type: "tulle.dev/Accepted",
        status: if problem.severity == Severity::Error {
            "False"
        } else {
            "True"
        },
        severity: problem.severity,
        reason: problem.reason.to_string(),
        message: problem.to_string(),
    };
    let status = FileStatus {
        file,
        conditions: problems.iter().map(condition).collect(),
    };
    let text = serde_saphyr::to_string(&status).map_err(io::Error::other)?;
    write_atomically(&faulty_path(root, file), text.as_bytes(), false)
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
