//! What is believed of certificates beyond their signature.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use tulle_identity::StalePolicy;
use tulle_runtime::config::Collector;

/// Revocation lists.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Crl {
    /// A file of lists; `None` = only those that the control plane pushes.
    pub path: Option<PathBuf>,
    /// What a status that is not known means.
    #[serde(serialize_with = "as_policy")]
    pub stale: StalePolicy,
}

fn as_policy<S: Serializer>(policy: &StalePolicy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match policy {
        StalePolicy::Deny => "deny",
        StalePolicy::Allow => "allow",
    })
}

pub(super) fn read(read: &mut Collector<'_>) -> Crl {
    let text = read.string("TULLE_CRL_STALE", "deny");
    let stale = match text.as_str() {
        "deny" => StalePolicy::Deny,
        "allow" => StalePolicy::Allow,
        other => {
            read.problem("TULLE_CRL_STALE", other, "must be deny or allow");
            StalePolicy::Deny
        }
    };
    Crl {
        path: read.optional_string("CRL_PATH").map(Into::into),
        stale,
    }
}
