//! From a document to an object: which one is it, does it hold only known fields, does every value fit.

use std::sync::Arc;

use tulle_model::Str;

use super::{DEFAULT_NAMESPACE, Key, Kind, Object, Reading, Unread, stand_in, validate};
use crate::api::{Mesh, Meta};
use crate::document::Fault;
use crate::document::node::{Node, Value};
use crate::schema;

/// Longest name of an object.
pub(super) const NAME_BYTES_MAX: usize = 253;
/// Longest name of a namespace.
const NAMESPACE_BYTES_MAX: usize = 63;

/// Reads one document.
#[must_use]
pub fn read(node: &Node) -> Reading {
    let kind = match kind_of(node) {
        Ok(kind) => kind,
        Err(reading) => return reading,
    };
    match key_of(node, kind) {
        Ok(key) => known(node, key),
        Err(fault) => Reading::Unknown {
            fault,
            may_restrict: is_strict(node, kind),
        },
    }
}

/// What is to be said of a document whose kind is not read; nothing of any other.
#[must_use]
pub fn unread(node: &Node) -> Option<Unread> {
    match kind_of(node) {
        Err(Reading::Skipped(unread)) => Some(*unread),
        _ => None,
    }
}

/// Reads a document whose object is known.
fn known(node: &Node, key: Key) -> Reading {
    let place = node.place;
    let unknown = schema::unknown_fields(node, key.kind);
    let mut faults = if is_strict(node, key.kind) {
        unknown.clone()
    } else {
        Vec::new()
    };
    faults.extend(version_fault(node, key.kind));
    let read = typed(node, &key);
    if let Ok(object) = &read {
        faults.extend(validate::faults(node, object));
    }
    match read {
        Ok(object) if faults.is_empty() => Reading::Good {
            key,
            object: Arc::new(object),
            warnings: unknown,
            place,
        },
        Ok(_) => bad(node, key, faults),
        Err(fault) => {
            faults.push(fault);
            bad(node, key, faults)
        }
    }
}

/// Whether a field that is not known may be one that restricts access.
fn is_strict(node: &Node, kind: Kind) -> bool {
    kind.is_security() || stand_in::asks_somebody(node, kind)
}

/// Reads the settings of the mesh: the document itself is the settings.
#[must_use]
pub fn read_mesh(node: &Node) -> Reading {
    let key = Key::new(Kind::Mesh, "", MESH_NAME);
    let place = node.place;
    let mut faults = schema::unknown_settings(node);
    match node.read() {
        Ok(settings) if faults.is_empty() => {
            let metadata = Meta {
                name: MESH_NAME.into(),
                ..Meta::default()
            };
            let object = Object::Mesh(Mesh {
                metadata,
                settings,
                unreadable: None,
            });
            Reading::Good {
                key,
                object: Arc::new(object),
                warnings: Vec::new(),
                place,
            }
        }
        Ok(_) => bad(node, key, faults),
        Err(fault) => {
            faults.push(fault);
            bad(node, key, faults)
        }
    }
}

/// What the settings of the mesh are called by.
const MESH_NAME: &str = "mesh";

/// The certificates in a secret. Nothing else of it is looked at or kept.
fn certificates(node: &Node) -> Str {
    let encoded = node.field("data").and_then(|data| data.text("ca.crt"));
    let plain = node.field("stringData").and_then(|data| data.text("ca.crt"));
    let decoded = encoded.and_then(|text| decode(text).ok());
    plain.map(str::to_owned).or(decoded).unwrap_or_default().into()
}

/// Base64, as Kubernetes writes the values of secrets.
fn decode(text: &str) -> Result<String, ()> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return Err(()),
        };
        buffer = (buffer << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((buffer >> bits) & 0xff).map_err(|_| ())?);
        }
    }
    String::from_utf8(bytes).map_err(|_| ())
}

fn bad(node: &Node, key: Key, faults: Vec<Fault>) -> Reading {
    let stand_in = stand_in::of(node, &key, &faults).map(Arc::new);
    Reading::Bad {
        key,
        faults,
        stand_in,
        place: node.place,
    }
}

fn kind_of(node: &Node) -> Result<Kind, Reading> {
    let unknown = |cause: String, fix: &str| Reading::Unknown {
        fault: Fault::new(node.place, cause, fix),
        may_restrict: true,
    };
    if !matches!(node.value, Value::Mapping(_)) {
        let cause = format!("the document is {}, not an object", node.describe());
        return Err(unknown(cause, "write a manifest with apiVersion and kind"));
    }
    let (Some(kind), Some(version)) = (node.text("kind"), node.text("apiVersion")) else {
        let cause = "`apiVersion` or `kind` is missing, or no text".to_owned();
        let fix = "add both, for example `apiVersion: v1` and `kind: Service`";
        return Err(unknown(cause, fix));
    };
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let known = Kind::find(kind, group).filter(|known| *known != Kind::Mesh);
    known.ok_or_else(|| Reading::Skipped(Box::new(Unread::of(node, version, kind, group))))
}

fn version_fault(node: &Node, kind: Kind) -> Option<Fault> {
    let field = node.field("apiVersion")?;
    let text = node.text("apiVersion")?;
    let version = text.rsplit_once('/').map_or(text, |(_, version)| version);
    (!kind.versions().contains(&version)).then(|| {
        let fix = format!("write one of: {}", kind.versions().join(", "));
        Fault::new(
            field.place,
            format!("version `{version}` of {} is not known", kind.as_str()),
            fix,
        )
    })
}

fn key_of(node: &Node, kind: Kind) -> Result<Key, Fault> {
    let metadata = node.field("metadata").ok_or_else(|| {
        Fault::new(
            node.place,
            "`metadata` is missing",
            "add `metadata:` with a `name:`",
        )
    })?;
    let name = named(metadata, "name", NAME_BYTES_MAX)?
        .ok_or_else(|| Fault::new(metadata.place, "`metadata.name` is missing", "add a name"))?;
    if !kind.is_namespaced() {
        return Ok(Key::new(kind, "", name));
    }
    let namespace = named(metadata, "namespace", NAMESPACE_BYTES_MAX)?.unwrap_or(DEFAULT_NAMESPACE);
    Ok(Key::new(kind, namespace, name))
}

/// Names become file names and parts of resource names, so that their form is checked before anything else.
fn named<'a>(metadata: &'a Node, field: &str, bytes_max: usize) -> Result<Option<&'a str>, Fault> {
    let Some(node) = metadata.field(field) else {
        return Ok(None);
    };
    let Value::Text(text) = &node.value else {
        let cause = format!("`metadata.{field}` is {}", node.describe());
        return Err(Fault::new(node.place, cause, "put the value in quotes"));
    };
    let fits = text.len() <= bytes_max
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric());
    if fits {
        return Ok(Some(text));
    }
    let cause = format!("`metadata.{field}` is not a name");
    let fix = format!("use at most {bytes_max} small letters, digits, `-` and `.`");
    Err(Fault::new(node.place, cause, fix))
}

/// Reads the object and completes its metadata.
pub(super) fn typed(node: &Node, key: &Key) -> Result<Object, Fault> {
    let mut object = Object::of(key.kind, node)?;
    if let Object::Secret(secret) = &mut object {
        secret.certificates = certificates(node);
    }
    // The same texts as in the key, held once.
    let meta = object.meta_mut();
    (meta.namespace, meta.name) = (key.namespace.clone(), key.name.clone());
    Ok(object)
}
