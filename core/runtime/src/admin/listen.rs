//! Where pages are served: a TCP address, or a unix socket that only its owner can open.

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, UnixListener};

use super::caller::Caller;

use crate::socket_file;

/// Mode of an admin socket: its owner only.
const SOCKET_MODE: u32 = 0o600;

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 takes any.
    Tcp(SocketAddr),
    /// A unix socket's path; its folder is made if it is missing.
    Unix(PathBuf),
}

/// Why a place cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// What was asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {}: {source}", path.display())]
    Unix {
        /// What was asked for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A bound listener, not serving yet.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        file: SocketFile,
    },
}

impl Listener {
    /// Binds a place.
    ///
    /// # Errors
    /// What the kernel answers, with the place.
    pub async fn bind(listen: &Listen) -> Result<Self, AdminError> {
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(|listener| Self(Kind::Tcp(listener)))
                .map_err(|source| AdminError::Tcp {
                    address: *address,
                    source,
                }),
            Listen::Unix(path) => bind_unix(path)
                .map(|(listener, file)| Self(Kind::Unix { listener, file }))
                .map_err(|source| AdminError::Unix {
                    path: path.clone(),
                    source,
                }),
        }
    }

    /// The bound TCP address, if it is TCP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.0, Kind::Tcp(_))
    }

    pub(super) async fn serve(
        self,
        router: Router,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        match self.0 {
            Kind::Tcp(listener) => axum::serve(listener, router).with_graceful_shutdown(end).await,
            Kind::Unix { listener, file } => {
                let service = router.into_make_service_with_connect_info::<Caller>();
                let served = axum::serve(listener, service).with_graceful_shutdown(end).await;
                drop(file);
                served
            }
        }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred();
        Self::of(credentials.ok().map(|credentials| credentials.uid()))
    }
}

impl Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0, self.local_addr()) {
            (Kind::Unix { file, .. }, _) => write!(f, "{}", file.path.display()),
            (Kind::Tcp(_), Some(address)) => write!(f, "{address}"),
            (Kind::Tcp(_), None) => f.write_str("unbound"),
        }
    }
}

/// Binds a socket at a path, and remembers which file is ours.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let bind = |fresh: &Path| Ok((UnixListener::bind(fresh)?, fs::metadata(fresh)?.ino()));
    let (listener, inode) = socket_file::place(path, SOCKET_MODE, bind)?;
    let path = path.to_owned();
    Ok((listener, SocketFile { path, inode }))
}

/// The socket's file, removed on drop unless a newer process put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // Gone already is as good as removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}
