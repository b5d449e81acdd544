//! Text in, located documents out: one tree per document of a YAML or JSON file, each value with its place.

pub mod node;
mod read;
mod scalar;
mod typed;

use node::{Node, Place};

/// Largest file that is read.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Largest document within a file.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting.
pub const DEPTH_MAX: usize = 64;
/// Times its own size that a document may grow by aliases.
pub const ALIAS_EXPANSION_MAX: usize = 10;

/// What is wrong at which place, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: {cause}; {fix}", place.line, place.column)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Fault {
    /// A fault at a place.
    pub fn new(place: Place, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            place,
            cause: cause.into(),
            fix: fix.into(),
        }
    }
}

/// Reads the documents of a file; `Err` stands where one cannot be read at all.
///
/// Empty documents are left out. A document of kind `List` becomes its items.
#[must_use]
pub fn documents(text: &str) -> Vec<Result<Node, Fault>> {
    match parts(text) {
        Ok(parts) => parts.iter().flat_map(Part::documents).collect(),
        Err(fault) => vec![Err(fault)],
    }
}

/// Cuts a file into its documents, which can be read apart from each other.
///
/// # Errors
/// The file is too large.
pub fn parts(text: &str) -> Result<Vec<Part<'_>>, Fault> {
    if text.len() > FILE_BYTES_MAX {
        let cause = format!("the file has {} bytes, more than {FILE_BYTES_MAX}", text.len());
        return Err(Fault::new(Place::START, cause, "split it into several files"));
    }
    Ok(split(text.strip_prefix('\u{feff}').unwrap_or(text)))
}

/// The text of one document and the lines before it.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    text: &'a str,
    lines_before: u64,
}

impl Part<'_> {
    /// What it holds: nothing, a document, or the items of a list; `Err` if it cannot be read.
    #[must_use]
    pub fn documents(&self) -> Vec<Result<Node, Fault>> {
        let document = read::document(self).transpose();
        document.into_iter().flat_map(items).collect()
    }
}

/// Cuts at document markers. In YAML a `---` in the first column is a marker wherever it stands, also inside a
/// block scalar, so that lines decide.
fn split(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut lines_before) = (0, 0);
    let mut at = 0;
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if is_marker(line) {
            parts.push(Part {
                text: &text[start..at],
                lines_before,
            });
            // What follows the marker on its line belongs to the new document: `--- {kind: Pod}`.
            (start, lines_before) = (at + 3, number);
        }
        at += line.len();
    }
    parts.push(Part {
        text: &text[start..],
        lines_before,
    });
    parts
}

fn is_marker(line: &str) -> bool {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// A list stands for its items; every other document for itself.
fn items(document: Result<Node, Fault>) -> Vec<Result<Node, Fault>> {
    match document {
        Ok(node) if node.text("kind").is_some_and(|kind| kind == "List") => match node.field("items") {
            Some(Node {
                value: node::Value::Sequence(items),
                ..
            }) => items.iter().cloned().map(Ok).collect(),
            Some(other) => vec![Err(Fault::new(
                other.place,
                "`items` of a List is not a list",
                "write the objects below `items:`, each beginning with `- `",
            ))],
            None => Vec::new(),
        },
        other => vec![other],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_the_start_of_the_file() {
        let documents = documents("a: 1\n---\n# comment\nb:\n  c: x\n");
        let second = documents[1].as_ref().expect("readable");
        let value = second.field("b").and_then(|b| b.field("c")).expect("b.c");
        assert_eq!(value.place, Place { line: 5, column: 6 });
    }

    #[test]
    fn a_syntax_error_names_its_line_in_the_file() {
        let documents = documents("a: 1\n---\nb: 2\nc: [1, 2\nd: 3\n");
        assert!(documents[0].is_ok());
        let fault = documents[1].as_ref().expect_err("broken");
        assert!(fault.place.line >= 4 && fault.place.line <= 6, "{fault}");
    }

    #[test]
    fn a_list_becomes_its_items() {
        let documents = documents("kind: List\nitems:\n- {kind: A}\n- {kind: B}\n");
        let kinds: Vec<_> = documents
            .iter()
            .map(|node| node.as_ref().unwrap().text("kind").unwrap())
            .collect();
        assert_eq!(kinds, ["A", "B"]);
    }

    #[test]
    fn json_with_tabs_is_read() {
        let documents = documents("{\n\t\"kind\": \"A\",\n\t\"x\": [1,\n\t2]\n}\n");
        assert_eq!(documents[0].as_ref().unwrap().text("kind"), Some("A"));
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(documents("---\n# nothing\n---\n\n...\n").len(), 0);
    }

    #[test]
    fn a_duplicate_key_is_a_fault() {
        assert!(documents("a: 1\na: 2\n")[0].is_err());
    }

    #[test]
    fn r109_depth_is_bounded() {
        let deep = "[".repeat(65) + &"]".repeat(65);
        assert!(documents(&deep)[0].is_err());
    }

    #[test]
    fn r109_any_depth_is_read_on_a_small_stack() {
        const LEVELS: usize = 100_000;
        let reading = || {
            for level in ["[", "{a: ", "- ", r#"{"a":"#, "? "] {
                let read = documents(&level.repeat(LEVELS));
                assert!(read.iter().any(Result::is_err), "{level}");
            }
        };
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        thread.spawn(reading).unwrap().join().unwrap();
    }

    #[test]
    fn alias_expansion_is_bounded() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..7 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(documents(&bomb)[0].is_err());
    }
}
