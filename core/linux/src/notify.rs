//! What a service tells whoever started it, in the words of sd_notify(3): that it is ready, and descriptors to be
//! kept while it is away. One side is [`Notify`], the other a service manager, or our own supervisor's [`Inbox`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use crate::seqpacket::{Received, receive_packet, send_packet, watched};

/// Longest message that is read.
const MESSAGE_MAX: usize = 4096;

/// The end that tells.
#[derive(Debug, Clone)]
pub struct Notify {
    address: SocketAddrUnix,
}

impl Notify {
    /// The address from `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// When it is too long.
    pub fn new(address: &str) -> io::Result<Self> {
        let address = match address.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(Path::new(address).as_os_str().as_bytes())?,
        };
        Ok(Self { address })
    }

    /// Tells one thing, such as `READY=1`, with descriptors.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn tell(&self, message: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = socket()?;
        rustix::net::connect(&socket, &self.address)?;
        send_packet(socket.as_fd(), message.as_bytes(), fds)
    }
}

/// The end that is told. Its file is removed on drop.
#[derive(Debug)]
pub struct Inbox {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

/// One thing that was told.
#[derive(Debug)]
pub struct Told {
    /// Lines of `NAME=value`.
    pub text: String,
    /// What came along.
    pub fds: Vec<OwnedFd>,
}

impl Told {
    /// The value of a line.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Inbox {
    /// Binds a path; a file left there by an earlier process is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self {
            socket: watched(socket)?,
            path: path.to_owned(),
        })
    }

    /// Waits for what is told next.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn next(&self) -> io::Result<Told> {
        let mut buffer = [0; MESSAGE_MAX];
        loop {
            let mut ready = self.socket.readable().await?;
            let attempt = ready.try_io(|socket| receive_packet(socket.get_ref().as_fd(), &mut buffer));
            if let Ok(outcome) = attempt {
                let Received { len, fds, .. } = outcome?;
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                return Ok(Told { text, fds });
            }
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Gone already is as good as removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_told_arrives_with_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let inbox = Inbox::bind(&path).unwrap();
        let notify = Notify::new(path.to_str().unwrap()).unwrap();
        let file = tempfile::tempfile().unwrap();
        notify.tell("FDSTORE=1\nFDNAME=keys", &[file.as_fd()]).unwrap();
        notify.tell("READY=1", &[]).unwrap();
        let first = inbox.next().await.unwrap();
        assert_eq!((first.value("FDNAME"), first.fds.len()), (Some("keys"), 1));
        assert_eq!(first.value("READY"), None);
        assert_eq!(inbox.next().await.unwrap().value("READY"), Some("1"));
        drop(inbox);
        assert!(!path.exists());
        assert!(notify.tell("READY=1", &[]).is_err());
    }
}
