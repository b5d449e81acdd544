//! Where certificates come from: the one-method client of a certificate authority.

mod chain;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod grpc;
mod held;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tulle_model::identity::Identity;

use crate::certificate::InvalidCertificate;
use crate::csr::{PrivateKey, RequestError};

pub use chain::ChainError;
#[cfg(any(test, feature = "testing"))]
pub use fake::FakeCa;
pub use grpc::{GrpcCa, GrpcCaOptions, Impersonation};
#[doc(hidden)]
pub use held::fuzz as fuzz_held;
pub use held::{HELD_IDENTITIES_MAX, HeldCa, Unreadable};

/// What a fetch returns; boxed, so that the trait can be an object.
pub type CaFuture<'a> = Pin<Box<dyn Future<Output = Result<Issued, CaError>> + Send + 'a>>;

/// A certificate authority, as seen from a node.
pub trait CaClient: fmt::Debug + Send + Sync + 'static {
    /// Makes a key and asks for a certificate of `identity` over it.
    fn fetch<'a>(&'a self, identity: &'a Identity) -> CaFuture<'a>;

    /// Nobody here needs the certificate of `identity` any more: what is kept of it is to be forgotten. Most keep nothing.
    fn forget(&self, _identity: &Identity) {}
}

/// What a certificate authority issued, with the key it is for.
#[derive(Debug)]
pub struct Issued {
    /// The key of the request.
    pub key: PrivateKey,
    /// Leaf first, then the intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What peers are verified against.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why a certificate could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CaError {
    /// The request could not be made.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The authority refused, or could not be reached.
    #[error("the certificate authority answered {code:?}: {message}")]
    Status {
        /// gRPC status.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The authority did not answer in time.
    #[error("the certificate authority did not answer within {0:?}")]
    Timeout(Duration),
    /// The answer is no chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The answer is a chain, but not one that can be used.
    #[error(transparent)]
    Invalid(#[from] InvalidCertificate),
}

impl CaError {
    /// Whether the authority is to blame rather than the request: it may be back at any moment, for everybody.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        use tonic::Code::{Aborted, Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
        match self {
            Self::Timeout(_) => true,
            Self::Status { code, .. } => {
                matches!(
                    code,
                    Aborted | Cancelled | DeadlineExceeded | Internal | Unavailable | Unknown
                )
            }
            Self::Request(_) | Self::Chain(_) | Self::Invalid(_) => false,
        }
    }
}
