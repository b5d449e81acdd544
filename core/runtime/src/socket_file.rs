//! Where a unix socket appears: with its mode from the first moment on, and in place of one that was left behind.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Binds with `bind` and puts the socket at `path`, with this mode. The folder is made if it is missing.
///
/// The socket gets its mode under a name nobody looks for, then takes its place in one rename: it is never open to
/// others, and a socket left behind by an earlier process is replaced.
///
/// # Errors
/// What the kernel answers.
pub fn place<L>(path: &Path, mode: u32, bind: impl FnOnce(&Path) -> io::Result<L>) -> io::Result<L> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_left_behind_is_replaced_and_only_its_owner_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/own.sock");
        drop(place(&path, 0o600, |path| UnixListener::bind(path)).unwrap());
        assert!(
            UnixStream::connect(&path).is_err(),
            "nobody listens there any more"
        );
        let _listener = place(&path, 0o600, |path| UnixListener::bind(path)).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
