//! Certificate revocation lists: read from PEM or DER, asked by issuer and serial number.

use std::fmt;
use std::time::SystemTime;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::certificate::system_time;
use crate::proof::Link;

/// Largest text of lists that is read.
pub const CRL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Lists in one text; a chain has no more authorities.
pub const LISTS_MAX: usize = 64;

/// Why a text is no set of revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The text is too long.
    #[error("the revocation lists are larger than {CRL_BYTES_MAX} bytes")]
    TooLarge,
    /// There are too many lists.
    #[error("there are more than {LISTS_MAX} revocation lists")]
    TooMany,
    /// There is no list.
    #[error("there is no revocation list; expected PEM blocks `X509 CRL`, or one list in DER")]
    Empty,
    /// A list cannot be read.
    #[error("revocation list {index} cannot be read: {cause}")]
    Unreadable {
        /// Which one, from 1.
        index: usize,
        /// What is wrong.
        cause: String,
    },
}

/// Lists, the newest of each issuer first.
#[derive(Clone, Default)]
pub struct Lists(Vec<List>);

#[derive(Clone)]
struct List {
    list: OwnedList,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
}

/// Cloned with the lists of which it is one.
type OwnedList = std::sync::Arc<CertRevocationList<'static>>;

impl Lists {
    /// Reads lists: PEM if the text looks like it, else one list in DER.
    ///
    /// # Errors
    /// When a list cannot be read. None is skipped: what it revokes would be believed.
    pub fn parse(text: &[u8]) -> Result<Self, CrlError> {
        if text.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLarge);
        }
        let mut lists = Vec::new();
        for (at, der) in ders(text)?.iter().enumerate() {
            lists.push(List::read(der).map_err(|cause| CrlError::Unreadable { index: at + 1, cause })?);
        }
        if lists.is_empty() {
            return Err(CrlError::Empty);
        }
        lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
        Ok(Self(lists))
    }

    /// These lists and others.
    #[must_use]
    pub fn with(mut self, others: &Self) -> Self {
        self.0.extend(others.0.iter().cloned());
        self.0.sort_by_key(|list| std::cmp::Reverse(list.this_update));
        self
    }

    /// How many lists there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the first issuer's newest list is to be replaced.
    #[must_use]
    pub fn next_update(&self) -> Option<SystemTime> {
        let newest = self.0.iter().enumerate().filter(|(at, list)| {
            let newer = self.0[..*at].iter();
            !newer
                .clone()
                .any(|newer| newer.list.issuer() == list.list.issuer())
        });
        newest.filter_map(|(_, list)| list.next_update).min()
    }

    pub(super) fn borrowed(&self) -> Vec<&CertRevocationList<'static>> {
        self.0.iter().map(|list| &*list.list).collect()
    }

    /// Whether an authority of this name has published a list.
    pub(super) fn covers(&self, issuer: &[u8]) -> bool {
        self.0.iter().any(|list| list.list.issuer() == issuer)
    }

    /// Whether any list of the certificate's issuer revokes it, whatever its age.
    pub(super) fn revokes(&self, link: &Link) -> bool {
        let of_issuer = self.0.iter().filter(|list| list.list.issuer() == &*link.issuer);
        // An entry that cannot be read may be this one.
        of_issuer
            .into_iter()
            .any(|list| !matches!(list.list.find_serial(&link.serial), Ok(None)))
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lists")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl List {
    fn read(der: &[u8]) -> Result<Self, String> {
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| error.to_string())?;
        let (_, dates) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self {
            list: std::sync::Arc::new(list.into()),
            this_update: system_time(dates.last_update().timestamp()),
            next_update: dates.next_update().map(|time| system_time(time.timestamp())),
        })
    }
}

fn ders(text: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    // A list in DER is a SEQUENCE.
    if text.first() == Some(&0x30) {
        return Ok(vec![text.to_vec()]);
    }
    let mut ders = Vec::new();
    for (at, list) in CertificateRevocationListDer::pem_slice_iter(text).enumerate() {
        if at == LISTS_MAX {
            return Err(CrlError::TooMany);
        }
        let list = list.map_err(|error| CrlError::Unreadable {
            index: at + 1,
            cause: error.to_string(),
        })?;
        ders.push(list.to_vec());
    }
    Ok(ders)
}

/// Reads arbitrary bytes and asks the result; for the fuzzer.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(lists) = Lists::parse(bytes) {
        assert!(!lists.is_empty());
        let _ = (lists.next_update(), lists.covers(b"issuer"));
        let link = Link {
            issuer: lists.0[0].list.issuer().into(),
            serial: bytes.iter().take(20).copied().collect(),
        };
        let _ = lists.revokes(&link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_text_of_several_lists_is_read() {
        let now = SystemTime::now();
        let (one, other) = (TestCa::new(), TestCa::new());
        let text = one.revocation_list(&[], now, HOUR) + &other.revocation_list(&[], now, 2 * HOUR);
        let lists = Lists::parse(text.as_bytes()).unwrap();
        assert_eq!(lists.len(), 2);
        let first = lists.next_update().unwrap();
        assert!(first <= now + HOUR && first > now, "the first to be replaced");
    }

    #[test]
    fn the_newest_list_of_an_issuer_tells_when_the_next_is_due() {
        let now = SystemTime::now();
        let ca = TestCa::new();
        let old = ca.revocation_list(&[], now - 3 * HOUR, HOUR);
        let lists = Lists::parse((old + &ca.revocation_list(&[], now, HOUR)).as_bytes()).unwrap();
        assert!(lists.next_update().unwrap() > now);
    }

    #[test]
    fn what_cannot_be_read_is_refused_as_a_whole() {
        let now = SystemTime::now();
        let good = TestCa::new().revocation_list(&[], now, HOUR);
        assert_eq!(Lists::parse(b"").unwrap_err(), CrlError::Empty);
        assert_eq!(Lists::parse(b"no list").unwrap_err(), CrlError::Empty);
        let broken = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        let error = Lists::parse((good.clone() + broken).as_bytes()).unwrap_err();
        assert!(matches!(error, CrlError::Unreadable { index: 2, .. }), "{error}");
        assert_eq!(
            Lists::parse(good.repeat(65).as_bytes()).unwrap_err(),
            CrlError::TooMany
        );
        assert!(Lists::parse(&[0x30, 0x03, 1, 2, 3]).is_err());
    }
}
