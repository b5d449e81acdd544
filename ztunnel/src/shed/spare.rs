//! One descriptor kept back: a process that has none left can neither take a connection nor refuse it.
//!
//! Without it callers wait in the kernel's queue until they give up, and those whose SYN found the queue full come back
//! only seconds after relief.

use std::fs::File;
use std::io;

use parking_lot::Mutex;
use rustix::io::Errno;

/// Connections refused in one go, so that accepting goes on beside it.
const AT_ONCE_MAX: usize = 256;

/// The descriptor, unless it is in use or could not be had.
#[derive(Debug)]
pub struct Spare(Mutex<Option<File>>);

impl Default for Spare {
    fn default() -> Self {
        Self(Mutex::new(open()))
    }
}

impl Spare {
    /// Gives the descriptor up for connections that are taken only to be refused, one after the other, and takes it
    /// back; how many were refused.
    ///
    /// `accept` gives what waits in the queue, and nothing once it is empty or accepting fails; `refuse` ends it. Other
    /// threads may be quicker to use the descriptor: then nobody is refused, and a later call opens it anew.
    pub fn refuse<T>(&self, mut accept: impl FnMut() -> Option<T>, mut refuse: impl FnMut(T)) -> u64 {
        let mut spare = self.0.lock();
        drop(spare.take());
        let mut refused = 0;
        for waiting in std::iter::from_fn(&mut accept).take(AT_ONCE_MAX) {
            refuse(waiting);
            refused += 1;
        }
        *spare = open();
        refused
    }
}

/// Whether an error says that this process, or the machine, has no descriptor left.
#[must_use]
pub fn is_lack_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

fn open() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_descriptor_is_free_while_connections_are_refused_and_kept_again_afterwards() {
        let spare = Spare::default();
        let kept = |spare: &Spare| spare.0.lock().as_ref().map(AsRawFd::as_raw_fd);
        assert!(kept(&spare).is_some());
        let mut waiting = vec!["a", "b"];
        let mut ended = Vec::new();
        let refused = spare.refuse(
            || {
                assert!(spare.0.is_locked(), "one listener after the other uses it");
                waiting.pop()
            },
            |caller| ended.push(caller),
        );
        assert_eq!((refused, ended), (2, vec!["b", "a"]));
        assert!(kept(&spare).is_some());
    }

    #[test]
    fn so_many_are_refused_in_one_go() {
        let refused = Spare::default().refuse(|| Some(()), |()| {});
        assert_eq!(refused, AT_ONCE_MAX as u64);
    }

    #[test]
    fn a_lack_of_descriptors_is_known_by_its_number() {
        assert!(is_lack_of_descriptors(&Errno::MFILE.into()));
        assert!(!is_lack_of_descriptors(&Errno::CONNABORTED.into()));
    }
}
