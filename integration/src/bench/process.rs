//! What a process used so far: CPU time and resident memory, as the kernel accounts for them.

use nix::unistd::{SysconfVar, sysconf};

/// CPU time of all threads of a process, those that ended included, in seconds. Its resolution is the kernel's tick.
pub(super) fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().expect("Linux has ticks");
    ticks(&stat).expect("the kernel writes this line") as f64 / per_second as f64
}

/// User and system ticks of a line of `/proc/PID/stat`. The name in brackets may hold anything, blanks included.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process, in MiB.
pub(super) fn resident_mib(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.expect("a running process has resident memory") / 1024.0
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
    fn this_process_uses_memory() {
        assert!(resident_mib(std::process::id()) > 1.0);
        assert!(cpu_seconds(std::process::id()) >= 0.0);
    }
}
