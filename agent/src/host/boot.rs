//! From boot until the agent has looked around: which ranges of addresses are kept mute, and what is remembered for
//! the next boot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tulle_linux::NetNs;

use super::Host;
use crate::error::CaptureError;
use crate::rules::host::{GUARD_TABLE, WAIT_SET4, WAIT_SET6, guard};
use crate::rules::ranges::Range;
use crate::rules::{Backend, Rules};

/// Name of the file within the agent's state folder.
const FILE: &str = "guard.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A file longer than this is not ours.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What is remembered for the next boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    /// The boot it was written in.
    boot_id: String,
    /// Ranges of pods' addresses on this node, in their written form.
    ranges: Vec<String>,
}

/// Why pods cannot be guarded at boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The state cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was said.
        source: io::Error,
    },
    /// The state is not what this agent writes.
    #[error("{} is not what an agent writes ({cause}); remove it, and give the ranges again with --pod-range", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] CaptureError),
}

/// What is to be done about the guard when an agent starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BootGuard {
    /// It was loaded before the agent, or nothing waits any more: go on with what is there.
    Standing,
    /// This is the first start after a boot and nobody loaded it: pods may have spoken. Load it now.
    Late,
    /// No ranges are known, so there is none.
    NoRanges,
}

/// Whether the guard is to be loaded, from what is remembered and what the kernel has.
fn decide(saved: Option<&Saved>, boot_id: &str, loaded: bool) -> BootGuard {
    match saved {
        None => BootGuard::NoRanges,
        Some(saved) if saved.ranges.is_empty() => BootGuard::NoRanges,
        Some(saved) if !loaded && saved.boot_id != boot_id => BootGuard::Late,
        // A mere restart: loading it would cut running pods.
        Some(_) => BootGuard::Standing,
    }
}

/// Loads the table with the ranges of the last run, in the calling process's namespace. Returns how many there are.
///
/// # Errors
/// When the ranges cannot be read or the kernel refuses.
pub async fn load(folder: &Path) -> Result<usize, BootError> {
    let Some(saved) = read(folder)? else { return Ok(0) };
    let ranges = parsed(folder, &saved)?;
    let netns = NetNs::current().map_err(CaptureError::kernel("open the node's own network namespace"))?;
    let table = guard(&ranges, &std::collections::BTreeSet::new());
    Backend::Netlink.rules().apply(&netns, &table).await?;
    Ok(ranges.len())
}

/// At the agent's start: guards what must be guarded, and remembers the ranges for the next boot.
///
/// # Errors
/// When the state cannot be read or written, or the kernel refuses.
pub async fn start(host: &Host, folder: &Path, ranges: &[String]) -> Result<BootGuard, BootError> {
    let boot_id = read_boot_id()?;
    let saved = read(folder)?;
    let loaded = is_loaded(&host.rules, &host.netns).await?;
    let decided = decide(saved.as_ref(), &boot_id, loaded);
    if let (BootGuard::Late, Some(saved)) = (decided, &saved) {
        host.guard_ranges(parsed(folder, saved)?);
        host.settle().await?;
    }
    let ranges = match saved {
        Some(saved) if ranges.is_empty() => saved.ranges,
        _ => ranges.to_vec(),
    };
    write(folder, &Saved { boot_id, ranges })?;
    Ok(decided)
}

async fn is_loaded(rules: &Arc<dyn Rules>, netns: &NetNs) -> Result<bool, CaptureError> {
    for set in [WAIT_SET4, WAIT_SET6] {
        if !rules.held(netns, GUARD_TABLE, set, true).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_boot_id() -> Result<String, BootError> {
    let path = Path::new(BOOT_ID);
    let text = fs::read_to_string(path).map_err(file_error(path))?;
    Ok(text.trim().to_owned())
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::File { path, source }
}

fn unreadable(path: &Path, cause: impl ToString) -> BootError {
    BootError::Unreadable {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

fn read(folder: &Path) -> Result<Option<Saved>, BootError> {
    let path = folder.join(FILE);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error(&path)(error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(unreadable(&path, "it is too long")),
        Ok(_) => {}
    }
    let text = fs::read_to_string(&path).map_err(file_error(&path))?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| unreadable(&path, error))
}

fn parsed(folder: &Path, saved: &Saved) -> Result<Vec<Range>, BootError> {
    let ranges: Result<Vec<Range>, _> = saved.ranges.iter().map(|text| text.parse()).collect();
    ranges.map_err(|error| unreadable(&folder.join(FILE), error))
}

/// Whole or not at all: a node may lose its power at any time.
fn write(folder: &Path, saved: &Saved) -> Result<(), BootError> {
    let (path, draft) = (folder.join(FILE), folder.join("guard.json.new"));
    let text = serde_json::to_string(saved).expect("texts are JSON");
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&draft, text))
        .and_then(|()| fs::File::open(&draft)?.sync_all())
        .and_then(|()| fs::rename(&draft, &path));
    written.map_err(file_error(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(boot_id: &str) -> Saved {
        Saved {
            boot_id: boot_id.to_owned(),
            ranges: vec!["10.0.0.0/24".to_owned()],
        }
    }

    #[test]
    fn a_mere_restart_loads_nothing_and_so_cuts_no_running_pod() {
        assert_eq!(decide(Some(&saved("now")), "now", false), BootGuard::Standing);
    }

    #[test]
    fn the_first_start_after_a_boot_loads_what_nobody_loaded() {
        assert_eq!(decide(Some(&saved("before")), "now", false), BootGuard::Late);
        assert_eq!(decide(Some(&saved("before")), "now", true), BootGuard::Standing);
    }

    #[test]
    fn without_ranges_there_is_nothing_to_load() {
        assert_eq!(decide(None, "now", false), BootGuard::NoRanges);
        let none = Saved {
            ranges: Vec::new(),
            ..saved("before")
        };
        assert_eq!(decide(Some(&none), "now", false), BootGuard::NoRanges);
    }

    #[test]
    fn what_was_written_is_read_again_and_a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        write(folder.path(), &saved("now")).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(saved("now")));
        fs::write(folder.path().join(FILE), "{").unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("guard.json") && error.contains("--pod-range"),
            "{error}"
        );
    }
}
