//! Finding a pod by its processes: the container runtime puts the pod's uid into their control groups' names.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::records::ProcessId;

/// Processes that are looked at in one scan.
const PROCESSES_MAX: usize = 1 << 16;
/// What holds a sandbox open, of whichever runtime.
const PAUSE: &str = "pause";
/// Shortest uid that is searched for: a short text would be found in the groups of others.
const UID_BYTES_MIN: usize = 8;

/// Any process of the pod outside of the node's own network namespace, not only one that holds the sandbox open.
#[must_use]
pub fn find(proc_dir: &Path, uid: &str, host_inode: u64) -> Option<(ProcessId, PathBuf)> {
    let processes = fs::read_dir(proc_dir).ok()?.flatten().take(PROCESSES_MAX);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found = pids.filter(|pid| {
        let groups = fs::read_to_string(proc_dir.join(format!("{pid}/cgroup"))).unwrap_or_default();
        names_pod(&groups, uid)
    });
    found.find_map(|pid| {
        let netns = proc_dir.join(format!("{pid}/ns/net"));
        let inode = fs::metadata(&netns).ok()?.ino();
        let process = read_start_time(proc_dir, pid)?;
        (inode != host_inode).then_some((process, netns))
    })
}

/// Whether a process runs in a network namespace, other than the one that does nothing but hold a pod's sandbox open.
#[must_use]
pub fn is_running_in(proc_dir: &Path, inode: u64) -> bool {
    let Ok(processes) = fs::read_dir(proc_dir) else {
        return true;
    };
    let pids = processes
        .flatten()
        .take(PROCESSES_MAX)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut here = pids.filter(|pid| {
        let netns = fs::metadata(proc_dir.join(format!("{pid}/ns/net")));
        netns.is_ok_and(|netns| netns.ino() == inode)
    });
    here.any(|pid| {
        let program = fs::read_to_string(proc_dir.join(format!("{pid}/comm")));
        program.is_ok_and(|program| program.trim_end() != PAUSE)
    })
}

/// The process as it is now, if one has this id.
#[must_use]
pub fn start_time(proc_dir: &Path, process: ProcessId) -> Option<ProcessId> {
    read_start_time(proc_dir, process.pid)
}

fn read_start_time(proc_dir: &Path, pid: u32) -> Option<ProcessId> {
    let stat = fs::read_to_string(proc_dir.join(format!("{pid}/stat"))).ok()?;
    Some(ProcessId {
        pid,
        start_time: parse_start_time(&stat)?,
    })
}

/// Field 22 of `/proc/<pid>/stat`. The second is the program's name in parentheses, which may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether a control group's name carries the uid, as one word: `pod<uid>`, with `_` for `-` where systemd names it.
fn names_pod(groups: &str, uid: &str) -> bool {
    if uid.len() < UID_BYTES_MIN {
        return false;
    }
    let by_systemd = uid.replace('-', "_");
    let parts = groups.split(['/', '\n']);
    let words = parts.map(|part| part.strip_suffix(".slice").unwrap_or(part));
    words.into_iter().any(|word| {
        let Some((_, named)) = word.rsplit_once("pod") else {
            return false;
        };
        named == uid || named == by_systemd
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8c5f4d2e-9f0b-4a67-9d6e-0b1c2d3e4f50";

    fn names(groups: &str) -> bool {
        names_pod(groups, UID)
    }

    #[test]
    fn a_group_carries_the_uid_in_either_spelling() {
        assert!(names(&format!("0::/kubepods/burstable/pod{UID}/0a1b")));
        assert!(names(&format!("4:memory:/kubepods/pod{UID}\n3:cpu:/")));
        let by_systemd = UID.replace('-', "_");
        assert!(names(&format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{by_systemd}.slice/cri-containerd-0a.scope"
        )));
    }

    #[test]
    fn a_uid_that_only_begins_or_ends_alike_is_another_pods() {
        assert!(!names(&format!("0::/kubepods/pod{UID}0/a")));
        assert!(!names(&format!("0::/kubepods/podx{UID}/a")));
        assert!(!names("0::/kubepods/pod/a"));
        assert!(!names_pod("0::/kubepods/poda/b", "a"));
    }

    #[test]
    fn a_program_may_be_called_anything() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse_start_time(&format!("42 (a) b (c) {rest}")), Some(4711));
        assert_eq!(parse_start_time(&format!("42 (sh) {rest}")), Some(4711));
        assert_eq!(parse_start_time("42 (sh"), None);
        assert_eq!(parse_start_time("42 (sh) S 1"), None);
    }

    #[test]
    fn what_holds_a_sandbox_open_does_not_run_in_it() {
        let proc_dir = tempfile::tempdir().unwrap();
        let process = |pid: u32, program: &str| {
            let folder = proc_dir.path().join(pid.to_string());
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("comm"), format!("{program}\n")).unwrap();
            fs::write(proc_dir.path().join("net"), "").unwrap();
            fs::hard_link(proc_dir.path().join("net"), folder.join("ns/net")).unwrap();
        };
        fs::write(proc_dir.path().join("net"), "").unwrap();
        let inode = fs::metadata(proc_dir.path().join("net")).unwrap().ino();
        assert!(!is_running_in(proc_dir.path(), inode));
        process(7, "pause");
        assert!(!is_running_in(proc_dir.path(), inode));
        process(8, "web");
        assert!(is_running_in(proc_dir.path(), inode));
        assert!(!is_running_in(proc_dir.path(), inode + 1), "it runs elsewhere");
        assert!(
            is_running_in(Path::new("/nowhere"), inode),
            "what cannot be seen may run"
        );
    }

    #[test]
    fn our_own_process_started_once() {
        let pid = std::process::id();
        let first = read_start_time(Path::new("/proc"), pid);
        assert!(first.is_some());
        assert_eq!(first, start_time(Path::new("/proc"), first.unwrap()));
    }
}
