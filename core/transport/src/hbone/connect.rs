//! The head of a tunnel: what a CONNECT asks for, and what is answered. To and from HTTP, bounded and typed.

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tulle_model::{Identity, Reason};

use crate::{Baggage, Forwarded, ReasonHeader, TraceParent, reason_header};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
const ORIGINAL_SOURCE: HeaderName = HeaderName::from_static("x-tulle-original-source");
const HOPS: HeaderName = HeaderName::from_static("x-tulle-hops");
const REASON: HeaderName = HeaderName::from_static(reason_header::NAME);

/// Longest `x-tulle-original-source`.
const ORIGINAL_SOURCE_LENGTH_MAX: usize = 2048;

/// Longest network id.
const NETWORK_LENGTH_MAX: usize = 253;

/// What a tunnel is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectRequest {
    /// `ip:port`, or `host:port` across networks.
    pub authority: String,
    /// How the caller describes its workload; telemetry only.
    pub baggage: Baggage,
    /// The client and the service it asked for.
    pub forwarded: Option<Forwarded>,
    /// The caller's trace.
    pub traceparent: Option<TraceParent>,
    /// The caller's network, on the inner tunnel across networks.
    pub forwarded_network: Option<String>,
    /// The identity a waypoint speaks for; to be believed only from a waypoint of the destination.
    pub original_source: Option<Identity>,
    /// Waypoints that the request behind this tunnel has passed; to be believed only from a waypoint.
    pub hops: u8,
}

/// Why a request is no tunnel request. Answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MalformedConnect {
    /// Another method.
    #[error("the method is not CONNECT")]
    NotConnect,
    /// No authority, or one without a port.
    #[error("the authority is missing or not host:port")]
    Authority,
    /// The original source is repeated, too long or no identity.
    #[error("the original source is not one identity")]
    OriginalSource,
}

impl MalformedConnect {
    /// The stable reason.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::NotConnect => Reason::NotConnect,
            Self::Authority => Reason::BadAuthority,
            Self::OriginalSource => Reason::SourceNotTrusted,
        }
    }
}

/// What the head of a 200 says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectResponse {
    /// How the destination's proxy describes its workload; telemetry only.
    pub baggage: Baggage,
}

/// An answer other than 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 400, 401 or 503 from a node proxy.
    pub status: u16,
    /// Why, if the peer is one that says so.
    pub header: Option<ReasonHeader>,
}

impl Refusal {
    /// Whether policy decided, in which case no other endpoint will say yes.
    #[must_use]
    pub fn is_policy(&self) -> bool {
        self.status == 401
    }

    /// The reason the peer gave, or the nearest one its status allows.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let told = self.header.as_ref().and_then(ReasonHeader::reason);
        told.unwrap_or(match self.status {
            400 => Reason::BadAuthority,
            401 => Reason::PolicyDenied,
            503 => Reason::ConnectFailed,
            _ => Reason::Http2Failed,
        })
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.header {
            Some(header) => write!(f, "status {}: {header}", self.status),
            None => write!(f, "status {}", self.status),
        }
    }
}

impl ConnectRequest {
    /// Asks for `authority` and says nothing else.
    #[must_use]
    pub fn new(authority: impl Into<String>) -> Self {
        Self {
            authority: authority.into(),
            ..Self::default()
        }
    }

    pub(super) fn to_http(&self) -> Result<Request<()>, http::Error> {
        let uri = Uri::builder().authority(self.authority.as_str()).build()?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
        let headers = request.headers_mut();
        if !self.baggage.is_empty() {
            headers.insert(BAGGAGE, value(&self.baggage)?);
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(FORWARDED, value(forwarded)?);
        }
        if let Some(traceparent) = &self.traceparent {
            headers.insert(TRACEPARENT, value(traceparent)?);
        }
        if let Some(network) = &self.forwarded_network {
            headers.insert(FORWARDED_NETWORK, value(network)?);
        }
        if let Some(source) = &self.original_source {
            headers.insert(ORIGINAL_SOURCE, value(source)?);
        }
        if self.hops > 0 {
            headers.insert(HOPS, HeaderValue::from(u16::from(self.hops)));
        }
        Ok(request)
    }

    /// `extended` says that the request has a `:protocol`, and so asks for something else than bytes.
    pub(super) fn from_http<B>(request: &Request<B>, extended: bool) -> Result<Self, MalformedConnect> {
        if request.method() != Method::CONNECT || extended {
            return Err(MalformedConnect::NotConnect);
        }
        let authority = request
            .uri()
            .authority()
            .filter(|authority| authority.port_u16().is_some());
        let authority = authority.ok_or(MalformedConnect::Authority)?.as_str().to_owned();
        Self::from_headers(authority, request.headers())
    }

    /// Telemetry that cannot be read counts as absent; a claim of identity that cannot be read is refused.
    fn from_headers(authority: String, headers: &HeaderMap) -> Result<Self, MalformedConnect> {
        Ok(Self {
            authority,
            baggage: text(headers, &BAGGAGE).map(Baggage::parse).unwrap_or_default(),
            forwarded: text(headers, &FORWARDED).and_then(|header| header.parse().ok()),
            traceparent: text(headers, &TRACEPARENT).and_then(|header| header.parse().ok()),
            forwarded_network: text(headers, &FORWARDED_NETWORK)
                // The default network has the empty name.
                .filter(|network| network.len() <= NETWORK_LENGTH_MAX)
                .map(str::to_owned),
            original_source: original_source(headers)?,
            hops: hops(headers),
        })
    }
}

/// What cannot be read counts as more than there may be.
fn hops(headers: &HeaderMap) -> u8 {
    let mut values = headers.get_all(HOPS).iter();
    match (values.next(), values.next()) {
        (None, _) => 0,
        (Some(value), None) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(u8::MAX),
        (Some(_), Some(_)) => u8::MAX,
    }
}

fn original_source(headers: &HeaderMap) -> Result<Option<Identity>, MalformedConnect> {
    let mut values = headers.get_all(ORIGINAL_SOURCE).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .ok()
        .filter(|text| text.len() <= ORIGINAL_SOURCE_LENGTH_MAX && values.next().is_none());
    text.and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or(MalformedConnect::OriginalSource)
}

impl ConnectResponse {
    pub(super) fn to_http(&self) -> Response<()> {
        let mut response = Response::new(());
        if let (false, Ok(baggage)) = (self.baggage.is_empty(), value(&self.baggage)) {
            response.headers_mut().insert(BAGGAGE, baggage);
        }
        response
    }

    pub(super) fn from_http<B>(response: &Response<B>) -> Result<Self, Refusal> {
        let headers = response.headers();
        if response.status() == StatusCode::OK {
            return Ok(Self {
                baggage: text(headers, &BAGGAGE).map(Baggage::parse).unwrap_or_default(),
            });
        }
        let header = text(headers, &REASON).and_then(|header| header.parse().ok());
        Err(Refusal {
            status: response.status().as_u16(),
            header,
        })
    }
}

impl Refusal {
    pub(super) fn to_http(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        if let Some(Ok(reason)) = self.header.as_ref().map(value) {
            response.headers_mut().insert(REASON, reason);
        }
        response
    }
}

fn value(text: impl std::fmt::Display) -> Result<HeaderValue, http::Error> {
    Ok(HeaderValue::try_from(text.to_string())?)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Reads a request whose header lines are `data`; whatever is understood can be written again.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn fuzz_headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(64) {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(&line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    if let Ok(request) = ConnectRequest::from_headers("10.0.0.1:80".to_owned(), &headers) {
        let written = request.to_http().expect("what was read can be written");
        assert_eq!(ConnectRequest::from_http(&written, false), Ok(request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_wire() {
        let given = ConnectRequest {
            authority: "[::1]:8080".to_owned(),
            baggage: Baggage::parse("k8s.namespace.name=shop,k8s.pod.name=web-1"),
            forwarded: Some("for=\"10.0.0.1:4000\";host=reviews.shop".parse().unwrap()),
            traceparent: Some(TraceParent::random()),
            forwarded_network: Some("east".to_owned()),
            original_source: Some(Identity::new("td", "ns", "sa")),
            hops: 2,
        };
        let http = given.to_http().unwrap();
        assert_eq!(http.uri().to_string(), "[::1]:8080");
        assert_eq!(ConnectRequest::from_http(&http, false), Ok(given));
    }

    #[test]
    fn hops_that_cannot_be_counted_are_too_many() {
        let mut http = ConnectRequest::new("10.0.0.1:80").to_http().unwrap();
        http.headers_mut().insert(HOPS, HeaderValue::from_static("x"));
        assert_eq!(ConnectRequest::from_http(&http, false).unwrap().hops, u8::MAX);
        http.headers_mut().insert(HOPS, HeaderValue::from_static("1"));
        http.headers_mut().append(HOPS, HeaderValue::from_static("1"));
        assert_eq!(ConnectRequest::from_http(&http, false).unwrap().hops, u8::MAX);
    }

    #[test]
    fn the_default_network_is_a_network_of_its_own() {
        let of = |network: Option<&str>| ConnectRequest {
            forwarded_network: network.map(str::to_owned),
            ..ConnectRequest::new("api.shop:80")
        };
        let told = |given: ConnectRequest| {
            let read = ConnectRequest::from_http(&given.to_http().unwrap(), false).unwrap();
            read.forwarded_network
        };
        assert_eq!(told(of(Some(""))).as_deref(), Some(""), "it has the empty name");
        assert_eq!(told(of(None)), None);
        assert_eq!(told(of(Some(&"n".repeat(NETWORK_LENGTH_MAX + 1)))), None);
    }

    #[test]
    fn a_bare_request_has_no_headers() {
        let http = ConnectRequest::new("10.0.0.1:80").to_http().unwrap();
        assert!(http.headers().is_empty());
    }

    #[test]
    fn only_connect_with_a_port_is_a_tunnel() {
        let get = Request::get("http://10.0.0.1:80/").body(()).unwrap();
        assert_eq!(
            ConnectRequest::from_http(&get, false),
            Err(MalformedConnect::NotConnect)
        );
        let http = ConnectRequest::new("10.0.0.1").to_http().unwrap();
        assert_eq!(
            ConnectRequest::from_http(&http, false),
            Err(MalformedConnect::Authority)
        );
        let websocket = ConnectRequest::new("10.0.0.1:80").to_http().unwrap();
        assert_eq!(
            ConnectRequest::from_http(&websocket, true),
            Err(MalformedConnect::NotConnect)
        );
    }

    #[test]
    fn two_original_sources_or_a_bad_one_are_refused() {
        let mut http = ConnectRequest::new("10.0.0.1:80").to_http().unwrap();
        let source = HeaderValue::from_static("spiffe://td/ns/a/sa/b");
        http.headers_mut().append(ORIGINAL_SOURCE, source.clone());
        assert!(ConnectRequest::from_http(&http, false).is_ok());
        http.headers_mut().append(ORIGINAL_SOURCE, source);
        assert_eq!(
            ConnectRequest::from_http(&http, false),
            Err(MalformedConnect::OriginalSource)
        );
        http.headers_mut()
            .insert(ORIGINAL_SOURCE, HeaderValue::from_static("nobody"));
        assert_eq!(
            ConnectRequest::from_http(&http, false),
            Err(MalformedConnect::OriginalSource)
        );
    }

    #[test]
    fn a_refusal_tells_its_reason_across_the_wire() {
        let header = ReasonHeader::new(Reason::PolicyDenied).policy("shop/deny");
        let given = Refusal {
            status: 401,
            header: Some(header),
        };
        assert_eq!(ConnectResponse::from_http(&given.to_http()), Err(given));
    }

    #[test]
    fn a_refusal_without_reason_is_read_from_its_status() {
        let reason = |status| Refusal { status, header: None }.reason();
        assert_eq!(reason(401), Reason::PolicyDenied);
        assert_eq!(reason(503), Reason::ConnectFailed);
        assert_eq!(reason(502), Reason::Http2Failed);
    }
}
