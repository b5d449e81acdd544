//! Whether a peer is acceptable: its chain must lead to a root, and its identity must be one we want.

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
use webpki::{EndEntityCert, KeyUsage};

use super::peer::{PeerError, peer_identity};

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
