//! Where configuration objects come from, and the one call that starts reading them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tulle_k8s::api::gateway::NamespaceSelector;
use tulle_k8s::translate::MeshConfig;
use tulle_model::Trust;
use tulle_runtime::ready::BlockReady;
use tulle_runtime::tasks::Scope;

use crate::drains;
use crate::engine::{Engine, EngineHandle};
use crate::history::History;
use crate::metrics::EngineMetrics;
use crate::status::Clients;
use folder::Reader;
use folder::looks::Looks;
use scoped::Scoped;

pub mod folder;
mod scoped;
mod status_files;

/// Batches that wait for the engine; a source that is faster waits too.
const BATCHES_WAITING_MAX: usize = 16;

/// Where objects are read from, and where what became of them is written to.
#[derive(Debug)]
pub struct FolderConfig {
    /// Folder with the objects.
    pub config_dir: PathBuf,
    /// Folder for the status of objects and for the last good generation; without it neither is kept.
    pub state_dir: Option<PathBuf>,
    /// Another process owns the state folder: what it recorded is in force here, too, and nothing is written.
    pub follow: bool,
    /// Takes wishes for a look.
    pub looks: Looks,
    /// Labels of the namespaces that are served, beside the root namespace; without it all are.
    pub namespaces: Option<NamespaceSelector>,
    /// Dropped once what was there at the start is in force and on record.
    pub reading: Option<BlockReady>,
}

/// Reads a folder, for as long as the scope lives, and returns the engine with the cuts that its objects mean. What the clients answer
/// stands in the files of objects.
#[must_use]
pub fn start(
    config: FolderConfig,
    mesh: MeshConfig,
    trust: watch::Receiver<Option<Arc<Trust>>>,
    clients: Clients,
    metrics: EngineMetrics,
    scope: &Scope,
) -> EngineHandle {
    let (batches, mut waiting) = mpsc::channel(BATCHES_WAITING_MAX);
    if let Some(selector) = config.namespaces {
        waiting = Scoped::new(selector, mesh.root_namespace.clone()).between(waiting, scope);
    }
    let engine = Engine::spawn(mesh, waiting, trust, metrics.clone(), scope);
    let draining = drains::run(engine.snapshots.clone(), clients.clone(), engine.releases.clone());
    scope.spawn("draining waypoints", draining);
    let reader = match config.state_dir.as_deref() {
        Some(state_dir) if config.follow => Reader::following(config.config_dir.clone(), state_dir),
        Some(state_dir) => {
            let history = History::open(state_dir).of(&config.config_dir);
            Reader::new(config.config_dir.clone(), Some(history))
        }
        None => Reader::new(config.config_dir.clone(), None),
    };
    let waiting = (config.looks, config.reading);
    let run = folder::run(config.config_dir, reader, batches, metrics, waiting);
    scope.spawn_vital("folder", run);
    if let Some(state_dir) = config.state_dir.filter(|_| !config.follow) {
        scope.spawn(
            "status files",
            status_files::run(state_dir, engine.snapshots.clone(), clients),
        );
    }
    engine
}
