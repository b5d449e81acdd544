//! gRPC channels to the control plane: TLS over our own configuration, a token and headers with each request.

mod credentials;
mod headers;
pub mod node;
pub mod pin;
mod settings;
mod source;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::tls::{ALPN, HandshakeError, KeyExchange, crypto};

pub use credentials::Credentials;
pub use headers::Headers;
pub use settings::ControlPlane;
pub use source::{RootSource, TokenSource};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one SYN and its first repetition are waited for. The kernel repeats ever more seldom; dialling anew keeps
/// the time short in which a network that works again is not noticed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence after which the server is asked whether it is alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// SO_MARK of the connection, so that packet rules tell it from the traffic they capture. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
}

impl ChannelConfig {
    /// With a mark for its packets.
    #[must_use]
    pub fn marked(self, mark: Option<u32>) -> Self {
        Self { mark, ..self }
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
    /// System roots were asked for, and there are none.
    #[error(
        "the operating system keeps no roots where they are looked for; install ca-certificates, or name a file"
    )]
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
        error: io::Error,
    },
    /// The node's certificate cannot be shown.
    #[error("{path} cannot be used: {error}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: rustls::Error,
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
        #[source]
        error: io::Error,
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

/// A connection by itself, for programs that speak HTTP/2 on their own, such as the clients of a load.
///
/// # Errors
/// As [`channel`], and when the server cannot be reached or trusted.
pub async fn connection(config: &ChannelConfig) -> Result<Box<dyn Connection>, ChannelError> {
    Target::new(config)?.connect().await
}

/// Bytes to and from a server.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Where and how to connect.
struct Target {
    /// `host:port`, brackets around IPv6.
    address: String,
    mark: Option<u32>,
    tls: Option<(ServerName<'static>, RootSource, TokenSource)>,
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
            return Ok(Self {
                address,
                mark: config.mark,
                tls: None,
            });
        }
        if !matches!(config.root, RootSource::File(_) | RootSource::Pin(_)) {
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
            mark: config.mark,
            tls: Some((verified, config.root.clone(), config.token.clone())),
        })
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, ChannelError> {
        let failed = |error| ChannelError::Connect {
            address: self.address.clone(),
            error,
        };
        let tcp = dial(&self.address, self.mark).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some((name, root, token)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let connector = TlsConnector::from(Arc::new(verifying(root, token)?));
        let stream = connector.connect(name.clone(), tcp).await;
        let stream = stream.map_err(|error| ChannelError::Tls {
            address: self.address.clone(),
            error: error.into(),
        })?;
        Ok(Box::new(stream))
    }
}

async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address).await
}

/// Connects to the first of a name's addresses that answers. Those that stay silent are dialled again and again, for as
/// long as the caller waits.
async fn dial(address: &str, mark: Option<u32>) -> io::Result<TcpStream> {
    loop {
        let mut silent = false;
        let mut refused = io::ErrorKind::NotFound.into();
        for address in tokio::net::lookup_host(address).await? {
            match tokio::time::timeout(DIAL_TIMEOUT, connect(address, mark)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => refused = error,
                Err(_) => silent = true,
            }
        }
        if !silent {
            return Err(refused);
        }
    }
}

/// TLS 1.3 to a server that these roots vouch for. Nothing is resumed: roots may have changed since.
fn verifying(root: &RootSource, token: &TokenSource) -> Result<ClientConfig, ChannelError> {
    let crypto = crypto(KeyExchange::Standard);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has TLS 1.3 suites and groups");
    let builder = if let RootSource::Pin(pin) = root {
        let pinned = pin::Pinned { pin: *pin, crypto };
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
    } else {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(root.certificates()?);
        if added == 0 {
            return Err(ChannelError::NoRoots {
                from: format!("{root:?}"),
            });
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match token {
        TokenSource::Certificate(path) => {
            let (chain, key) = node::read(path)?;
            let shown = builder.with_client_auth_cert(chain, key);
            shown.map_err(|error| ChannelError::Certificate {
                path: path.clone(),
                error,
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests;
