//! Checks and cleans the head of an endpoint's answer before it goes down.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use tulle_model::reason::Reason;
use tulle_model::request::reserved::is_own_of_answers;

use super::strip_hop;

/// What is to be done with the connection that an answer came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It may serve another request.
    Keep,
    /// Where the answer ends is not certain: it may not.
    Close,
}

/// Cleans an answer's head.
///
/// # Errors
/// If it breaks the protocol, so that it must not go down.
pub fn clean(parts: &mut Parts, upgrade_asked: bool) -> Result<Connection, Reason> {
    let agrees = || upgrade_asked && super::fields::names(&parts.headers, UPGRADE, "websocket");
    if parts.status == StatusCode::SWITCHING_PROTOCOLS && !agrees() {
        return Err(Reason::UpstreamProtocol);
    }
    let connection = check_framing(&mut parts.headers, parts.version)?;
    strip_hop(&mut parts.headers);
    let own: Vec<HeaderName> = parts
        .headers
        .keys()
        .filter(|name| is_own_of_answers(name.as_str()))
        .cloned()
        .collect();
    for name in own {
        parts.headers.remove(name);
    }
    Ok(connection)
}

/// RFC 9112, 6.1: length beside a coding is an attack or an accident; the coding counts and the connection ends.
fn check_framing(headers: &mut HeaderMap, version: Version) -> Result<Connection, Reason> {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    let codings: Vec<&HeaderValue> = headers.get_all(TRANSFER_ENCODING).iter().collect();
    let chunked = |value: &&HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    match codings.as_slice() {
        [] if lengths > 1 => Err(Reason::UpstreamProtocol),
        [] => Ok(Connection::Keep),
        [one] if chunked(one) && version == Version::HTTP_11 && lengths == 0 => Ok(Connection::Keep),
        [one] if chunked(one) && version == Version::HTTP_11 => {
            headers.remove(CONTENT_LENGTH);
            Ok(Connection::Close)
        }
        _ => Err(Reason::UpstreamProtocol),
    }
}
