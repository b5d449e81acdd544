//! Why a mesh could not be started, or did not stay up.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::process::ProcessError;
use crate::topology::WorldError;

/// A mesh could not be started, or did not stay up.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The world refused.
    #[error(transparent)]
    World(#[from] WorldError),
    /// A process could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file could not be written.
    #[error("cannot {step}: {source}")]
    File {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A component ended by itself.
    #[error("{name} ended ({status}); its log ends:\n{tail}")]
    Ended {
        /// Its name.
        name: String,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// A component did not become ready.
    #[error("{name} is not ready after {timeout:?}; see {log}")]
    NotReady {
        /// Its name.
        name: String,
        /// How long was waited.
        timeout: Duration,
        /// Its log.
        log: PathBuf,
    },
}

pub(super) fn file_step<T>(step: impl Into<String>, outcome: io::Result<T>) -> Result<T, MeshError> {
    outcome.map_err(|source| MeshError::File {
        step: step.into(),
        source,
    })
}
