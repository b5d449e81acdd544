//! Where roots and tokens come from: files, which may change at any time, or settings.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

use super::ChannelError;
use super::pin::KeyPin;
use crate::tls::pem_certificates;

/// Largest token or root file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the roots of a channel come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A file, read again for each connection, so that a rotated root needs no restart.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// A root that the server shows, known by the hash of its key.
    Pin(KeyPin),
    /// The roots of the operating system, where it keeps them.
    System,
}

impl RootSource {
    /// Reads a setting: `SYSTEM`, PEM text, or a path.
    #[must_use]
    pub fn from_setting(text: &str) -> Self {
        match text {
            "SYSTEM" => Self::System,
            pem if pem.contains("-----BEGIN") => Self::Pem(pem.to_owned()),
            path => Self::File(path.into()),
        }
    }

    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, ChannelError> {
        let (pem, from) = match self {
            Self::File(path) => (read_file(path)?, path.display().to_string()),
            Self::Pem(pem) => (pem.clone(), "the configured text".to_owned()),
            Self::Pin(_) => {
                return Err(ChannelError::NoRoots {
                    from: "a pin".to_owned(),
                });
            }
            Self::System => system_roots()?,
        };
        match pem_certificates(pem.as_bytes()) {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(ChannelError::NoRoots { from }),
        }
    }
}

/// Where systems keep their roots in one file: Debian and its kin, Fedora and its kin, SUSE, Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn system_roots() -> Result<(String, String), ChannelError> {
    let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let path = found.ok_or(ChannelError::SystemRoots)?;
    Ok((read_file(path)?, path.display().to_string()))
}

/// Where the bearer token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read for each request, as tokens are short-lived.
    File(PathBuf),
    /// No token: the handshake shows the certificate in this file, key and chain, read for each connection.
    Certificate(PathBuf),
    /// The token itself.
    Literal(String),
    /// No token is sent.
    None,
}

impl TokenSource {
    /// Reads a setting: a path if it looks like one or exists, else the token itself; nothing if empty.
    #[must_use]
    pub fn from_setting(text: &str) -> Self {
        match text {
            "" => Self::None,
            path if path.ends_with(".pem") => Self::Certificate(path.into()),
            path if path.starts_with('/') || path.starts_with('.') || Path::new(path).exists() => {
                Self::File(path.into())
            }
            token => Self::Literal(token.to_owned()),
        }
    }

    /// The credential in a file: a node's certificate if it ends in `.pem`, else a token.
    #[must_use]
    pub fn in_file(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "pem") {
            Self::Certificate(path.to_owned())
        } else {
            Self::File(path.to_owned())
        }
    }

    /// The folder of a node's certificate, if that is what is shown.
    #[must_use]
    pub fn node_folder(&self) -> Option<PathBuf> {
        match self {
            Self::Certificate(path) => path.parent().map(Path::to_owned),
            _ => None,
        }
    }

    pub(super) fn read(&self) -> Result<Option<String>, ChannelError> {
        match self {
            Self::File(path) => Ok(Some(read_file(path)?.trim().to_owned())),
            Self::Literal(token) => Ok(Some(token.clone())),
            Self::Certificate(_) | Self::None => Ok(None),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Certificate(path) => f.debug_tuple("Certificate").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(hidden)"),
            Self::None => f.write_str("None"),
        }
    }
}

fn read_file(path: &Path) -> Result<String, ChannelError> {
    let failed = |error| ChannelError::File {
        path: path.to_owned(),
        error,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}
