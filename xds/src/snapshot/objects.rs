//! The state of the source, for `tulle status`: what was read, what was refused, and why.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde::{Serialize, Serializer};
use tulle_k8s::translate::condition::Condition;
use tulle_model::{Reason, Str};

/// What a configuration object is called by.
pub use tulle_k8s::Key as ObjectKey;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something was skipped on purpose.
    Note,
    /// It works, and probably not as meant.
    Warning,
    /// It was refused; what was good before stays in force.
    Error,
}

/// One finding in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileProblem {
    /// Path below the configuration folder.
    pub file: Str,
    /// Line, counted from 1; zero where the whole file is meant.
    pub line: u64,
    /// Column, counted from 1; zero where unknown.
    pub column: u64,
    /// How bad it is.
    pub severity: Severity,
    /// The stable code and token.
    #[serde(serialize_with = "code_and_token")]
    pub reason: Reason,
    /// The object it belongs to, where it could be read that far.
    pub object: Option<ObjectKey>,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl std::fmt::Display for FileProblem {
    /// `policies/deny.yaml:3:5: T0202 unparsable_file: <cause>; <fix>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column.max(1))?;
        }
        write!(f, ": {}: ", self.reason)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.cause)?;
        if self.fix.is_empty() {
            Ok(())
        } else {
            write!(f, "; {}", self.fix)
        }
    }
}

fn code_and_token<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(reason)
}

/// The state of one configuration object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Which object.
    pub key: ObjectKey,
    /// Path of the file that defines it, below the configuration folder.
    pub file: Str,
    /// Generation that brought the form in force.
    pub generation: u64,
    /// Set while a newer form is refused and this older one stays in force: the generation of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_since: Option<u64>,
    /// What is known about it.
    pub conditions: Vec<Condition>,
    /// Names of the resources it became.
    pub resources: Vec<Str>,
}

/// The state of the source as a whole.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Objects {
    /// Number of the newest settled scan that differed from the one before.
    pub generation: u64,
    /// Why the source keeps an older state than the one it sees, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Str>,
    /// Findings in files, by file and line.
    pub problems: Arc<Vec<FileProblem>>,
    /// Every object in force, by key.
    #[serde(serialize_with = "values")]
    pub objects: RedBlackTreeMapSync<ObjectKey, Arc<ObjectStatus>>,
}

fn values<S: Serializer>(
    objects: &RedBlackTreeMapSync<ObjectKey, Arc<ObjectStatus>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(objects.values())
}

impl Objects {
    /// The state of one object.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<&ObjectStatus> {
        self.objects.get(key).map(AsRef::as_ref)
    }

    /// The findings that are errors.
    pub fn errors(&self) -> impl Iterator<Item = &FileProblem> {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
    }
}
