//! Authorization: may this connection pass, and which policy decides.

mod by_source;
pub mod cidr;
pub mod matcher;
pub mod policy;
#[cfg(any(test, feature = "testing"))]
pub mod reference;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::net::{IpAddr, SocketAddr};

use crate::identity::Identity;
use crate::name::{NamespacedName, Str};
use crate::reason::Reason;

/// What is known of a connection when it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Identity of the TLS peer; `None` for plaintext.
    pub peer: Option<Identity>,
    /// Identity of the client behind a trusted waypoint; `None` without one.
    pub original_source: Option<Identity>,
    /// Address of the client.
    pub source_ip: IpAddr,
    /// Address of the destination pod and the resolved target port.
    pub destination: SocketAddr,
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow {
        /// Why.
        because: AllowBecause,
    },
    /// It must not pass.
    Deny {
        /// Why.
        because: DenyBecause,
    },
}

/// Why a connection may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowBecause {
    /// No ALLOW policy applies to the destination.
    NoAllowPolicy,
    /// A rule of an ALLOW policy matched.
    Policy {
        /// The policy.
        policy: NamespacedName,
        /// Index of the rule.
        rule: usize,
    },
}

/// Why a connection must not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DenyBecause {
    /// A rule of a DENY policy matched.
    Policy {
        /// The policy.
        policy: NamespacedName,
        /// Index of the rule.
        rule: usize,
    },
    /// ALLOW policies apply, none matched.
    NoAllowMatched,
    /// The workload names a policy that has not arrived (policy barrier).
    PolicyPending {
        /// The missing policy.
        policy: NamespacedName,
    },
    /// The policy could not be translated and denies what it selects.
    Untranslatable {
        /// The policy.
        policy: NamespacedName,
    },
    /// Generated: the destination accepts only its waypoint.
    WaypointRequired {
        /// The generated policy.
        policy: NamespacedName,
    },
}

impl DenyBecause {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Policy { .. } => Reason::PolicyDenied,
            Self::NoAllowMatched => Reason::NoAllowMatched,
            Self::PolicyPending { .. } => Reason::PolicyPending,
            Self::Untranslatable { .. } => Reason::PolicyUntranslatable,
            Self::WaypointRequired { .. } => Reason::WaypointRequired,
        }
    }

    /// The policy that decided, if one did.
    #[must_use]
    pub fn policy(&self) -> Option<&NamespacedName> {
        match self {
            Self::Policy { policy, .. }
            | Self::PolicyPending { policy }
            | Self::Untranslatable { policy }
            | Self::WaypointRequired { policy } => Some(policy),
            Self::NoAllowMatched => None,
        }
    }
}

/// A service account as policies name it; the trust domain does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Str,
    /// Service account.
    pub service_account: Str,
}
