//! One file's text into what it says about objects.

use std::sync::Arc;

use base64::Engine as _;
use rayon::iter::ParallelIterator as _;
use rayon::slice::ParallelSlice as _;
use tulle_k8s::api::Secret;
use tulle_k8s::document::node::{Node, Place};
use tulle_k8s::document::{Fault, Part, documents, parts};
use tulle_k8s::object::{Pool, Reading, Unread, Weight, read, read_mesh};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::{Reason, Str};

use super::written::{self, Written};
use crate::snapshot::{FileProblem, Severity};

/// The first half of the SHA-256 of the text that says an object. Nobody finds two texts of the same half, and it is held
/// twice for each object.
pub(crate) type Form = [u8; 16];

/// Documents of a file that are read together.
const PARTS_TOGETHER: usize = 128;

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parsed {
    /// What it says about objects, in its own order.
    pub(crate) statements: Vec<Statement>,
    /// Findings.
    pub(crate) problems: Vec<FileProblem>,
    /// Something in it cannot be read at all, so that nobody knows what it says as a whole.
    pub(crate) is_broken: bool,
    /// Documents that name no object. The others are what they say.
    pub(crate) strays: Strays,
}

/// Documents of a file that name no object that is read: each may be what became of one whose name or kind was spoilt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Strays {
    /// One of them may be any object.
    any: bool,
    /// Those that may only be some.
    some: Vec<Unread>,
    /// One of them may be an object that restricts access.
    pub(crate) may_restrict: bool,
}

impl Strays {
    pub(crate) fn is_empty(&self) -> bool {
        !self.any && self.some.is_empty()
    }

    /// Whether one of them may be this object.
    pub(crate) fn may_be(&self, key: &Key) -> bool {
        self.any || self.some.iter().any(|unread| unread.may_be(key))
    }

    /// Whether one of them may be an object of this kind.
    pub(crate) fn may_be_of(&self, kind: Kind) -> bool {
        self.any || self.some.iter().any(|unread| unread.may_be_of(kind))
    }

    fn append(&mut self, mut further: Self) {
        self.any |= further.any;
        self.some.append(&mut further.some);
        self.may_restrict |= further.may_restrict;
    }
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
    pub(crate) written: Option<Written>,
}

impl Good {
    fn new(object: Arc<Object>, node: &Node) -> Self {
        let written = if let Object::Secret(secret) = &*object {
            redacted(secret)
        } else {
            without_keys(serde_json::to_string(node).unwrap_or_default())
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
    form.copy_from_slice(&digest.as_ref()[..size_of::<Form>()]);
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

/// A text without the private keys that somebody pasted into it, as they are or in base64.
fn without_keys(text: String) -> String {
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once(KEY_MARK) {
        // The key stands between two marks; one that is cut off ends with its value.
        let quote = after.find('"').unwrap_or(after.len());
        let value = after[..quote].trim_end_matches('\\').len();
        let end = after[..value].find(KEY_END).unwrap_or(value);
        kept.push_str(before);
        kept.push_str(KEY_MARK);
        rest = &after[end..];
        // The word in the closing mark opens nothing.
        if let Some(closed) = rest.strip_prefix(KEY_END) {
            kept.push_str(KEY_END);
            let until = closed.find(DASHES).map_or(0, |at| at + DASHES.len());
            kept.push_str(&closed[..until]);
            rest = &closed[until..];
        }
    }
    kept.push_str(rest);
    let mut all = String::new();
    let mut rest = kept.as_str();
    while let Some(at) = rest.find(PEM_IN_BASE64) {
        let end = rest[at..].find(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c));
        let end = end.map_or(rest.len(), |end| at + end);
        let bytes =
            base64::engine::general_purpose::STANDARD_NO_PAD.decode(rest[at..end].trim_end_matches('='));
        all.push_str(&rest[..at]);
        // What cannot be read may be one.
        if bytes.is_ok_and(|bytes| !String::from_utf8_lossy(&bytes).contains(KEY_MARK)) {
            all.push_str(&rest[at..end]);
        }
        rest = &rest[end..];
    }
    all.push_str(rest);
    all
}

/// Stands in both marks of a private key, in whatever form.
const KEY_MARK: &str = "PRIVATE KEY-----";
/// Begins the mark behind one.
const KEY_END: &str = "-----END ";
/// End a mark.
const DASHES: &str = "-----";
/// How `-----BEGIN` begins in base64.
pub(crate) const PEM_IN_BASE64: &str = "LS0tLS1CRUdJT";

/// Reads back what [`Good::written`] holds.
pub(crate) fn restore(written: &str, pool: &mut Pool) -> Option<(Key, Good)> {
    let node = documents(written).pop()?.ok()?;
    let reading = if node.field("kind").is_none() {
        read_mesh(&node)
    } else {
        read(&node)
    };
    match reading {
        Reading::Good {
            mut key, mut object, ..
        } => {
            pool.share(&mut key, &mut object);
            Some((key, Good::new(object, &node)))
        }
        Reading::Bad { key, stand_in, .. } => Some((key, Good::new(stand_in?, &node))),
        Reading::Skipped(_) | Reading::Unknown { .. } => None,
    }
}

/// Reads a file's text, on every core where there is much of it.
pub(crate) fn parse(file: &Str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    match parts(text) {
        Ok(parts) => {
            let read = |parts: &[Part<'_>]| read_parts(file, parts);
            let read: Vec<Parsed> = parts.par_chunks(PARTS_TOGETHER).map(read).collect();
            read.into_iter().for_each(|some| parsed.append(some));
        }
        Err(fault) => parsed.broken(file, fault),
    }
    let mut pool = Pool::default();
    for statement in &mut parsed.statements {
        if let Says::Good(good) = &mut statement.says {
            pool.share(&mut statement.key, &mut good.object);
        }
    }
    parsed.statements.shrink_to_fit();
    let goods = parsed.statements.iter_mut().filter_map(Statement::good_mut);
    written::join(goods.filter_map(|good| good.written.as_mut()));
    parsed
}

fn read_parts(file: &Str, parts: &[Part<'_>]) -> Parsed {
    let mut parsed = Parsed::default();
    let settings = &**file == "mesh.yaml";
    for document in parts.iter().flat_map(Part::documents) {
        match document {
            // An object in that file is one like any other.
            Ok(node) if settings && node.field("kind").is_none() => {
                parsed.say(file, &node, read_mesh(&node));
            }
            Ok(node) => parsed.say(file, &node, read(&node)),
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
    /// Adds what is said further down.
    fn append(&mut self, mut further: Self) {
        self.statements.append(&mut further.statements);
        self.problems.append(&mut further.problems);
        self.is_broken |= further.is_broken;
        self.strays.append(further.strays);
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
            Reading::Skipped(unread) => self.skip(file, *unread),
            Reading::Unknown { fault, may_restrict } => {
                self.strays.any = true;
                self.strays.may_restrict |= may_restrict;
                self.problem(file, Severity::Error, Reason::ResourceRejected, None, fault);
            }
        }
    }

    fn skip(&mut self, file: &Str, unread: Unread) {
        let severity = severity(unread.weight);
        self.problem(file, severity, Reason::KindNotRead, None, unread.fault.clone());
        self.strays.may_restrict |= unread.weight == Weight::Restricts;
        if Kind::ALL.iter().any(|kind| unread.may_be_of(*kind)) {
            self.strays.some.push(unread);
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

/// How bad it is for what is served that a document is not read.
fn severity(weight: Weight) -> Severity {
    match weight {
        Weight::Foreign | Weight::Replaced => Severity::Note,
        Weight::Misspelt => Severity::Warning,
        Weight::Restricts => Severity::Error,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_read_in_pieces_and_said_in_its_order() {
        let document = |index: usize| match index % 200 {
            7 => "kind: [broken\n---\n".to_owned(),
            9 => "kind: Deployment\nmetadata: {name: skipped}\n---\n".to_owned(),
            _ => format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{index}}}\nspec: {{clusterIP: 10.9.0.1}}\n---\n"
            ),
        };
        let all = 10 * PARTS_TOGETHER;
        let text: String = (0..all).map(document).collect();
        let parsed = parse(&"a.yaml".into(), &text);
        let names: Vec<String> = parsed
            .statements
            .iter()
            .map(|one| one.key.name.to_string())
            .collect();
        let named = (0..all).filter(|index| ![7, 9].contains(&(index % 200)));
        assert_eq!(names, named.map(|index| format!("s{index}")).collect::<Vec<_>>());
        let lines = parsed.statements.iter().map(|one| one.place.line);
        assert!(lines.clone().zip(lines.skip(1)).all(|(one, next)| one < next));
        let problems: Vec<u64> = parsed.problems.iter().map(|problem| problem.line).collect();
        assert_eq!((problems.len(), parsed.is_broken), (2 * all.div_ceil(200), true));
        assert!(
            parsed.strays.any,
            "a Deployment without an apiVersion may be anything"
        );
        assert!(problems.is_sorted(), "{problems:?}");
        let namespaces = parsed.statements.iter().map(|one| one.key.namespace.as_ptr());
        let namespaces: std::collections::BTreeSet<_> = namespaces.collect();
        assert_eq!(namespaces.len(), 1, "all of the file share one text");
    }

    #[test]
    fn a_pasted_key_is_left_out_and_nothing_else() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\\nplanted\\n-----END EC PRIVATE KEY-----\\n";
        let certificate = "-----BEGIN CERTIFICATE-----\\npublic\\n-----END CERTIFICATE-----";
        let encoded =
            |text: &str| base64::engine::general_purpose::STANDARD.encode(text.replace("\\n", "\n"));
        let text = format!(
            r#"{{"a":"{pem}","b":"{certificate}","c":"{}","d":"{}","e":"-----BEGIN PRIVATE KEY-----\nplanted","f":1}}"#,
            encoded(pem),
            encoded(certificate),
        );
        let kept = without_keys(text);
        assert!(
            !kept.contains("planted") && !kept.contains(&encoded(pem)),
            "{kept}"
        );
        assert!(
            kept.contains("public") && kept.contains(&encoded(certificate)),
            "{kept}"
        );
        let value: serde_json::Value = serde_json::from_str(&kept).expect("it is still JSON");
        assert_eq!((&value["f"], &value["c"]), (&1.into(), &"".into()));
        let twice = without_keys(kept.clone());
        assert_eq!(twice, kept, "what was written is read back as it is");
    }
}
