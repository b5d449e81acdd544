//! The state folder: for its owner only, and for one control plane at a time.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The folder cannot be made or written.
    #[error("cannot use the state folder {path}: {source}")]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another control plane uses it.
    #[error("another control plane uses the state folder {path}")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
}

/// The folder, held until dropped.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it is missing, and takes it.
    ///
    /// # Errors
    /// It cannot be written, or another control plane holds it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let unusable = |source| StateDirError::Unusable {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unusable)?;
        let mut options = fs::OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::Locked {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_control_plane_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::Locked { .. })));
        drop(first);
        StateDir::open(&path).unwrap();
    }
}
