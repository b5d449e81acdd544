//! What first bytes look like, as a function of them.

/// The connection preface of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method that is looked for.
const METHOD_MAX: usize = 32;
/// Bytes of a target in which an address or authority shows its colon.
const WORD_MAX: usize = 64;
/// Content type of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 22;

/// What first bytes look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A request line.
    Http1,
    /// A TLS record.
    Tls,
    /// None of these.
    Bytes,
    /// They may become one of these.
    More,
}

/// Looks at what has arrived so far.
#[must_use]
pub fn look(bytes: &[u8]) -> First {
    let preface = bytes.len().min(PREFACE.len());
    if bytes[..preface] == PREFACE[..preface] {
        return if preface == PREFACE.len() {
            First::Http2
        } else {
            First::More
        };
    }
    match bytes {
        [TLS_HANDSHAKE] => return First::More,
        [TLS_HANDSHAKE, 3, ..] => return First::Tls,
        _ => {}
    }
    // RFC 9110: a method is a token; those in use are letters, some with hyphens or underscores.
    let letters = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_'))
        .count();
    match bytes.get(letters) {
        _ if letters > METHOD_MAX => First::Bytes,
        None => First::More,
        Some(b' ') if letters > 0 => target(&bytes[letters + 1..]),
        Some(_) => First::Bytes,
    }
}

/// After a method: a path, an address, an authority or an asterisk. Prose does not go on like this.
fn target(bytes: &[u8]) -> First {
    match bytes.first() {
        None => First::More,
        Some(b'/' | b'*') => First::Http1,
        Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'[' => {
            // No further than this, so that what it is does not hang on how the bytes were cut.
            let seen = &bytes[..bytes.len().min(WORD_MAX)];
            let end = seen.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
            let word = &seen[..end.unwrap_or(seen.len())];
            match end {
                _ if word.contains(&b':') => First::Http1,
                Some(_) => First::Bytes,
                None if seen.len() == WORD_MAX => First::Bytes,
                None => First::More,
            }
        }
        Some(_) => First::Bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_other_bytes() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], First::Http1),
            (b"get / HTTP/1.1\r\n", First::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", First::Http1),
            (b"GET http://a/ HTTP/1.1\r\n", First::Http1),
            (b"CONNECT a:80 HTTP/1.1\r\n", First::Http1),
            (b"M-SEARCH /x", First::Http1),
            (PREFACE, First::Http2),
            (b"\x16\x03\x01\x00\x10", First::Tls),
            (b"\x16", First::More),
            (b"", First::More),
            (b"PRI * HT", First::More),
            (b"GE", First::More),
            (b"GET ", First::More),
            (b"HELO example\r\n", First::Bytes),
            (b"*1\r\n$4\r\nPING\r\n", First::Bytes),
            (b"\x00\x01", First::Bytes),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", First::Bytes),
        ] {
            assert_eq!(look(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
