//! TLS to servers outside of the mesh. They are known by their host names and vouched for by public roots, not by an
//! identity; nothing of ours is shown to them.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::channel::{ChannelError, RootSource};
use crate::tls::{ClientStream, HandshakeError, KeyExchange, crypto, names};

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

/// A name that a server may prove instead of the one it is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A host name.
    Host(String),
    /// A URI.
    Uri(String),
}

/// A server outside of the mesh, and how it has to prove itself. Connections to it share the roots as they were when
/// this was made; nothing is resumed.
#[derive(Debug)]
pub struct Outside {
    config: Arc<ClientConfig>,
    name: String,
    server: ServerName<'static>,
}

impl Outside {
    /// The server of this name, which it must prove by a certificate that `roots` vouch for. If there are `others`, it
    /// must prove one of them instead. `protocol` is what is to be spoken over TLS, by its ALPN name.
    ///
    /// # Errors
    /// When there is nothing to judge the server by.
    pub fn new(
        roots: &RootSource,
        name: &str,
        others: &[Name],
        protocol: Option<&[u8]>,
    ) -> Result<Self, OutsideError> {
        let server = server_name(name)?;
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots.certificates()?);
        if added == 0 {
            let from = format!("{roots:?}");
            return Err(ChannelError::NoRoots { from }.into());
        }
        let provider = crypto(KeyExchange::Standard);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .expect("the provider has TLS 1.3 suites and groups");
        let mut config = if others.is_empty() {
            builder.with_root_certificates(store).with_no_client_auth()
        } else {
            let verifier = OneOf::new(store, provider, others)?;
            let builder = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier));
            builder.with_no_client_auth()
        };
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            name: name.to_owned(),
            server,
        })
    }

    /// TLS 1.3 over `stream`. The caller bounds the time.
    ///
    /// # Errors
    /// When the server cannot prove its name.
    pub async fn connect<S>(&self, stream: S) -> Result<ClientStream<S>, OutsideError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connecting = TlsConnector::from(Arc::clone(&self.config)).connect(self.server.clone(), stream);
        connecting.await.map_err(|error| OutsideError::Tls {
            name: self.name.clone(),
            error: error.into(),
        })
    }
}

/// TLS 1.3 over `stream` with the server of HTTP/1.1 of this name, which it must prove by a certificate that `roots`
/// vouch for. The caller bounds the time. Nothing is resumed: roots may have changed since.
///
/// # Errors
/// When the server cannot prove its name, or there is nothing to judge it by.
pub async fn connect<S>(roots: &RootSource, name: &str, stream: S) -> Result<ClientStream<S>, OutsideError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Outside::new(roots, name, &[], Some(b"http/1.1"))?
        .connect(stream)
        .await
}

fn server_name(name: &str) -> Result<ServerName<'static>, OutsideError> {
    ServerName::try_from(name.to_owned()).map_err(|_| OutsideError::Name(name.to_owned()))
}

/// Believes a server that proves one of these names, whatever it was asked for by.
#[derive(Debug)]
struct OneOf {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    hosts: Vec<ServerName<'static>>,
    uris: Vec<String>,
}

impl OneOf {
    fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        names: &[Name],
    ) -> Result<Self, OutsideError> {
        let (mut hosts, mut uris) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                Name::Host(host) => hosts.push(server_name(host)?),
                Name::Uri(uri) => uris.push(uri.clone()),
            }
        }
        Ok(Self {
            roots,
            provider,
            hosts,
            uris,
        })
    }

    fn is_one(&self, leaf: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
        let proves = |host| verify_server_name(parsed, host).is_ok();
        let says = |uri: &String| names(leaf).is_ok_and(|names| names.has_uri(uri));
        self.hosts.iter().any(proves) || self.uris.iter().any(says)
    }
}

impl ServerCertVerifier for OneOf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        if self.is_one(leaf, &parsed) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            leaf,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::TestCa;

    #[tokio::test]
    async fn a_server_of_tls_1_2_alone_is_told_by_that() {
        let roots = RootSource::Pem(TestCa::new().root_pem());
        let (near, mut far) = tokio::io::duplex(16 * 1024);
        let server = async {
            // A ClientHello, then a fatal alert: protocol_version.
            let _ = far.read(&mut [0; 4 * 1024]).await;
            far.write_all(&[21, 3, 3, 0, 2, 2, 70]).await.unwrap();
        };
        let (connected, ()) = tokio::join!(connect(&roots, "old.example", near), server);
        let said = connected.map(drop).unwrap_err().to_string();
        assert!(
            said.contains("old.example") && said.contains("does not speak TLS 1.3"),
            "{said}"
        );
    }
}
