//! Selectors as they are written on a command line: `env=canary,tier in (web, api),!legacy`.

use std::str::FromStr;

use super::gateway::{MatchExpression, NamespaceSelector};

/// Longest prefix of a label's name, which is a name of DNS.
const PREFIX_BYTES_MAX: usize = 253;
/// Longest label, without its prefix, and longest value of one.
const PART_BYTES_MAX: usize = 63;

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// It asks for nothing.
    #[error("it is empty; name at least one label")]
    Empty,
    /// A condition has none of the known forms.
    #[error(
        "`{0}` is no condition; use NAME, !NAME, NAME=VALUE, NAME!=VALUE, NAME in (A,B) or NAME notin (A,B)"
    )]
    Condition(String),
    /// A name that no label has.
    #[error("`{0}` is no name of a label")]
    Name(String),
    /// A value that no label has.
    #[error("`{0}` is no value of a label")]
    Value(String),
}

impl FromStr for NamespaceSelector {
    type Err = InvalidSelector;

    /// Conditions between commas, all of which must hold. A label that is missing differs from every value.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err(InvalidSelector::Empty);
        }
        let conditions = conditions(text).into_iter().map(condition);
        Ok(Self {
            match_expressions: conditions.collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }
}

/// The parts between commas, save those within parentheses.
fn conditions(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0_usize, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

fn condition(text: &str) -> Result<MatchExpression, InvalidSelector> {
    let text = text.trim();
    let of = |key: &str, operator: &str, values: &[&str]| -> Result<MatchExpression, InvalidSelector> {
        Ok(MatchExpression {
            key: name(key.trim())?.into(),
            operator: operator.into(),
            values: values
                .iter()
                .map(|text| value(text.trim()).map(Into::into))
                .collect::<Result<_, _>>()?,
        })
    };
    if let Some((words, values)) = text.split_once('(') {
        let values = values
            .strip_suffix(')')
            .map(|values| values.split(',').collect::<Vec<_>>());
        let words: Vec<&str> = words.split_whitespace().collect();
        return match (&*words, values) {
            (&[key, "in"], Some(values)) => of(key, "In", &values),
            (&[key, "notin"], Some(values)) => of(key, "NotIn", &values),
            _ => Err(InvalidSelector::Condition(text.to_owned())),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return of(key, "NotIn", &[value]);
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return of(key, "In", &[value]);
    }
    match text.strip_prefix('!') {
        Some(key) => of(key, "DoesNotExist", &[]),
        None if text.is_empty() || text.contains(char::is_whitespace) => {
            Err(InvalidSelector::Condition(text.to_owned()))
        }
        None => of(text, "Exists", &[]),
    }
}

/// A label's name, with its prefix if it has one.
fn name(text: &str) -> Result<&str, InvalidSelector> {
    let (prefix, own) = match text.split_once('/') {
        Some((prefix, own)) => (Some(prefix), own),
        None => (None, text),
    };
    let prefix_fits = prefix.is_none_or(|prefix| is_plain(prefix, PREFIX_BYTES_MAX));
    (prefix_fits && is_plain(own, PART_BYTES_MAX))
        .then_some(text)
        .ok_or_else(|| InvalidSelector::Name(text.to_owned()))
}

/// A label's value, which may be empty.
fn value(text: &str) -> Result<&str, InvalidSelector> {
    (text.is_empty() || is_plain(text, PART_BYTES_MAX))
        .then_some(text)
        .ok_or_else(|| InvalidSelector::Value(text.to_owned()))
}

fn is_plain(text: &str, bytes_max: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= bytes_max
        && bytes.iter().copied().all(inner)
        && outer(bytes.first())
        && outer(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::meta::Labels;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: Labels = labels
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let selector: NamespaceSelector = selector.parse().expect("a selector");
        selector.matches(&labels)
    }

    #[test]
    fn every_form_of_a_condition_selects_as_it_says() {
        let none: &[(&str, &str)] = &[];
        for (selector, labels, expected) in [
            ("env=canary", &[("env", "canary")][..], true),
            ("env == canary", &[("env", "canary")], true),
            ("env=canary", &[("env", "live")], false),
            ("env=canary", none, false),
            ("env=", &[("env", "")], true),
            ("env!=live", none, true),
            ("env!=live", &[("env", "live")], false),
            ("env", &[("env", "x")], true),
            ("env", none, false),
            ("!env", none, true),
            ("! env", &[("env", "x")], false),
            ("env in (a, b)", &[("env", "b")], true),
            ("env in (a,b)", &[("env", "c")], false),
            ("env in(a)", &[("env", "a")], true),
            ("env notin (a,b)", &[("env", "a")], false),
            ("env notin (a,b)", none, true),
            (
                "kubernetes.io/metadata.name=shop",
                &[("kubernetes.io/metadata.name", "shop")],
                true,
            ),
            (
                "env in (a,b), tier=web ,!old",
                &[("env", "a"), ("tier", "web")],
                true,
            ),
            (
                "env in (a,b), tier=web ,!old",
                &[("env", "a"), ("tier", "web"), ("old", "")],
                false,
            ),
        ] {
            assert_eq!(matches(selector, labels), expected, "{selector} {labels:?}");
        }
    }

    #[test]
    fn a_text_that_is_no_selector_is_refused_and_never_selects_everything() {
        let long = "x".repeat(64);
        for text in [
            "",
            " ",
            ",",
            "a=b,",
            "=b",
            "a b",
            "a in",
            "a in b",
            "a in (b",
            "a in b)",
            "a is (b)",
            "a=b=c",
            "a=b c",
            "-a",
            "a/b/c",
            "/a",
            "a/",
            "a in ((b))",
            "a=ü",
            long.as_str(),
        ] {
            assert!(text.parse::<NamespaceSelector>().is_err(), "{text:?}");
        }
    }
}
