//! The certificate authority: who may have which identity, and the certificate that says so.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tulle_model::{Identity, Str};

use crate::ca::authorize::Refusal;
use crate::ca::issue::{Csr, IssueError, Leaf, ServerCertificate, TTL_DEFAULT};
use crate::ca::root::Root;

pub mod authorize;
pub mod issue;
pub mod limit;
pub mod renew;
pub mod root;
pub mod service;

/// Longest validity of a workload certificate, unless configured otherwise.
pub const TTL_MAX_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// The issuer with its bounds.
#[derive(Debug)]
pub struct Authority {
    root: Root,
    trust_domain: Str,
    ttl_max: Duration,
    /// One signature per core at a time.
    signers: Semaphore,
}

/// A signed certificate, and the names its request had claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The certificate.
    pub leaf: Leaf,
    /// What the request asked to be called.
    pub claimed: Vec<String>,
}

impl Authority {
    /// An authority for one trust domain.
    #[must_use]
    pub fn new(root: Root, trust_domain: Str, ttl_max: Duration) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            root,
            trust_domain,
            ttl_max,
            signers: Semaphore::new(cores),
        }
    }

    /// The issuer.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The trust domain it issues for.
    #[must_use]
    pub fn trust_domain(&self) -> &Str {
        &self.trust_domain
    }

    /// Signs for an identity that was authorised, away from the threads that serve connections.
    ///
    /// # Errors
    /// The request is bad, or the issuer cannot sign.
    pub async fn sign(
        self: &Arc<Self>,
        csr_pem: String,
        identity: Identity,
        ttl_seconds: i64,
    ) -> Result<Signed, Refusal> {
        let _turn = self.signers.acquire().await.map_err(|_| Refusal::SigningFailed)?;
        let authority = self.clone();
        let signed = tokio::task::spawn_blocking(move || {
            authority.sign_now(&csr_pem, &identity, ttl_seconds, OffsetDateTime::now_utc())
        });
        signed.await.map_err(|_| Refusal::SigningFailed)?
    }

    fn sign_now(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl_seconds: i64,
        now: OffsetDateTime,
    ) -> Result<Signed, Refusal> {
        let csr = Csr::parse(csr_pem)?;
        let ttl = issue::clamp_ttl(ttl_seconds, self.ttl_max);
        let leaf = issue::workload(&self.root, &csr, identity, ttl, now).map_err(|error| match error {
            IssueError::IssuerNotValid => Refusal::IssuerExpired,
            IssueError::Name(_) => Refusal::IdentityDenied("the identity cannot stand in a certificate"),
            IssueError::Signing(_) => Refusal::SigningFailed,
        })?;
        Ok(Signed {
            leaf,
            claimed: csr.claimed,
        })
    }

    /// A server certificate with a fresh key, for 24 hours.
    ///
    /// # Errors
    /// A name cannot be used, or the issuer cannot sign.
    pub fn server_certificate(&self, names: &[Str]) -> Result<ServerCertificate, IssueError> {
        issue::server(&self.root, names, TTL_DEFAULT, OffsetDateTime::now_utc())
    }
}
