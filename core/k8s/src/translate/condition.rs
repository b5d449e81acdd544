//! Conditions: what became of an object, in the words of Kubernetes.

use std::borrow::Cow;
use std::num::NonZeroI64;

/// Type of the condition on security objects that node proxies enforce.
pub const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// Type of the condition on security objects that waypoints enforce.
pub const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";
/// Type of the condition that tells which waypoint is in front of something.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// Type of the condition that tells whether all of an object could be used.
pub const USABLE: &str = "tulle.dev/Usable";
/// Type of the condition on routes, gateways and policies: whether they are used.
pub const ACCEPTED: &str = "Accepted";
/// Type of the condition on routes and gateways: whether everything they refer to is there.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Type of the condition on routes and gateways: whether a waypoint acts on them.
pub const PROGRAMMED: &str = "Programmed";
/// Type of the condition on routes of which a part cannot be used.
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";
/// Type of the condition on a workload that shares its address with a better one.
pub const ADDRESS_CONFLICT: &str = "tulle.dev/AddressConflict";
/// Type of the condition on a service whose host name another one defines.
pub const CONFLICTED: &str = "Conflicted";

/// One condition of an object. The message names the next step.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// Type, such as `ZtunnelAccepted`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Whether it holds.
    pub status: Status,
    /// One word of the closed list of reasons.
    pub reason: Cow<'static, str>,
    /// What happened and what to do.
    pub message: String,
    /// The parent or target it speaks of, for objects that have several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Generation of the object that it speaks of, as its metadata counts them; none without one.
    #[serde(skip_serializing_if = "Option::is_none", rename = "observedGeneration")]
    pub observed_generation: Option<NonZeroI64>,
}

/// Value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
}

impl Condition {
    /// The same, said of one parent or target.
    #[must_use]
    pub fn of(mut self, what: impl Into<String>) -> Self {
        self.of = Some(what.into());
        self
    }

    /// The same, said of this generation of the object; zero is none.
    #[must_use]
    pub fn at(mut self, generation: i64) -> Self {
        self.observed_generation = NonZeroI64::new(generation);
        self
    }

    /// A condition that holds.
    pub fn holds(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            status: Status::True,
            reason: reason.into(),
            message: message.into(),
            of: None,
            observed_generation: None,
        }
    }

    /// A condition that does not hold.
    pub fn fails(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            status: Status::False,
            reason: reason.into(),
            message: message.into(),
            of: None,
            observed_generation: None,
        }
    }
}
