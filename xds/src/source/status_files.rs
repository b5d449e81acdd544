//! What became of each object and who has accepted it, as a file of its own:
//! `<state dir>/status/<kind>/<namespace>/<name>.yaml`; and what is wrong with a file of the folder: `<state dir>/status/_files/<path>.yaml`, for as long as something is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tulle_k8s::Kind;
use tulle_model::Str;

use crate::history::write_atomically;
use crate::snapshot::{FileProblem, ObjectKey, ObjectStatus, Objects, Severity, Snapshot};
use crate::status::acks::{Acks, COMPARED_MAX, acks, conditions};
use crate::status::{ClientStatus, Clients};

/// Directory for objects without a namespace.
const NO_NAMESPACE: &str = "_cluster";

/// Directory for files that something is wrong with; no kind is called so.
const FILES: &str = "_files";

/// Time between two looks at what clients answered; changes of objects are written at once.
const ANSWERS_EVERY: Duration = Duration::from_secs(1);

/// Keeps the files as the newest cut and the answers to it say, until the engine is gone.
pub(super) async fn run(state_dir: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>, clients: Clients) {
    let mut files = Files::new(state_dir.join("status"));
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let answered = clients.changes();
        if snapshot.synced() {
            let clients = clients.list(Instant::now());
            files = match spawn_blocking(move || files.update(&snapshot, &clients)).await {
                Ok(files) => files,
                Err(error) => return tracing::error!(%error, "the status of objects is not written any more"),
            };
        }
        loop {
            tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = tokio::time::sleep(ANSWERS_EVERY) => {
                    if clients.changes() != answered {
                        break;
                    }
                }
            }
        }
    }
}

struct Files {
    root: PathBuf,
    written: BTreeMap<ObjectKey, (Arc<ObjectStatus>, Acks)>,
    /// Findings written, by file of the folder.
    faulty: BTreeMap<Str, Vec<FileProblem>>,
    /// What a former process left behind has been looked at.
    is_clean: bool,
    /// Why files could not be written last time; it is told once.
    failure: Option<String>,
}

impl Files {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            written: BTreeMap::new(),
            faulty: BTreeMap::new(),
            is_clean: false,
            failure: None,
        }
    }

    fn update(mut self, snapshot: &Arc<Snapshot>, clients: &[ClientStatus]) -> Self {
        let objects = snapshot.objects();
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
        let compared = objects.objects.size().saturating_mul(clients.len()) <= COMPARED_MAX;
        for (key, status) in objects.objects.iter() {
            // What is said of a gateway hangs on the answers, however many there are.
            let answers = match compared || key.kind == Kind::Gateway {
                true => acks(snapshot, clients, status),
                false => Acks::default(),
            };
            let same = |(written, before): &(Arc<ObjectStatus>, Acks)| {
                Arc::ptr_eq(written, status) && *before == answers
            };
            if self.written.get(key).is_some_and(same) {
                continue;
            }
            match write(&self.root, key, status, &answers) {
                Ok(()) => drop(self.written.insert(key.clone(), (status.clone(), answers))),
                Err(error) => failed = Some(error),
            }
        }
        failed = self.update_faulty(objects).err().or(failed);
        let failure = failed.map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
            tracing::warn!(error, path = %self.root.display(), "cannot write the status of objects");
        }
        self.failure = failure;
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

/// What became of an object, and how many clients hold it.
#[derive(Serialize)]
struct WithAnswers {
    #[serde(flatten)]
    status: ObjectStatus,
    /// `acked 41/42, rejected 1: node-17 "..."`
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<String>,
}

fn write(root: &Path, key: &ObjectKey, status: &ObjectStatus, answers: &Acks) -> io::Result<()> {
    let whole = WithAnswers {
        status: ObjectStatus {
            conditions: conditions(status, answers),
            ..status.clone()
        },
        answers: (answers.all() > 0).then(|| answers.to_string()),
    };
    let text = serde_saphyr::to_string(&whole).map_err(io::Error::other)?;
    write_atomically(&path(root, key), text.as_bytes(), false)
}
