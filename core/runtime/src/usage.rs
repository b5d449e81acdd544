//! What a process has used, as the kernel accounts for it: CPU time and memory.

use std::fs;
use std::time::Duration;

/// Ticks of CPU time in a second: what Linux shows to user space is always counted in these.
const TICKS_PER_SECOND: u64 = 100;

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// This one.
    Own,
    /// One of this machine.
    Id(u32),
}

/// Which memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// All that is resident.
    Resident,
    /// The most that ever was.
    Peak,
    /// What is resident and holds no part of a file: pages of a program come and go with what it happens to run.
    Anonymous,
}

impl Memory {
    fn line(self) -> &'static str {
        match self {
            Self::Resident => "VmRSS:",
            Self::Peak => "VmHWM:",
            Self::Anonymous => "RssAnon:",
        }
    }
}

/// CPU time of all its threads so far, those that ended included, to a hundredth of a second; `None` if it is gone.
#[must_use]
pub fn cpu(process: Process) -> Option<Duration> {
    let ticks = ticks(&read(process, "stat")?)?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Memory in bytes; `None` if it is gone.
#[must_use]
pub fn memory(process: Process, which: Memory) -> Option<u64> {
    bytes(&read(process, "status")?, which)
}

fn read(process: Process, file: &str) -> Option<String> {
    let path = match process {
        Process::Own => format!("/proc/self/{file}"),
        Process::Id(id) => format!("/proc/{id}/{file}"),
    };
    fs::read_to_string(path).ok()
}

/// User and system ticks of a line of `stat`. The name in brackets may hold anything, blanks and brackets included.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn bytes(status: &str, which: Memory) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(which.line()))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 1 2 3";
        assert_eq!(ticks(line), Some(12));
        assert_eq!(ticks("42 (a)"), None);
    }

    #[test]
    fn memory_is_told_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\n";
        for (which, expected) in [
            (Memory::Resident, 1 << 20),
            (Memory::Peak, 2 << 20),
            (Memory::Anonymous, 1 << 19),
        ] {
            assert_eq!(bytes(status, which), Some(expected));
        }
        assert_eq!(bytes("Name:\tx\n", Memory::Resident), None);
    }

    #[test]
    fn this_process_uses_something_and_one_that_is_gone_is_told_so() {
        let own = Process::Id(std::process::id());
        assert!(memory(own, Memory::Resident) > Some(1 << 20));
        assert!(memory(Process::Own, Memory::Peak) >= memory(Process::Own, Memory::Anonymous));
        assert!(cpu(own).is_some());
        assert_eq!(cpu(Process::Id(u32::MAX)), None);
    }
}
