//! Pipes for bytes that go from one socket to another without passing through this process.
//!
//! `splice(2)` moves what a socket has received into a pipe, and what is in a pipe to a socket, without a copy by us. A
//! pipe is lent while bytes keep coming and is given back at the first pause, so idle connections hold none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Bytes that a pipe has room for. Less, where the kernel does not allow as much.
const ROOM: usize = 1024 * 1024;

/// Pipes that are lent at once, of two descriptors each; other connections are copied. At most 64 MiB in the kernel.
const LENT_MAX: usize = 64;

/// Pipes that are kept for those who come next.
const KEPT_MAX: usize = 8;

static LENT: AtomicUsize = AtomicUsize::new(0);

static KEPT: Mutex<Vec<Ends>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Ends {
    from: OwnedFd,
    to: OwnedFd,
}

/// A lent pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Gone only while it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty pipe; none if too many are lent, or no descriptors are left.
    pub(super) fn lend() -> Option<Self> {
        let lent = LENT.fetch_add(1, Ordering::Relaxed);
        // From here on, dropping it counts it back.
        let mut pipe = Self { ends: None, held: 0 };
        if lent >= LENT_MAX {
            return None;
        }
        let kept = KEPT.lock().pop();
        pipe.ends = kept.or_else(|| {
            let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            let _ = fcntl_setpipe_size(&to, ROOM);
            Some(Ends { from, to })
        });
        pipe.ends.is_some().then_some(pipe)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what a socket has received, as much as there is room for; 0 at its end. The pipe is empty before.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let filled = splice(socket, None, &ends.to, None, ROOM, flags)?;
        self.held += filled;
        Ok(filled)
    }

    /// Hands on what it holds, as much as the socket takes.
    pub(super) fn empty(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let emptied = splice(&ends.from, None, socket, None, self.held, flags)?;
        self.held -= emptied;
        Ok(emptied)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        LENT.fetch_sub(1, Ordering::Relaxed);
        // What holds bytes of one connection never serves another.
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else {
            return;
        };
        let mut kept = KEPT.lock();
        if kept.len() < KEPT_MAX {
            kept.push(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_go_through_in_order_and_none_stay_for_the_next() {
        let (mut client, near) = UnixStream::pair().unwrap();
        let (far, mut server) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::lend().expect("the first pipe can be made");
        near.set_nonblocking(true).unwrap();
        assert_eq!(pipe.fill(&near).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"one two").unwrap();
        assert_eq!(pipe.fill(&near).unwrap(), 7);
        assert!(!pipe.is_empty());
        assert_eq!(pipe.empty(&far).unwrap(), 7);
        let mut answer = [0; 7];
        server.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"one two");

        client.write_all(b"left").unwrap();
        assert_eq!(pipe.fill(&near).unwrap(), 4);
        let held = pipe
            .ends
            .as_ref()
            .map(|ends| rustix::fs::fstat(&ends.from).unwrap().st_ino);
        drop(pipe);
        let kept = KEPT.lock();
        let inodes = kept
            .iter()
            .map(|ends| rustix::fs::fstat(&ends.from).unwrap().st_ino);
        assert!(
            inodes.into_iter().all(|inode| Some(inode) != held),
            "it is closed with what it held"
        );
        drop(kept);
        drop(client);
        assert_eq!(Pipe::lend().unwrap().fill(&near).unwrap(), 0, "the end is told");
    }
}
