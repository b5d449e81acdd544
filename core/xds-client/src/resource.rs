//! The types of resources a client can ask for.

use std::fmt;

use tulle_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, Malformed, Resource, TRUST_TYPE, decode_address, decode_authorization,
    decode_trust,
};

/// A subscription of its own within the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Roots and deny-list; only of a control plane of ours, so nothing may wait for it.
    Trust,
    /// Policies.
    Authorization,
    /// Workloads and services.
    Address,
}

impl ResourceType {
    /// Every type, in the order in which they are asked for.
    pub const ALL: [Self; 3] = [Self::Trust, Self::Authorization, Self::Address];
    /// What a node proxy cannot do without.
    pub const NODE: [Self; 2] = [Self::Authorization, Self::Address];

    /// The type's name on the wire.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::Trust => TRUST_TYPE,
        }
    }

    /// The type with this name on the wire.
    #[must_use]
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Decodes one resource of this type.
    ///
    /// # Errors
    /// Names the first field that cannot be used.
    pub fn decode(self, name: &str, body: &[u8]) -> Result<Resource, Malformed> {
        match self {
            Self::Address => decode_address(name, body),
            Self::Authorization => decode_authorization(name, body),
            Self::Trust => decode_trust(name, body),
        }
    }
}

/// The short name: `Address`, `Authorization`, `Trust`.
impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("Address"),
            Self::Authorization => f.write_str("Authorization"),
            Self::Trust => f.write_str("Trust"),
        }
    }
}
