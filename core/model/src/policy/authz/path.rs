//! Paths: patterns of them, and the form that a lenient application might read them in.

use super::{PathPattern, Values};
use crate::authz::policy::StringMatch;
use crate::authz::text::TextSet;
use crate::name::Str;

/// Patterns of paths.
#[derive(Debug, Default)]
pub(super) struct PathSet {
    texts: TextSet,
    templates: Vec<Template>,
    /// A template that cannot be read.
    has_odd: bool,
}

impl PathSet {
    pub(super) fn new(patterns: &[PathPattern]) -> Self {
        let mut texts = Vec::new();
        let mut set = Self::default();
        for pattern in patterns {
            match pattern {
                PathPattern::Text(text) => texts.push(with_upper_escapes(text)),
                PathPattern::Template(text) => match Template::new(text) {
                    Some(template) => set.templates.push(template),
                    None => set.has_odd = true,
                },
            }
        }
        set.texts = TextSet::new(&texts);
        set
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.texts.contains(path) || self.templates.iter().any(|template| template.matches(path))
    }
}

/// Whether all templates can be read; a rule with others cannot be evaluated.
pub(super) fn is_readable(values: &Values<PathPattern>) -> bool {
    let odd = |pattern: &PathPattern| match pattern {
        PathPattern::Template(text) => Template::new(text).is_none(),
        PathPattern::Text(_) => false,
    };
    !values.any.iter().chain(&values.none).any(odd)
}

/// Segments of a path, of which `{*}` stands for one that is not empty and `{**}` for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The segments before the rest; `None` stands for any.
    head: Vec<Option<Str>>,
    /// What the path ends with behind `{**}`; `None` without one.
    tail: Option<Str>,
}

impl Template {
    /// Reads a template. `None` if it does not begin with `/`, if an operator is not a whole segment, or if one
    /// follows `{**}`.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut head = Vec::new();
        let mut rest = text.strip_prefix('/')?;
        loop {
            let (segment, after) = match rest.split_once('/') {
                Some((segment, after)) => (segment, Some(after)),
                None => (rest, None),
            };
            match segment {
                "{**}" => {
                    let tail = after.map(|after| format!("/{after}")).unwrap_or_default();
                    let is_plain = !tail.contains(['{', '}', '*']);
                    return is_plain.then(|| Self {
                        head,
                        tail: Some(upper_escapes(&tail).into()),
                    });
                }
                "{*}" => head.push(None),
                literal if literal.contains(['{', '}', '*']) => return None,
                literal => head.push(Some(upper_escapes(literal).into())),
            }
            match after {
                Some(after) => rest = after,
                None => return Some(Self { head, tail: None }),
            }
        }
    }

    /// Whether a path has this form.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(start) = path.strip_prefix('/') else {
            return false;
        };
        let mut rest = Some(start);
        for wanted in &self.head {
            let Some(text) = rest else { return false };
            let (segment, after) = match text.split_once('/') {
                Some((segment, after)) => (segment, Some(after)),
                None => (text, None),
            };
            let is_it = match wanted {
                Some(literal) => *segment == **literal,
                None => !segment.is_empty(),
            };
            if !is_it {
                return false;
            }
            rest = after;
        }
        match (&self.tail, rest) {
            (None, rest) => rest.is_none(),
            (Some(tail), Some(rest)) => rest.ends_with(&**tail),
            (Some(_), None) => false,
        }
    }
}

fn with_upper_escapes(pattern: &StringMatch) -> StringMatch {
    match pattern {
        StringMatch::Exact(text) => StringMatch::Exact(upper_escapes(text).into()),
        StringMatch::Prefix(text) => StringMatch::Prefix(upper_escapes(text).into()),
        StringMatch::Suffix(text) => StringMatch::Suffix(upper_escapes(text).into()),
        StringMatch::Presence => StringMatch::Presence,
    }
}

/// The canonical path has its escapes in upper case, so a pattern with `%2f` means `%2F`.
pub(super) fn upper_escapes(text: &str) -> String {
    let mut upper = String::with_capacity(text.len());
    let mut left = 0;
    for c in text.chars() {
        left = if c == '%' { 3 } else { left };
        upper.push(if left > 0 { c.to_ascii_uppercase() } else { c });
        left = usize::saturating_sub(left, 1);
    }
    upper
}

/// Longest chain of escapes within escapes that is followed: one more than any known application undoes.
const DECODINGS_MAX: usize = 4;

/// The path as the most lenient application reads it: every escape undone, also those that appear by that; backslashes
/// turned; several slashes made one; dot segments resolved. `None` if that changes nothing.
#[must_use]
pub fn decoded(path: &str) -> Option<Box<str>> {
    let is_plain = !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.");
    if is_plain {
        return None;
    }
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..DECODINGS_MAX {
        let next = decoded_once(&bytes);
        if next == bytes {
            break;
        }
        bytes = next;
    }
    let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let resolved = resolved(&text);
    (*resolved != *path).then(|| resolved.into())
}

fn decoded_once(bytes: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        rest = after;
        plain.push(match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                rest = &after[2..];
                u8::try_from(high * 16 + low).expect("two hexadecimal digits are one byte")
            }
            _ => *first,
        });
    }
    plain
}

/// Without empty segments and dot segments. A slash at the end stays.
fn resolved(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut is_open = false;
    for segment in path.split('/') {
        is_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut joined = format!("/{}", segments.join("/"));
    if is_open && !segments.is_empty() {
        joined.push('/');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(template: &str, path: &str, expect: bool) {
        let read = Template::new(template).expect("a template");
        assert_eq!(read.matches(path), expect, "{template} on {path}");
    }

    #[test]
    fn one_star_stands_for_one_segment() {
        check("/foo/{*}", "/foo/bar", true);
        check("/foo/{*}", "/foo/bar/baz", false);
        check("/foo/{*}", "/foo/", false);
        check("/foo/{*}", "/foo", false);
        check("/foo/{*}/", "/foo/bar/", true);
        check("/{*}/bar/{*}", "/a/bar/b", true);
        check("/{*}/bar/{*}", "/a/b/c", false);
    }

    #[test]
    fn two_stars_stand_for_the_rest() {
        check("/foo/{**}", "/foo/bar/baz", true);
        check("/foo/{**}", "/foo/", true);
        check("/foo/{**}", "/foo", false);
        check("/foo/{**}", "/food/x", false);
        check("/{*}/v1/{**}", "/shop/v1/a/b", true);
        check("/a/{**}/z", "/a/b/c/z", true);
        check("/a/{**}/z", "/a/b/c/y", false);
        check("/{**}", "/", true);
    }

    #[test]
    fn what_is_no_template_is_not_read_as_one() {
        for text in ["foo", "/a{*}", "/{**}/{*}", "/{x}", "/{**}/{**}", "/*", "", "/{"] {
            assert_eq!(Template::new(text), None, "{text}");
        }
    }

    #[test]
    fn the_lenient_form_undoes_every_escape_and_joins_slashes() {
        for (path, expect) in [
            ("/a/b", None),
            ("/a%2Fb", Some("/a/b")),
            ("/a%252Fb", Some("/a/b")),
            ("/a//b", Some("/a/b")),
            ("/x/%2E%2E/a", Some("/a")),
            ("/x%5C..%5Ca/", Some("/a/")),
            ("/.well-known", None),
            ("/100%", None),
            ("//", Some("/")),
        ] {
            assert_eq!(decoded(path).as_deref(), expect, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_lenient_form_begins_with_a_slash_and_has_no_empty_segment(path in "/[a%25Ff./\\\\]{0,24}") {
            if let Some(form) = decoded(&path) {
                prop_assert!(form.starts_with('/'));
                prop_assert!(!form.contains("//") && !form.contains('\\'));
            }
        }
    }
}
