//! A workload's certificate: leaf, chain, key and roots, and the TLS configurations made of them.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use tulle_model::identity::Identity;
use tulle_model::name::Str;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::Issued;
use crate::proof::PeerProof;
use crate::tls::{self, KeyExchange, PeerError};
use crate::trust::{Distrust, TrustStore};

/// Client configurations kept per certificate; beyond it the cache starts anew.
const CLIENT_CONFIGS_MAX: usize = 4096;

/// Source of [`WorkloadCertificate::version`].
static VERSION: AtomicU64 = AtomicU64::new(1);

/// A certificate for one identity. It is replaced as a whole by its successor, and its cached configurations
/// with it.
pub struct WorkloadCertificate {
    identity: Identity,
    version: u64,
    serial: Str,
    not_before: SystemTime,
    not_after: SystemTime,
    own: Arc<Own>,
    roots: Arc<[TrustAnchor<'static>]>,
    exchange: KeyExchange,
    proof: PeerProof,
    trust: TrustStore,
    server: OnceLock<Arc<ServerConfig>>,
    clients: Mutex<HashMap<BTreeSet<Identity>, Arc<ClientConfig>>>,
}

/// Why issued material is no usable certificate for the identity that was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidCertificate {
    /// There is no leaf.
    #[error("the issued chain is empty")]
    EmptyChain,
    /// There is no root, or one cannot be read.
    #[error("the issued roots are missing or cannot be read")]
    Roots,
    /// The leaf does not carry exactly one URI name.
    #[error("the issued leaf is refused: {0}")]
    Leaf(PeerError),
    /// The leaf is for somebody else.
    #[error("asked for {asked} but the issued leaf is for {issued}")]
    OtherIdentity {
        /// Who was asked for.
        asked: Identity,
        /// Who the leaf is for.
        issued: Identity,
    },
    /// The leaf is not for our key.
    #[error("the issued leaf is not for the key of the request")]
    OtherKey,
    /// The key cannot be used.
    #[error("the private key cannot be used: {0}")]
    Key(rustls::Error),
    /// Peers with the issued roots would not accept the chain.
    #[error("the issued chain does not verify against the issued roots: {0}")]
    Chain(webpki::Error),
}

impl WorkloadCertificate {
    /// Checks issued material and keeps it. Exactly `identity` must be in the leaf, for the issued key, and the
    /// chain must verify at `now`: what peers would refuse never replaces what they accept.
    ///
    /// # Errors
    /// When any of this does not hold.
    pub fn new(
        identity: &Identity,
        issued: &Issued,
        exchange: KeyExchange,
        now: SystemTime,
    ) -> Result<Self, InvalidCertificate> {
        let leaf = issued.chain.first().ok_or(InvalidCertificate::EmptyChain)?;
        let presented = tls::names(leaf)
            .and_then(|names| names.identity())
            .map_err(InvalidCertificate::Leaf)?;
        if presented != *identity {
            return Err(InvalidCertificate::OtherIdentity {
                asked: identity.clone(),
                issued: presented,
            });
        }
        let roots = anchors(&issued.roots)?;
        let crypto = tls::crypto(exchange);
        if let Some(error) = tls::chain_error(&issued.chain, &roots, &crypto, unix_time(now)) {
            return Err(InvalidCertificate::Chain(error));
        }
        let own = tls::certified_key(issued.chain.clone(), issued.key.der());
        let own = own.map_err(|error| match tls::is_other_key(&error) {
            true => InvalidCertificate::OtherKey,
            false => InvalidCertificate::Key(error),
        })?;
        let Facts {
            serial,
            not_before,
            not_after,
        } = facts(leaf).map_err(InvalidCertificate::Leaf)?;
        let proof = PeerProof::of(&issued.chain).map_err(InvalidCertificate::Leaf)?;
        Ok(Self {
            proof,
            trust: TrustStore::default(),
            identity: presented,
            version: VERSION.fetch_add(1, Ordering::Relaxed),
            serial,
            not_before,
            not_after,
            own: Arc::new(Own(Arc::new(own))),
            roots,
            exchange,
            server: OnceLock::new(),
            clients: Mutex::default(),
        })
    }

    /// The same certificate, for connections to peers that are judged by `trust` too.
    #[must_use]
    pub fn trusting(self, trust: TrustStore) -> Self {
        Self {
            trust,
            server: OnceLock::new(),
            clients: Mutex::default(),
            ..self
        }
    }

    /// What peers see of it.
    #[must_use]
    pub fn proof(&self) -> &PeerProof {
        &self.proof
    }

    /// Whether it may still be shown: peers would refuse one that is revoked or denied.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self) -> Result<(), Distrust> {
        self.trust.judge(&self.proof, None)
    }

    /// Whom the certificate is for.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A number that no other certificate of this process has.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Serial number, in hexadecimal digits.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Start of validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate may be used at `now`.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// What its connections' peers are judged by.
    #[must_use]
    pub fn trust(&self) -> &TrustStore {
        &self.trust
    }

    /// Leaf first, then the intermediates. Certificates are public; the key is not in them.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.own.0.cert
    }

    /// How many roots peers are verified against.
    #[must_use]
    pub fn roots_len(&self) -> usize {
        self.roots.len()
    }

    /// The configuration for connecting to a server that must be one of `expected`. It asks what is revoked at each
    /// handshake, so that one made for this certificate is never older than the newest list.
    #[must_use]
    pub fn client_config(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        let expected: BTreeSet<_> = expected.iter().cloned().collect();
        let mut clients = self.clients.lock();
        if let Some(config) = clients.get(&expected) {
            return Arc::clone(config);
        }
        if clients.len() >= CLIENT_CONFIGS_MAX {
            clients.clear();
        }
        let roots = Arc::clone(&self.roots);
        let own: Arc<dyn ResolvesClientCert> = Arc::clone(&self.own) as _;
        let judge = tls::Judge::new(roots, self.trust.clone());
        let config = tls::mesh_client(self.exchange, judge, own, expected.clone());
        clients.insert(expected, Arc::clone(&config));
        config
    }

    /// The configuration for accepting clients of the own trust domain.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let make = || {
            let own: Arc<dyn ResolvesServerCert> = Arc::clone(&self.own) as _;
            let trust_domain = Str::clone(&self.identity.trust_domain);
            let judge = tls::Judge::new(Arc::clone(&self.roots), self.trust.clone());
            tls::mesh_server(self.exchange, judge, own, trust_domain)
        };
        Arc::clone(self.server.get_or_init(make))
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", &format_args!("{}", self.identity))
            .field("version", &self.version)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Shows our only certificate to whoever asks.
pub(crate) struct Own(pub(crate) Arc<CertifiedKey>);

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own(key hidden)")
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What a leaf says about itself.
pub(crate) struct Facts {
    pub(crate) serial: Str,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

pub(crate) fn facts(leaf: &CertificateDer<'_>) -> Result<Facts, PeerError> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    let digits: String = parsed
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let validity = parsed.validity();
    Ok(Facts {
        serial: digits.into(),
        not_before: system_time(validity.not_before.timestamp()),
        not_after: system_time(validity.not_after.timestamp()),
    })
}

/// Trust anchors that outlive the certificates they were read from. At least one.
pub(crate) fn anchors(
    roots: &[CertificateDer<'static>],
) -> Result<Arc<[TrustAnchor<'static>]>, InvalidCertificate> {
    let read = |root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
    let anchors: Result<Vec<_>, _> = roots.iter().map(read).collect();
    match anchors {
        Ok(anchors) if !anchors.is_empty() => Ok(anchors.into()),
        _ => Err(InvalidCertificate::Roots),
    }
}

pub(crate) fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

pub(crate) fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests;
