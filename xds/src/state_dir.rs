//! The state folder: for its owner only, and for one control plane at a time. Replicas read it beside that one.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
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

/// Held by the process that owns the folder; replicas look at it to see whether somebody does. It is not the file that
/// decides who owns the folder, so that a look never keeps anybody from it.
const OWNER: &str = "owner";
/// Longest name of an owner that is read.
const OWNER_BYTES_MAX: u64 = 512;

/// Puts a whole file in the place of another, for good: until what that did to the folder is on the disk, too, a crash of
/// the machine may bring the old one back.
///
/// # Errors
/// It stays where it is, or it is in its place and may not stay there.
pub(crate) fn replace(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// The folder, held until dropped.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
    owner: File,
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
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateDirError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let owner = options.open(path.join(OWNER)).map_err(unusable)?;
        // Only looks are waited for, and those are over at once.
        owner.lock().map_err(unusable)?;
        Ok(Self { _lock: lock, owner })
    }

    /// Says who holds the folder, for the replicas beside it.
    ///
    /// # Errors
    /// It cannot be written: then replicas see that somebody does, and not who.
    pub fn sign(&self, name: &str) -> io::Result<()> {
        self.owner.set_len(0)?;
        self.owner.write_all_at(name.as_bytes(), 0)
    }

    /// Who holds the folder, if somebody does and could say so.
    #[must_use]
    pub fn owner(path: &Path) -> Option<String> {
        let file = File::open(path.join(OWNER)).ok()?;
        let is_held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        let mut name = String::new();
        let read = file.take(OWNER_BYTES_MAX).read_to_string(&mut name);
        name.retain(|character| !character.is_control());
        (is_held && read.is_ok() && !name.is_empty()).then_some(name)
    }

    /// Whether a living process owns the folder.
    #[must_use]
    pub fn is_owned(path: &Path) -> bool {
        let file = File::open(path.join(OWNER));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
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

    #[test]
    fn a_replica_sees_whether_somebody_owns_the_folder_and_hinders_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(!StateDir::is_owned(&path));
        let owner = StateDir::open(&path).unwrap();
        assert!(StateDir::is_owned(&path));
        drop(owner);
        assert!(!StateDir::is_owned(&path));
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_replica_sees_who_owns_the_folder_for_as_long_as_it_is_owned() {
        let folder = tempfile::tempdir().unwrap();
        let owner = StateDir::open(folder.path()).unwrap();
        assert_eq!(StateDir::owner(folder.path()), None, "it has not said so");
        owner.sign("a-longer-name:15012").unwrap();
        owner.sign("a:15012").unwrap();
        assert_eq!(StateDir::owner(folder.path()).as_deref(), Some("a:15012"));
        drop(owner);
        assert_eq!(StateDir::owner(folder.path()), None);
    }
}
