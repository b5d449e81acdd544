//! Tokens of service accounts, judged offline against the issuer's published keys.
//!
//! A token is good if its signature, issuer, audience and times are; what it says of its bearer is then believed.
//! Keys come from a file per issuer, read again when it changes. Without a key that fits, nobody is believed.

mod keys;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::Deserialize;
use tulle_model::Str;

use super::is_node_id;
use crate::snapshot::Bearer;

pub use keys::Keys;

/// Clocks may differ by this many seconds.
pub const LEEWAY: i64 = 60;
/// Longest token looked at.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Largest file of keys read.
const KEYS_BYTES_MAX: u64 = 1 << 20;
/// What `sub` of a service account begins with.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Whose tokens are believed, and where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// What `iss` says.
    pub name: String,
    /// The JWKS.
    pub keys: PathBuf,
}

impl std::str::FromStr for Issuer {
    type Err = &'static str;

    /// `<issuer>=<file>`; the last `=` counts.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.rsplit_once('=') {
            Some((name, keys)) if !name.is_empty() && !keys.is_empty() => Ok(Self {
                name: name.to_owned(),
                keys: keys.into(),
            }),
            _ => Err("use ISSUER=FILE, with the issuer's keys (JWKS) in the file"),
        }
    }
}

/// Why a token proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJwt {
    /// Not three parts of base64, or not JSON in them.
    #[error("it is no signed JSON web token")]
    Form,
    /// An algorithm that is not accepted.
    #[error("its algorithm is not accepted")]
    Algorithm,
    /// An issuer that is not configured.
    #[error("its issuer is not known")]
    Issuer,
    /// For another audience.
    #[error("it is for another audience")]
    Audience,
    /// Its time is over.
    #[error("it has ended")]
    Expired,
    /// Its time has not begun.
    #[error("it is not valid yet")]
    NotYet,
    /// No key verifies it.
    #[error("its signature is not verified by any key of its issuer")]
    Signature,
    /// It does not speak of a service account.
    #[error("it is not of a service account")]
    Subject,
    /// It is bound to a pod that it does not name as pods are named.
    #[error("the pod that it is bound to cannot be read")]
    Pod,
}

/// What a good token says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Namespace of the service account.
    pub namespace: Str,
    /// Its name.
    pub name: Str,
    /// The node its pod runs on, if the token is bound to one.
    pub node: Option<Str>,
    /// The pod it was made for, if it is bound to one: it means something only while that pod is there.
    pub pod: Option<Bearer>,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Option<Bound>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// A token, taken apart.
struct Parts<'a> {
    header: Header,
    claims: Claims,
    /// What is signed.
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// What a token is bound to.
#[derive(Debug, Default, Deserialize)]
struct Bound {
    #[serde(default)]
    node: Option<Named>,
    #[serde(default)]
    pod: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    /// Of a pod, tells it from others of the same name.
    #[serde(default)]
    uid: String,
}

/// Judges tokens of several issuers.
#[derive(Debug, Clone)]
pub struct JwtVerifier {
    audience: Str,
    issuers: Arc<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    issuer: Issuer,
    /// The keys, and the file's time they are of.
    keys: Mutex<(Option<SystemTime>, Arc<Keys>)>,
}

impl JwtVerifier {
    /// A verifier for tokens for `audience`.
    #[must_use]
    pub fn new(issuers: Vec<Issuer>, audience: Str) -> Self {
        let known = issuers.into_iter().map(|issuer| Known {
            issuer,
            keys: Mutex::default(),
        });
        Self {
            audience,
            issuers: Arc::new(known.collect()),
        }
    }

    /// Who shows this token at `now`, in seconds since 1970. Reads a file that changed, so call it where that may
    /// block.
    ///
    /// # Errors
    /// It proves nothing.
    pub fn verify(&self, token: &str, now: i64) -> Result<Account, InvalidJwt> {
        let Parts {
            header,
            claims,
            signed,
            signature,
        } = parts(token)?;
        let known = self.issuers.iter().find(|known| known.issuer.name == claims.iss);
        let known = known.ok_or(InvalidJwt::Issuer)?;
        let keys = known.keys();
        keys.verify(&header.alg, header.kid.as_deref(), signed, &signature)?;
        if !claims.aud.has(&self.audience) {
            return Err(InvalidJwt::Audience);
        }
        if now >= claims.exp.saturating_add(LEEWAY) {
            return Err(InvalidJwt::Expired);
        }
        if claims.nbf.is_some_and(|begin| now < begin.saturating_sub(LEEWAY)) {
            return Err(InvalidJwt::NotYet);
        }
        account(&claims)
    }
}

impl Known {
    fn keys(&self) -> Arc<Keys> {
        let metadata = fs::metadata(&self.issuer.keys);
        let changed = metadata
            .as_ref()
            .ok()
            .and_then(|metadata| metadata.modified().ok());
        let mut kept = self.keys.lock();
        if changed.is_none() || kept.0 == changed {
            // An absent file leaves the last keys: the issuer has not taken them back.
            return kept.1.clone();
        }
        let small = metadata.is_ok_and(|metadata| metadata.len() <= KEYS_BYTES_MAX);
        let read = small.then(|| fs::read(&self.issuer.keys).ok()).flatten();
        match read.as_deref().and_then(Keys::parse) {
            Some(keys) => *kept = (changed, Arc::new(keys)),
            None => {
                let path = self.issuer.keys.display();
                tracing::error!(%path, "the issuer's keys cannot be read; the last ones stay in use");
                kept.0 = changed;
            }
        }
        kept.1.clone()
    }
}

/// A token, taken apart: nothing of it is believed yet.
fn parts(token: &str) -> Result<Parts<'_>, InvalidJwt> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(InvalidJwt::Form);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(InvalidJwt::Form)?;
    let (header, claims) = signed.split_once('.').ok_or(InvalidJwt::Form)?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidJwt::Form);
    let header = serde_json::from_slice(&decode(header)?).map_err(|_| InvalidJwt::Form)?;
    let claims = serde_json::from_slice(&decode(claims)?).map_err(|_| InvalidJwt::Form)?;
    Ok(Parts {
        header,
        claims,
        signed: signed.as_bytes(),
        signature: decode(signature)?,
    })
}

fn account(claims: &Claims) -> Result<Account, InvalidJwt> {
    let text = claims
        .sub
        .strip_prefix(ACCOUNT_PREFIX)
        .ok_or(InvalidJwt::Subject)?;
    let (namespace, name) = text.split_once(':').ok_or(InvalidJwt::Subject)?;
    // Parsed as an identity, so that only what can stand in one passes.
    let identity = format!("spiffe://x/ns/{namespace}/sa/{name}");
    identity
        .parse::<tulle_model::Identity>()
        .map_err(|_| InvalidJwt::Subject)?;
    let bound = claims.kubernetes.as_ref();
    let node = bound.and_then(|bound| bound.node.as_ref());
    let node = node.filter(|node| is_node_id(&node.name));
    let pod = bound.and_then(|bound| bound.pod.as_ref());
    Ok(Account {
        namespace: namespace.into(),
        name: name.into(),
        node: node.map(|node| node.name.as_str().into()),
        pod: pod.map(|pod| bearer(namespace, name, pod)).transpose()?,
    })
}

/// What a token is bound to. Nodes, pods and unique ids are named alike; anything else could never be found.
fn bearer(namespace: &str, account: &str, pod: &Named) -> Result<Bearer, InvalidJwt> {
    if !is_node_id(&pod.name) || !is_node_id(&pod.uid) {
        return Err(InvalidJwt::Pod);
    }
    Ok(Bearer {
        namespace: namespace.into(),
        account: account.into(),
        pod: pod.name.as_str().into(),
        uid: pod.uid.as_str().into(),
    })
}

/// Takes a token apart, for fuzzers: it may be anything, and proves nothing.
#[cfg(any(test, feature = "testing"))]
pub fn read_unverified(token: &str) {
    if let Ok(Parts { claims, .. }) = parts(token) {
        let _ = account(&claims);
    }
}

#[cfg(test)]
pub(crate) mod tests;
