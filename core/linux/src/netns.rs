//! Network namespaces: open, prove, name, and run code inside of them.
//!
//! A thread that entered a namespace always ends there; it never returns to a pool. Sockets opened by such a thread
//! stay in the namespace and can be used from anywhere.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::fstatfs;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace handles.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace, held open by a descriptor. Clones share the descriptor.
#[derive(Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    inode: u64,
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetNs({})", self.inode)
    }
}

/// Two handles are equal if they are of the same namespace.
impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for NetNs {}

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens a namespace by path, such as `/run/netns/web` or `/proc/42/ns/net`.
    ///
    /// # Errors
    /// When the path cannot be opened, or is no namespace handle.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes over a descriptor that must be a namespace handle.
    ///
    /// # Errors
    /// `InvalidInput` when the descriptor is anything else. That it is a *network* namespace is proven when it is
    /// entered: [`Self::run`] refuses other kinds.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = fstatfs(&fd)?.filesystem_type();
        if kind.0 != NSFS_MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is no namespace handle",
            ));
        }
        let file = File::from(fd);
        let inode = file.metadata()?.ino();
        Ok(Self {
            fd: Arc::new(file.into()),
            inode,
        })
    }

    /// Makes a new, empty namespace. It lives as long as a handle, a socket or a process in it.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_SYS_ADMIN.
    pub fn create() -> io::Result<Self> {
        on_own_thread("netns-create", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// The inode number: the identity of the namespace for as long as it lives.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The descriptor, to be passed on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the namespace a name in the file system: a link that works for as long as this process holds the handle.
    ///
    /// Unlike a bind mount (`ip netns add`) it needs no mount and leaves nothing behind but the link.
    ///
    /// # Errors
    /// When the file exists already.
    pub fn link_to(&self, path: &Path) -> io::Result<()> {
        let target = format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd());
        std::os::unix::fs::symlink(target, path)
    }

    /// Runs a closure inside of the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered: it is no network namespace, or CAP_SYS_ADMIN is missing.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let namespace = self.clone();
        on_own_thread("netns-run", move || {
            namespace.enter()?;
            Ok(work())
        })?
    }

    /// As [`Self::run`], without blocking the calling task.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let namespace = self.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("netns-run".to_owned())
            .spawn(move || {
                let outcome = namespace.enter().map(|()| work());
                // The task that asked may be gone; then nobody wants the outcome.
                let _ = sender.send(outcome);
            })?;
        receiver
            .await
            .map_err(|_| io::Error::other("the thread inside of the network namespace panicked"))?
    }

    /// Runs a closure inside of the namespace, on a thread of its own, and waits for nothing. Where the namespace cannot
    /// be entered the closure is dropped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn run_beside(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let namespace = self.clone();
        let started = std::thread::Builder::new()
            .name("netns-run".to_owned())
            .spawn(move || {
                if namespace.enter().is_ok() {
                    work();
                }
            });
        started.map(drop)
    }

    /// Starts a process inside of the namespace.
    ///
    /// # Errors
    /// As [`Self::run`], or when the program cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        // A child process is in the namespaces of the thread that starts it.
        self.run(move || command.spawn())?
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> io::Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }
}

/// Runs a closure on a fresh thread that ends with it.
fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<io::Result<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread inside of the network namespace panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Tests of namespaces need root; elsewhere they say that they were skipped.
    fn may_create() -> bool {
        match NetNs::create() {
            Ok(_) => true,
            Err(error) => {
                eprintln!("skipped: network namespaces cannot be made here: {error}");
                false
            }
        }
    }

    #[test]
    fn a_socket_stays_in_the_namespace_it_was_opened_in() {
        if !may_create() {
            return;
        }
        let namespace = NetNs::create().unwrap();
        // Loopback is down in a new namespace, binding to it works all the same.
        let inside = namespace
            .run(|| TcpListener::bind("127.0.0.1:15001"))
            .unwrap()
            .unwrap();
        let outside = TcpListener::bind("127.0.0.1:15001");
        assert_eq!(inside.local_addr().unwrap().port(), 15001);
        assert!(outside.is_ok(), "the port is free outside");
    }

    #[test]
    fn a_new_namespace_is_another_one() {
        if !may_create() {
            return;
        }
        let namespace = NetNs::create().unwrap();
        assert_ne!(namespace, NetNs::current().unwrap());
        assert_eq!(namespace.run(|| NetNs::current().unwrap()).unwrap(), namespace);
    }

    #[test]
    fn a_link_leads_to_the_namespace() {
        if !may_create() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let namespace = NetNs::create().unwrap();
        namespace.link_to(&folder.path().join("web")).unwrap();
        assert_eq!(NetNs::open(&folder.path().join("web")).unwrap(), namespace);
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let file = tempfile::tempfile().unwrap();
        let refused = NetNs::from_fd(file.into()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_namespace_of_another_kind_is_not_entered() {
        let mount_namespace = NetNs::open(Path::new("/proc/self/ns/mnt")).unwrap();
        assert!(mount_namespace.run(|| ()).is_err());
    }
}
