//! Writes the one request that goes upstream, from the canonical form alone.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, UPGRADE};
use http::request::Parts;
use http::uri::{self, Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use smallvec::SmallVec;
use tulle_model::request::{RequestHead, Scheme, Text};

use super::Upgrade;
use super::fields::FORWARDED_FOR;
use crate::spare;

/// The id of a request, in requests and local replies.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What the client speaks, as its gateway says.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Fields that are added at most.
const OWN_FIELDS: usize = 8;

/// Longest request id that is taken from a client.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// What is said to the application besides the request itself.
#[derive(Debug, Clone, Copy)]
pub struct Telling<'a> {
    /// Id of the request.
    pub request_id: &'a HeaderValue,
    /// Address of the caller, as text.
    pub source: &'a HeaderValue,
    /// Which try this is, counted from 1.
    pub attempt: u32,
    /// The caller's identity (`spiffe://…`) and the destination's, if applications are told.
    pub client_cert: Option<ClientCert<'a>>,
    /// What the request becomes.
    pub upgrade: Option<Upgrade>,
    /// Whether it takes trailers.
    pub takes_trailers: bool,
    /// Whether the body waits for `100 Continue`.
    pub expects_continue: bool,
}

/// What `x-forwarded-client-cert` says.
#[derive(Debug, Clone, Copy)]
pub struct ClientCert<'a> {
    /// Identity of the caller, out of its certificate.
    pub source: &'a str,
    /// Identity of whom it asked.
    pub destination: &'a str,
}

/// Why a request cannot be written. Names and values were parsed before, so only a rewrite can cause it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten target is no target of a request")]
pub struct NoTarget;

/// The request that goes upstream. `version` is HTTP/1.1 or HTTP/2.
///
/// # Errors
/// If host or path of the head do not make a target.
pub fn encode(head: &RequestHead, telling: &Telling<'_>, version: Version) -> Result<Parts, NoTarget> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.version = version;
    parts.method = head.method.clone();
    parts.headers = spare::headers(head.headers.len() + OWN_FIELDS);
    if version == Version::HTTP_2 {
        parts.uri = absolute(head)?;
    } else {
        parts.uri = target(head)?.into();
        let host = match head.authority.as_field() {
            Some(came) => came.clone(),
            None => HeaderValue::from_str(&head.authority).map_err(|_| NoTarget)?,
        };
        // RFC 9110, 7.2: host goes first.
        parts.headers.insert(HOST, host);
    }
    for (name, value) in &head.headers {
        // Written again from what is known of the body, and of the request.
        if name != CONTENT_LENGTH && name != REQUEST_ID {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    tell(&mut parts.headers, head.scheme, telling);
    if telling.expects_continue {
        parts
            .headers
            .insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    if telling.takes_trailers && telling.upgrade.is_none() {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        if version == Version::HTTP_11 {
            // RFC 9110, 10.1.4: the field is of the hop.
            parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if let Some(Upgrade::WebSocket) = telling.upgrade {
        upgrade(&mut parts);
    }
    Ok(parts)
}

/// Path and query: as they came, or written once, where what is parsed of them shares it.
fn target(head: &RequestHead) -> Result<PathAndQuery, NoTarget> {
    if let Some(came) = Text::target(&head.path, head.query.as_ref()) {
        return Ok(came.clone());
    }
    let query = head.query.as_deref().map_or(0, |query| 1 + query.len());
    let mut target = Vec::with_capacity(head.path.len() + query);
    target.extend_from_slice(head.path.as_bytes());
    if let Some(query) = &head.query {
        target.push(b'?');
        target.extend_from_slice(query.as_bytes());
    }
    PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|_| NoTarget)
}

fn absolute(head: &RequestHead) -> Result<Uri, NoTarget> {
    let authority = match head.authority.as_authority() {
        Some(came) => came.clone(),
        None => Authority::try_from(&*head.authority).map_err(|_| NoTarget)?,
    };
    let mut parts = uri::Parts::default();
    parts.scheme = Some(match head.scheme {
        Scheme::Http => uri::Scheme::HTTP,
        Scheme::Https => uri::Scheme::HTTPS,
    });
    parts.authority = Some(authority);
    parts.path_and_query = Some(target(head)?);
    Uri::from_parts(parts).map_err(|_| NoTarget)
}

fn tell(headers: &mut HeaderMap, scheme: Scheme, telling: &Telling<'_>) {
    headers.insert(REQUEST_ID, telling.request_id.clone());
    headers.insert(ATTEMPT_COUNT, attempt(telling.attempt));
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme.as_str()));
    }
    if let Some(passed) = appended(headers, telling.source) {
        headers.insert(FORWARDED_FOR, passed);
    }
    if let Some(ClientCert { source, destination }) = telling.client_cert
        && let Ok(value) = HeaderValue::from_str(&format!("By={destination};URI={source}"))
    {
        headers.insert(CLIENT_CERT, value);
    }
}

/// The addresses that a gateway named, and then the caller's.
fn appended(headers: &HeaderMap, source: &HeaderValue) -> Option<HeaderValue> {
    if !headers.contains_key(FORWARDED_FOR) {
        return Some(source.clone());
    }
    let mut passed: SmallVec<[u8; 64]> = SmallVec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        passed.extend_from_slice(value.as_bytes());
        passed.extend_from_slice(b", ");
    }
    passed.extend_from_slice(source.as_bytes());
    HeaderValue::from_bytes(&passed).ok()
}

/// The number of a try. Most requests have one.
fn attempt(number: u32) -> HeaderValue {
    if number == 1 {
        HeaderValue::from_static("1")
    } else {
        number.into()
    }
}

/// RFC 8441 towards HTTP/2, `upgrade` towards HTTP/1.1.
fn upgrade(parts: &mut Parts) {
    const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
    if parts.version == Version::HTTP_2 {
        parts.method = Method::CONNECT;
        parts
            .extensions
            .insert(hyper::ext::Protocol::from_static("websocket"));
        parts.headers.remove(KEY);
        return;
    }
    parts
        .headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts
        .headers
        .insert(UPGRADE, HeaderValue::from_static("websocket"));
    if !parts.headers.contains_key(KEY) {
        // From HTTP/2, which has no such key: any nonce does, since the answer to it ends here.
        let nonce: [u8; 16] = rand::random();
        let nonce = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, nonce);
        if let Ok(nonce) = HeaderValue::from_str(&nonce) {
            parts.headers.insert(KEY, nonce);
        }
    }
}

/// The client's request id, if it is short visible ASCII.
#[must_use]
pub fn request_id(head: &RequestHead) -> Option<&HeaderValue> {
    let id = head.headers.get(REQUEST_ID)?;
    let visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
    (visible && !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX).then_some(id)
}
