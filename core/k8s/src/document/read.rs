//! One document's text into its tree, without recursion and within limits.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::node::{Field, Node, Place, Value};
use super::{ALIAS_EXPANSION_MAX, DEPTH_MAX, DOCUMENT_BYTES_MAX, Fault, Part, scalar};

/// Reads a document; `None` for an empty one.
pub(super) fn document(part: &Part<'_>) -> Result<Option<Node>, Fault> {
    if is_blank(part.text) {
        return Ok(None);
    }
    if part.text.len() > DOCUMENT_BYTES_MAX {
        let start = Place {
            line: part.lines_before + 1,
            column: 1,
        };
        let cause = format!(
            "the document has {} bytes, more than {DOCUMENT_BYTES_MAX}",
            part.text.len()
        );
        return Err(Fault::new(start, cause, "split it into several objects"));
    }
    let mut builder = Builder::new(part);
    for event in Parser::new_from_str(part.text) {
        let (event, span) = event.map_err(|error| unreadable(&error, part.lines_before))?;
        let place = builder.place(span.start.line(), span.start.col());
        builder.take(event, place)?;
    }
    Ok(builder.root.filter(|node| !node.is_null()))
}

/// Whether there is nothing but comments and directives.
fn is_blank(text: &str) -> bool {
    text.lines()
        .all(|line| line.trim_start().is_empty() || line.trim_start().starts_with(['#', '%']))
}

fn unreadable(error: &ScanError, lines_before: u64) -> Fault {
    let place = Place {
        line: error.marker().line() as u64 + lines_before,
        column: error.marker().col() as u64 + 1,
    };
    let cause = format!("this is not YAML: {}", error.info());
    Fault::new(
        place,
        cause,
        "correct the file; until then its objects keep their last good form",
    )
}

/// A collection that is still open.
struct Open {
    place: Place,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Sequence(Vec<Node>),
    Mapping {
        fields: Vec<(Field, Node)>,
        key: Option<Field>,
        merged: Vec<Node>,
    },
}

struct Builder {
    lines_before: u64,
    nodes_left: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
}

impl Builder {
    fn new(part: &Part<'_>) -> Self {
        // A value takes at least one byte of text, so that this bounds growth by the document's own size.
        let nodes_left = part.text.len().saturating_mul(ALIAS_EXPANSION_MAX);
        let (open, anchors) = (Vec::new(), HashMap::new());
        Self {
            lines_before: part.lines_before,
            nodes_left,
            open,
            anchors,
            root: None,
        }
    }

    fn place(&self, line: usize, column: usize) -> Place {
        Place {
            line: line as u64 + self.lines_before,
            column: column as u64 + 1,
        }
    }

    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Fault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag
                    .as_ref()
                    .and_then(|tag: &std::borrow::Cow<'_, Tag>| tag.core_suffix());
                if self.expects_key() {
                    return self.key(text.into_owned(), place);
                }
                let value = match tag {
                    Some("str") => Value::Text(text.into_owned()),
                    None if style != ScalarStyle::Plain => Value::Text(text.into_owned()),
                    _ => scalar::resolve(&text),
                };
                self.put(Node { place, value }, anchor)
            }
            Event::Alias(anchor) => self.alias(anchor, place),
            Event::SequenceStart(_, anchor, _) => self.begin(OpenKind::Sequence(Vec::new()), anchor, place),
            Event::MappingStart(_, anchor, _) => {
                let kind = OpenKind::Mapping {
                    fields: Vec::new(),
                    key: None,
                    merged: Vec::new(),
                };
                self.begin(kind, anchor, place)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            _ => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                kind: OpenKind::Mapping { key: None, .. },
                ..
            })
        )
    }

    fn key(&mut self, name: String, place: Place) -> Result<(), Fault> {
        let Some(Open {
            kind: OpenKind::Mapping { fields, key, .. },
            ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if fields.iter().any(|(field, _)| field.name == name) {
            let cause = format!("the field `{name}` stands here for the second time");
            return Err(Fault::new(place, cause, "keep one of the two"));
        }
        *key = Some(Field { place, name });
        Ok(())
    }

    fn begin(&mut self, kind: OpenKind, anchor: usize, place: Place) -> Result<(), Fault> {
        if self.expects_key() {
            return Err(Fault::new(
                place,
                "the name of a field is a collection",
                "write a plain name",
            ));
        }
        if self.open.len() >= DEPTH_MAX {
            let cause = format!("values are nested more than {DEPTH_MAX} deep");
            return Err(Fault::new(place, cause, "no object needs this; remove it"));
        }
        self.open.push(Open { place, anchor, kind });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(Open { place, anchor, kind }) = self.open.pop() else {
            return Ok(());
        };
        let value = match kind {
            OpenKind::Sequence(items) => Value::Sequence(items),
            OpenKind::Mapping {
                mut fields, merged, ..
            } => {
                merged.iter().for_each(|node| merge(&mut fields, node));
                Value::Mapping(fields)
            }
        };
        self.put(Node { place, value }, anchor)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Fault> {
        let Some(mut node) = self.anchors.get(&anchor).cloned() else {
            return Err(Fault::new(
                place,
                "an alias to something that is still open",
                "write the value out",
            ));
        };
        if depth(&node) + self.open.len() > DEPTH_MAX {
            let cause = format!("aliases nest values more than {DEPTH_MAX} deep");
            return Err(Fault::new(place, cause, "write the values out"));
        }
        self.spend(count(&node), place)?;
        node.place = place;
        if self.expects_key() {
            let Value::Text(name) = node.value else {
                return Err(Fault::new(
                    place,
                    "the name of a field is a collection",
                    "write a plain name",
                ));
            };
            return self.key(name, place);
        }
        self.put(node, 0)
    }

    fn put(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        self.spend(1, node.place)?;
        if anchor != 0 {
            self.spend(count(&node), node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::Sequence(items)) => items.push(node),
            Some(OpenKind::Mapping { fields, key, merged }) => match key.take() {
                Some(field) if field.name == "<<" => merged.push(node),
                Some(field) => fields.push((field, node)),
                None => {
                    return Err(Fault::new(
                        node.place,
                        "a value without a name",
                        "write `name: value`",
                    ));
                }
            },
        }
        Ok(())
    }

    fn spend(&mut self, nodes: usize, place: Place) -> Result<(), Fault> {
        match self.nodes_left.checked_sub(nodes) {
            Some(left) => {
                self.nodes_left = left;
                Ok(())
            }
            None => {
                let cause = format!("aliases grow the document more than {ALIAS_EXPANSION_MAX} times");
                Err(Fault::new(place, cause, "write the values out"))
            }
        }
    }
}

/// Takes over the fields of a merged mapping that are not there yet.
fn merge(fields: &mut Vec<(Field, Node)>, from: &Node) {
    if let Value::Sequence(items) = &from.value {
        items.iter().for_each(|item| merge(fields, item));
    }
    for (field, node) in from.fields() {
        if !fields.iter().any(|(known, _)| known.name == field.name) {
            fields.push((field.clone(), node.clone()));
        }
    }
}

fn children(node: &Node) -> impl Iterator<Item = &Node> {
    let items = match &node.value {
        Value::Sequence(items) => items.as_slice(),
        _ => &[],
    };
    items.iter().chain(node.fields().iter().map(|(_, node)| node))
}

fn count(node: &Node) -> usize {
    1 + children(node).map(count).sum::<usize>()
}

fn depth(node: &Node) -> usize {
    1 + children(node).map(depth).max().unwrap_or(0)
}
