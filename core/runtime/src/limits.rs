//! Limits of the process itself: as many descriptors as allowed, and no memory image on disk.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one and returns it.
///
/// # Errors
/// What the kernel answers; the old limit then stays.
pub fn raise_nofile() -> Result<u64, Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Forbids core dumps, because keys live in this process's memory.
///
/// # Errors
/// What the kernel answers.
pub fn no_core_dumps() -> Result<(), Errno> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Applies both, logging what the kernel refuses: a process without them still works.
pub fn apply() {
    match raise_nofile() {
        Ok(limit) => tracing::debug!(limit, "open files limit raised"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    if let Err(error) = no_core_dumps() {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
}

/// How much is given way, in steps of which each is about a fifth less of a busy processor.
const GIVEN_WAY: i32 = 5;

/// Lets what this thread does give way to what carries traffic, where they want the same processor; and so for every
/// thread that it starts from now on. Configuration, certificates and rules have seconds; a connection has not.
pub fn give_way_to_traffic() {
    if let Err(error) = rustix::process::nice(GIVEN_WAY) {
        tracing::debug!(%error, "cannot give way to traffic");
    }
}

/// File descriptors open now.
#[must_use]
pub fn open_descriptors() -> u64 {
    const FOLDER: &str = "/proc/self/fd";
    // Since Linux 6.2 the folder's size is the count; before, it is 0 and the entries have to be counted.
    match std::fs::metadata(FOLDER).map_or(0, |folder| folder.len()) {
        0 => std::fs::read_dir(FOLDER).map_or(0, |entries| entries.count() as u64),
        count => count,
    }
}

/// File descriptors that may be open.
#[must_use]
pub fn max_descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_nofile().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, hard), (limit, limit));
    }

    #[test]
    fn no_core_is_dumped() {
        no_core_dumps().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap().0, 0);
    }

    #[test]
    fn who_gives_way_does_so_alone() {
        let own = || rustix::process::nice(0).unwrap();
        let before = own();
        let [given, inherited] = std::thread::spawn(move || {
            give_way_to_traffic();
            [own(), std::thread::spawn(own).join().unwrap()]
        })
        .join()
        .unwrap();
        assert_eq!(given, (before + GIVEN_WAY).min(19));
        assert_eq!(inherited, given, "threads that it starts do as it does");
        assert_eq!(own(), before, "others do not");
    }

    #[test]
    fn an_open_file_counts() {
        let counted = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let open = open_descriptors();
        // Other tests open and close files meanwhile.
        assert!(open.abs_diff(counted) < 64, "{open} {counted}");
        assert!(open > 0 && open < max_descriptors());
    }
}
