//! The `cookie` header, and what may stand in one.

use http::HeaderMap;
use http::header::COOKIE;

/// The value of the first cookie of this name.
#[must_use]
pub fn find<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines
        .flat_map(pairs)
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// Cookies of a line, in order. What is no pair is left out; quotes round a value are taken off.
pub fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(';').filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim();
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        Some((name.trim(), unquoted.unwrap_or(value)))
    })
}

/// Whether a cookie may have this name (RFC 6265: a token).
#[must_use]
pub fn is_name(name: &str) -> bool {
    let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(of_token)
}

/// Whether a cookie may be for this path.
#[must_use]
pub fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b';')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (COOKIE, line.parse().unwrap())).collect()
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = headers(&["a=1; b=two=2;c= 3 ", "d=\"quoted\"; a=again"]);
        assert_eq!(find(&headers, "a"), Some("1"), "the first one counts");
        assert_eq!(find(&headers, "b"), Some("two=2"));
        assert_eq!(find(&headers, "c"), Some("3"));
        assert_eq!(find(&headers, "d"), Some("quoted"));
        assert_eq!(find(&headers, "A"), None, "names are case-sensitive");
    }

    #[test]
    fn names_and_paths_cannot_break_the_header() {
        assert!(is_name("tulle-session") && is_path("/a b"));
        for name in ["", "a b", "a;b", "a=b", "ä", "a\r\n"] {
            assert!(!is_name(name), "{name:?}");
        }
        for path in ["", "a", "/a;b", "/\n"] {
            assert!(!is_path(path), "{path:?}");
        }
    }
}
