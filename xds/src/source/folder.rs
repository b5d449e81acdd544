//! The folder source: watches a tree of manifests and turns each settled state of it into one batch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tulle_runtime::ready::BlockReady;

use crate::engine::Batch;
use crate::history::History;
use crate::metrics::EngineMetrics;
use crate::snapshot::Severity;
use follow::Follower;
use library::{Library, Settled, Step};
use looks::{Looks, Told};
use scan::{Scan, Scanner};
use watcher::Watcher;

pub(crate) mod allocate;
mod follow;
pub(crate) mod gateways;
pub(crate) mod library;
pub mod looks;
mod packed;
pub(crate) mod parse;
pub(crate) mod scan;
pub(crate) mod watcher;
pub(crate) mod written;

pub use scan::DIRECTORIES_DEEP_MAX;

/// A scan starts once nothing happened for this long …
const QUIET: Duration = Duration::from_millis(20);
/// … and at the latest this long after the first event.
const QUIET_MAX: Duration = Duration::from_millis(250);
/// Time between scans when nothing happens: what inotify misses is found by then.
const RESCAN: Duration = Duration::from_secs(30);
/// A file that cannot be parsed and is younger than this may still be in the middle of being written.
const WRITING_MAX: Duration = Duration::from_millis(200);

/// Reads the folder until the engine is gone. `reading` is dropped once what was there at the start is on record.
pub(super) async fn run(
    root: PathBuf,
    mut reader: Reader,
    batches: mpsc::Sender<Batch>,
    metrics: EngineMetrics,
    (looks, mut reading): (Looks, Option<BlockReady>),
) {
    let mut why = "start";
    let mut told = Told::new(looks.clone());
    let mut watcher = Watcher::new(&root);
    let records = reader.follower.as_ref().map(Follower::records);
    loop {
        let (scan, mut settled);
        metrics.on_relist("folder", why);
        let look = looks.begin();
        // Files and parsing block; they get a thread of their own.
        (reader, scan, settled) = match spawn_blocking(move || reader.look()).await {
            Ok(looked) => looked,
            Err(error) => return tracing::error!(%error, "the configuration folder is not read any more"),
        };
        // A folder that was not watched while it was scanned may have changed since.
        let rescan = watcher.watch(&scan.directories().iter().chain(&records).cloned().collect());
        log(&settled);
        if let Some(batch) = settled.batch.as_mut().filter(|_| why != "start") {
            // What was there before this process says nothing of how fast it is.
            batch.written = scan.written(batch);
        }
        if let Some(batch) = told.of(look, &mut settled)
            && batches.send(batch).await.is_err()
        {
            return;
        }
        let step = settled.step;
        let record = move || {
            reader.record_first(&step);
            reader.forget();
            reader
        };
        // The first step holds every object; it goes as soon as it is on record.
        reader = match spawn_blocking(record).await {
            Ok(reader) => reader,
            Err(error) => return tracing::error!(%error, "the configuration folder is not read any more"),
        };
        if reader.is_whole() {
            drop(reading.take());
        }
        let now = Instant::now();
        let (next, due) = match (rescan, settled.read_again) {
            (true, _) => (now, "new_directory"),
            (false, true) => (now + WRITING_MAX, "unfinished_file"),
            (false, false) => (now + RESCAN, "periodic"),
        };
        why = if settle(&mut watcher, &looks, next).await {
            "event"
        } else {
            due
        };
    }
}

/// What looking at the folder needs and remembers.
pub(super) struct Reader {
    scanner: Scanner,
    library: Library,
    history: Option<History>,
    /// Another process decides.
    follower: Option<Follower>,
}

impl Reader {
    /// Follows the process that owns this state folder.
    pub(super) fn following(root: PathBuf, state_dir: &Path) -> Self {
        Self {
            follower: Some(Follower::new(state_dir)),
            ..Self::new(root, None)
        }
    }

    pub(super) fn new(root: PathBuf, mut history: Option<History>) -> Self {
        if let Some(history) = &mut history {
            history.recover();
        }
        let mut library = history.as_mut().and_then(History::load).unwrap_or_default();
        if let Some(history) = &history {
            library.set_allocations(history.allocations(), jiff::Timestamp::now());
        }
        Self {
            scanner: Scanner::new(root),
            library,
            history,
            follower: None,
        }
    }

    /// Whether what there is may be served.
    fn is_whole(&self) -> bool {
        let decided = self.follower.as_ref().map(Follower::told);
        decided.unwrap_or(&self.library).is_whole()
    }

    /// Looks once.
    fn look(mut self) -> (Self, Scan, Settled) {
        let scan = self.scanner.scan();
        if let Some(follower) = &mut self.follower {
            let settled = follower.look(&scan, jiff::Timestamp::now());
            return (self, scan, settled);
        }
        let accepted = self.history.as_ref().is_some_and(History::take_accept_empty);
        if accepted || !scan.files.is_empty() {
            self.library.accept_empty(accepted);
        }
        let mut settled = self.library.settle(&scan, jiff::Timestamp::now());
        if !settled.step.held_anything() {
            return (self, scan, settled);
        }
        match self
            .history
            .as_mut()
            .map(|history| history.take(&self.library, &settled))
        {
            // What cannot be recorded does not come into force.
            Some(Err(error)) => {
                let cause =
                    format!("the generation cannot be recorded: {error}; the last one stays in force");
                settled = self.library.refuse(settled.step, &cause);
            }
            _ => self.library.drop_texts(&settled.step),
        }
        (self, scan, settled)
    }

    /// Drops generations of which there are too many.
    fn forget(&mut self) {
        if let Some(history) = &mut self.history {
            history.forget();
        }
    }

    /// Records what came into force where nothing was: that need not wait for the disk, and the engine is at work meanwhile.
    fn record_first(&mut self, step: &Step) {
        if step.held_anything() || self.follower.is_some() || !self.library.is_whole() {
            return;
        }
        if let Some(history) = &mut self.history {
            // What could not be recorded is told there, and is in force all the same: there is nothing else to be.
            let _ = history.record(&self.library, step);
        }
        self.library.drop_texts(step);
    }
}

/// Waits for something to happen and to be over, for somebody to ask, or for the next scan that is due anyway; says
/// whether something happened.
async fn settle(watcher: &mut Watcher, looks: &Looks, next: Instant) -> bool {
    // What happened while the folder was looked at, and while that was recorded, has waited since.
    let first = tokio::select! {
        () = sleep_until(next) => return false,
        first = watcher.event() => first,
        () = looks.asked() => Instant::now(),
    };
    let latest = first + QUIET_MAX;
    loop {
        tokio::select! {
            () = sleep_until(latest.min(Instant::now() + QUIET)) => return true,
            _ = watcher.event() => {}
        }
    }
}

/// Tells what changed, once.
fn log(settled: &Settled) {
    for problem in &settled.news {
        match problem.severity {
            Severity::Error => tracing::error!(%problem, "configuration refused"),
            Severity::Warning => tracing::warn!(%problem, "configuration is probably not as meant"),
            Severity::Note => tracing::info!(%problem, "configuration skipped"),
        }
    }
    let Some(batch) = &settled.batch else { return };
    tracing::info!(
        generation = batch.generation,
        changes = batch.events.len(),
        "configuration read"
    );
    if !batch.synced {
        tracing::error!("the configuration could never be read as a whole; nothing is served until it can");
    }
    if let Some(reason) = &batch.degraded {
        tracing::error!(%reason, "the configuration folder is degraded; the last state stays in force");
    }
}

#[cfg(test)]
mod tests;
