//! The types of resources a client can ask for.

use std::fmt;
use std::sync::Arc;

use tulle_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, Malformed, POLICY_TYPE, ROUTE_TYPE, Resource, TRUST_TYPE,
    WAYPOINT_TYPE, decode_address, decode_authorization, decode_policy, decode_route, decode_trust,
    decode_waypoint,
};

/// A subscription of its own within the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Roots and deny-list; only of a control plane of ours, so nothing may wait for it.
    Trust,
    /// Policies.
    Authorization,
    /// Policies that waypoints enforce.
    Policy,
    /// Rules of routes.
    Route,
    /// Settings of a waypoint, and what it stands in front of.
    Waypoint,
    /// Workloads and services.
    Address,
}

impl ResourceType {
    /// Every type, in the order in which they are asked for.
    pub const ALL: [Self; 6] = [
        Self::Trust,
        Self::Authorization,
        Self::Policy,
        Self::Route,
        Self::Waypoint,
        Self::Address,
    ];
    /// What a node proxy cannot do without.
    pub const NODE: [Self; 2] = [Self::Authorization, Self::Address];
    /// What a waypoint cannot do without. Policies and routes come before the fronts they are for, fronts before the
    /// addresses they are reached at.
    pub const WAYPOINT: [Self; 5] = [
        Self::Authorization,
        Self::Policy,
        Self::Route,
        Self::Waypoint,
        Self::Address,
    ];

    /// The type's name on the wire.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::Trust => TRUST_TYPE,
            Self::Policy => POLICY_TYPE,
            Self::Route => ROUTE_TYPE,
            Self::Waypoint => WAYPOINT_TYPE,
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
            Self::Policy => decode_policy(name, body).map(|policy| Resource::Policy(Arc::new(policy))),
            Self::Route => decode_route(name, body).map(|route| Resource::Route(Arc::new(route))),
            Self::Waypoint => {
                decode_waypoint(name, body).map(|waypoint| Resource::Waypoint(Arc::new(waypoint)))
            }
        }
    }
}

/// The short name, such as `Address`.
impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "Address",
            Self::Authorization => "Authorization",
            Self::Trust => "Trust",
            Self::Policy => "Policy",
            Self::Route => "Route",
            Self::Waypoint => "Waypoint",
        })
    }
}
