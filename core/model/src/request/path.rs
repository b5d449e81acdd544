//! The one form of a path that routing, policy and the application see.
//!
//! ```text
//! as it came ─▶ bytes and escapes are legal? ─▶ escapes decoded or upper case, `\` turned ─▶ slashes merged ─▶ dots resolved
//!                        │ no: 400                                                                   │ above `/`: 400
//! ```

use std::borrow::Cow;

use crate::route::escape;
use crate::waypoint::PathNormalization;

/// Why a path cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with `/`")]
    NotRooted,
    /// A `%` without two hexadecimal digits.
    #[error("an escape of the path is not `%` and two hexadecimal digits")]
    BadEscape,
    /// A NUL, or an escaped one.
    #[error("the path has a NUL")]
    Nul,
    /// A byte that no path has: a control character, a space, `#` or `?`.
    #[error("the path has a character that must be escaped")]
    BadByte,
    /// `..` where nothing is left.
    #[error("the path climbs above `/`")]
    ClimbsAboveRoot,
}

/// The canonical form of a path without query. Applying it again changes nothing.
///
/// # Errors
/// If the path is none, or would climb above `/`.
pub fn normalize(path: &str, how: PathNormalization) -> Result<Cow<'_, str>, PathError> {
    check(path)?;
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    if how == PathNormalization::None {
        return resolve(&unescape(path, PathNormalization::Base)).map(|_| Cow::Borrowed(path));
    }
    let mut text = unescape(path, how);
    if matches!(
        how,
        PathNormalization::MergeSlashes | PathNormalization::DecodeSlashes
    ) {
        merge_slashes(&mut text);
    }
    resolve(&text).map(Cow::Owned)
}

/// Whether there is nothing to change: no escape, no backslash, no `//`, no `/.`, and only ASCII.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let pair = |pair: &[u8]| matches!(pair, [b'/', b'/' | b'.']);
    !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\' | 0x80..)) && !bytes.windows(2).any(pair)
}

fn check(path: &str) -> Result<(), PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotRooted);
    }
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            0 => return Err(PathError::Nul),
            b'%' => match escape(after) {
                None => return Err(PathError::BadEscape),
                Some(0) => return Err(PathError::Nul),
                Some(_) => {}
            },
            1..=b' ' | 0x7f | b'#' | b'?' => return Err(PathError::BadByte),
            _ => {}
        }
        rest = after;
    }
    Ok(())
}

/// One byte of a path.
#[derive(Clone, Copy)]
enum Part {
    Plain(u8),
    Escaped(u8),
}

impl Part {
    fn byte(self) -> u8 {
        match self {
            Self::Plain(byte) | Self::Escaped(byte) => byte,
        }
    }
}

fn each(path: &str, mut take: impl FnMut(Part)) {
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match escape(after).filter(|_| byte == b'%') {
            Some(escaped) => {
                take(Part::Escaped(escaped));
                rest = &after[2..];
            }
            None => {
                take(Part::Plain(byte));
                rest = after;
            }
        }
    }
}

/// RFC 3986, 2.3: these mean the same with and without an escape.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn unescape(path: &str, how: PathNormalization) -> String {
    let decodes_slashes = how == PathNormalization::DecodeSlashes;
    let mut text = String::with_capacity(path.len());
    each(path, |part| match part {
        Part::Plain(b'\\') => text.push('/'),
        Part::Escaped(b'/' | b'\\') if decodes_slashes => text.push('/'),
        Part::Plain(byte) if byte.is_ascii() => text.push(byte.into()),
        Part::Escaped(byte) if is_unreserved(byte) => text.push(byte.into()),
        part => {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            let byte = part.byte();
            text.push('%');
            text.push(DIGITS[usize::from(byte >> 4)].into());
            text.push(DIGITS[usize::from(byte & 15)].into());
        }
    });
    text
}

fn merge_slashes(text: &mut String) {
    let mut last = '\0';
    text.retain(|c| {
        let again = c == '/' && last == '/';
        last = c;
        !again
    });
}

/// RFC 3986, 5.2.4, except that a path may not climb above its root.
fn resolve(path: &str) -> Result<String, PathError> {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                let end = resolved.rfind('/').ok_or(PathError::ClimbsAboveRoot)?;
                resolved.truncate(end);
            }
            segment => {
                resolved.push('/');
                resolved.push_str(segment);
                continue;
            }
        }
        if last {
            resolved.push('/');
        }
    }
    if resolved.is_empty() {
        resolved.push('/');
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use PathNormalization::{Base, DecodeSlashes, MergeSlashes, None as Off};
    use proptest::prelude::*;

    fn check(how: PathNormalization, cases: &[(&str, &str)]) {
        for (path, expected) in cases {
            assert_eq!(normalize(path, how).as_deref(), Ok(*expected), "{path}");
        }
    }

    #[test]
    fn base_decodes_what_needs_no_escape_and_resolves_dots() {
        check(
            Base,
            &[
                ("/", "/"),
                ("/a/b", "/a/b"),
                ("/%61%2d%7E", "/a-~"),
                ("/a%2fb%5c%3f", "/a%2Fb%5C%3F"),
                ("/a/./b/../c", "/a/c"),
                ("/a/b/..", "/a/"),
                ("/a/.", "/a/"),
                ("/..a/...", "/..a/..."),
                ("/a%2e%2E/%2e%2e/b", "/b"),
                ("/a\\..\\b", "/b"),
                ("/a//b", "/a//b"),
                ("/a//../b", "/a/b"),
                ("/%252e%252e/", "/%252e%252e/"),
                ("/é", "/%C3%A9"),
            ],
        );
    }

    #[test]
    fn slashes_are_merged_or_decoded_when_told() {
        check(
            MergeSlashes,
            &[("//a///b/", "/a/b/"), ("/a%2Fb", "/a%2Fb"), ("/a//../b", "/b")],
        );
        check(DecodeSlashes, &[("/a%2f%5Cb", "/a/b"), ("/a%2F..%2Fb", "/b")]);
        check(Off, &[("/a/../b", "/a/../b"), ("/%61//\\", "/%61//\\")]);
    }

    #[test]
    fn what_is_no_path_is_refused_whatever_the_setting() {
        for how in [Base, MergeSlashes, DecodeSlashes, Off] {
            let refused = |path| normalize(path, how).expect_err(path);
            assert_eq!(refused("a"), PathError::NotRooted);
            assert_eq!(refused(""), PathError::NotRooted);
            assert_eq!(refused("/%"), PathError::BadEscape);
            assert_eq!(refused("/%4"), PathError::BadEscape);
            assert_eq!(refused("/%4g"), PathError::BadEscape);
            assert_eq!(refused("/%00"), PathError::Nul);
            assert_eq!(refused("/a#b"), PathError::BadByte);
            assert_eq!(refused("/a b"), PathError::BadByte);
            assert_eq!(refused("/.."), PathError::ClimbsAboveRoot);
            assert_eq!(refused("/a/%2e%2e/.%2e/b"), PathError::ClimbsAboveRoot);
            assert_eq!(refused("/\\..\\..\\..\\"), PathError::ClimbsAboveRoot);
        }
    }

    proptest! {
        #[test]
        fn normalizing_again_changes_nothing(path in "/(a|b|\\.|\\.\\.|/|\\\\|%2[eEfF]|%5[cC]|%41|%zz|é|%25){0,12}") {
            for how in [Base, MergeSlashes, DecodeSlashes, Off] {
                if let Ok(once) = normalize(&path, how) {
                    prop_assert_eq!(normalize(&once, how), Ok(once.clone()));
                }
            }
        }
    }
}
