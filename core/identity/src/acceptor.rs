//! TLS for the control plane's servers: a certificate that can be replaced while running, and an accept loop
//! that no single client can end or hold up.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt, stream};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;
use tulle_model::identity::Identity;
use tulle_model::name::Str;

use crate::certificate::{Own, facts};
use crate::csr::{PrivateKey, RequestError};
use crate::tls::{
    self, AcceptedStream, HandshakeError, KeyExchange, PeerError, certified_key, pem_certificates,
};

/// A client must have finished its handshake by then.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once; further clients wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 1024;
/// Pause after the system refused to accept, as when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an acceptor cannot be made of the given material.
#[derive(Debug, thiserror::Error)]
pub enum AcceptorError {
    /// The chain holds no certificate that can be read.
    #[error("the server's chain holds no readable certificate")]
    Chain,
    /// The text holds no private key.
    #[error(transparent)]
    Key(#[from] RequestError),
    /// The key cannot be used, or is not the certificate's.
    #[error("the server's key cannot be used with its certificate: {0}")]
    Mismatch(rustls::Error),
    /// The roots for client certificates hold no certificate that can be read.
    #[error("the roots for client certificates cannot be read")]
    ClientRoots,
}

/// Why a client was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The handshake took too long.
    #[error("the TLS handshake did not finish within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
}

/// Accepts TLS clients. Clones share the certificate.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<ArcSwap<ServerConfig>>,
}

/// An acceptor with this certificate, leaf first, all PEM. With `client_roots`, clients may show a certificate;
/// one that does not verify is refused.
///
/// # Errors
/// When the material cannot be read, or key and certificate do not belong together.
pub fn server_acceptor(
    chain_pem: &str,
    key_pem: &str,
    client_roots_pem: Option<&str>,
) -> Result<Acceptor, AcceptorError> {
    let config = config(chain_pem, key_pem, client_roots_pem)?;
    Ok(Acceptor {
        config: Arc::new(ArcSwap::from_pointee(config)),
    })
}

fn config(chain: &str, key: &str, client_roots: Option<&str>) -> Result<ServerConfig, AcceptorError> {
    let chain = pem_certificates(chain.as_bytes()).map_err(|_| AcceptorError::Chain)?;
    if chain.is_empty() {
        return Err(AcceptorError::Chain);
    }
    let key = PrivateKey::from_pem(key)?;
    let own = certified_key(chain, key.der()).map_err(AcceptorError::Mismatch)?;
    let crypto = tls::crypto(KeyExchange::Standard);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups");
    let builder = match client_roots {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots(pem)?, crypto);
            let verifier = verifier
                .allow_unauthenticated()
                .build()
                .map_err(|_| AcceptorError::ClientRoots)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    Ok(tls::without_resumption(
        builder.with_cert_resolver(Arc::new(Own(Arc::new(own)))),
    ))
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>, AcceptorError> {
    let mut roots = RootCertStore::empty();
    for root in pem_certificates(pem.as_bytes()).map_err(|_| AcceptorError::ClientRoots)? {
        roots.add(root).map_err(|_| AcceptorError::ClientRoots)?;
    }
    Ok(Arc::new(roots))
}

impl Acceptor {
    /// Uses this material from the next handshake on; open connections stay.
    ///
    /// # Errors
    /// As [`server_acceptor`]; what was in use stays in use.
    pub fn replace(
        &self,
        chain_pem: &str,
        key_pem: &str,
        client_roots_pem: Option<&str>,
    ) -> Result<(), AcceptorError> {
        self.config
            .store(Arc::new(config(chain_pem, key_pem, client_roots_pem)?));
        Ok(())
    }

    /// Performs one handshake, within 10 s.
    ///
    /// # Errors
    /// When the handshake fails or takes too long.
    pub async fn accept(&self, tcp: TcpStream) -> Result<ServerStream, AcceptError> {
        // Latency only; a socket that refuses it works all the same.
        let _ = tcp.set_nodelay(true);
        let remote = tcp.peer_addr().ok();
        let local = tcp.local_addr().ok();
        let handshake = TlsAcceptor::from(self.config.load_full()).accept(tcp);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| AcceptError::Timeout)?;
        let stream = stream.map_err(HandshakeError::from)?;
        let certificate = PeerCertificate::of(&stream).map_err(HandshakeError::Peer)?;
        Ok(ServerStream {
            stream,
            peer: PeerInfo {
                remote,
                local,
                certificate,
            },
        })
    }

    /// Accepts for ever: handshakes run side by side, failed ones are logged and passed over.
    pub fn incoming(self, listener: TcpListener) -> impl Stream<Item = io::Result<ServerStream>> + Send {
        stream::unfold(listener, |listener| async move {
            Some((next_client(&listener).await, listener))
        })
        .map(move |(tcp, from)| {
            let acceptor = self.clone();
            async move { (acceptor.accept(tcp).await, from) }
        })
        .buffer_unordered(HANDSHAKES_MAX)
        .filter_map(|(accepted, from)| async move {
            match accepted {
                Ok(stream) => Some(Ok(stream)),
                Err(error) => {
                    tracing::debug!(client = %from, %error, "a client was not accepted");
                    None
                }
            }
        })
    }
}

async fn next_client(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(client) => return client,
            Err(error) => {
                tracing::warn!(%error, "the system refused to accept a connection; trying again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who is at the other end of a [`ServerStream`]; found in the extensions of each gRPC request.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// The client's address.
    pub remote: Option<SocketAddr>,
    /// The address it connected to.
    pub local: Option<SocketAddr>,
    /// The certificate it has proven, if it showed one.
    pub certificate: Option<PeerCertificate>,
}

/// A verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its one URI name.
    pub uri: Str,
    /// The same as a workload identity, if it is one. A node's name is not.
    pub identity: Option<Identity>,
    /// Its serial number, in hexadecimal digits.
    pub serial: Str,
    /// Its end. The handshake was before that; what comes later over the connection has to look again.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    fn of(stream: &AcceptedStream<TcpStream>) -> Result<Option<Self>, PeerError> {
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(leaf) = presented.first() else {
            return Ok(None);
        };
        let names = tls::names(leaf)?;
        let identity = names.identity().ok();
        let facts = facts(leaf)?;
        Ok(Some(Self {
            uri: names.uri()?.into(),
            identity,
            serial: facts.serial,
            not_after: facts.not_after,
        }))
    }
}

/// One accepted client.
#[derive(Debug)]
pub struct ServerStream {
    stream: AcceptedStream<TcpStream>,
    peer: PeerInfo,
}

impl ServerStream {
    /// Who the client is.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }
}

impl Connected for ServerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
