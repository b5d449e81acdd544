//! Makes of a request, as the HTTP library read it, its one canonical form, or one rejection.
//!
//! Everything after this reads the canonical form alone, and what goes upstream is written from it, so that routing,
//! policy and application cannot see different requests.

use std::net::IpAddr;

use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use tulle_model::reason::Reason;
use tulle_model::request::{Protocol, RequestHead, Scheme};
use tulle_model::waypoint::{Limits, PathNormalization};

pub mod answer;
pub mod encode;
mod fields;
mod target;
#[cfg(test)]
mod tests;

pub use fields::{remote_ip, strip_hop};

/// Bounds of a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most header fields.
    pub fields: usize,
    /// Most bytes of names and values.
    pub bytes: usize,
    /// Longest target.
    pub target: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            fields: 100,
            bytes: 64 << 10,
            target: 32 << 10,
        }
    }
}

impl Bounds {
    /// Those of the settings, as far as they say some.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        let usual = Self::default();
        let bytes = limits.header_bytes;
        Self {
            bytes: bytes.map_or(usual.bytes, |bytes| bytes as usize),
            ..usual
        }
    }
}

/// What a head is read under.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Bounds.
    pub bounds: Bounds,
    /// The form of paths.
    pub paths: PathNormalization,
    /// Scheme of the connection.
    pub scheme: Scheme,
    /// The peer is a gateway: what it says of its clients is believed.
    pub gateway: bool,
    /// The authority of a request of HTTP/1.0 that names none: what the tunnel was opened to.
    pub authority: &'a str,
}

/// A request that may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its canonical form.
    pub head: RequestHead,
    /// What it asks to become.
    pub upgrade: Option<Upgrade>,
    /// It waits for `100 Continue`.
    pub expects_continue: bool,
    /// It takes trailers.
    pub takes_trailers: bool,
    /// Address of the client outside of the mesh, if a gateway named one.
    pub remote_ip: Option<IpAddr>,
}

/// What a request asks to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// A WebSocket, by `upgrade` of HTTP/1.1 or extended CONNECT of HTTP/2.
    WebSocket,
}

/// A request that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// Where the next request begins is not certain: the connection must not be used again.
    pub close: bool,
}

impl Rejection {
    fn of(reason: Reason) -> Self {
        // Only these leave doubt about where the body ends; closing costs an honest client one connection.
        let close = matches!(
            reason,
            Reason::BadFraming | Reason::HeadersTooLarge | Reason::UriTooLong
        );
        Self { reason, close }
    }
}

/// Reads the head of a request.
///
/// # Errors
/// If it breaks a rule; then nothing of it goes upstream.
pub fn admit(parts: Parts, terms: &Terms<'_>) -> Result<Admitted, Rejection> {
    admitted(parts, terms).map_err(Rejection::of)
}

fn admitted(parts: Parts, terms: &Terms<'_>) -> Result<Admitted, Reason> {
    let protocol = protocol(parts.version)?;
    within(&parts, terms.bounds)?;
    check_framing(&parts.headers, protocol)?;
    let upgrade = upgrade(&parts, protocol)?;
    let expects_continue = expects_continue(&parts.headers, protocol)?;
    let authority = target::authority(&parts, protocol, terms.authority)?;
    let (path, query) = target::path(&parts, terms.paths)?;
    let mut headers = parts.headers;
    let takes_trailers = fields::takes_trailers(&headers) || protocol == Protocol::Http2;
    fields::strip(&mut headers, terms.gateway);
    join_cookies(&mut headers);
    let remote_ip = terms.gateway.then(|| remote_ip(&headers)).flatten();
    let head = RequestHead {
        // An extended CONNECT is, to routes and policy, the `GET` that it stands for.
        method: if upgrade.is_some() {
            Method::GET
        } else {
            parts.method
        },
        scheme: terms.scheme,
        authority,
        path,
        query,
        headers,
        protocol,
    };
    Ok(Admitted {
        head,
        upgrade,
        expects_continue,
        takes_trailers,
        remote_ip,
    })
}

fn protocol(version: Version) -> Result<Protocol, Reason> {
    match version {
        Version::HTTP_10 => Ok(Protocol::Http10),
        Version::HTTP_11 => Ok(Protocol::Http11),
        Version::HTTP_2 => Ok(Protocol::Http2),
        _ => Err(Reason::BadFraming),
    }
}

fn within(parts: &Parts, bounds: Bounds) -> Result<(), Reason> {
    let target = parts
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len())
        + parts
            .uri
            .authority()
            .map_or(0, |authority| authority.as_str().len());
    if target > bounds.target {
        return Err(Reason::UriTooLong);
    }
    let size = |(name, value): (&http::HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let bytes: usize = parts.headers.iter().map(size).sum();
    if parts.headers.len() > bounds.fields || bytes > bounds.bytes {
        return Err(Reason::HeadersTooLarge);
    }
    Ok(())
}

/// RFC 9112, 6.1 and 6.3: a body ends where exactly one of length and coding says.
fn check_framing(headers: &HeaderMap, protocol: Protocol) -> Result<(), Reason> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let (length, coding) = (lengths.next(), codings.next());
    let digits = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    let bad_length = length.is_some_and(|value| !digits(value)) || lengths.next().is_some();
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    let bad_coding = coding.is_some_and(|value| !chunked(value)) || codings.next().is_some();
    let misplaced = coding.is_some() && (protocol != Protocol::Http11 || length.is_some());
    if bad_length || bad_coding || misplaced {
        return Err(Reason::BadFraming);
    }
    Ok(())
}

fn upgrade(parts: &Parts, protocol: Protocol) -> Result<Option<Upgrade>, Reason> {
    if parts.method == Method::CONNECT {
        let named = parts.extensions.get::<hyper::ext::Protocol>();
        let websocket = protocol == Protocol::Http2 && named.is_some_and(|name| name.as_str() == "websocket");
        return websocket
            .then_some(Some(Upgrade::WebSocket))
            .ok_or(Reason::ConnectNotCarried);
    }
    let asked = protocol == Protocol::Http11
        && parts.method == Method::GET
        && fields::names(&parts.headers, http::header::CONNECTION, "upgrade")
        && fields::names(&parts.headers, http::header::UPGRADE, "websocket");
    // What follows the head is the stream's, or nobody can say whose it is.
    let empty = |length: &HeaderValue| length.as_bytes().iter().all(|digit| *digit == b'0');
    let has_body = parts.headers.contains_key(TRANSFER_ENCODING)
        || parts
            .headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| !empty(length));
    if asked && has_body {
        return Err(Reason::BadFraming);
    }
    Ok(asked.then_some(Upgrade::WebSocket))
}

/// RFC 9110, 10.1.1: a server of HTTP/1.0 ignores it; any other expectation may be refused.
fn expects_continue(headers: &HeaderMap, protocol: Protocol) -> Result<bool, Reason> {
    let mut values = headers.get_all(EXPECT).iter();
    let known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    match (values.next(), values.next()) {
        (None, _) => Ok(false),
        (Some(value), None) if known(value) => Ok(protocol != Protocol::Http10),
        _ => Err(Reason::BadExpect),
    }
}

/// RFC 9113, 8.2.3: split fields are joined before anything that is not HTTP/2 sees them.
fn join_cookies(headers: &mut HeaderMap) {
    let mut fields = headers.get_all(COOKIE).iter();
    if fields.next().is_none() || fields.next().is_none() {
        return;
    }
    let fields: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Joining legal values with legal bytes makes a legal value.
    if let Ok(joined) = HeaderValue::from_bytes(&fields.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
