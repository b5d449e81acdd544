//! The request as it goes to an endpoint: written out of its canonical form and nothing else.

use std::net::IpAddr;

use http::header::{CONTENT_LENGTH, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version as HttpVersion};
use tulle_model::{Reason, RequestHead};

use super::body::RequestBody;
use crate::upstream::pool::Version;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const ATTEMPT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// The id of a request, in requests and local replies.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the mesh tells the application of a request.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// Where the caller is.
    pub source: IpAddr,
    /// The id of the request.
    pub id: &'a HeaderValue,
    /// Which try this is, from 1.
    pub attempt: u32,
}

/// Writes a request.
///
/// # Errors
/// A part of the canonical form cannot be written, which a filter may have made so.
pub fn write(
    head: &RequestHead,
    version: Version,
    body: RequestBody,
    told: Told<'_>,
) -> Result<Request<RequestBody>, Reason> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri(head, version)?;
    let mut headers = head.headers.clone();
    match version {
        Version::Http1 => {
            *request.version_mut() = HttpVersion::HTTP_11;
            let host = HeaderValue::from_str(&head.authority).map_err(|_| Reason::BadHost)?;
            headers.insert(HOST, host);
        }
        Version::Http2 => *request.version_mut() = HttpVersion::HTTP_2,
    }
    // Written again from what is known of the body.
    headers.remove(CONTENT_LENGTH);
    tell(&mut headers, told);
    *request.headers_mut() = headers;
    Ok(request)
}

fn uri(head: &RequestHead, version: Version) -> Result<Uri, Reason> {
    let target = match &head.query {
        Some(query) => PathAndQuery::try_from(format!("{}?{query}", head.path)),
        None => PathAndQuery::try_from(&*head.path),
    };
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target.map_err(|_| Reason::BadPath)?);
    if version == Version::Http2 {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::try_from(&*head.authority).map_err(|_| Reason::BadHost)?);
    }
    Uri::from_parts(parts).map_err(|_| Reason::BadPath)
}

fn tell(headers: &mut HeaderMap, told: Told<'_>) {
    let source = told.source.to_string();
    let chain = match headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok()) {
        Some(before) => format!("{before}, {source}"),
        None => source,
    };
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
    headers.insert(REQUEST_ID, told.id.clone());
    headers.insert(ATTEMPT, HeaderValue::from(told.attempt));
}
