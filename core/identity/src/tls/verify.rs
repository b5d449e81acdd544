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
use crate::proof::PeerProof;
use crate::trust::{Distrust, TrustStore, View};

const EXPIRED_LIST: &str = "the revocation list of its issuer is past its next update";
const UNSIGNED_LIST: &str = "the revocation list of its issuer is not signed by that issuer";

/// Which proven identities are acceptable.
#[derive(Debug)]
pub(crate) enum Acceptable {
    /// A server must be one of these.
    OneOf(BTreeSet<Identity>),
    /// A client must be of this trust domain.
    TrustDomain(Str),
}

impl Acceptable {
    /// Another name of our trust domain is as good as its own.
    fn check(&self, presented: Identity, view: &View) -> Result<(), PeerError> {
        match self {
            Self::OneOf(expected) if expected.contains(&presented) => Ok(()),
            Self::OneOf(expected) => Err(PeerError::UnexpectedIdentity {
                presented,
                expected: expected.clone(),
            }),
            Self::TrustDomain(own) if *own == presented.trust_domain => Ok(()),
            Self::TrustDomain(_) if view.is_alias(&presented.trust_domain) => Ok(()),
            Self::TrustDomain(own) => Err(PeerError::ForeignTrustDomain {
                presented,
                own: Str::clone(own),
            }),
        }
    }
}

/// What a chain has to lead to, and what else is asked of it.
pub(crate) struct Judge {
    /// Those that came with our own certificate.
    roots: Arc<[TrustAnchor<'static>]>,
    trust: TrustStore,
}

impl Judge {
    pub(crate) fn new(roots: Arc<[TrustAnchor<'static>]>, trust: TrustStore) -> Self {
        Self { roots, trust }
    }

    /// Verifies a chain against our roots and those that were pushed, together: while a root is replaced, two of
    /// them may have the same name.
    fn verify(
        &self,
        view: &View,
        chain: &Presented<'_>,
        crypto: &CryptoProvider,
    ) -> Result<(), rustls::Error> {
        let verdict = if view.roots().is_empty() {
            chain.verify(&self.roots, crypto, view)
        } else {
            let all: Vec<_> = self.roots.iter().chain(view.roots()).cloned().collect();
            chain.verify(&all, crypto, view)
        };
        verdict.map_err(Into::into)
    }
}

/// A chain and what it is shown for.
struct Presented<'a> {
    leaf: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    now: UnixTime,
    usage: KeyUsage,
}

/// Why a chain is refused.
enum Refused {
    Chain(webpki::Error),
    Distrusted(Distrust),
}

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Chain(error) => tls_error(error),
            Refused::Distrusted(why) => distrusted(why),
        }
    }
}

impl Presented<'_> {
    fn verify(&self, roots: &[TrustAnchor<'_>], crypto: &CryptoProvider, view: &View) -> Result<(), Refused> {
        let algorithms = crypto.signature_verification_algorithms.all;
        let leaf = EndEntityCert::try_from(self.leaf).map_err(Refused::Chain)?;
        view.with_options(|options| {
            let path = leaf.verify_for_usage(
                algorithms,
                roots,
                self.intermediates,
                self.now,
                self.usage,
                options,
                None,
            );
            let path = path.map_err(Refused::Chain)?;
            let above = path
                .intermediate_certificates()
                .map(|certificate| certificate.issuer());
            let issuers = std::iter::once(leaf.issuer()).chain(above);
            view.unknown(issuers).map_err(Refused::Distrusted)
        })
    }
}

/// The verifier of both directions.
pub(crate) struct PeerVerifier {
    judge: Judge,
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
    pub(crate) fn new(judge: Judge, crypto: Arc<CryptoProvider>, acceptable: Acceptable) -> Self {
        Self {
            judge,
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
        let view = self.judge.trust.view();
        let chain = Presented {
            leaf,
            intermediates,
            now,
            usage,
        };
        self.judge.verify(&view, &chain, &self.crypto)?;
        let verdict =
            peer_identity(std::slice::from_ref(leaf)).and_then(|it| self.acceptable.check(it, &view));
        verdict.map_err(other)?;
        let shown: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let proof = PeerProof::of(&shown).map_err(other)?;
        let judged = view.judge(&proof, None, self.judge.trust.now());
        judged.map_err(|why| {
            tracing::info!(peer = %proof.identity(), %why, "a certificate is not believed");
            distrusted(why)
        })
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
        Pki::CertRevoked => CertificateError::Revoked,
        Pki::CrlExpired { .. } => return distrusted(Distrust::Unknown(EXPIRED_LIST)),
        Pki::InvalidCrlSignatureForPublicKey | Pki::IssuerNotCrlSigner => {
            return distrusted(Distrust::Unknown(UNSIGNED_LIST));
        }
        Pki::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Pki::BadDer | Pki::BadDerTime | Pki::TrailingData(_) => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    certificate.into()
}

/// A peer whose certificate is revoked is told so by the alert; the details are for our log alone.
fn distrusted(why: Distrust) -> rustls::Error {
    match why {
        Distrust::Revoked { .. } | Distrust::Denied { .. } => CertificateError::Revoked.into(),
        Distrust::Unknown(_) => other(PeerError::Distrusted(why)),
    }
}

/// Carries our verdict through rustls.
fn other(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Finds our own verdict inside the error that rustls carried it in.
pub(super) fn peer_error(error: &rustls::Error) -> Option<PeerError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<PeerError>().cloned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => Some(PeerError::Revoked),
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
