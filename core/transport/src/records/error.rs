//! What ends a connection of sealed records.

use std::io;

use rustls::AlertDescription;

/// Why nothing more can be read, or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The peer broke the protocol; it is told by this alert.
    #[error("the peer broke TLS: {what}")]
    Broken {
        alert: AlertDescription,
        what: &'static str,
    },
    /// The peer ended the connection by this alert.
    #[error("the peer ended the connection: {0:?}")]
    Alert(AlertDescription),
    /// The connection ended, and the peer has not said that it would: something may be missing.
    #[error("the connection ended without close_notify")]
    Truncated,
    /// No key could be made or used.
    #[error("TLS keys: {0}")]
    Keys(String),
}

impl Fault {
    pub(super) const fn unexpected(what: &'static str) -> Self {
        Self::Broken {
            alert: AlertDescription::UnexpectedMessage,
            what,
        }
    }

    pub(super) const fn broken(alert: AlertDescription, what: &'static str) -> Self {
        Self::Broken { alert, what }
    }

    /// What the peer is told of it.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Broken { alert, .. } => Some(*alert),
            Self::Keys(_) => Some(AlertDescription::InternalError),
            Self::Alert(_) | Self::Truncated => None,
        }
    }
}

impl From<Fault> for io::Error {
    /// In the terms of the TLS library, which is what those who explain an error look for.
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        let error = match fault {
            Fault::Truncated => return Self::new(io::ErrorKind::UnexpectedEof, text),
            Fault::Alert(alert) => rustls::Error::AlertReceived(alert),
            Fault::Broken {
                alert: AlertDescription::BadRecordMac,
                ..
            } => rustls::Error::DecryptError,
            Fault::Broken {
                alert: AlertDescription::RecordOverflow,
                ..
            } => rustls::Error::PeerSentOversizedRecord,
            Fault::Broken { .. } | Fault::Keys(_) => rustls::Error::General(text),
        };
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
