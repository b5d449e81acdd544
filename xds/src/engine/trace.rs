//! The way from an object to what it became, step by step, for those who ask. Who does not ask pays nothing for it.

use serde::Serialize;
use tulle_k8s::Key;

/// One step of a computation, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The rule that was asked, such as `service` or `waypoint`.
    pub rule: &'static str,
    /// The object that answered, where it is another one than what is explained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Key>,
    /// The field that decided.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub field: &'static str,
    /// What came of it.
    pub outcome: String,
    /// The same in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
}

impl Step {
    /// A step of this rule.
    pub(super) fn of(rule: &'static str, field: &'static str, outcome: impl Into<String>) -> Self {
        Self {
            rule,
            object: None,
            field,
            outcome: outcome.into(),
            text: String::new(),
        }
    }

    /// The same, answered by this object.
    pub(super) fn by(self, object: &Key) -> Self {
        Self {
            object: Some(object.clone()),
            ..self
        }
    }

    /// The same, in words.
    pub(super) fn saying(self, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..self
        }
    }
}

/// Who is told the steps.
pub trait Trace {
    /// A step; `make` is called only if somebody listens.
    fn step(&mut self, make: impl FnOnce() -> Step);
}

/// Nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    fn step(&mut self, _: impl FnOnce() -> Step) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, make: impl FnOnce() -> Step) {
        self.push(make());
    }
}
