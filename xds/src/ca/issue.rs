//! Certificates as values: what a request must be, and the one form of certificate that is issued.
//!
//! Nothing of a request but its public key reaches a certificate.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use tulle_model::{Identity, Str};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA, OID_SIG_ED25519,
};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::ca::root::Root;

/// Longest request taken, as PEM.
pub const CSR_BYTES_MAX: usize = 16 * 1024;
/// Smallest RSA key taken, in bits.
pub const RSA_BITS_MIN: usize = 2048;
/// Validity where a request names none.
pub const TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Shortest validity.
pub const TTL_MIN: Duration = Duration::from_secs(60);
/// How far in the past a certificate begins, so that clocks may differ.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// Why a request cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCsr {
    /// Longer than [`CSR_BYTES_MAX`].
    #[error("the request is {0} bytes long; at most {CSR_BYTES_MAX} are taken")]
    TooLong(usize),
    /// Not exactly one PEM block `CERTIFICATE REQUEST`.
    #[error("the request is not one PEM block of type CERTIFICATE REQUEST")]
    NotPem,
    /// Not a PKCS#10 request.
    #[error("the request is not PKCS#10")]
    NotPkcs10,
    /// An algorithm or curve outside P-256, P-384, Ed25519 and RSA.
    #[error(
        "the key must be P-256, P-384, Ed25519 or RSA of at least {RSA_BITS_MIN} bits, signed without SHA-1"
    )]
    KeyNotAccepted,
    /// The request is not signed by the key it carries.
    #[error("the request is not signed with its own key")]
    BadSignature,
}

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The issuer's certificate is not valid at this time.
    #[error("the issuer's certificate is not valid now")]
    IssuerNotValid,
    /// The name cannot stand in a certificate.
    #[error("the name {0} cannot stand in a certificate")]
    Name(String),
    /// The signature could not be made.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A checked request: a public key whose owner asked. The names it claims are kept for counting only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
    key_sha256: String,
    /// URI names the request claims.
    pub claimed: Vec<String>,
}

impl Csr {
    /// SHA-256 of its public key, in hex.
    #[must_use]
    pub fn key_sha256(&self) -> &str {
        &self.key_sha256
    }

    /// Parses a PEM request and verifies that it is signed with the key it carries.
    ///
    /// # Errors
    /// The request cannot be used.
    pub fn parse(pem: &str) -> Result<Self, InvalidCsr> {
        if pem.len() > CSR_BYTES_MAX {
            return Err(InvalidCsr::TooLong(pem.len()));
        }
        let der = one_block(pem).ok_or(InvalidCsr::NotPem)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| InvalidCsr::NotPkcs10)?;
        if !rest.is_empty() {
            return Err(InvalidCsr::NotPkcs10);
        }
        if !is_accepted(&request) {
            return Err(InvalidCsr::KeyNotAccepted);
        }
        request.verify_signature().map_err(|_| InvalidCsr::BadSignature)?;
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
            .map_err(|_| InvalidCsr::KeyNotAccepted)?;
        let digest = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            request.certification_request_info.subject_pki.raw,
        );
        Ok(Self {
            key,
            key_sha256: crate::token::hex(digest.as_ref()),
            claimed: claimed_names(&request),
        })
    }
}

/// The bytes of the one PEM block there must be.
fn one_block(pem: &str) -> Option<Vec<u8>> {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
    let block = blocks.next()?.ok()?;
    (block.label == "CERTIFICATE REQUEST" && blocks.next().is_none()).then_some(block.contents)
}

fn is_accepted(request: &X509CertificationRequest<'_>) -> bool {
    let signed_with = &request.signature_algorithm.algorithm;
    if *signed_with == OID_PKCS1_SHA1WITHRSA || *signed_with == OID_SHA1_WITH_RSA {
        return false;
    }
    let key = &request.certification_request_info.subject_pki;
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let parameters = key.algorithm.parameters.as_ref();
        let curve = parameters.and_then(|parameters| parameters.as_oid().ok());
        return curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return matches!(key.parsed(), Ok(PublicKey::RSA(rsa)) if rsa.key_size() >= RSA_BITS_MIN);
    }
    *algorithm == OID_SIG_ED25519
}

fn claimed_names(request: &X509CertificationRequest<'_>) -> Vec<String> {
    let extensions = request.requested_extensions().into_iter().flatten();
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(names),
        _ => None,
    });
    let names = names.flat_map(|names| &names.general_names);
    let uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

/// An issued certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate, PEM.
    pub pem: String,
    /// Its serial number, hex.
    pub serial: Str,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A workload.
    Workload(Identity),
    /// A node: `spiffe://<trust domain>/node/<id>`.
    Node {
        /// The trust domain.
        trust_domain: Str,
        /// The node.
        node: Str,
    },
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload(identity) => identity.fmt(f),
            Self::Node { trust_domain, node } => write!(f, "spiffe://{trust_domain}/node/{node}"),
        }
    }
}

/// Issues a workload certificate: exactly one name, which is the identity.
///
/// # Errors
/// The issuer is not valid now, or signing failed.
pub fn workload(
    root: &Root,
    csr: &Csr,
    identity: &Identity,
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<Leaf, IssueError> {
    named(root, csr, &Name::Workload(identity.clone()), ttl, now)
}

/// Issues a certificate with exactly one name.
///
/// # Errors
/// The name cannot be used, the issuer is not valid now, or signing failed.
pub fn named(
    root: &Root,
    csr: &Csr,
    name: &Name,
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<Leaf, IssueError> {
    let name = uri_name(name)?;
    let usages = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let params = leaf_params(root, vec![name], &usages, ttl, now)?;
    sign(root, params, &csr.key)
}

/// A certificate with its key.
pub struct ServerCertificate {
    /// The certificate.
    pub leaf: Leaf,
    /// Its key, PKCS#8 PEM.
    pub key_pem: zeroize::Zeroizing<String>,
}

impl std::fmt::Debug for ServerCertificate {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// Issues a certificate with a fresh key for host names and addresses.
///
/// # Errors
/// A name cannot be used, the issuer is not valid now, or signing failed.
pub fn server(
    root: &Root,
    names: &[Str],
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<ServerCertificate, IssueError> {
    let sans = names
        .iter()
        .map(|name| server_name(name))
        .collect::<Result<_, _>>()?;
    let params = leaf_params(root, sans, &[ExtendedKeyUsagePurpose::ServerAuth], ttl, now)?;
    let key = KeyPair::generate().map_err(|error| IssueError::Signing(error.to_string()))?;
    Ok(ServerCertificate {
        leaf: sign(root, params, &key)?,
        key_pem: key.serialize_pem().into(),
    })
}

/// The validity asked for in seconds, within the bounds; zero or less asks for the default.
#[must_use]
pub fn clamp_ttl(asked_seconds: i64, max: Duration) -> Duration {
    match u64::try_from(asked_seconds) {
        Ok(0) | Err(_) => TTL_DEFAULT.min(max),
        Ok(seconds) => Duration::from_secs(seconds).clamp(TTL_MIN, max.max(TTL_MIN)),
    }
}

/// A URI name, rebuilt from its parts; only characters that need no escaping pass.
fn uri_name(name: &Name) -> Result<SanType, IssueError> {
    let parts = match name {
        Name::Workload(identity) => vec![
            &identity.trust_domain,
            &identity.namespace,
            &identity.service_account,
        ],
        Name::Node { trust_domain, node } => vec![trust_domain, node],
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let text = name.to_string();
    if !parts
        .iter()
        .all(|part| !part.is_empty() && part.bytes().all(allowed))
    {
        return Err(IssueError::Name(text.escape_debug().to_string()));
    }
    let uri = text.try_into().map_err(|_| IssueError::Name(name.to_string()))?;
    Ok(SanType::URI(uri))
}

fn server_name(name: &str) -> Result<SanType, IssueError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let refused = || IssueError::Name(name.escape_debug().to_string());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(refused());
    }
    Ok(SanType::DnsName(name.try_into().map_err(|_| refused())?))
}

fn leaf_params(
    root: &Root,
    names: Vec<SanType>,
    usages: &[ExtendedKeyUsagePurpose],
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<CertificateParams, IssueError> {
    if now < root.not_before() || now >= root.not_after() {
        return Err(IssueError::IssuerNotValid);
    }
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).max(root.not_before());
    params.not_after = (now + ttl).min(root.not_after());
    // Without a subject the names are marked critical.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// 128 random bits behind a leading one, so that the number is positive and never shorter.
pub(super) fn random_serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0; 17];
    aws_lc_rs::rand::fill(&mut bytes[1..]).map_err(|_| IssueError::Signing("no random bytes".into()))?;
    bytes[0] = 0x01;
    Ok(SerialNumber::from_slice(&bytes))
}

fn sign(root: &Root, params: CertificateParams, key: &impl rcgen::PublicKeyData) -> Result<Leaf, IssueError> {
    let serial = params
        .serial_number
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let certificate = params
        .signed_by(key, root.issuer())
        .map_err(|error| IssueError::Signing(error.to_string()))?;
    Ok(Leaf {
        pem: certificate.pem(),
        serial: serial.replace(':', "").into(),
        not_after: params.not_after,
    })
}

#[cfg(test)]
mod tests;
