//! What a peer has proven: who it is, and by which certificates, so that it can be judged again while connected.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tulle_model::identity::Identity;
use tulle_model::trust::Serial;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::system_time;
use crate::tls::{PeerError, peer_identity};

/// Certificates of a chain that are remembered; no mesh has longer ones.
const LINKS_MAX: usize = 8;

/// Who is at the other end of a connection, and the chain that proved it, leaf first.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerProof {
    identity: Identity,
    serial: Serial,
    not_after: SystemTime,
    links: Arc<[Link]>,
}

/// One certificate of a chain, as revocation lists know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Name of the issuer, encoded.
    pub(crate) issuer: Box<[u8]>,
    /// Serial number, as it is encoded.
    pub(crate) serial: Box<[u8]>,
}

impl Link {
    /// The certificate, and the end of its validity.
    fn of(certificate: &CertificateDer<'_>) -> Result<(Self, SystemTime), PeerError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
        let issuer = parsed.issuer().as_raw();
        let link = Self {
            issuer: inside(issuer).into(),
            serial: parsed.raw_serial().into(),
        };
        Ok((link, system_time(parsed.validity().not_after.timestamp())))
    }
}

impl PeerProof {
    /// Reads a chain that was verified, leaf first.
    ///
    /// # Errors
    /// When there is no leaf, it does not carry exactly one identity, or a certificate cannot be read.
    pub fn of(chain: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        let identity = peer_identity(chain)?;
        let read: Result<Vec<_>, _> = chain.iter().take(LINKS_MAX).map(Link::of).collect();
        let read = read?;
        let (leaf, not_after) = read.first().ok_or(PeerError::NoCertificate)?;
        Ok(Self {
            identity,
            serial: Serial::from_be_bytes(&leaf.serial),
            not_after: *not_after,
            links: read.into_iter().map(|(link, _)| link).collect(),
        })
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The serial number of its own certificate.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The end of validity of its own certificate. What it opened before may end later, nothing new begins.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }
}

impl fmt::Debug for PeerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerProof")
            .field("identity", &format_args!("{}", self.identity))
            .field("serial", &self.serial.as_str())
            .finish_non_exhaustive()
    }
}

/// The contents of an encoded name. Names are compared without their outer tag and length, as `webpki` does.
pub(crate) fn inside(name: &[u8]) -> &[u8] {
    let header = match name.get(1) {
        Some(length) if length & 0x80 != 0 => 2 + usize::from(length & 0x7f),
        Some(_) => 2,
        None => 0,
    };
    name.get(header..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::LIFETIME;
    use crate::testing::TestCa;
    use std::time::Duration;

    #[test]
    fn a_proof_ends_with_the_leaf() {
        let web = Identity::new("cluster.local", "shop", "web");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let ca = TestCa::new().intermediate(|intermediate| intermediate.not_after = (now + LIFETIME).into());
        let proof = PeerProof::of(&ca.issue(&web, now, Duration::from_secs(60)).chain).unwrap();
        assert_eq!(proof.not_after(), now + Duration::from_secs(60));
    }

    #[test]
    fn a_proof_names_the_identity_and_every_certificate() {
        let web = Identity::new("cluster.local", "shop", "web");
        let ca = TestCa::new().intermediate(|_| {});
        let issued = ca.issue(&web, SystemTime::now(), Duration::from_secs(60));
        let proof = PeerProof::of(&issued.chain).unwrap();
        assert_eq!(proof.identity(), &web);
        assert_eq!(proof.links().len(), 2);
        let leaf = webpki::EndEntityCert::try_from(&issued.chain[0]).unwrap();
        assert_eq!(&*proof.links()[0].issuer, leaf.issuer(), "as lists are compared");
        assert_eq!(&*proof.links()[0].serial, leaf.serial());
    }

    #[test]
    fn nothing_proves_nobody() {
        assert_eq!(PeerProof::of(&[]), Err(PeerError::NoCertificate));
    }
}
