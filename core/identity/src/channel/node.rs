//! A node's own certificate: had once for a join token, kept in a file, renewed with itself.
//!
//! `<folder>/node.pem` holds key and chain, `<folder>/root-cert.pem` the roots; both are for their owner only. They
//! are what `AUTH_TOKEN` and `XDS_ROOT_CA` of a node's programs name.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http::Uri;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tulle_proto::node_ca::node_join_client::NodeJoinClient;
use tulle_proto::node_ca::{JoinRequest, NodeCertificate, RenewRequest};
use tulle_runtime::drain::DrainWatcher;
use zeroize::Zeroizing;

use super::pin::KeyPin;
use super::{AuthenticatedChannel, ChannelConfig, ChannelError, RootSource, TokenSource, authenticated};
use crate::certificate::facts;
use crate::tls::pem_certificates;

/// Key and chain.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Roots.
pub const ROOTS_FILE: &str = "root-cert.pem";
/// First part of a join token.
const PREFIX: &str = "tulle1";
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(60);
/// Longest pause between two looks at the certificate; another program may have renewed it.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// Largest reply read.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// `tulle1.<id>.<secret>.<pin>`, as `tulle node token` prints it.
#[derive(Clone)]
pub struct JoinToken {
    sent: Zeroizing<String>,
    pin: KeyPin,
}

impl std::fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl std::str::FromStr for JoinToken {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let rest = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix('.'));
        let (sent, pin) = rest
            .and_then(|rest| rest.rsplit_once('.'))
            .ok_or(JoinError::Token)?;
        let hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        match sent.split_once('.') {
            Some((id, secret)) if hex(id) && hex(secret) => Ok(Self {
                sent: sent.to_owned().into(),
                pin: KeyPin::parse(pin).ok_or(JoinError::Token)?,
            }),
            _ => Err(JoinError::Token),
        }
    }
}

/// Why a node has no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not of this form.
    #[error(
        "the join token has not the form tulle1.<id>.<secret>.<pin>; copy all of what `tulle node token` printed"
    )]
    Token,
    /// Not an address.
    #[error("`{0}` is no address of a control plane; expected https://host:port")]
    Address(String),
    /// The control plane cannot be spoken to.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The control plane refused, or could not be reached or believed.
    #[error("the control plane answered: {0}")]
    Status(String),
    /// It did not answer.
    #[error("the control plane did not answer within {TIMEOUT:?}")]
    Timeout,
    /// The answer cannot be used.
    #[error("the answer of the control plane is no certificate for this key")]
    Answer,
    /// A key could not be made.
    #[error("a key could not be made: {0}")]
    Key(rcgen::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A node's certificate with its key.
pub struct Joined {
    /// The node's name, as the control plane knows it.
    pub node: String,
    /// Key and chain, PEM.
    pem: Zeroizing<String>,
    /// Roots, PEM.
    roots: String,
}

impl std::fmt::Debug for Joined {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Exchanges a token for a certificate. The server's root is checked against the token's pin in the handshake, before
/// anything of the token is sent.
///
/// # Errors
/// The server is not the one of the token, or refuses it.
pub async fn join(address: Uri, server_name: Option<String>, token: &JoinToken) -> Result<Joined, JoinError> {
    let config = ChannelConfig {
        address,
        root: RootSource::Pin(token.pin),
        server_name,
        token: TokenSource::None,
        headers: Vec::new(),
        cluster_id: None,
        mark: None,
    };
    let (key, csr) = fresh_key()?;
    let request = JoinRequest {
        token: token.sent.to_string(),
        csr,
    };
    let mut client = client(&config)?;
    finish(key, client.join(request)).await
}

/// Exchanges a node's certificate for a new one.
///
/// # Errors
/// The certificate is not believed any more, or the control plane cannot be reached.
pub async fn renew(config: &ChannelConfig) -> Result<Joined, JoinError> {
    let (key, csr) = fresh_key()?;
    let mut client = client(config)?;
    finish(key, client.renew(RenewRequest { csr })).await
}

/// Renews the certificate in `folder` at half its life, until the drain starts. The channel must name its file.
pub async fn keep_fresh(config: ChannelConfig, folder: PathBuf, drain: DrainWatcher) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = drain.signaled() => return,
        }
        pause = match until_half_life(&folder, SystemTime::now()) {
            Ok(left) if left > Duration::ZERO => left.min(LOOK_AGAIN),
            Ok(_) => match renew_in(&config, &folder).await {
                Ok(()) => Duration::from_secs(1),
                Err(error) => {
                    tracing::error!(%error, "the node's certificate was not renewed");
                    RETRY
                }
            },
            Err(error) => {
                tracing::error!(%error, "the node's certificate cannot be read");
                RETRY
            }
        };
    }
}

async fn renew_in(config: &ChannelConfig, folder: &Path) -> Result<(), JoinError> {
    let joined = renew(config).await?;
    joined.save(folder)?;
    tracing::info!(node = joined.node, "the node's certificate was renewed");
    Ok(())
}

/// How long until half of the life of the certificate in `folder` is over.
fn until_half_life(folder: &Path, now: SystemTime) -> Result<Duration, JoinError> {
    let path = folder.join(CERTIFICATE_FILE);
    let text = fs::read(&path).map_err(|source| JoinError::File { path, source })?;
    let chain = pem_certificates(&text).map_err(|_| JoinError::Answer)?;
    let leaf = chain.first().ok_or(JoinError::Answer)?;
    let facts = facts(leaf).map_err(|_| JoinError::Answer)?;
    let life = facts
        .not_after
        .duration_since(facts.not_before)
        .unwrap_or_default();
    let half = facts.not_before + life / 2;
    Ok(half.duration_since(now).unwrap_or_default())
}

impl Joined {
    /// Keeps it: each file is whole at any time.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), JoinError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| JoinError::File { path, source }
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(failed(folder))?;
        // The roots first: a certificate whose server cannot be believed is of no use.
        for (name, text) in [(ROOTS_FILE, &self.roots), (CERTIFICATE_FILE, &*self.pem)] {
            let path = folder.join(name);
            replace(&path, text).map_err(failed(&path))?;
        }
        Ok(())
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Two programs of a node may renew at once: whichever is last wins whole.
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn client(config: &ChannelConfig) -> Result<NodeJoinClient<AuthenticatedChannel>, ChannelError> {
    let channel = authenticated(config)?;
    Ok(NodeJoinClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX))
}

/// A key, and a request that names nobody: who it is for follows from the credential.
fn fresh_key() -> Result<(KeyPair, String), JoinError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(JoinError::Key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(JoinError::Key)?;
    let pem = request.pem().map_err(JoinError::Key)?;
    Ok((key, pem))
}

async fn finish(
    key: KeyPair,
    asked: impl Future<Output = Result<tonic::Response<NodeCertificate>, tonic::Status>>,
) -> Result<Joined, JoinError> {
    let answer = tokio::time::timeout(TIMEOUT, asked)
        .await
        .map_err(|_| JoinError::Timeout)?;
    let answer = answer
        .map_err(|status| JoinError::Status(told(&status)))?
        .into_inner();
    let mut chain = answer.cert_chain;
    let roots = chain.pop().ok_or(JoinError::Answer)?;
    let leaf = chain
        .first()
        .and_then(|leaf| pem_certificates(leaf.as_bytes()).ok());
    let leaf = leaf
        .and_then(|leaf| leaf.into_iter().next())
        .ok_or(JoinError::Answer)?;
    if !is_for(&leaf, &key) || pem_certificates(roots.as_bytes()).is_ok_and(|roots| roots.is_empty()) {
        return Err(JoinError::Answer);
    }
    let mut pem = Zeroizing::new(key.serialize_pem());
    chain.iter().for_each(|certificate| pem.push_str(certificate));
    Ok(Joined {
        node: answer.node,
        pem,
        roots,
    })
}

fn is_for(leaf: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(leaf).is_ok_and(|(_, leaf)| {
        leaf.public_key().subject_public_key.data == rcgen::PublicKeyData::der_bytes(key)
    })
}

/// A status often only says `transport error`; what failed stands in its sources.
fn told(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What a channel shows in its handshake: the chain and key of a node's file.
pub(super) fn read(
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ChannelError> {
    let failed = |error| ChannelError::File {
        path: path.to_owned(),
        error,
    };
    let unusable = || {
        failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it holds no key with its certificate",
        ))
    };
    let text = Zeroizing::new(fs::read(path).map_err(failed)?);
    let chain = pem_certificates(&text).map_err(|_| unusable())?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| unusable())?;
    if chain.is_empty() {
        return Err(unusable());
    }
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_whole_or_not_at_all() {
        let pin = "ab".repeat(32);
        let token: JoinToken = format!("tulle1.0102.aabb.{pin}\n").parse().unwrap();
        assert_eq!(&*token.sent, "0102.aabb");
        assert!(
            !format!("{token:?}").contains("aabb."),
            "the secret stays out of sight"
        );
        for text in [
            "",
            "tulle1.0102.aabb",
            &format!("tulle1.0102.{pin}"),
            &format!("tulle2.0102.aabb.{pin}"),
            &format!("tulle1.n1.aabb.{pin}"),
            &format!("tulle1.0102.aabb.{}", &pin[2..]),
        ] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_files_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("node");
        let joined = Joined {
            node: "n1".to_owned(),
            pem: "key".to_owned().into(),
            roots: "roots".to_owned(),
        };
        joined.save(&folder).unwrap();
        joined.save(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&folder), mode(&folder.join(CERTIFICATE_FILE))),
            (0o700, 0o600)
        );
    }
}
