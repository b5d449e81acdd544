//! TLS to servers outside of the mesh. They are known by their host names and vouched for by public roots, not by an
//! identity; nothing of ours is shown to them.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::channel::{ChannelError, RootSource};
use crate::tls::{ClientStream, HandshakeError, KeyExchange, crypto};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// There are no roots to judge the server by.
    #[error(transparent)]
    Roots(#[from] ChannelError),
    /// The name is neither a DNS name nor an address.
    #[error("`{0}` cannot be verified as a server's name")]
    Name(String),
    /// The server cannot be trusted, or broke off.
    #[error("TLS with {name} failed: {error}")]
    Tls {
        /// Whom it was with.
        name: String,
        /// What failed.
        error: HandshakeError,
    },
}

/// TLS 1.3 over `stream` with the server of this name, which it must prove by a certificate that `roots` vouch for. The
/// caller bounds the time. Nothing is resumed: roots may have changed since.
///
/// # Errors
/// When the server cannot prove its name, or there is nothing to judge it by.
pub async fn connect<S>(roots: &RootSource, name: &str, stream: S) -> Result<ClientStream<S>, OutsideError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = ServerName::try_from(name.to_owned()).map_err(|_| OutsideError::Name(name.to_owned()))?;
    let connecting = TlsConnector::from(Arc::new(config(roots)?)).connect(server, stream);
    connecting.await.map_err(|error| OutsideError::Tls {
        name: name.to_owned(),
        error: error.into(),
    })
}

fn config(roots: &RootSource) -> Result<ClientConfig, ChannelError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots.certificates()?);
    if added == 0 {
        return Err(ChannelError::NoRoots {
            from: format!("{roots:?}"),
        });
    }
    let mut config = ClientConfig::builder_with_provider(crypto(KeyExchange::Standard))
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
