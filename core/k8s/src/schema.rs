//! The fields each kind has, read by us or not, so that a misspelt one is told.

use crate::document::Fault;
use crate::document::node::{Field, Node, Place, Value};
use crate::object::Kind;

mod gateway;
mod kinds;
mod mesh;

/// What may stand at a place.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Anything; not looked into.
    Any,
    /// A mapping with these fields.
    Fields(&'static [(&'static str, Self)]),
    /// A list of these.
    List(&'static Self),
    /// A mapping from any name to these.
    Map(&'static Self),
}

/// The fields of a document that its kind does not have.
#[must_use]
pub fn unknown_fields(node: &Node, kind: Kind) -> Vec<Fault> {
    let mut found = Vec::new();
    check(node, kinds::shape(kind), "", &mut found);
    found
}

/// The fields of mesh settings that there are not.
#[must_use]
pub fn unknown_settings(node: &Node) -> Vec<Fault> {
    let mut found = Vec::new();
    check(node, mesh::SETTINGS, "", &mut found);
    found
}

/// Whether a label selector has only the fields we can honour.
#[must_use]
pub fn is_known_selector(node: &Node) -> bool {
    let mut found = Vec::new();
    check(node, kinds::SELECTOR, "", &mut found);
    found.is_empty()
}

fn check(node: &Node, shape: Shape, path: &str, found: &mut Vec<Fault>) {
    match (shape, &node.value) {
        (Shape::Fields(known), Value::Mapping(fields)) => {
            for (field, value) in fields {
                let path = if path.is_empty() {
                    field.name.clone()
                } else {
                    format!("{path}.{}", field.name)
                };
                match known.iter().find(|(name, _)| *name == field.name) {
                    Some((_, shape)) => check(value, *shape, &path, found),
                    None => found.push(unknown(field, &path, known)),
                }
            }
        }
        (Shape::List(shape), Value::Sequence(items)) => {
            for (index, item) in items.iter().enumerate() {
                check(item, *shape, &format!("{path}[{index}]"), found);
            }
        }
        (Shape::Map(shape), Value::Mapping(fields)) => {
            for (field, value) in fields {
                check(value, *shape, &format!("{path}.{}", field.name), found);
            }
        }
        _ => {}
    }
}

fn unknown(field: &Field, path: &str, known: &[(&'static str, Shape)]) -> Fault {
    let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
    let place: Place = field.place;
    let nearest = known
        .iter()
        .map(|(name, _)| *name)
        .min_by_key(|name| distance(name, &field.name));
    let fix = match nearest {
        Some(name) if distance(name, &field.name) <= 3 => format!("did you mean `{name}`?"),
        _ => "remove it".to_owned(),
    };
    Fault::new(place, format!("there is no field `{shown}`"), fix)
}

/// Letters to insert, remove or replace to turn one name into the other.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(!left.eq_ignore_ascii_case(&right));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
