//! What a dump says about certificates: who, until when, and why not. Never a key.

use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tulle_model::identity::Identity;

use super::State;

/// Whether a certificate can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateState {
    /// None came yet.
    Pending,
    /// It can be used.
    Valid,
    /// It can be used no more, and no other came.
    Expired,
}

/// One line of a dump. It holds no key material.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSummary {
    /// Whose certificate.
    pub identity: Identity,
    /// Whether it can be used.
    pub state: CertificateState,
    /// Its number within this process.
    pub version: Option<u64>,
    /// Serial number, in hexadecimal digits.
    pub serial: Option<String>,
    /// Start of validity, as RFC 3339 says it.
    pub not_before: Option<String>,
    /// End of validity.
    pub not_after: Option<String>,
    /// When it will be renewed.
    pub renew_at: Option<String>,
    /// Certificates in the chain, leaf included.
    pub chain: usize,
    /// Roots that peers are verified against.
    pub roots: usize,
    /// Local workloads with this identity.
    pub workloads: usize,
    /// How the last attempt failed, if it did.
    pub last_error: Option<String>,
}

pub(super) fn of(state: &State, identity: &Identity, now: SystemTime) -> CertificateSummary {
    let slot = state.slots.get(identity);
    let current = slot.and_then(|slot| slot.current.as_deref());
    let (renew_at, workloads) = state.schedule.outlook(identity);
    CertificateSummary {
        identity: identity.clone(),
        state: match current {
            None => CertificateState::Pending,
            Some(certificate) if certificate.is_valid(now) => CertificateState::Valid,
            Some(_) => CertificateState::Expired,
        },
        version: current.map(|certificate| certificate.version()),
        serial: current.map(|certificate| certificate.serial().to_owned()),
        not_before: current.map(|certificate| text(certificate.not_before())),
        not_after: current.map(|certificate| text(certificate.not_after())),
        renew_at: renew_at.filter(|_| current.is_some()).map(text),
        chain: current.map_or(0, |certificate| certificate.chain().len()),
        roots: current.map_or(0, |certificate| certificate.roots_len()),
        workloads,
        last_error: slot.and_then(|slot| slot.last.as_ref()).map(ToString::to_string),
    }
}

fn text(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}
