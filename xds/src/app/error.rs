//! Why the control plane ends otherwise than asked, and the exit code of each reason.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tulle_runtime::admin::AdminError;
use tulle_runtime::exit::Exit;

use crate::ca::deny::DenyError;
use crate::ca::renew::ServerCertificateError;
use crate::ca::root::RootError;
use crate::ca::roots::RotationError;
use crate::state_dir::StateDirError;
use crate::token;

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// There is no root to sign with.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What was issued or rotated before cannot be gone on with.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The deny-list is there and cannot be read; without it somebody could come in who must not.
    #[error(transparent)]
    DenyList(#[from] DenyError),
    /// A join token cannot be read; without it, a second use could not be told from the first.
    #[error(transparent)]
    JoinTokens(#[from] token::TokenError),
    /// There is no certificate to serve with.
    #[error(transparent)]
    Certificate(#[from] ServerCertificateError),
    /// An address cannot be listened at.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An operator's page cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// What an earlier process wrote cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file for other programs cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A part has ended that the rest makes no sense without.
    #[error("its {0} has ended; the log says why. Proxies keep what they have: start it again")]
    Lost(&'static str),
}

impl Error {
    /// The exit code: what another start could not change by itself is misuse.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::State(StateDirError::Locked { .. })
            | Self::Listen { .. }
            | Self::Admin(_)
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Lost(_) => Exit::Failed,
            Self::State(_)
            | Self::Root(_)
            | Self::Rotation(_)
            | Self::DenyList(_)
            | Self::JoinTokens(_)
            | Self::Certificate(_) => Exit::Usage,
        }
    }
}
