//! What a peer's leaf says: exactly one URI name, which must be a workload identity.

use std::collections::BTreeSet;
use std::fmt;

use rustls::pki_types::CertificateDer;
use tulle_model::identity::Identity;
use tulle_model::name::Str;
use tulle_model::reason::Reason;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::trust::Distrust;

/// Tag of an otherName within a GeneralName.
const TAG_OTHER: u32 = 0;
/// Tag of a uniformResourceIdentifier within a GeneralName.
const TAG_URI: u32 = 6;

/// Why a peer's certificate does not prove an acceptable identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// The leaf cannot be read.
    #[error("the peer's certificate cannot be read")]
    Malformed,
    /// The leaf names nobody.
    #[error("the peer's certificate has no URI name")]
    NoUriName,
    /// The leaf has several URI names, so it is not clear who the peer is.
    #[error("the peer's certificate has {0} URI names instead of one")]
    SeveralUriNames(usize),
    /// The leaf has a name of a form that nobody here can judge.
    #[error("the peer's certificate has an otherName, which no workload has")]
    OtherName,
    /// The URI name is no workload identity.
    #[error("the peer's URI name `{0}` is no workload identity")]
    NotAnIdentity(String),
    /// The peer is somebody else.
    #[error("the peer is {presented}; expected {}", AnyOf(expected))]
    UnexpectedIdentity {
        /// Who the peer is.
        presented: Identity,
        /// Who would have been accepted.
        expected: BTreeSet<Identity>,
    },
    /// The peer belongs to another trust domain.
    #[error("the peer is {presented}, which is not in the trust domain {own}")]
    ForeignTrustDomain {
        /// Who the peer is.
        presented: Identity,
        /// The trust domain of this side.
        own: Str,
    },
    /// The certificate is good, and revoked, or denied by an operator.
    #[error("the peer's certificate is revoked or denied")]
    Revoked,
    /// The certificate is good, and not believed all the same.
    #[error(transparent)]
    Distrusted(Distrust),
}

impl PeerError {
    /// The stable code: a proven but unacceptable identity is a mismatch, all else a failed handshake.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Revoked => Reason::CertRevoked,
            Self::Distrusted(why) => why.reason(),
            Self::UnexpectedIdentity { .. } | Self::ForeignTrustDomain { .. } => Reason::PeerIdentityMismatch,
            Self::NoCertificate
            | Self::Malformed
            | Self::NoUriName
            | Self::SeveralUriNames(_)
            | Self::OtherName
            | Self::NotAnIdentity(_) => Reason::TlsFailed,
        }
    }
}

struct AnyOf<'a>(&'a BTreeSet<Identity>);

impl fmt::Display for AnyOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        for (at, identity) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { " or " };
            write!(f, "{separator}{identity}")?;
        }
        Ok(())
    }
}

/// The identity that an established session's peer has proven.
///
/// # Errors
/// When there is no leaf, or it does not carry exactly one URI name that is a workload identity.
pub fn peer_identity(presented: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    let leaf = presented.first().ok_or(PeerError::NoCertificate)?;
    names(leaf)?.identity()
}

/// The names of a certificate, as far as they matter.
pub(crate) struct Names {
    /// Readable or not.
    uris: Vec<String>,
    other: bool,
}

/// Reads the subject alternative names; DNS names and addresses are ignored.
pub(crate) fn names(leaf: &CertificateDer<'_>) -> Result<Names, PeerError> {
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    if !rest.is_empty() {
        return Err(PeerError::Malformed);
    }
    let extension = parsed
        .subject_alternative_name()
        .map_err(|_| PeerError::Malformed)?;
    let all = extension
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut names = Names {
        uris: Vec::new(),
        other: false,
    };
    for name in all {
        match name {
            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
            // One that cannot be read still counts: it must not hide beside a readable one.
            GeneralName::Invalid(tag, bytes) if tag.0 == TAG_URI => {
                names.uris.push(String::from_utf8_lossy(bytes).into_owned());
            }
            GeneralName::OtherName(..) => names.other = true,
            GeneralName::Invalid(tag, _) if tag.0 == TAG_OTHER => names.other = true,
            _ => {}
        }
    }
    Ok(names)
}

impl Names {
    /// The single URI name.
    pub(crate) fn uri(&self) -> Result<&str, PeerError> {
        match &self.uris[..] {
            _ if self.other => Err(PeerError::OtherName),
            [] => Err(PeerError::NoUriName),
            [uri] => Ok(uri),
            several => Err(PeerError::SeveralUriNames(several.len())),
        }
    }

    /// Whether it is among the URI names.
    pub(crate) fn has_uri(&self, uri: &str) -> bool {
        self.uris.iter().any(|one| one == uri)
    }

    /// The single URI name, which must be a workload identity.
    pub(crate) fn identity(&self) -> Result<Identity, PeerError> {
        let uri = self.uri()?;
        let refused =
            || PeerError::NotAnIdentity(uri.chars().take(256).flat_map(char::escape_default).collect());
        let identity: Identity = uri.parse().map_err(|_| refused())?;
        let parts = [
            &identity.trust_domain,
            &identity.namespace,
            &identity.service_account,
        ];
        if parts.into_iter().all(|part| part.bytes().all(is_spiffe_byte)) {
            Ok(identity)
        } else {
            Err(refused())
        }
    }
}

/// SPIFFE-ID section 2: path segments are letters, digits, dots, dashes and underscores.
fn is_spiffe_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}
