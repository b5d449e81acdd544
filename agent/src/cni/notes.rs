//! Notes of sandboxes that ended while the agent was away: the plugin leaves them, the agent takes them up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::protocol::Sandbox;
use crate::records;

/// Notes that are taken up at a time.
const NOTES_MAX: usize = 4096;
/// Bytes of a note; none of ours comes near.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// The folder of notes.
#[must_use]
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("deleted")
}

/// Leaves a note.
///
/// # Errors
/// When it cannot be written.
pub fn leave(state_dir: &Path, sandbox: &Sandbox) -> io::Result<()> {
    let folder = folder(state_dir);
    records::make_private(&folder)?;
    // The id was read as a name, so it is one step down the folder.
    let path = folder.join(format!("{}.json", sandbox.container_id));
    records::write_whole(&path, &serde_json::to_vec(sandbox)?)
}

/// Takes up every note: each is given to `take`, then removed. One that cannot be read is removed too.
///
/// # Errors
/// When the folder cannot be listed.
pub fn take_up(state_dir: &Path, mut take: impl FnMut(Sandbox)) -> io::Result<()> {
    let folder = folder(state_dir);
    records::make_private(&folder)?;
    for entry in fs::read_dir(&folder)?.take(NOTES_MAX) {
        let path = entry?.path();
        // Others are drafts that a plugin writes just now.
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path) {
            Ok(sandbox) => take(sandbox),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a note cannot be read and is removed")
            }
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Sandbox> {
    if fs::metadata(path)?.len() > NOTE_BYTES_MAX {
        return Err(io::Error::other("the note is too long"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::PodId;

    #[test]
    fn a_note_is_taken_up_once() {
        let state = tempfile::tempdir().unwrap();
        let sandbox = Sandbox {
            container_id: "c1".into(),
            pod: PodId {
                namespace: "shop".into(),
                name: "web".into(),
                uid: "u1".into(),
            },
            netns: None,
            addresses: Vec::new(),
            resolver: None,
        };
        leave(state.path(), &sandbox).unwrap();
        leave(state.path(), &sandbox).unwrap();
        fs::write(folder(state.path()).join("broken.json"), "{").unwrap();
        let mut taken = Vec::new();
        take_up(state.path(), |note| taken.push(note)).unwrap();
        assert_eq!(taken, [sandbox]);
        take_up(state.path(), |_| panic!("nothing is left")).unwrap();
    }
}
