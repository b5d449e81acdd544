//! The one canonical form of a request, or why it has none.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tulle_model::request::{Protocol, Scheme};
use tulle_model::{Reason, RequestHead};

/// Longest target of a request.
const TARGET_BYTES_MAX: usize = 32 * 1024;
/// Most header fields.
const FIELDS_MAX: usize = 100;

/// Fields that are about one connection and never about the next.
const OF_THE_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "upgrade",
    "http2-settings",
    "transfer-encoding",
];

/// Reads a request.
///
/// # Errors
/// Why it is refused.
pub fn read(parts: Parts, is_gateway: bool) -> Result<RequestHead, Reason> {
    let protocol = match parts.version {
        Version::HTTP_10 => Protocol::Http10,
        Version::HTTP_11 => Protocol::Http11,
        Version::HTTP_2 => Protocol::Http2,
        _ => return Err(Reason::BadFraming),
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > TARGET_BYTES_MAX {
        return Err(Reason::UriTooLong);
    }
    let mut headers = parts.headers;
    if headers.len() > FIELDS_MAX {
        return Err(Reason::HeadersTooLarge);
    }
    framing(&headers)?;
    let authority = authority(&parts.uri, &headers, protocol)?;
    let path = parts.uri.path();
    let path = if path.is_empty() { "/" } else { path };
    let of_the_server = path == "*" && parts.method == Method::OPTIONS;
    if !path.starts_with('/') && !of_the_server {
        return Err(Reason::BadPath);
    }
    expectation(&headers)?;
    clean(&mut headers, is_gateway)?;
    Ok(RequestHead {
        scheme: Scheme::Http,
        authority: authority.to_ascii_lowercase().into(),
        path: path.into(),
        query: parts.uri.query().map(Into::into),
        method: parts.method,
        headers,
        protocol,
    })
}

/// One way to tell the end of the body, and one only.
fn framing(headers: &HeaderMap) -> Result<(), Reason> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(encoding) = encodings.next() else {
        return Ok(());
    };
    let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !chunked || encodings.next().is_some() || headers.contains_key(CONTENT_LENGTH) {
        return Err(Reason::BadFraming);
    }
    Ok(())
}

/// The target's authority, else the one `Host`.
fn authority(uri: &http::Uri, headers: &HeaderMap, protocol: Protocol) -> Result<String, Reason> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() || (host.is_none() && protocol == Protocol::Http11) {
        return Err(Reason::BadHost);
    }
    let text = match (uri.authority(), host) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Reason::BadHost)?,
        (None, None) => return Err(Reason::BadHost),
    };
    let parsed: http::uri::Authority = text.parse().map_err(|_| Reason::BadHost)?;
    if parsed.as_str().contains('@') || parsed.host().is_empty() {
        return Err(Reason::BadHost);
    }
    Ok(text.to_owned())
}

fn expectation(headers: &HeaderMap) -> Result<(), Reason> {
    let known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().all(known) {
        Ok(())
    } else {
        Err(Reason::BadExpect)
    }
}

/// Removes what is of the hop and what only the mesh may say.
fn clean(headers: &mut HeaderMap, is_gateway: bool) -> Result<(), Reason> {
    remove_named_by_connection(headers)?;
    let trailers = headers.get_all(TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    for name in OF_THE_HOP {
        headers.remove(name);
    }
    headers.remove(HOST);
    headers.remove(EXPECT);
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_ours(name, is_gateway))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    join_cookies(headers);
    Ok(())
}

fn remove_named_by_connection(headers: &mut HeaderMap) -> Result<(), Reason> {
    let mut named = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let value = value.to_str().map_err(|_| Reason::BadHeader)?;
        for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            named.push(HeaderName::try_from(word).map_err(|_| Reason::BadHeader)?);
        }
    }
    for name in named.into_iter().filter(|name| *name != TE && *name != UPGRADE) {
        headers.remove(name);
    }
    Ok(())
}

/// Whether only the mesh may set a field.
fn is_ours(name: &HeaderName, is_gateway: bool) -> bool {
    let name = name.as_str();
    let forwarded = name == "forwarded" || name.starts_with("x-forwarded-");
    name.starts_with("x-tulle-")
        || name.starts_with("x-envoy-")
        || name.starts_with("x-istio-")
        || name == "x-forwarded-client-cert"
        || (forwarded && !is_gateway)
}

/// HTTP/2 may split cookies; policies and HTTP/1.1 see one field.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
