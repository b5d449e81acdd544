//! Certificates of workloads: requests, rotation, verification, TLS configurations.
//!
//! A [`SecretManager`] keeps one [`WorkloadCertificate`] per identity of the node's workloads, fetched through a
//! [`CaClient`] and renewed at half life. A certificate hands out ready TLS configurations: TLS 1.3 only, peers
//! are SPIFFE identities, sessions are never resumed. [`channel`] and [`acceptor`] carry gRPC to and in the
//! control plane, so that no other crate of the control plane names a TLS library.
//!
//! ```no_run
//! # async fn example(ca: std::sync::Arc<dyn tulle_identity::CaClient>, stream: tokio::net::TcpStream)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use tulle_identity::{Options, Priority, SecretManager, tls};
//! use tulle_model::identity::Identity;
//!
//! let secrets = SecretManager::new(ca, Options::default(), Default::default());
//! let own = Identity::new("cluster.local", "shop", "web");
//! let certificate = secrets.fetch(&own, Priority::Waiting).await?;
//! let server = Identity::new("cluster.local", "shop", "reviews");
//! let tunnel = tls::connect(certificate.client_config(&[server]), stream).await?;
//! # drop(tunnel);
//! # Ok(())
//! # }
//! ```

pub mod acceptor;
pub mod ca;
pub mod certificate;
pub mod channel;
pub mod clock;
pub mod csr;
pub mod manager;
pub mod metrics;
pub mod outside;
pub mod proof;
pub mod schedule;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod trust;

pub use acceptor::{Acceptor, AcceptorError, PeerCertificate, PeerInfo, ServerStream, server_acceptor};
pub use ca::{CaClient, CaError, CaFuture, GrpcCa, GrpcCaOptions, Impersonation, Issued};
pub use certificate::{InvalidCertificate, WorkloadCertificate};
pub use channel::{AuthenticatedChannel, ChannelConfig, ChannelError, ControlPlane, RootSource, TokenSource};
pub use clock::Clock;
pub use manager::{CertificateError, CertificateState, CertificateSummary, Options, SecretManager};
pub use metrics::Metrics;
pub use proof::PeerProof;
pub use schedule::Priority;
pub use tls::{HandshakeError, KeyExchange, PeerError, peer_identity};
pub use trust::{Distrust, StalePolicy, TrustStore};
