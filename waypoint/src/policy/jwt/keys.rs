//! The keys of an issuer (RFC 7517). Which algorithm a key is for is said by the key, never by the token.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use tulle_model::Str;

/// Longest set of keys.
pub const JWKS_BYTES_MAX: usize = 1 << 20;
/// Most keys of one set that are used.
pub const KEYS_MAX: usize = 256;

/// An algorithm that tokens may be signed with. There is none without a key pair: `none` and HMAC do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// One that the library knows.
    Known(jsonwebtoken::Algorithm),
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// The algorithm of this name, if it is one that is accepted.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        use jsonwebtoken::Algorithm as Of;
        let known = match name {
            "RS256" => Of::RS256,
            "RS384" => Of::RS384,
            "RS512" => Of::RS512,
            "PS256" => Of::PS256,
            "PS384" => Of::PS384,
            "PS512" => Of::PS512,
            "ES256" => Of::ES256,
            "ES384" => Of::ES384,
            "EdDSA" => Of::EdDSA,
            "ES512" => return Some(Self::Es512),
            _ => return None,
        };
        Some(Self::Known(known))
    }
}

/// What a key of each type can be for.
const OF_RSA: &[&str] = &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

/// The keys of one issuer.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    number: u64,
}

#[derive(Debug)]
struct Key {
    id: Option<Str>,
    algorithms: Vec<Algorithm>,
    verifier: Verifier,
}

enum Verifier {
    Known(DecodingKey),
    P521(Vec<u8>),
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// Why a text is no set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// It is too long.
    #[error("the keys take more than {JWKS_BYTES_MAX} bytes")]
    TooLong,
    /// It is no set of keys.
    #[error("it is no JSON Web Key Set: {0}")]
    NotJwks(String),
    /// None of its keys can check a signature.
    #[error(
        "none of its keys can be used; expected RSA, EC (P-256, P-384, P-521) or Ed25519 keys for signatures"
    )]
    NoneUsable,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// Counts sets, so that what was verified with one is never taken as verified with another.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl KeySet {
    /// Reads a set. Keys that cannot be used are passed over.
    pub fn parse(text: &[u8]) -> Result<Self, KeysError> {
        if text.len() > JWKS_BYTES_MAX {
            return Err(KeysError::TooLong);
        }
        let jwks: Jwks =
            serde_json::from_slice(text).map_err(|error| KeysError::NotJwks(error.to_string()))?;
        let usable = jwks
            .keys
            .into_iter()
            .filter_map(|key| Key::new(serde_json::from_value(key).ok()?));
        let keys: Vec<_> = usable.take(KEYS_MAX).collect();
        if keys.is_empty() {
            return Err(KeysError::NoneUsable);
        }
        Ok(Self {
            keys,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// A number that no other set of this process has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether a token that names this key could be checked.
    #[must_use]
    pub fn has(&self, id: Option<&str>) -> bool {
        self.candidates(id).next().is_some()
    }

    /// A token that names a key is checked with that one, or with those that have no name.
    fn candidates<'k>(&'k self, id: Option<&'k str>) -> impl Iterator<Item = &'k Key> {
        self.keys.iter().filter(move |key| match (id, &key.id) {
            (Some(wanted), Some(id)) => *wanted == **id,
            _ => true,
        })
    }

    /// Whether one of the keys made this signature of this message.
    #[must_use]
    pub fn verifies(&self, id: Option<&str>, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        self.candidates(id)
            .filter(|key| key.algorithms.contains(&algorithm))
            .any(|key| key.verifier.verifies(algorithm, message, signature))
    }
}

impl Verifier {
    fn verifies(&self, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        match (self, algorithm) {
            (Self::Known(key), Algorithm::Known(algorithm)) => {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
            }
            (Self::P521(point), Algorithm::Es512) => {
                URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| {
                    let key = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point);
                    key.verify(message.as_bytes(), &signature).is_ok()
                })
            }
            _ => false,
        }
    }
}

impl Key {
    /// `None` for a key that is not for signatures, or of a kind that is not known.
    fn new(of: Jwk) -> Option<Self> {
        let for_signatures = of.usage.as_deref().is_none_or(|usage| usage == "sig")
            && of
                .key_ops
                .as_ref()
                .is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures {
            return None;
        }
        let can: &[&str] = match (&*of.kty, of.crv.as_deref()) {
            ("RSA", _) => OF_RSA,
            ("EC", Some("P-256")) => &["ES256"],
            ("EC", Some("P-384")) => &["ES384"],
            ("EC", Some("P-521")) => &["ES512"],
            ("OKP", Some("Ed25519")) => &["EdDSA"],
            _ => return None,
        };
        let is_for = |name: &&&str| of.alg.as_deref().is_none_or(|alg| alg == **name);
        let algorithms: Vec<_> = can
            .iter()
            .filter(is_for)
            .filter_map(|name| Algorithm::named(name))
            .collect();
        let verifier = match (&*of.kty, can) {
            ("RSA", _) => Verifier::Known(DecodingKey::from_rsa_components(&of.n, &of.e).ok()?),
            ("OKP", _) => Verifier::Known(DecodingKey::from_ed_components(&of.x).ok()?),
            (_, ["ES512"]) => Verifier::P521(point(&of.x, &of.y, 66)?),
            _ => Verifier::Known(DecodingKey::from_ec_components(&of.x, &of.y).ok()?),
        };
        (!algorithms.is_empty()).then(|| Self {
            id: of.kid.map(Into::into),
            algorithms,
            verifier,
        })
    }
}

/// A point on a curve as it is written uncompressed: 4, x, y, each of `width` bytes.
fn point(x: &str, y: &str, width: usize) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for part in [x, y] {
        let part = URL_SAFE_NO_PAD.decode(part).ok()?;
        let missing = width.checked_sub(part.len())?;
        point.resize(point.len() + missing, 0);
        point.extend(part);
    }
    Some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r109_keys_of_any_depth_are_refused_on_a_small_stack() {
        let reading = || {
            for level in ["[", r#"{"keys":["#, r#"{"a":"#] {
                assert!(
                    KeySet::parse(level.repeat(100_000).as_bytes()).is_err(),
                    "{level}"
                );
            }
        };
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        thread.spawn(reading).unwrap().join().unwrap();
    }

    #[test]
    fn what_is_no_set_of_usable_keys_says_why() {
        let parse = |text: &str| KeySet::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(parse("{}"), KeysError::NotJwks(_)));
        assert_eq!(parse(r#"{"keys":[]}"#), KeysError::NoneUsable);
        let hmac = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;
        assert_eq!(
            parse(hmac),
            KeysError::NoneUsable,
            "a shared secret is no key here"
        );
        assert_eq!(parse(&" ".repeat(JWKS_BYTES_MAX + 1)), KeysError::TooLong);
    }

    #[test]
    fn there_is_no_algorithm_without_a_key_pair() {
        for name in ["none", "None", "HS256", "HS384", "HS512", "", "RS1"] {
            assert_eq!(Algorithm::named(name), None, "{name}");
        }
    }
}
