//! Certificate requests: a fresh key, and a PKCS#10 text that asks for one identity.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tulle_model::identity::Identity;
use zeroize::Zeroize;

/// A private key. It is cleared from memory when dropped, and no output shows it.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// Reads a key from PEM text.
    ///
    /// # Errors
    /// When the text holds no private key.
    pub fn from_pem(pem: &str) -> Result<Self, RequestError> {
        PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map(Self)
            .map_err(|_| RequestError::NoKey)
    }

    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }
}

impl From<KeyPair> for PrivateKey {
    fn from(pair: KeyPair) -> Self {
        Self(PrivateKeyDer::Pkcs8(pair.serialize_der().into()))
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// Why no request could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A PEM text holds no private key.
    #[error("the text holds no private key in PEM form")]
    NoKey,
    /// The identity cannot be written as a URI name.
    #[error("the identity {0} cannot be written into a request")]
    Name(Identity),
    /// The key could not be made, or could not sign.
    #[error("the request could not be signed: {0}")]
    Signing(rcgen::Error),
}

/// A request together with the key that the certificate will be for.
#[derive(Debug)]
pub struct Request {
    /// PKCS#10 in PEM form.
    pub pem: String,
    /// The fresh key.
    pub key: PrivateKey,
}

/// Makes an ECDSA P-256 key and a request for `identity`: empty subject, one URI name, marked critical.
///
/// # Errors
/// When the identity cannot be written as ASCII, or signing fails.
pub fn request(identity: &Identity) -> Result<Request, RequestError> {
    let name = identity
        .to_string()
        .try_into()
        .map_err(|_| RequestError::Name(identity.clone()))?;
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(RequestError::Signing)?;
    let mut params = CertificateParams::default();
    // RFC 5280 4.1.2.6: with an empty subject the subject alternative names are critical.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(name)];
    let request = params.serialize_request(&pair).map_err(RequestError::Signing)?;
    let pem = request.pem().map_err(RequestError::Signing)?;
    Ok(Request {
        pem,
        key: pair.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    #[test]
    fn a_request_has_one_critical_uri_name_and_an_empty_subject() {
        let identity = Identity::new("cluster.local", "shop", "web");
        let request = request(&identity).unwrap();
        let (_, pem) = parse_x509_pem(request.pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        let attribute = info.iter_attributes().next().unwrap();
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            panic!("the request asks for extensions")
        };
        let [san] = &asked.extensions[..] else {
            panic!("one extension is asked for")
        };
        assert!(san.critical);
        let ParsedExtension::SubjectAlternativeName(names) = san.parsed_extension() else {
            panic!("the extension holds names")
        };
        let expected = identity.to_string();
        assert_eq!(names.general_names, [GeneralName::URI(&expected)]);
        assert_eq!(
            csr.signature_algorithm.algorithm.to_id_string(),
            "1.2.840.10045.4.3.2"
        );
    }

    #[test]
    fn every_request_has_its_own_key_and_no_output_shows_it() {
        let identity = Identity::new("cluster.local", "shop", "web");
        let (one, two) = (request(&identity).unwrap(), request(&identity).unwrap());
        assert_ne!(one.key.der(), two.key.der());
        assert!(format!("{one:?}").contains("PrivateKey(hidden)"));
    }
}
