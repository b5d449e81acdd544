//! Conditions: what became of an object, in the words of Kubernetes.

use std::borrow::Cow;

/// One condition of an object. The message names the next step.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// Type, such as `ZtunnelAccepted`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Whether it holds.
    pub status: Status,
    /// One word of the closed list of control-plane.md 5.3.
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
