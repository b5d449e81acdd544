//! One document's text into its tree, without recursion and within limits.

use std::collections::{HashMap, HashSet};

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
        /// Their names, once they are too many to be searched one by one.
        names: Option<HashSet<String>>,
        key: Option<Field>,
        merged: Vec<Node>,
    },
}

/// The name of a field that stands for all fields of its value.
const MERGE: &str = "<<";

/// Fields of a mapping among which a name is searched one by one.
const FIELDS_SEARCHED_MAX: usize = 32;

struct Builder {
    lines_before: u64,
    nodes_left: usize,
    /// Nodes that were copied; each was paid for before.
    #[cfg(test)]
    copied: usize,
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
            #[cfg(test)]
            copied: 0,
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
                    names: None,
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
            kind: OpenKind::Mapping {
                fields, names, key, ..
            },
            ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if names.is_none() && fields.len() >= FIELDS_SEARCHED_MAX {
            *names = Some(fields.iter().map(|(field, _)| field.name.clone()).collect());
        }
        let is_there = match names {
            // Several mappings may be merged into one.
            _ if name == MERGE => false,
            Some(names) => !names.insert(name.clone()),
            None => fields.iter().any(|(field, _)| field.name == name),
        };
        if is_there {
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
                merge(&mut fields, &merged);
                Value::Mapping(fields)
            }
        };
        self.put(Node { place, value }, anchor)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Fault> {
        let open = || {
            let cause = "an alias to something that is still open";
            Fault::new(place, cause, "write the value out")
        };
        let (depth, nodes) = self
            .anchors
            .get(&anchor)
            .map(|node| (depth(node), count(node)))
            .ok_or_else(open)?;
        if depth + self.open.len() > DEPTH_MAX {
            let cause = format!("aliases nest values more than {DEPTH_MAX} deep");
            return Err(Fault::new(place, cause, "write the values out"));
        }
        // Paid for before it is copied: what is too large costs no more than what fits.
        self.spend(nodes, place)?;
        let mut node = self.anchors.get(&anchor).ok_or_else(open)?.clone();
        #[cfg(test)]
        {
            self.copied += count(&node);
        }
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
            #[cfg(test)]
            {
                self.copied += count(&node);
            }
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::Sequence(items)) => items.push(node),
            Some(OpenKind::Mapping {
                fields, key, merged, ..
            }) => match key.take() {
                Some(field) if field.name == MERGE => merged.push(node),
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

/// Takes over the fields of merged mappings that are not there yet.
fn merge(fields: &mut Vec<(Field, Node)>, merged: &[Node]) {
    if merged.is_empty() {
        return;
    }
    let mut names: HashSet<String> = fields.iter().map(|(field, _)| field.name.clone()).collect();
    merged.iter().for_each(|node| take_over(fields, &mut names, node));
}

fn take_over(fields: &mut Vec<(Field, Node)>, names: &mut HashSet<String>, from: &Node) {
    if let Value::Sequence(items) = &from.value {
        items.iter().for_each(|item| take_over(fields, names, item));
    }
    for (field, node) in from.fields() {
        if names.insert(field.name.clone()) {
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

#[cfg(test)]
mod tests {
    use super::super::parts;
    use super::*;

    /// Nodes that were copied until a text was read or refused, and the bound of that.
    fn copied(text: &str) -> (usize, usize, bool) {
        let parts = parts(text).expect("it is small enough");
        let mut builder = Builder::new(&parts[0]);
        let bound = builder.nodes_left;
        let mut events = Parser::new_from_str(text).map(|event| event.expect("it is YAML"));
        let refused = events.any(|(event, span)| {
            let place = builder.place(span.start.line(), span.start.col());
            builder.take(event, place).is_err()
        });
        (builder.copied, bound, refused)
    }

    #[test]
    fn aliases_cost_no_more_than_the_bound_whatever_they_would_grow_to() {
        for (width, levels) in [(10, 7), (2, 20), (400, 3)] {
            let mut bomb = format!("a0: &a0 [{}]\n", "x, ".repeat(width));
            for level in 1..levels {
                let before = format!("*a{}, ", level - 1).repeat(width);
                bomb += &format!("a{level}: &a{level} [{before}]\n");
            }
            let (copied, bound, refused) = copied(&bomb);
            assert!(refused, "{width} times {levels}");
            assert!(
                copied <= bound && bound == bomb.len() * ALIAS_EXPANSION_MAX,
                "{copied} of {bound}"
            );
        }
        let (copied, _, refused) = copied("a: &a [x, y]\nb: [*a, *a]\n");
        assert_eq!((copied, refused), (9, false), "once to be kept, and twice used");
    }

    #[test]
    fn a_name_is_found_twice_among_few_and_among_many() {
        for fields in [2, FIELDS_SEARCHED_MAX, FIELDS_SEARCHED_MAX + 1, 20_000] {
            let text: String = (0..fields).map(|field| format!("f{field}: x\n")).collect();
            let read = |text: &str| document(&parts(text).expect("it is small enough")[0]);
            let node = read(&text).expect("it is read").expect("it is there");
            assert_eq!(node.fields().len(), fields);
            for again in [0, fields / 2, fields - 1] {
                let twice = format!("{text}f{again}: y\n");
                let fault = read(&twice).expect_err("it stands twice");
                assert_eq!(fault.place.line, fields as u64 + 1);
                let merged = format!("{text}<<: {{f{again}: y, g: z}}\n");
                let node = read(&merged).expect("it is read").expect("it is there");
                assert_eq!(
                    (node.fields().len(), node.text(&format!("f{again}"))),
                    (fields + 1, Some("x"))
                );
            }
        }
    }
}
