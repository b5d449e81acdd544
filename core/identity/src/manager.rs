//! The store of the node's certificates: fetches, renews, forgets.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tulle_model::identity::Identity;
use tulle_model::reason::Reason;

use crate::ca::{CaClient, CaError};
use crate::certificate::WorkloadCertificate;
use crate::metrics::Metrics;
use crate::schedule::Priority;
use crate::tls::KeyExchange;

/// The wall clock, which tests replace.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// A clock that asks `now`.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a fetch waits for a certificate.
    pub wait: Duration,
    /// Which groups connections may use.
    pub key_exchange: KeyExchange,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(5),
            key_exchange: KeyExchange::Standard,
            clock: Clock::system(),
        }
    }
}

/// Why there is no certificate to use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// None was issued yet.
    #[error("no certificate for {identity} yet{}", because(.last))]
    Unavailable {
        /// Whose certificate.
        identity: Identity,
        /// What the last attempt ended with.
        last: Option<CaError>,
    },
    /// The last one has expired and could not be renewed.
    #[error("the certificate of {identity} expired{}", because(.last))]
    Expired {
        /// Whose certificate.
        identity: Identity,
        /// What the last attempt ended with.
        last: Option<CaError>,
    },
}

fn because(last: &Option<CaError>) -> String {
    last.as_ref()
        .map(|error| format!("; last attempt: {error}"))
        .unwrap_or_default()
}

impl CertificateError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unavailable { .. } => Reason::CertUnavailable,
            Self::Expired { .. } => Reason::CertExpired,
        }
    }
}

/// One line of a dump. It holds no key material.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CertificateSummary {
    /// Whose certificate.
    pub identity: Identity,
}

/// A cheap handle on the store.
#[derive(Debug, Clone)]
pub struct SecretManager {}

impl SecretManager {
    /// Starts a store over `ca`. Must be called within a runtime; the store ends with its last handle.
    #[must_use]
    pub fn new(_ca: Arc<dyn CaClient>, _options: Options, _metrics: Metrics) -> Self {
        unimplemented!()
    }

    /// The valid certificate of `identity`; waits for one if there is none, at most [`Options::wait`].
    ///
    /// # Errors
    /// When none can be had in time: `cert_unavailable`, or `cert_expired`.
    pub async fn fetch(
        &self,
        _identity: &Identity,
        _priority: Priority,
    ) -> Result<Arc<WorkloadCertificate>, CertificateError> {
        unimplemented!()
    }

    /// The valid certificate of `identity`, if there is one now.
    #[must_use]
    pub fn current(&self, _identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        unimplemented!()
    }

    /// A local workload of this identity appeared: fetch its certificate and keep it fresh.
    pub fn retain(&self, _identity: &Identity) {
        unimplemented!()
    }

    /// A local workload of this identity is gone; the certificate is forgotten with the last one.
    pub fn release(&self, _identity: &Identity) {
        unimplemented!()
    }

    /// What is held, for dumps.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateSummary> {
        let _ = SystemTime::now;
        unimplemented!()
    }
}
