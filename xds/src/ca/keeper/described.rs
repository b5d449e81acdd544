//! What is read from certificates to be told.

use tulle_model::Str;

use super::CertificateStatus;

/// SHA-256 of the public key of the first certificate of a PEM text, in hex.
pub(crate) fn pin_of(roots: &str) -> Option<String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (der, _) = crate::ca::issuer::certificates(roots).into_iter().next()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let key = certificate.public_key().raw;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
    Some(crate::token::hex(digest.as_ref()))
}

/// The serial numbers and ends of the certificates of a PEM text.
pub(super) fn described(role: &'static str, pem: &Str) -> Vec<CertificateStatus> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let certificates = crate::ca::issuer::certificates(pem);
    let described = certificates.iter().filter_map(|(der, _)| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(CertificateStatus {
            role,
            serial: certificate.raw_serial_as_string().replace(':', ""),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    });
    described.collect()
}
