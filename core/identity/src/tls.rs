//! TLS between workloads: how to connect, how to accept, and what a failed handshake means.
//!
//! In TLS 1.3 a client finishes before the server has judged its certificate. A client that was refused therefore
//! learns of it from the first read, as an `io::Error`; [`HandshakeError::from`] explains that one as well.

mod client;
mod handover;
mod peer;
mod provider;
mod server;
mod verify;

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tulle_model::identity::Identity;
use tulle_model::reason::Reason;

use crate::proof::PeerProof;

pub(crate) use client::mesh_client;
pub use handover::{Handover, TrafficSecrets, accept_and_hand_over, connect_and_hand_over, hands_over};
pub(crate) use peer::names;
pub use peer::{PeerError, peer_identity};
#[cfg(test)]
pub(crate) use provider::signing_key;
pub use provider::{KeyExchange, Library};
pub(crate) use provider::{certified_key, crypto, is_other_key};
pub(crate) use server::{mesh_server, without_resumption};
pub(crate) use verify::{Judge, chain_error};

/// The one application protocol of the mesh and of its control plane.
pub const ALPN: &[u8] = b"h2";

/// What connecting yields.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;
/// What accepting yields.
pub type AcceptedStream<S> = tokio_rustls::server::TlsStream<S>;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate does not prove an identity that is acceptable here.
    #[error(transparent)]
    Peer(PeerError),
    /// The peer ended the handshake with an alert; most often it did not accept our certificate.
    #[error("the peer refused the handshake: {:?}{}", .0, hint(*.0))]
    Refused(AlertDescription),
    /// TLS itself failed.
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    /// The connection failed under the handshake.
    #[error("the connection failed during the TLS handshake: {0}")]
    Io(io::Error),
}

/// What an alert tells an operator beyond its name.
fn hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::ProtocolVersion => "; it does not speak TLS 1.3, and nothing older is spoken here",
        _ => "",
    }
}

impl HandshakeError {
    /// The stable code of this failure.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Peer(error) => error.reason(),
            // What the peer knows of our certificate, and we perhaps not yet.
            Self::Refused(AlertDescription::CertificateRevoked) => Reason::CertRevoked,
            Self::Refused(_) | Self::Tls(_) | Self::Io(_) => Reason::TlsFailed,
        }
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Refused(alert),
            error => match verify::peer_error(&error) {
                Some(peer) => Self::Peer(peer),
                None => Self::Tls(error),
            },
        }
    }
}

impl From<io::Error> for HandshakeError {
    /// Finds what TLS said inside the I/O error that carries it.
    fn from(error: io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            Some(tls) => tls.clone().into(),
            None => Self::Io(error),
        }
    }
}

/// Performs a client handshake. Callers bound its time.
///
/// # Errors
/// When the handshake fails, or the server is none of the identities that the configuration expects.
pub async fn connect<S>(config: Arc<ClientConfig>, stream: S) -> Result<ClientStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Ok(TlsConnector::from(config)
        .connect(unnamed_server(), stream)
        .await?)
}

/// Performs a server handshake and says who the client is. Callers bound its time.
///
/// # Errors
/// When the handshake fails, or the client's certificate is not acceptable.
pub async fn accept<S>(
    config: Arc<ServerConfig>,
    stream: S,
) -> Result<(AcceptedStream<S>, Identity), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let proof = accepted(&stream)?;
    Ok((stream, proof.identity().clone()))
}

/// What the client of an accepted stream has proven.
///
/// # Errors
/// When its chain cannot be read; never for a stream of [`accept`].
pub fn accepted<S>(stream: &AcceptedStream<S>) -> Result<PeerProof, HandshakeError> {
    let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
    PeerProof::of(presented).map_err(HandshakeError::Peer)
}

/// What the server of a stream has proven.
///
/// # Errors
/// When its chain cannot be read; never for a stream of [`connect`].
pub fn connected<S>(stream: &ClientStream<S>) -> Result<PeerProof, HandshakeError> {
    let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
    PeerProof::of(presented).map_err(HandshakeError::Peer)
}

/// The server name to give rustls for a mesh connection: none is sent, and identities are checked instead.
#[must_use]
pub fn unnamed_server() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Reads all certificates of a PEM text.
pub(crate) fn pem_certificates(
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem).collect()
}

#[cfg(test)]
mod tests;
