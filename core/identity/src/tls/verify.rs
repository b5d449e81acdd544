//! Who the peer is: its chain must lead to a root, and its leaf must carry exactly one SPIFFE name.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use tulle_model::identity::Identity;
use tulle_model::name::Str;
use tulle_model::reason::Reason;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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
}

impl PeerError {
    /// The stable code: a proven but unacceptable identity is a mismatch, all else a failed handshake.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
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

/// Which proven identities are acceptable.
#[derive(Debug)]
pub(crate) enum Acceptable {
    /// A server must be one of these.
    OneOf(BTreeSet<Identity>),
    /// A client must be of this trust domain.
    TrustDomain(Str),
}

impl Acceptable {
    fn check(&self, presented: Identity) -> Result<(), PeerError> {
        match self {
            Self::OneOf(expected) if expected.contains(&presented) => Ok(()),
            Self::OneOf(expected) => Err(PeerError::UnexpectedIdentity {
                presented,
                expected: expected.clone(),
            }),
            Self::TrustDomain(own) if *own == presented.trust_domain => Ok(()),
            Self::TrustDomain(own) => Err(PeerError::ForeignTrustDomain {
                presented,
                own: Str::clone(own),
            }),
        }
    }
}

/// The verifier of both directions.
pub(crate) struct PeerVerifier {
    roots: Arc<[TrustAnchor<'static>]>,
    crypto: Arc<CryptoProvider>,
    acceptable: Acceptable,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("acceptable", &self.acceptable)
            .finish_non_exhaustive()
    }
}

impl PeerVerifier {
    pub(crate) fn new(
        roots: Arc<[TrustAnchor<'static>]>,
        crypto: Arc<CryptoProvider>,
        acceptable: Acceptable,
    ) -> Self {
        Self {
            roots,
            crypto,
            acceptable,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        verify_chain(leaf, intermediates, &self.roots, &self.crypto, now, usage).map_err(tls_error)?;
        let verdict = peer_identity(std::slice::from_ref(leaf)).and_then(|it| self.acceptable.check(it));
        verdict.map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'_>],
    crypto: &CryptoProvider,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let algorithms = crypto.signature_verification_algorithms.all;
    let leaf = EndEntityCert::try_from(leaf)?;
    leaf.verify_for_usage(algorithms, roots, intermediates, now, usage, None, None)
        .map(drop)
}

/// Why this chain, of our own certificate, would not be accepted by a peer with the same roots.
pub(crate) fn chain_error(
    chain: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'_>],
    crypto: &CryptoProvider,
    now: UnixTime,
) -> Option<webpki::Error> {
    let (leaf, intermediates) = chain.split_first()?;
    [KeyUsage::server_auth(), KeyUsage::client_auth()]
        .into_iter()
        .find_map(|usage| verify_chain(leaf, intermediates, roots, crypto, now, usage).err())
}

/// Picks the alert that fits; the peer learns no more than its class.
fn tls_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as Pki;
    let certificate = match error {
        Pki::CertExpired { .. } => CertificateError::Expired,
        Pki::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Pki::UnknownIssuer => CertificateError::UnknownIssuer,
        Pki::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Pki::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Pki::BadDer | Pki::BadDerTime | Pki::TrailingData(_) => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    certificate.into()
}

/// Finds our own verdict inside the error that rustls carried it in.
pub(super) fn peer_error(error: &rustls::Error) -> Option<PeerError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<PeerError>().cloned()
        }
        rustls::Error::NoCertificatesPresented => Some(PeerError::NoCertificate),
        _ => None,
    }
}

fn tls12_never() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is never negotiated".to_owned())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// No hints: a client of the mesh has one certificate, and the roots are none of a stranger's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_never())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
