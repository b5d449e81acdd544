//! One file's text into what it says about objects.

use std::sync::Arc;

use tulle_k8s::api::Secret;
use tulle_k8s::document::node::{Node, Place};
use tulle_k8s::document::{Fault, documents};
use tulle_k8s::object::{Reading, read, read_mesh};
use tulle_k8s::{Key, Object};
use tulle_model::{Reason, Str};

use crate::snapshot::{FileProblem, Severity};

/// SHA-256 of the text that says an object.
pub(crate) type Form = [u8; 32];

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parsed {
    /// What it says about objects, in its own order.
    pub(crate) statements: Vec<Statement>,
    /// Findings.
    pub(crate) problems: Vec<FileProblem>,
    /// Something in it cannot be read at all, so that nobody knows what it says as a whole.
    pub(crate) is_broken: bool,
}

/// What a file says about one object.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) key: Key,
    pub(crate) place: Place,
    pub(crate) says: Says,
}

/// What is said of an object.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// It can be used.
    Good(Good),
    /// It cannot; what denies in its place.
    Bad(Option<Good>),
}

/// An object, and the way it was written.
#[derive(Debug, Clone)]
pub(crate) struct Good {
    pub(crate) object: Arc<Object>,
    /// What the text is known by.
    pub(crate) form: Form,
    /// The text: JSON without places. It is dropped once it is on record.
    pub(crate) written: Option<Arc<str>>,
}

impl Good {
    fn new(object: Arc<Object>, node: &Node) -> Self {
        let written = if let Object::Secret(secret) = &*object {
            redacted(secret)
        } else {
            serde_json::to_string(node).unwrap_or_default()
        };
        Self {
            object,
            form: form_of(&written),
            written: Some(written.into()),
        }
    }
}

impl Statement {
    /// The object that is to come into force, if any.
    pub(crate) fn good(&self) -> Option<&Good> {
        match &self.says {
            Says::Good(good) | Says::Bad(Some(good)) => Some(good),
            Says::Bad(None) => None,
        }
    }

    /// The same, to be edited.
    pub(crate) fn good_mut(&mut self) -> Option<&mut Good> {
        match &mut self.says {
            Says::Good(good) | Says::Bad(Some(good)) => Some(good),
            Says::Bad(None) => None,
        }
    }
}

/// What a text is known by.
pub(crate) fn form_of(text: &str) -> Form {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut form = Form::default();
    form.copy_from_slice(digest.as_ref());
    form
}

/// A secret as far as it may be kept: its certificates.
fn redacted(secret: &Secret) -> String {
    let meta = &secret.metadata;
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": meta.name, "namespace": meta.namespace },
        "stringData": { "ca.crt": secret.certificates },
    });
    value.to_string()
}

/// Reads back what [`Good::written`] holds.
pub(crate) fn restore(written: &str) -> Option<(Key, Good)> {
    let node = documents(written).pop()?.ok()?;
    let reading = if node.field("kind").is_none() {
        read_mesh(&node)
    } else {
        read(&node)
    };
    match reading {
        Reading::Good { key, object, .. } => Some((key, Good::new(object, &node))),
        Reading::Bad { key, stand_in, .. } => Some((key, Good::new(stand_in?, &node))),
        Reading::Skipped(_) | Reading::Unknown(_) => None,
    }
}

/// Reads a file's text.
pub(crate) fn parse(file: &Str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let settings = &**file == "mesh.yaml";
    for document in documents(text) {
        match document {
            // An object in that file is one like any other.
            Ok(node) if settings && node.field("kind").is_none() => parsed.say(file, &node, read_mesh(&node)),
            Ok(node) => parsed.take(file, &node),
            Err(fault) => parsed.broken(file, fault),
        }
    }
    parsed
}

/// A file that could not be read.
pub(crate) fn unreadable(file: &Str, cause: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let place = Place { line: 0, column: 0 };
    parsed.broken(
        file,
        Fault::new(
            place,
            cause,
            "make it a readable file inside of the configuration folder",
        ),
    );
    parsed
}

impl Parsed {
    fn take(&mut self, file: &Str, node: &Node) {
        self.say(file, node, read(node));
    }

    fn say(&mut self, file: &Str, node: &Node, reading: Reading) {
        match reading {
            Reading::Good {
                key,
                object,
                warnings,
                place,
            } => {
                for warning in warnings {
                    self.problem(
                        file,
                        Severity::Warning,
                        Reason::UnknownField,
                        Some(key.clone()),
                        warning,
                    );
                }
                self.statements.push(Statement {
                    key,
                    place,
                    says: Says::Good(Good::new(object, node)),
                });
            }
            Reading::Bad {
                key,
                faults,
                stand_in,
                place,
            } => {
                for fault in faults {
                    let unknown_field = fault.cause.starts_with("there is no field");
                    let reason = if unknown_field {
                        Reason::UnknownField
                    } else {
                        Reason::ResourceRejected
                    };
                    self.problem(file, Severity::Error, reason, Some(key.clone()), fault);
                }
                let stand_in = stand_in.map(|object| Good::new(object, node));
                self.statements.push(Statement {
                    key,
                    place,
                    says: Says::Bad(stand_in),
                });
            }
            Reading::Skipped(fault) => {
                self.problem(file, Severity::Note, Reason::ResourceRejected, None, fault)
            }
            Reading::Unknown(fault) => self.broken(file, fault),
        }
    }

    fn broken(&mut self, file: &Str, fault: Fault) {
        self.is_broken = true;
        self.problem(file, Severity::Error, Reason::UnparsableFile, None, fault);
    }

    fn problem(&mut self, file: &Str, severity: Severity, reason: Reason, object: Option<Key>, fault: Fault) {
        let Fault { place, cause, fix } = fault;
        let (line, column) = (place.line, place.column);
        self.problems.push(FileProblem {
            file: file.clone(),
            line,
            column,
            severity,
            reason,
            object,
            cause: printable(&cause),
            fix: printable(&fix),
        });
    }
}

/// What is quoted of a file must not move the cursor of whoever reads it.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
