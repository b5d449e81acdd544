//! Follows the file of revocation lists that an operator configured.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::TrustStore;
use super::crl::{CRL_BYTES_MAX, Lists};

/// How often the file is looked at. What it revokes has to be closed within 2 s.
const LOOK: Duration = Duration::from_millis(500);

/// What tells one content from another without reading it. Follows links, as mounted ConfigMaps are links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        modified: metadata.modified().ok(),
        length: metadata.len(),
        inode: metadata.ino(),
    })
}

impl TrustStore {
    /// Reads the file once, so that nothing is believed before.
    pub fn load_file(&self, path: &Path) {
        match read(path) {
            Ok(lists) => {
                tracing::info!(path = %path.display(), lists = lists.len(), "revocation lists read");
                self.set_file(Some(lists));
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "revocation lists cannot be used; the last ones stay");
                self.set_file(None);
            }
        }
    }

    /// Reads the file again whenever it changed, for as long as the process lives.
    pub async fn follow_file(self, path: PathBuf) {
        // Read once more at first: it may have changed since it was read at the start.
        let mut last = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = stamp(&path);
            if now != last {
                last = now;
                self.load_file(&path);
            }
        }
    }
}

fn read(path: &Path) -> Result<Lists, Box<dyn std::error::Error>> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(CRL_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
    Ok(Lists::parse(&text)?)
}
