//! Where configuration objects come from, and the one call that starts reading them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tulle_k8s::translate::MeshConfig;
use tulle_model::Trust;
use tulle_runtime::tasks::Scope;

use crate::engine::Engine;
use crate::history::History;
use crate::metrics::EngineMetrics;
use crate::snapshot::Snapshot;

pub mod folder;
mod status_files;

/// Batches that wait for the engine; a source that is faster waits too.
const BATCHES_WAITING_MAX: usize = 16;

/// Where objects are read from, and where what became of them is written to.
#[derive(Debug, Clone)]
pub struct FolderConfig {
    /// Folder with the objects.
    pub config_dir: PathBuf,
    /// Folder for the status of objects and for the last good generation; without it neither is kept.
    pub state_dir: Option<PathBuf>,
}

/// Reads a folder, for as long as the scope lives, and returns the cuts that its objects mean.
#[must_use]
pub fn start(
    config: FolderConfig,
    mesh: MeshConfig,
    trust: watch::Receiver<Option<Arc<Trust>>>,
    metrics: EngineMetrics,
    scope: &Scope,
) -> watch::Receiver<Arc<Snapshot>> {
    let (batches, waiting) = mpsc::channel(BATCHES_WAITING_MAX);
    let engine = Engine::spawn(mesh, waiting, trust, metrics, scope);
    let history = config.state_dir.as_deref().map(History::open);
    let history = history.map(|history| history.of(&config.config_dir));
    scope.spawn("folder", folder::run(config.config_dir, history, batches));
    if let Some(state_dir) = config.state_dir {
        scope.spawn(
            "status files",
            status_files::run(state_dir, engine.snapshots.clone()),
        );
    }
    engine.snapshots
}
