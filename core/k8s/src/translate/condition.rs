//! Conditions: what became of an object, in the words of Kubernetes.

use std::borrow::Cow;

/// Type of the condition on security objects that node proxies enforce.
pub const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// Type of the condition on security objects that waypoints enforce.
pub const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";
/// Type of the condition that tells which waypoint is in front of something.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// Type of the condition that tells whether all of an object could be used.
pub const USABLE: &str = "tulle.dev/Usable";
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
    /// A condition that holds.
    pub fn holds(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            status: Status::True,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition that does not hold.
    pub fn fails(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            status: Status::False,
            reason: reason.into(),
            message: message.into(),
        }
    }
}
