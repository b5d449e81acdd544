//! What every object carries: name, labels, annotations, age.

use std::sync::Arc;

use serde::Deserialize;
use tulle_model::{NamespacedName, Str};

pub use super::labels::Labels;

/// Metadata of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name.
    pub name: Str,
    /// Namespace; empty for kinds without one.
    pub namespace: Str,
    /// Unique id given by a Kubernetes API server.
    pub uid: Str,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// When it was created; decides ties.
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// Set while it is being deleted; apart, as few objects are.
    pub deletion_timestamp: Option<Box<jiff::Timestamp>>,
    /// Counts changes of the spec; zero where nobody counts.
    pub generation: i64,
    /// Who made it; objects of the same owner share that.
    pub owner_references: Arc<[Owner]>,
}

impl Meta {
    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> NamespacedName {
        NamespacedName {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(AsRef::as_ref)
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(AsRef::as_ref)
    }

    /// Orders objects by age, then by name; an object without a time is the youngest.
    #[must_use]
    pub fn age(&self) -> (jiff::Timestamp, &str, &str) {
        (
            self.creation_timestamp.unwrap_or(jiff::Timestamp::MAX),
            &self.namespace,
            &self.name,
        )
    }
}

/// An owner of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// Kind.
    pub kind: Str,
    /// Name.
    pub name: Str,
    /// Whether it is the one that manages the object.
    pub controller: bool,
}

/// Whether every label of a selector stands among `labels`.
#[must_use]
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

/// A status condition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(default)]
pub struct StatusCondition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: Str,
    /// `True`, `False` or `Unknown`.
    pub status: Str,
}

/// Whether a condition of this type has this status.
#[must_use]
pub fn has_condition(conditions: &[StatusCondition], kind: &str, status: &str) -> bool {
    conditions
        .iter()
        .any(|condition| &*condition.kind == kind && &*condition.status == status)
}
