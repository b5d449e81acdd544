//! Revocation lists, as far as handing them out goes: whether they can be read, and until when they say the truth.

use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Most lists in one file.
const LISTS_MAX: usize = 64;

/// Why revocation lists cannot be handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCrl {
    /// No PEM block `X509 CRL`, or something else beside it.
    #[error("it holds something other than PEM blocks of type X509 CRL")]
    NotPem,
    /// A block is no list.
    #[error("a block is no revocation list")]
    NotAList,
    /// More than [`LISTS_MAX`].
    #[error("it holds more than {LISTS_MAX} lists")]
    TooMany,
}

/// When the first of these lists ends, in seconds since 1970; `None` if none of them says so.
///
/// # Errors
/// They cannot be read.
pub fn parse(text: &[u8]) -> Result<Option<i64>, InvalidCrl> {
    let mut ends = None;
    let mut lists = 0;
    for block in Pem::iter_from_buffer(text) {
        let block = block.map_err(|_| InvalidCrl::NotPem)?;
        if block.label != "X509 CRL" {
            return Err(InvalidCrl::NotPem);
        }
        lists += 1;
        if lists > LISTS_MAX {
            return Err(InvalidCrl::TooMany);
        }
        let (rest, list) =
            CertificateRevocationList::from_der(&block.contents).map_err(|_| InvalidCrl::NotAList)?;
        if !rest.is_empty() {
            return Err(InvalidCrl::NotAList);
        }
        if let Some(next) = list.next_update() {
            let next = next.timestamp();
            ends = Some(ends.map_or(next, |end: i64| end.min(next)));
        }
    }
    if lists == 0 {
        return Err(InvalidCrl::NotPem);
    }
    Ok(ends)
}

/// Whether lists that end at `ends` say nothing any more.
#[must_use]
pub fn is_stale(ends: Option<i64>, now: i64) -> bool {
    ends.is_some_and(|end| now > end)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    };
    use time::OffsetDateTime;

    use super::*;

    fn list(next_update: i64) -> String {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (certificate, key) = crate::ca::root::generate_pems("cluster.local", now).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap();
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: OffsetDateTime::from_unix_timestamp(next_update).unwrap(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(7),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn the_first_end_counts() {
        let text = format!("{}{}", list(1_800_009_000), list(1_800_003_600));
        let ends = parse(text.as_bytes()).unwrap();
        assert_eq!(ends, Some(1_800_003_600));
        assert!(!is_stale(ends, 1_800_003_600));
        assert!(is_stale(ends, 1_800_003_601));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "text",
            "-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let whole = list(1_800_003_600);
        assert!(parse(&whole.as_bytes()[..whole.len() / 2]).is_err());
    }
}
