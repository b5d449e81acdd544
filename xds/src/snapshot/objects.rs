//! The state of the source, for `tulle status`: what was read, what was refused, and why.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde::{Serialize, Serializer};
use tulle_k8s::translate::condition::Condition;
use tulle_model::{Reason, Str};

use crate::leaves::Leaves;

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
    /// The newest look at the source of which everything is in this cut.
    #[serde(skip)]
    pub look: u64,
    /// Why the source keeps an older state than the one it sees, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Str>,
    /// Findings in files, by file and line.
    pub problems: Arc<Vec<FileProblem>>,
    /// Every object in force, by key.
    #[serde(serialize_with = "values")]
    pub objects: Leaves<ObjectKey, Arc<ObjectStatus>>,
    /// Objects whose state changed, in the order in which they did.
    #[serde(skip)]
    log: RedBlackTreeMapSync<u64, ObjectKey>,
    /// Changes counted so far.
    #[serde(skip)]
    changes: u64,
}

/// Changes remembered; who is further behind looks at every object.
const LOG_ENTRIES_MAX: usize = 10_000;

fn values<S: Serializer>(
    objects: &Leaves<ObjectKey, Arc<ObjectStatus>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(objects.values())
}

impl Objects {
    /// Puts a state in the place of the one there was; `None` forgets the object.
    pub(crate) fn set(&mut self, key: &ObjectKey, status: Option<Arc<ObjectStatus>>) {
        match status {
            Some(status) => self.objects.insert_mut(key.clone(), status),
            None if !self.objects.remove_mut(key) => return,
            None => {}
        }
        self.changes += 1;
        self.log.insert_mut(self.changes, key.clone());
        if self.log.size() > LOG_ENTRIES_MAX
            && let Some(oldest) = self.log.first().map(|(change, _)| *change)
        {
            self.log.remove_mut(&oldest);
        }
    }

    /// Changes counted so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The objects whose state changed after so many changes; `None` if that is too long ago to be known.
    #[must_use]
    pub fn changed_since(&self, changes: u64) -> Option<impl Iterator<Item = &ObjectKey> + use<'_>> {
        let known = self.changes.checked_sub(changes)? <= self.log.size() as u64;
        known.then(|| self.log.range(changes + 1..).map(|(_, key)| key))
    }

    /// The state of one object.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<&ObjectStatus> {
        self.objects.get(key).map(AsRef::as_ref)
    }

    /// Number of objects of which a newer form is refused.
    #[must_use]
    pub fn stale(&self) -> usize {
        let objects = self.objects.values();
        objects.filter(|object| object.stale_since.is_some()).count()
    }

    /// The findings that are errors.
    pub fn errors(&self) -> impl Iterator<Item = &FileProblem> {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
    }
}

#[cfg(test)]
mod tests {
    use tulle_k8s::Kind;

    use super::*;

    fn key(number: usize) -> ObjectKey {
        ObjectKey::new(Kind::Service, "shop", format!("s{number}"))
    }

    fn status(number: usize) -> Option<Arc<ObjectStatus>> {
        Some(Arc::new(ObjectStatus {
            key: key(number),
            file: "a.yaml".into(),
            generation: 1,
            stale_since: None,
            conditions: Vec::new(),
            resources: Vec::new(),
        }))
    }

    #[test]
    fn what_changed_is_known_for_a_while() {
        let mut objects = Objects::default();
        objects.set(&key(0), status(0));
        let before = objects.changes();
        objects.set(&key(1), status(1));
        objects.set(&key(0), None);
        objects.set(&key(2), None);
        let changed: Vec<ObjectKey> = objects.changed_since(before).unwrap().cloned().collect();
        assert_eq!(changed, [key(1), key(0)], "what was not there did not go");
        assert_eq!(objects.changed_since(objects.changes()).unwrap().count(), 0);
        for number in 0..LOG_ENTRIES_MAX {
            objects.set(&key(number), status(number));
        }
        assert!(objects.changed_since(before).is_none());
        assert!(objects.changed_since(before + 2).is_some());
        assert!(
            objects.changed_since(objects.changes() + 1).is_none(),
            "another count"
        );
    }
}
