//! gRPC channels to the control plane: TLS over our own configuration, a token and headers with each request.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::tls::{ALPN, HandshakeError, KeyExchange, crypto, pem_certificates};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the server is asked whether it is alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest token or root file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A channel that authenticates every request.
pub type AuthenticatedChannel = InterceptedService<Channel, Credentials>;

/// Where a control plane is, whom to believe that it is, and what to show it.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// `https://host:port`; `http://` is plaintext, for tests.
    pub address: Uri,
    /// What the server's certificate must chain to.
    pub root: RootSource,
    /// Verify this name instead of the address's host.
    pub server_name: Option<String>,
    /// Sent as `authorization: Bearer`.
    pub token: TokenSource,
    /// Further metadata of each request.
    pub headers: Vec<(String, String)>,
    /// Sent as `clusterid`.
    pub cluster_id: Option<String>,
}

/// Where the roots of a channel come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A file, read again for each connection, so that a rotated root needs no restart.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The roots of the operating system. Not built in.
    System,
}

impl RootSource {
    /// Reads a setting: `SYSTEM`, PEM text, or a path.
    #[must_use]
    pub fn from_setting(text: &str) -> Self {
        match text {
            "SYSTEM" => Self::System,
            pem if pem.contains("-----BEGIN") => Self::Pem(pem.to_owned()),
            path => Self::File(path.into()),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, ChannelError> {
        let (pem, from) = match self {
            Self::File(path) => (read_file(path)?, path.display().to_string()),
            Self::Pem(pem) => (pem.clone(), "the configured text".to_owned()),
            Self::System => return Err(ChannelError::SystemRoots),
        };
        match pem_certificates(pem.as_bytes()) {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(ChannelError::NoRoots { from }),
        }
    }
}

/// Where the bearer token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file, read for each request, as tokens are short-lived.
    File(PathBuf),
    /// The token itself.
    Literal(String),
    /// No token is sent.
    None,
}

impl TokenSource {
    /// Reads a setting: a path if it looks like one or exists, else the token itself; nothing if empty.
    #[must_use]
    pub fn from_setting(text: &str) -> Self {
        match text {
            "" => Self::None,
            path if path.starts_with('/') || path.starts_with('.') || Path::new(path).exists() => {
                Self::File(path.into())
            }
            token => Self::Literal(token.to_owned()),
        }
    }

    fn read(&self) -> Result<Option<String>, ChannelError> {
        match self {
            Self::File(path) => Ok(Some(read_file(path)?.trim().to_owned())),
            Self::Literal(token) => Ok(Some(token.clone())),
            Self::None => Ok(None),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(hidden)"),
            Self::None => f.write_str("None"),
        }
    }
}

/// Why a channel cannot be made, or cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The address cannot be used.
    #[error("`{0}` is no address of a control plane; expected https://host:port")]
    Address(Uri),
    /// The name to verify is neither a DNS name nor an IP address.
    #[error("`{name}` cannot be verified as a server's name: {error}")]
    ServerName {
        /// The offending name.
        name: String,
        /// What is wrong with it.
        error: InvalidDnsNameError,
    },
    /// System roots were asked for.
    #[error("the operating system's roots are not built in; name a file or give PEM text")]
    SystemRoots,
    /// Nothing in the source is a root certificate.
    #[error("no root certificate can be read from {from}")]
    NoRoots {
        /// Where roots were looked for.
        from: String,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A header is not valid gRPC metadata.
    #[error("`{0}` cannot be sent as a gRPC header")]
    Header(String),
    /// The server cannot be reached.
    #[error("{address} cannot be reached: {error}")]
    Connect {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The server is reached, but cannot be trusted.
    #[error("TLS with {address} failed: {error}")]
    Tls {
        /// Whom it was with.
        address: String,
        /// What failed.
        error: HandshakeError,
    },
}

/// A channel that connects when first used, and again whenever it must.
///
/// # Errors
/// When the configuration can never work. A root file that is missing now may appear later, and is no error.
pub fn channel(config: &ChannelConfig) -> Result<Channel, ChannelError> {
    let target = Arc::new(Target::new(config)?);
    // The connector below does TLS itself; towards tonic the connection is plain, the requests' scheme is not.
    let plain = format!("http://{}", target.address).parse::<Uri>();
    let plain = plain.map_err(|_| ChannelError::Address(config.address.clone()))?;
    let endpoint = Endpoint::from(plain)
        .origin(config.address.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let target = Arc::clone(&target);
            async move { target.connect().await.map(TokioIo::new) }
        })),
    )
}

/// A channel whose requests carry the token, `clusterid` and further headers of `config`.
///
/// # Errors
/// As [`channel`], and when a header cannot be sent.
pub fn authenticated(config: &ChannelConfig) -> Result<AuthenticatedChannel, ChannelError> {
    Ok(InterceptedService::new(
        channel(config)?,
        Credentials::new(config)?,
    ))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where and how to connect.
struct Target {
    /// `host:port`, brackets around IPv6.
    address: String,
    tls: Option<(ServerName<'static>, RootSource)>,
}

impl Target {
    fn new(config: &ChannelConfig) -> Result<Self, ChannelError> {
        let invalid = || ChannelError::Address(config.address.clone());
        let host = config
            .address
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(invalid)?;
        let (tls, default_port) = match config.address.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(invalid()),
        };
        let address = format!("{host}:{}", config.address.port_u16().unwrap_or(default_port));
        if !tls {
            return Ok(Self { address, tls: None });
        }
        if !matches!(config.root, RootSource::File(_)) {
            config.root.certificates()?;
        }
        let name = config
            .server_name
            .as_deref()
            .unwrap_or(host)
            .trim_matches(['[', ']'])
            .to_owned();
        let verified = ServerName::try_from(name.clone());
        let verified = verified.map_err(|error| ChannelError::ServerName { name, error })?;
        Ok(Self {
            address,
            tls: Some((verified, config.root.clone())),
        })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ChannelError> {
        let failed = |error| ChannelError::Connect {
            address: self.address.clone(),
            error,
        };
        let tcp = TcpStream::connect(&self.address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some((name, root)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let connector = TlsConnector::from(Arc::new(verifying(root)?));
        let stream = connector.connect(name.clone(), tcp).await;
        let stream = stream.map_err(|error| ChannelError::Tls {
            address: self.address.clone(),
            error: error.into(),
        })?;
        Ok(Box::new(stream))
    }
}

/// TLS 1.3 to a server that these roots vouch for. Nothing is resumed: roots may have changed since.
fn verifying(root: &RootSource) -> Result<ClientConfig, ChannelError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(root.certificates()?);
    if added == 0 {
        return Err(ChannelError::NoRoots {
            from: format!("{root:?}"),
        });
    }
    let mut config = ClientConfig::builder_with_provider(crypto(KeyExchange::Standard))
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Adds token, cluster and headers to each request.
#[derive(Clone)]
pub struct Credentials {
    token: TokenSource,
    metadata: Arc<[(MetadataKey<Ascii>, MetadataValue<Ascii>)]>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.metadata.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Credentials")
            .field("token", &self.token)
            .field("metadata", &names)
            .finish()
    }
}

impl Credentials {
    /// Checks that all of it can be sent.
    ///
    /// # Errors
    /// When a name or value is not valid gRPC metadata.
    pub fn new(config: &ChannelConfig) -> Result<Self, ChannelError> {
        let cluster = config.cluster_id.iter().map(|id| ("clusterid", id.as_str()));
        let headers = config
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let metadata: Result<Vec<_>, _> = cluster
            .chain(headers)
            .map(|(name, value)| entry(name, value))
            .collect();
        Ok(Self {
            token: config.token.clone(),
            metadata: metadata?.into(),
        })
    }
}

fn entry(name: &str, value: &str) -> Result<(MetadataKey<Ascii>, MetadataValue<Ascii>), ChannelError> {
    let invalid = || ChannelError::Header(name.to_owned());
    let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| invalid())?;
    Ok((key, value.parse().map_err(|_| invalid())?))
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in self.metadata.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        let token = self
            .token
            .read()
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        if let Some(token) = token {
            let bearer: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
            let mut bearer =
                bearer.map_err(|_| Status::unauthenticated("the token is not valid in a header"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }
}

fn read_file(path: &Path) -> Result<String, ChannelError> {
    let failed = |error| ChannelError::File {
        path: path.to_owned(),
        error,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
