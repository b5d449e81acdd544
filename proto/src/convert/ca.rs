//! Certificate requests and replies of `istio.v1.auth`, with their metadata given meaning.

use std::collections::BTreeMap;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tulle_model::{Identity, Str};

use super::{Cause, Flaw, Malformed};
use crate::ca as wire;

/// Metadata key of the identity that a node asks for on behalf of a workload.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// Metadata key of the wished signer.
pub const CERT_SIGNER: &str = "CertSigner";

/// A request for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// PEM of the PKCS#10 request.
    pub csr: String,
    /// Wished lifetime.
    pub validity: Duration,
    /// The workload it is for; `None` asks for the caller's own identity.
    pub impersonated: Option<Identity>,
    /// The wished signer.
    pub signer: Option<Str>,
}

/// A reply, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateChain {
    /// PEM of the leaf.
    pub leaf: String,
    /// PEM of each intermediate, from the leaf upwards.
    pub intermediates: Vec<String>,
    /// PEM of the roots, possibly several.
    pub roots: String,
}

impl TryFrom<wire::IstioCertificateRequest> for CertificateRequest {
    type Error = Malformed;

    fn try_from(request: wire::IstioCertificateRequest) -> Result<Self, Malformed> {
        let mut metadata = request.metadata.unwrap_or_default().fields;
        let impersonated = take_text(&mut metadata, IMPERSONATED_IDENTITY).and_then(|text| {
            text.map(|text| text.parse::<Identity>())
                .transpose()
                .map_err(Cause::Identity)
        });
        let refuse = |field: &str, cause| Flaw::new(field, cause).of("certificate request");
        Ok(Self {
            csr: request.csr,
            // Zero and below ask for the signer's default.
            validity: Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or_default()),
            impersonated: impersonated.map_err(|cause| refuse(IMPERSONATED_IDENTITY, cause))?,
            signer: take_text(&mut metadata, CERT_SIGNER)
                .map_err(|cause| refuse(CERT_SIGNER, cause))?
                .map(Into::into),
        })
    }
}

/// An absent key and an empty text are the same; a value of another kind is an error.
fn take_text(metadata: &mut BTreeMap<String, Value>, key: &str) -> Result<Option<String>, Cause> {
    match metadata.remove(key).map(|value| value.kind) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) => Ok(Some(text).filter(|text| !text.is_empty())),
        Some(_) => Err(Cause::ExtensionValue(key.into())),
    }
}

impl From<&CertificateRequest> for wire::IstioCertificateRequest {
    fn from(request: &CertificateRequest) -> Self {
        let text = |text: String| Value {
            kind: Some(Kind::StringValue(text)),
        };
        let identity = request
            .impersonated
            .as_ref()
            .map(|identity| (IMPERSONATED_IDENTITY, identity.to_string()));
        let signer = request
            .signer
            .as_ref()
            .map(|signer| (CERT_SIGNER, signer.as_ref().to_owned()));
        let fields: BTreeMap<_, _> = identity
            .into_iter()
            .chain(signer)
            .map(|(key, value)| (key.to_owned(), text(value)))
            .collect();
        Self {
            csr: request.csr.clone(),
            validity_duration: i64::try_from(request.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: (!fields.is_empty()).then_some(Struct { fields }),
        }
    }
}

impl TryFrom<wire::IstioCertificateResponse> for CertificateChain {
    type Error = Malformed;

    /// The last element is the roots; a reply without them proves nothing.
    fn try_from(response: wire::IstioCertificateResponse) -> Result<Self, Malformed> {
        let mut chain = response.cert_chain.into_iter();
        let (Some(leaf), Some(roots)) = (chain.next(), chain.next_back()) else {
            return Err(Flaw::new("cert_chain", Cause::Unset).of("certificate reply"));
        };
        Ok(Self {
            leaf,
            intermediates: chain.collect(),
            roots,
        })
    }
}

impl From<&CertificateChain> for wire::IstioCertificateResponse {
    fn from(chain: &CertificateChain) -> Self {
        let mut cert_chain = vec![chain.leaf.clone()];
        cert_chain.extend(chain.intermediates.iter().cloned());
        cert_chain.push(chain.roots.clone());
        Self { cert_chain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_round_trips() {
        let request = CertificateRequest {
            csr: "pem".into(),
            validity: Duration::from_secs(86_400),
            impersonated: Some(Identity::new("cluster.local", "shop", "web")),
            signer: Some("hsm".into()),
        };
        assert_eq!(
            wire::IstioCertificateRequest::from(&request).try_into(),
            Ok(request.clone())
        );
        let own = CertificateRequest {
            impersonated: None,
            signer: None,
            ..request
        };
        assert_eq!(wire::IstioCertificateRequest::from(&own).metadata, None);
    }

    #[test]
    fn an_impersonated_identity_that_is_none_is_refused() {
        let value = Value {
            kind: Some(Kind::StringValue("shop/web".into())),
        };
        let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
        let request = wire::IstioCertificateRequest {
            metadata: Some(Struct { fields }),
            ..Default::default()
        };
        assert!(CertificateRequest::try_from(request).is_err());
    }

    #[test]
    fn a_reply_without_roots_is_refused() {
        let reply = |chain: &[&str]| wire::IstioCertificateResponse {
            cert_chain: chain.iter().map(ToString::to_string).collect(),
        };
        assert!(CertificateChain::try_from(reply(&[])).is_err());
        assert!(CertificateChain::try_from(reply(&["leaf"])).is_err());
        let chain = CertificateChain::try_from(reply(&["leaf", "middle", "roots"])).unwrap();
        assert_eq!(chain.intermediates, ["middle"]);
        assert_eq!(
            wire::IstioCertificateResponse::from(&chain),
            reply(&["leaf", "middle", "roots"])
        );
    }
}
