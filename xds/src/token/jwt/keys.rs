//! Published keys (RFC 7517) and the signatures they verify (RFC 7518, section 3).

use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::InvalidJwt;

/// Keys of one issuer.
const KEYS_MAX: usize = 64;
/// Smallest RSA modulus, in bytes.
const RSA_BYTES_MIN: usize = 256;
/// Largest one; verification takes longer the larger it is.
const RSA_BYTES_MAX: usize = 1024;

/// The keys of an issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug, Deserialize)]
struct Set {
    keys: Vec<Published>,
}

#[derive(Debug, Deserialize)]
struct Published {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(rename = "use", default)]
    usage: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl Keys {
    /// Reads a JWKS. Keys of other kinds, and those for other uses, are passed over.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let set: Set = serde_json::from_slice(text).ok()?;
        let keys = set.keys.iter().take(KEYS_MAX).filter_map(Key::read);
        Some(Self(keys.collect()))
    }

    /// Whether a key verifies this signature under the algorithm named.
    ///
    /// # Errors
    /// None does.
    pub fn verify(
        &self,
        algorithm: &str,
        id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidJwt> {
        if !matches!(
            algorithm,
            "RS256" | "RS384" | "RS512" | "PS256" | "ES256" | "ES384" | "EdDSA"
        ) {
            return Err(InvalidJwt::Algorithm);
        }
        let fits = |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        let verified = self
            .0
            .iter()
            .filter(fits)
            .any(|key| key.material.verifies(algorithm, signed, signature));
        if verified {
            Ok(())
        } else {
            Err(InvalidJwt::Signature)
        }
    }
}

impl Key {
    fn read(published: &Published) -> Option<Self> {
        if published.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&published.x)?, bytes(&published.y)?);
            (x.len() == length && y.len() == length).then(|| [&[4], &x[..], &y[..]].concat())
        };
        let material = match (published.kty.as_str(), published.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(&published.n)?, bytes(&published.e)?);
                if !(RSA_BYTES_MIN..=RSA_BYTES_MAX).contains(&n.len()) {
                    return None;
                }
                Material::Rsa { n, e }
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&published.x)?),
            _ => return None,
        };
        Some(Self {
            id: published.kid.clone(),
            material,
        })
    }
}

impl Material {
    /// The kind of the key decides which algorithms it may be used with, never the token.
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        let plain = |verification: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(verification, key)
                .verify(signed, signature)
                .is_ok()
        };
        match (self, algorithm) {
            (Self::P256(key), "ES256") => plain(&ECDSA_P256_SHA256_FIXED, key),
            (Self::P384(key), "ES384") => plain(&ECDSA_P384_SHA384_FIXED, key),
            (Self::Ed25519(key), "EdDSA") => plain(&ED25519, key),
            (Self::Rsa { n, e }, algorithm) => rsa(algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, signed, signature)
                    .is_ok()
            }),
            _ => false,
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    match algorithm {
        "RS256" => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Some(&signature::RSA_PSS_2048_8192_SHA256),
        _ => None,
    }
}
