//! SPIFFE identities of workloads.

use std::fmt;
use std::str::FromStr;

use crate::name::Str;

/// The trust domain used where a message leaves it empty.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// A workload identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Trust domain, for example `cluster.local`.
    pub trust_domain: Str,
    /// Namespace of the service account.
    pub namespace: Str,
    /// Name of the service account.
    pub service_account: Str,
}

/// Why a text is no workload identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no workload identity; expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct InvalidIdentity {
    /// The offending text, cut to 256 characters.
    pub text: String,
}

impl Identity {
    /// Joins the parts of an identity.
    pub fn new(
        trust_domain: impl Into<Str>,
        namespace: impl Into<Str>,
        service_account: impl Into<Str>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The identity without its scheme, as authorization policies write principals.
    #[must_use]
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    /// Exact form only: no trailing slash, no empty part, no further part.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIdentity {
            text: text.chars().take(256).collect(),
        };
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", service_account]
                if is_trust_domain(trust_domain) && is_segment(namespace) && is_segment(service_account) =>
            {
                Ok(Self::new(trust_domain, namespace, service_account))
            }
            _ => Err(invalid()),
        }
    }
}

/// SPIFFE-ID, section 2.1: lower-case letters, digits, dots, dashes and underscores.
fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// SPIFFE-ID, section 2.2: letters, digits, dots, dashes and underscores; no relative step. Identities reach logs and
/// labels, so nothing else may stand in one.
fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Identity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let identity = Identity::new("cluster.local", "shop", "web");
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }

    #[test]
    fn loose_forms_are_refused() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://td/ns/a b/sa/b",
            "spiffe://td/ns/a/sa/b\n",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/%62",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text} must be refused");
        }
    }
}
