//! How much memory this process may have, and how much of it is in use: what its control groups say.
//!
//! Both versions of control groups are read. A limit counts wherever it stands on the way from the process to the
//! root; the tightest one decides. File pages that nobody uses are not counted, as they are given back when needed.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNTED: &str = "/sys/fs/cgroup";

/// Where the kernel says which groups this process is in.
const OWN_GROUPS: &str = "/proc/self/cgroup";

/// Groups of a path that are looked at, from the process upwards.
const DEPTH_MAX: usize = 32;

/// Version 1 says so many bytes, or a few less, where there is no limit.
const UNLIMITED: u64 = 1 << 62;

/// How much of a limit is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: u64,
    /// All there is.
    pub limit: u64,
}

impl Usage {
    /// Which is closer to its limit.
    fn compare(a: &Self, b: &Self) -> Ordering {
        let share = |one: &Self, other: &Self| u128::from(one.used) * u128::from(other.limit);
        share(a, b).cmp(&share(b, a))
    }
}

/// The groups whose memory limits hold for this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryLimits(Vec<Group>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    limit: u64,
    files: &'static Files,
}

/// What the files of a group are called.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` that says how much is only kept because there is room.
    reclaimable: &'static str,
}

static V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};

static V2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    reclaimable: "inactive_file ",
};

impl MemoryLimits {
    /// Those of this process, as they are now: a process may be moved, and a limit changed, while it runs.
    #[must_use]
    pub fn of_process() -> Self {
        let own = fs::read_to_string(OWN_GROUPS).unwrap_or_default();
        Self::find(Path::new(MOUNTED), &own)
    }

    fn find(mounted: &Path, own: &str) -> Self {
        let mut groups = Vec::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            if controllers.is_empty() {
                groups.extend(upwards(mounted, path, &V2));
            } else if controllers.split(',').any(|controller| controller == "memory") {
                groups.extend(upwards(&mounted.join("memory"), path, &V1));
            }
        }
        Self(groups)
    }

    /// The group that is closest to its limit; `None` without a limit.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.0.iter().filter_map(Group::usage).max_by(Usage::compare)
    }

    /// The tightest limit; `None` without one.
    #[must_use]
    pub fn tightest(&self) -> Option<u64> {
        self.0.iter().map(|group| group.limit).min()
    }
}

/// The groups with a limit, from the one of the process to the root. In a container the path may name groups that are
/// not visible here; then what is mounted is the container's own.
fn upwards(root: &Path, path: &str, files: &'static Files) -> Vec<Group> {
    let below = Path::new(path.trim_start_matches('/'));
    let climb = below.ancestors().take(DEPTH_MAX).map(|part| root.join(part));
    climb
        .filter_map(|folder| {
            let limit = number(&folder.join(files.limit)).filter(|limit| *limit < UNLIMITED)?;
            Some(Group { folder, limit, files })
        })
        .collect()
}

impl Group {
    fn usage(&self) -> Option<Usage> {
        let used = number(&self.folder.join(self.files.used))?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.files.reclaimable)?.trim().parse().ok());
        Some(Usage {
            used: used.saturating_sub(reclaimable.unwrap_or(0)),
            limit: self.limit,
        })
    }
}

/// The number in a file; `max` is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn pressure(files: &[(&str, &str)], own: &str) -> Option<(u64, u64)> {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), files);
        let found = MemoryLimits::find(root.path(), own).usage();
        found.map(|pressure| (pressure.used, pressure.limit))
    }

    #[test]
    fn version_2_is_read_and_idle_file_pages_do_not_count() {
        let files = [
            ("kube/pod/memory.max", "1000\n"),
            ("kube/pod/memory.current", "900\n"),
            (
                "kube/pod/memory.stat",
                "anon 1\ninactive_file 300\nactive_file 2\n",
            ),
        ];
        assert_eq!(pressure(&files, "0::/kube/pod\n"), Some((600, 1000)));
    }

    #[test]
    fn version_1_is_read() {
        let files = [
            ("memory/pod/memory.limit_in_bytes", "1000\n"),
            ("memory/pod/memory.usage_in_bytes", "800\n"),
            (
                "memory/pod/memory.stat",
                "inactive_file 7\ntotal_inactive_file 100\n",
            ),
        ];
        let own = "5:cpu,cpuacct:/pod\n4:memory:/pod\n0::/\n";
        assert_eq!(pressure(&files, own), Some((700, 1000)));
    }

    #[test]
    fn the_group_closest_to_its_limit_decides() {
        let files = [
            ("a/memory.max", "100000"),
            ("a/memory.current", "500"),
            ("a/b/memory.max", "max"),
            ("a/b/memory.current", "400"),
            ("a/b/c/memory.max", "1000"),
            ("a/b/c/memory.current", "400"),
        ];
        assert_eq!(pressure(&files, "0::/a/b/c\n"), Some((400, 1000)));
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_finds_its_limit() {
        let files = [("memory.max", "1000"), ("memory.current", "10")];
        assert_eq!(pressure(&files, "0::/kubepods/pod1/abc\n"), Some((10, 1000)));
    }

    #[test]
    fn without_a_limit_there_is_no_pressure() {
        let unlimited = [
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/memory.usage_in_bytes", "1"),
        ];
        assert_eq!(pressure(&unlimited, "4:memory:/\n"), None);
        assert_eq!(
            pressure(&[("memory.max", "max"), ("memory.current", "1")], "0::/\n"),
            None
        );
        assert_eq!(pressure(&[], ""), None);
    }
}
