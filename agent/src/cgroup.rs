//! Which control group of the unified hierarchy a process is in, so that its sockets can be told from others.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::rules::plan::Cgroup;

/// The group of a process, by its id as this process sees it. Nothing if there is no unified hierarchy, or the process
/// is at its root: everyone is below the root.
///
/// # Errors
/// When the process ended, or its group cannot be read.
pub fn of_process(pid: i32) -> io::Result<Option<Cgroup>> {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let (Some(path), Some(mount)) = (path_within(&memberships), mount_point(&mounts)) else {
        return Ok(None);
    };
    let id = fs::metadata(mount.join(path))?.ino();
    Ok(Some(Cgroup {
        id,
        level: u32::try_from(Path::new(path).components().count()).unwrap_or(u32::MAX),
        path: path.to_owned(),
    }))
}

/// The path below the root of the unified hierarchy, from `/proc/<pid>/cgroup`.
fn path_within(memberships: &str) -> Option<&str> {
    let path = memberships.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A group outside of what we see (a cgroup namespace) has no number that we could name.
    let nameable =
        !path.is_empty() && !path.split('/').any(|part| part == "..") && !path.ends_with(" (deleted)");
    nameable.then_some(path)
}

/// Where the unified hierarchy is mounted whole, from `/proc/self/mountinfo`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.split(' ').next() == Some("cgroup2") && root == "/").then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_told_from_the_others() {
        assert_eq!(path_within("4:memory:/x\n0::/tulle/proxy\n"), Some("tulle/proxy"));
        assert_eq!(path_within("4:memory:/x\n"), None);
    }

    #[test]
    fn the_root_and_what_is_out_of_sight_have_no_number() {
        for text in ["0::/\n", "0::/../other\n", "0::/gone (deleted)\n"] {
            assert_eq!(path_within(text), None, "{text}");
        }
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_is_found() {
        let mounts = "34 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      35 25 0:30 /part /elsewhere rw - cgroup2 cgroup2 rw\n\
                      36 25 0:30 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
    }
}
