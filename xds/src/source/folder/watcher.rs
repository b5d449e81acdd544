//! Hears of changes: inotify on every directory of the tree, and on the one above it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Hears of changes. Where inotify cannot be had, regular scans still find them.
pub(crate) struct Watcher {
    inner: Option<RecommendedWatcher>,
    /// When the first of what happened did.
    events: mpsc::Receiver<Instant>,
    watched: BTreeSet<PathBuf>,
    above: Option<PathBuf>,
}

impl Watcher {
    /// Begins to listen; nothing is watched yet.
    pub(crate) fn new(root: &Path) -> Self {
        // One waiting event says as much as many: something changed.
        let (tell, events) = mpsc::channel(1);
        let hear = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_change(event.kind)) {
                let _ = tell.try_send(Instant::now());
            }
        };
        let inner = notify::recommended_watcher(hear);
        let inner = inner.inspect_err(
            |error| tracing::warn!(%error, "cannot watch files; only regular scans find changes"),
        );
        let above = root.parent().map(|above| {
            if above.as_os_str().is_empty() {
                ".".into()
            } else {
                above.to_owned()
            }
        });
        Self {
            inner: inner.ok(),
            events,
            watched: BTreeSet::new(),
            above,
        }
    }

    /// Hears what a test says.
    #[cfg(test)]
    pub(crate) fn of(events: mpsc::Receiver<Instant>) -> Self {
        Self {
            inner: None,
            events,
            watched: BTreeSet::new(),
            above: None,
        }
    }

    /// Watches these directories and no others; says whether any is new.
    pub(crate) fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(inner) = &mut self.inner else {
            return false;
        };
        // A directory that is replaced keeps its path and loses its watch, so that each is asked for anew.
        for gone in self.watched.iter().filter(|path| !directories.contains(*path)) {
            let _ = inner.unwatch(gone);
        }
        let mut new = false;
        let mut watched = BTreeSet::new();
        for path in directories.iter().chain(&self.above) {
            match inner.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    new |= !self.watched.contains(path);
                    watched.insert(path.clone());
                }
                Err(error) => tracing::debug!(path = %path.display(), %error, "cannot watch a directory"),
            }
        }
        self.watched = watched;
        new
    }

    /// Completes when something may have changed, with the time of the first of what happened since it did before.
    pub(crate) async fn event(&mut self) -> Instant {
        match self.events.recv().await {
            Some(first) => first,
            None => std::future::pending().await,
        }
    }
}

/// Whether an event can mean new content. Reading is none, and our own scans read.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}
