//! What became of each object and who has accepted it, as a file of its own:
//! `<state dir>/status/<kind>/<namespace>/<name>.yaml`; and what is wrong with a file of the folder: `<state dir>/status/_files/<path>.yaml`, for as long as something is.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Time between two looks at what clients answered; the first change of objects is written at once.
const ANSWERS_EVERY: Duration = Duration::from_secs(1);

/// Time between the beginnings of two rounds: an object that changes again meanwhile is written once, as it is then. Files
/// that are replaced all the time take the disk from the generations, which somebody waits for.
const ROUNDS_APART: Duration = Duration::from_secs(1);

/// Looking at every object again takes at most this part of the time; one over it …
const EVERYTHING_SHARE: u32 = 20;
/// … and never waits longer than this.
const EVERYTHING_WAITS_MAX: Duration = Duration::from_secs(30);

/// Objects from which on a map that was filled in order is packed.
const PACKED_MIN: usize = 1_000;

/// Keeps the files as the newest cut and the answers to it say, until the engine is gone.
pub(super) async fn run(state_dir: PathBuf, mut snapshots: watch::Receiver<Arc<Snapshot>>, clients: Clients) {
    let mut files = Files::new(state_dir.join("status"));
    let ending = Ending::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let (answered, mut next) = (clients.changes(), tokio::time::Instant::now());
        if snapshot.synced() {
            next += ROUNDS_APART;
            let (clients, is_over) = (clients.clone(), ending.0.clone());
            let update = move || files.update(&snapshot, &clients, answered, &is_over);
            let updated = spawn_blocking(update).await;
            files = match updated {
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
                    if files.wants(clients.changes(), Instant::now()) {
                        break;
                    }
                }
            }
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Tells the thread that writes files that nobody waits for it any more: the process would wait for the last of them.
#[derive(Default)]
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Files {
    root: PathBuf,
    /// What was written of each object; most objects are nobody's to answer.
    written: BTreeMap<ObjectKey, (Arc<ObjectStatus>, Option<Box<Acks>>)>,
    /// Objects that came since the map was packed.
    fresh: usize,
    /// Findings written, by file of the folder.
    faulty: BTreeMap<Str, Vec<FileProblem>>,
    /// What a former process left behind has been looked at.
    is_clean: bool,
    /// Why files could not be written last time; it is told once.
    failure: Option<String>,
    seen: Option<Seen>,
    /// When every object may be looked at again because of answers.
    everything_from: Option<Instant>,
    /// Objects looked at in the last round.
    looked_at: usize,
    /// Whether the answers of clients were looked at in it.
    asked: bool,
}

/// What the files say already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Changes of objects.
    changes: u64,
    /// Changes of what clients answered.
    answered: u64,
    /// Answers are told of every object, and not of gateways alone.
    compared: bool,
}

impl Files {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            written: BTreeMap::new(),
            fresh: 0,
            faulty: BTreeMap::new(),
            is_clean: false,
            failure: None,
            seen: None,
            everything_from: None,
            looked_at: 0,
            asked: false,
        }
    }

    /// Whether there are answers to write, and it is time to.
    fn wants(&self, answered: u64, now: Instant) -> bool {
        self.failure.is_some()
            || self.seen.is_none_or(|seen| seen.answered != answered)
                && self.everything_from.is_none_or(|from| now >= from)
    }

    /// The objects whose files may have to be written anew; after answers all of them, where those are told of all, else
    /// the gateways.
    fn due(&self, objects: &Objects, now: &mut Seen) -> Vec<ObjectKey> {
        let everything = || {
            let keys: BTreeSet<&ObjectKey> = objects.objects.keys().chain(self.written.keys()).collect();
            keys.into_iter().cloned().collect()
        };
        let Some(seen) = self
            .seen
            .filter(|seen| seen.compared == now.compared && self.failure.is_none())
        else {
            return everything();
        };
        let answers = self.wants(now.answered, Instant::now());
        if answers && now.compared {
            return everything();
        }
        if !answers {
            // What changed is written, the rest later.
            now.answered = seen.answered;
        }
        let Some(changed) = objects.changed_since(seen.changes) else {
            return everything();
        };
        let gateways = objects.objects.range(ObjectKey::new(Kind::Gateway, "", "")..);
        let gateways = gateways.take_while(|(key, _)| answers && key.kind == Kind::Gateway);
        let keys: BTreeSet<&ObjectKey> = changed.chain(gateways.map(|(key, _)| key)).collect();
        keys.into_iter().cloned().collect()
    }

    fn update(
        mut self,
        snapshot: &Arc<Snapshot>,
        clients: &Clients,
        answered: u64,
        is_over: &AtomicBool,
    ) -> Self {
        let begin = Instant::now();
        let objects = snapshot.objects();
        if !self.is_clean {
            // What an earlier process wrote about objects that are gone would stay for ever.
            let removed = std::fs::remove_dir_all(&self.root);
            self.is_clean =
                removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        }
        let compared = objects.objects.size().saturating_mul(clients.len()) <= COMPARED_MAX;
        let mut seen = Seen {
            changes: objects.changes(),
            answered,
            compared,
        };
        let due = self.due(objects, &mut seen);
        // Copied for the first object that somebody has to answer: thousands of streams note their answers meanwhile.
        let answers = OnceCell::new();
        let told = || &**answers.get_or_init(|| clients.list(Instant::now()));
        let mut failed = None;
        self.looked_at = due.len();
        for key in due {
            if is_over.load(Ordering::Relaxed) {
                return self;
            }
            failed = self.update_one(&key, snapshot, told, compared).err().or(failed);
        }
        self.asked = answers.get().is_some();
        if std::mem::take(&mut self.fresh) >= PACKED_MIN {
            // Filled in order, its nodes are only half full.
            self.written = std::mem::take(&mut self.written).into_iter().collect();
        }
        failed = self.update_faulty(objects).err().or(failed);
        let failure = failed.map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
            tracing::warn!(error, path = %self.root.display(), "cannot write the status of objects");
        }
        self.failure = failure;
        if self.seen.is_none_or(|before| before.answered != seen.answered) {
            self.everything_from =
                Some(Instant::now() + (begin.elapsed() * EVERYTHING_SHARE).min(EVERYTHING_WAITS_MAX));
        }
        self.seen = Some(seen);
        self
    }

    fn update_one<'a>(
        &mut self,
        key: &ObjectKey,
        snapshot: &Arc<Snapshot>,
        told: impl Fn() -> &'a [ClientStatus],
        compared: bool,
    ) -> io::Result<()> {
        let Some(status) = snapshot.objects().objects.get(key) else {
            if self.written.remove(key).is_some() {
                let _ = std::fs::remove_file(path(&self.root, key));
            }
            return Ok(());
        };
        // What is said of a gateway hangs on the answers, however many there are.
        let answers = match compared || key.kind == Kind::Gateway {
            true => acks(snapshot, told(), status),
            false => Acks::default(),
        };
        let same = |(written, before): &(Arc<ObjectStatus>, Option<Box<Acks>>)| {
            Arc::ptr_eq(written, status)
                && before
                    .as_deref()
                    .map_or_else(|| answers == Acks::default(), |before| *before == answers)
        };
        if self.written.get(key).is_some_and(same) {
            return Ok(());
        }
        write(&self.root, key, status, &answers)?;
        let answers = (answers != Acks::default()).then(|| Box::new(answers));
        let old = self.written.insert(key.clone(), (status.clone(), answers));
        self.fresh += usize::from(old.is_none());
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Batch, Engine, Event, InForce};

    fn event(name: &str, label: &str) -> Event {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{v: '{label}'}}}}\nspec: {{clusterIP: 10.9.0.1}}\n"
        );
        let parsed = crate::source::folder::parse::parse(&"a.yaml".into(), &text);
        let statement = &parsed.statements[0];
        Event {
            key: statement.key.clone(),
            object: Some(InForce {
                object: statement.good().expect("a service").object.clone(),
                file: "a.yaml".into(),
                generation: label.parse().expect("a number"),
                stale_since: None,
            }),
        }
    }

    fn batch(events: Vec<Event>) -> Batch {
        Batch {
            events,
            synced: true,
            ..Batch::default()
        }
    }

    fn never() -> AtomicBool {
        AtomicBool::new(false)
    }

    #[test]
    fn the_end_of_the_process_ends_writing_between_two_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(tulle_k8s::translate::MeshConfig::default());
        let all = (0..200).map(|number| event(&format!("s{number}"), "1")).collect();
        let snapshot = Arc::new(engine.apply(batch(all)));
        let ending = Ending::default();
        let is_over = ending.0.clone();
        drop(ending);
        let files =
            Files::new(folder.path().join("status")).update(&snapshot, &Clients::default(), 0, &is_over);
        assert_eq!((files.looked_at, files.written.len()), (200, 0));
        assert!(files.seen.is_none(), "nothing counts as written");
    }

    #[test]
    fn a_change_looks_at_its_own_objects_and_an_answer_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(tulle_k8s::translate::MeshConfig::default());
        let all = (0..200).map(|number| event(&format!("s{number}"), "1")).collect();
        let (files, nobody) = (Files::new(folder.path().join("status")), Clients::default());
        let files = files.update(&Arc::new(engine.apply(batch(all))), &nobody, 0, &never());
        assert_eq!((files.looked_at, files.written.len()), (200, 200));
        let changed = engine.apply(batch(vec![event("s7", "2")]));
        let mut files = files.update(&Arc::new(changed), &nobody, 0, &never());
        assert_eq!(files.looked_at, 1);
        let written = std::fs::read_to_string(path(&files.root, &event("s7", "2").key)).unwrap();
        assert!(written.contains("generation: 2"), "{written}");
        let gone = Event {
            object: None,
            ..event("s9", "1")
        };
        let snapshot = Arc::new(engine.apply(batch(vec![gone.clone()])));
        // Answers came, and every object was looked at a moment ago: that waits.
        files.everything_from = Some(Instant::now() + Duration::from_secs(3600));
        let mut files = files.update(&snapshot, &nobody, 1, &never());
        assert_eq!(
            (files.looked_at, path(&files.root, &gone.key).exists()),
            (1, false)
        );
        assert!(!files.wants(1, Instant::now()));
        files.everything_from = None;
        assert!(files.wants(1, Instant::now()));
        let files = files.update(&snapshot, &nobody, 1, &never());
        assert_eq!(files.looked_at, 199);
        assert!(!files.wants(1, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_again_within_a_second_is_written_once_as_it_is_then() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(tulle_k8s::translate::MeshConfig::default());
        let mut cut = |label: &str| Arc::new(engine.apply(batch(vec![event("s", label)])));
        let (tell, snapshots) = watch::channel(cut("1"));
        let running = run(folder.path().to_owned(), snapshots, Clients::default());
        let running = tulle_runtime::tasks::spawn("status files", running);
        let file = path(&folder.path().join("status"), &event("s", "1").key);
        let says = |generation: u64| {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            text.contains(&format!("generation: {generation}\n"))
        };
        // Time does not pass while a file is being written.
        let pass = |ms| tokio::time::sleep(Duration::from_millis(ms));
        pass(10).await;
        assert!(says(1));
        tell.send_replace(cut("2"));
        pass(500).await;
        assert!(says(1), "the round before is not a second old");
        tell.send_replace(cut("3"));
        pass(500).await;
        assert!(says(3));
        drop(tell);
        running.await.unwrap();
    }

    #[test]
    fn where_answers_are_not_told_of_every_object_a_cut_copies_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::new(tulle_k8s::translate::MeshConfig::default());
        let all = (0..200).map(|number| event(&format!("s{number}"), "1")).collect();
        let snapshot = Arc::new(engine.apply(batch(all)));
        let clients = Clients::default();
        let connect = |number: usize| clients.connect_proxy(&format!("n{number}"));
        let few: Vec<_> = (0..COMPARED_MAX / 200).map(connect).collect();
        let files = Files::new(folder.path().join("status")).update(&snapshot, &clients, 1, &never());
        assert!(files.asked, "each object is asked for");
        let one_more = connect(few.len());
        let files = files.update(&snapshot, &clients, 2, &never());
        assert_eq!((files.looked_at, files.asked), (200, false));
        let changed = Arc::new(engine.apply(batch(vec![event("s7", "2")])));
        let files = files.update(&changed, &clients, 3, &never());
        assert_eq!((files.looked_at, files.asked), (1, false));
        drop(one_more);
    }
}
