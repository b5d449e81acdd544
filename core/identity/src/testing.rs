//! Certificates for tests: an authority in memory, and workloads that it vouches for.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use tulle_model::identity::Identity;

use crate::ca::Issued;
use crate::certificate::WorkloadCertificate;
use crate::tls::KeyExchange;

pub use crate::ca::FakeCa;
pub use crate::clock::Clock;

/// How long certificates are valid unless said otherwise.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How long before `now` certificates start, as real authorities do.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

static SHARED: LazyLock<TestCa> = LazyLock::new(TestCa::new);

/// A certificate of the authority that all tests of a process share.
#[must_use]
pub fn certificate(identity: &Identity) -> Arc<WorkloadCertificate> {
    SHARED.certificate(identity)
}

/// The authority behind [`certificate`].
#[must_use]
pub fn shared_ca() -> &'static TestCa {
    &SHARED
}

/// A self-signed authority. Two of them do not trust each other.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The issuer's certificate and those above it, without the root.
    intermediates: Vec<CertificateDer<'static>>,
    /// The root, if the issuer is not the root itself.
    above: Option<CertificateDer<'static>>,
}

impl std::fmt::Debug for TestCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestCa")
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

impl TestCa {
    /// Makes a new root.
    #[must_use]
    pub fn new() -> Self {
        let root = CertifiedIssuer::self_signed(authority("tulle test"), key());
        let issuer = root.expect("the root's parameters are complete");
        Self {
            issuer,
            intermediates: Vec::new(),
            above: None,
        }
    }

    /// An authority under this one, with parameters that `edit` may change.
    #[must_use]
    pub fn intermediate(&self, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority("tulle test intermediate");
        edit(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, key(), &self.issuer);
        let issuer = issuer.expect("the intermediate's parameters are complete");
        let mut intermediates = vec![issuer.der().clone()];
        intermediates.extend(self.intermediates.iter().cloned());
        Self {
            issuer,
            intermediates,
            above: Some(self.root_der()),
        }
    }

    /// The root, as a file of roots would hold it.
    ///
    /// # Panics
    /// For an intermediate.
    #[must_use]
    pub fn root_pem(&self) -> String {
        assert!(self.above.is_none(), "an intermediate is no root");
        self.issuer.pem()
    }

    /// The root.
    #[must_use]
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.above.as_ref().unwrap_or_else(|| self.issuer.der()).clone()
    }

    /// Issues for `identity`, valid from a little before `now` until `lifetime` after it.
    #[must_use]
    pub fn issue(&self, identity: &Identity, now: SystemTime, lifetime: Duration) -> Issued {
        let mut params = leaf([uri(&identity.to_string())]);
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + lifetime).into();
        self.issue_as(params)
    }

    /// A revocation list, PEM, of the certificates with these serial numbers, from `now` for `lifetime`.
    #[must_use]
    pub fn revocation_list(&self, serials: &[&[u8]], now: SystemTime, lifetime: Duration) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + lifetime).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params
            .signed_by(&self.issuer)
            .expect("the list's parameters are complete");
        list.pem().expect("a list can be written as text")
    }

    /// Issues exactly what `params` say, however odd.
    #[must_use]
    pub fn issue_as(&self, params: CertificateParams) -> Issued {
        let key = key();
        let leaf = params
            .signed_by(&key, &self.issuer)
            .expect("the leaf's parameters are complete");
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Issued {
            key: key.into(),
            chain,
            roots: vec![self.root_der()],
        }
    }

    /// Signs the key of a request, which is PEM, as `params` say; nothing else of the request counts.
    #[must_use]
    pub fn sign(&self, request: &str, params: CertificateParams) -> String {
        let request = CertificateSigningRequestParams::from_pem(request).expect("the request can be read");
        let leaf = params.signed_by(&request.public_key, &self.issuer);
        leaf.expect("the leaf's parameters are complete").pem()
    }

    /// A workload's certificate, valid for [`LIFETIME`].
    #[must_use]
    pub fn certificate(&self, identity: &Identity) -> Arc<WorkloadCertificate> {
        let now = SystemTime::now();
        let issued = self.issue(identity, now, LIFETIME);
        let certificate = WorkloadCertificate::new(identity, &issued, KeyExchange::Standard, now);
        Arc::new(certificate.expect("what the test authority issues can be used"))
    }

    /// Chain and key, both PEM, of a server with these DNS names or IP addresses.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let named = CertificateParams::new(names).expect("names are ASCII");
        self.as_pem(&leaf(named.subject_alt_names))
    }

    /// Certificate and key, both PEM, of a workload whose TLS is not ours.
    #[must_use]
    pub fn workload(&self, identity: &Identity) -> (String, String) {
        self.as_pem(&leaf([uri(&identity.to_string())]))
    }

    fn as_pem(&self, params: &CertificateParams) -> (String, String) {
        let key = key();
        let leaf = params
            .signed_by(&key, &self.issuer)
            .expect("the leaf's parameters are complete");
        (leaf.pem(), key.serialize_pem())
    }
}

/// A server outside of the mesh that speaks TLS under names of its own.
#[derive(Clone)]
pub struct TlsServer(tokio_rustls::TlsAcceptor);

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsServer")
    }
}

impl TlsServer {
    /// Takes a connection; `None` if the handshake fails.
    pub async fn accept<S>(&self, stream: S) -> Option<tokio_rustls::server::TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        self.0.accept(stream).await.ok()
    }
}

/// A client that shows a certificate, and believes servers that this authority vouches for.
#[derive(Clone)]
pub struct TlsClient(tokio_rustls::TlsConnector);

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClient {
    /// Connects to a server that must prove this name.
    ///
    /// # Errors
    /// When the handshake fails.
    ///
    /// # Panics
    /// If the name cannot be one.
    pub async fn connect<S>(
        &self,
        name: &str,
        stream: S,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).expect("a name");
        self.0.connect(name, stream).await
    }
}

impl TestCa {
    /// A server with these DNS names or IP addresses, which asks nobody for a certificate.
    #[must_use]
    pub fn tls_server(&self, names: &[&str]) -> TlsServer {
        let (chain, key) = self.tls_identity(names);
        let config = server_versions()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("key and chain belong together");
        TlsServer(Arc::new(config).into())
    }

    /// The same, but clients must show a certificate of this authority; it speaks these protocols.
    ///
    /// # Panics
    /// For an intermediate.
    #[must_use]
    pub fn mutual_server(&self, names: &[&str], protocols: &[&str]) -> TlsServer {
        let (chain, key) = self.tls_identity(names);
        let crypto = crate::tls::crypto(KeyExchange::Standard);
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.store()), crypto);
        let mut config = server_versions()
            .with_client_cert_verifier(clients.build().expect("there is a root"))
            .with_single_cert(chain, key)
            .expect("key and chain belong together");
        config.alpn_protocols = wire(protocols);
        TlsServer(Arc::new(config).into())
    }

    /// A client that shows a certificate of this authority, and speaks these protocols.
    #[must_use]
    pub fn tls_client(&self, protocols: &[&str]) -> TlsClient {
        let (chain, key) = self.tls_identity(&["client"]);
        let mut config =
            rustls::ClientConfig::builder_with_provider(crate::tls::crypto(KeyExchange::Standard))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the provider has TLS 1.3 suites and groups")
                .with_root_certificates(self.store())
                .with_client_auth_cert(chain, key)
                .expect("key and chain belong together");
        config.alpn_protocols = wire(protocols);
        TlsClient(Arc::new(config).into())
    }

    fn store(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root_der()).expect("the root can be read");
        roots
    }

    fn tls_identity(
        &self,
        names: &[&str],
    ) -> (
        Vec<CertificateDer<'static>>,
        rustls::pki_types::PrivateKeyDer<'static>,
    ) {
        use rustls::pki_types::pem::PemObject;
        let (chain, key) = self.server(names);
        let chain = crate::tls::pem_certificates(chain.as_bytes()).expect("it was written just now");
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes());
        (chain, key.expect("it was written just now"))
    }
}

fn server_versions() -> rustls::ConfigBuilder<rustls::ServerConfig, rustls::WantsVerifier> {
    rustls::ServerConfig::builder_with_provider(crate::tls::crypto(KeyExchange::Standard))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
}

fn wire(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// Parameters of an ordinary leaf with these names: empty subject, no CA, both TLS usages.
#[must_use]
pub fn leaf(names: impl IntoIterator<Item = SanType>) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.into_iter().collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

/// A URI name.
#[must_use]
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("URI names are ASCII"))
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has randomness")
}
