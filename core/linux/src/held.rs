//! Bytes that outlive their process without touching a disk: a sealed memory file (memfd_create(2)), whose descriptor
//! somebody else holds.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};

/// Most bytes that are read back.
pub const HELD_BYTES_MAX: u64 = 1 << 30;

/// Puts bytes into a memory file that nobody can change any more.
///
/// # Errors
/// When no memory or descriptor is free.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create(name, flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads a memory file by the number of a descriptor that this process was started with.
///
/// # Errors
/// When it is not there, is no sealed memory file, or is too long.
pub fn inherited(number: i32) -> io::Result<Vec<u8>> {
    // Opening it anew has a place of its own to read from, and needs no right to the number.
    let file = File::open(format!("/proc/self/fd/{number}"))?;
    let seals = rustix::fs::fcntl_get_seals(&file)?;
    let len = file.metadata()?.len();
    if !seals.contains(SealFlags::WRITE) || len > HELD_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the descriptor is no sealed memory file of ours",
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    file.take(HELD_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A descriptor that children inherit for as long as this lives; its number is what they are told.
#[derive(Debug)]
pub struct Inherited<'a>(BorrowedFd<'a>);

impl<'a> Inherited<'a> {
    /// Lets children inherit it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(fd: &'a OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        Ok(Self(fd.as_fd()))
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        let close = nix::fcntl::FdFlag::FD_CLOEXEC;
        // A descriptor that is open can be marked.
        let _ = nix::fcntl::fcntl(self.0, nix::fcntl::FcntlArg::F_SETFD(close));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_sealed_can_be_read_again_and_not_changed() {
        let held = seal("test", b"a key").unwrap();
        assert_eq!(inherited(held.as_raw_fd()).unwrap(), b"a key");
        assert!(File::from(held).write_all(b"another").is_err());
    }

    #[test]
    fn a_plain_file_is_not_taken_for_one() {
        let file = tempfile::tempfile().unwrap();
        assert!(inherited(file.as_raw_fd()).is_err());
    }

    #[test]
    fn only_a_child_that_is_started_meanwhile_gets_it() {
        let held = seal("test", b"kept").unwrap();
        let read = |number: i32| {
            let output = Command::new("cat")
                .arg(format!("/proc/self/fd/{number}"))
                .output();
            output.unwrap().stdout
        };
        let inherited = Inherited::new(&held).unwrap();
        let number = inherited.number();
        assert_eq!(read(number), b"kept");
        drop(inherited);
        assert_eq!(read(number), b"");
    }
}
