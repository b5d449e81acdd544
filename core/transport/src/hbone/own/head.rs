//! The head of a stream: what a peer said in HEADERS, judged by RFC 9113, 8.2 and 8.3, and what is written there.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Uri};

use super::hpack::Encoder;
use crate::hbone::connect::{ConnectRequest, ConnectResponse, MalformedConnect, Refusal};

/// Headers that are kept; others mean nothing to a tunnel.
const KEPT: [&str; 7] = [
    "baggage",
    "forwarded",
    "traceparent",
    "x-forwarded-network",
    "x-tulle-hops",
    "x-tulle-original-source",
    "x-tulle-reason",
];

/// Headers that belong to a connection of HTTP/1, and make a head of HTTP/2 malformed.
const OF_CONNECTIONS: [&[u8]; 5] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
];

/// A head as it is read, one header after the other.
#[derive(Debug, Default)]
pub(super) struct Head {
    method: Option<Method>,
    authority: Option<Box<[u8]>>,
    scheme: bool,
    path: bool,
    protocol: bool,
    status: Option<StatusCode>,
    headers: HeaderMap,
    regular: bool,
    malformed: bool,
}

/// The head is against the rules: the stream is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl Head {
    /// Takes the next header.
    pub(super) fn put(&mut self, name: &[u8], value: &[u8]) {
        let fine = match name.strip_prefix(b":") {
            Some(pseudo) => !self.regular && self.pseudo(pseudo, value),
            None => {
                self.regular = true;
                self.header(name, value)
            }
        };
        self.malformed |= !fine;
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        match name {
            b"method" => match Method::from_bytes(value) {
                Ok(method) => self.method.replace(method).is_none(),
                Err(_) => false,
            },
            b"status" => match StatusCode::from_bytes(value) {
                Ok(status) => self.status.replace(status).is_none(),
                Err(_) => false,
            },
            b"authority" => self.authority.replace(value.into()).is_none(),
            b"scheme" => !std::mem::replace(&mut self.scheme, true),
            b"path" => !std::mem::replace(&mut self.path, true),
            b"protocol" => !std::mem::replace(&mut self.protocol, true),
            _ => false,
        }
    }

    fn header(&mut self, name: &[u8], value: &[u8]) -> bool {
        if name.iter().any(u8::is_ascii_uppercase) || OF_CONNECTIONS.contains(&name) || padded(value) {
            return false;
        }
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
            return false;
        };
        if KEPT.contains(&name.as_str()) {
            self.headers.append(name, value);
            return true;
        }
        name != http::header::TE || value == "trailers"
    }

    /// As the head of a request. A request that is no tunnel's is told so; one against the rules is not answered.
    pub(super) fn request(self) -> Result<Result<ConnectRequest, MalformedConnect>, Malformed> {
        let method = self.method.ok_or(Malformed)?;
        let plain_connect = method == Method::CONNECT && !self.protocol;
        if self.malformed
            || self.status.is_some()
            || plain_connect == self.scheme
            || plain_connect == self.path
        {
            return Err(Malformed);
        }
        let authority = self.authority.and_then(|text| Authority::try_from(&*text).ok());
        let uri = authority.and_then(|authority| Uri::builder().authority(authority).build().ok());
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri.unwrap_or_default();
        *request.headers_mut() = self.headers;
        Ok(ConnectRequest::from_http(&request, self.protocol))
    }

    /// As the head of a response; nothing if it only says that one will come.
    pub(super) fn response(self) -> Result<Option<Result<ConnectResponse, Refusal>>, Malformed> {
        let asks =
            self.method.is_some() || self.authority.is_some() || self.scheme || self.path || self.protocol;
        let status = self
            .status
            .filter(|_| !asks && !self.malformed)
            .ok_or(Malformed)?;
        if status.is_informational() {
            // RFC 9113, 8.6: 101 has no meaning in HTTP/2.
            return if status == StatusCode::SWITCHING_PROTOCOLS {
                Err(Malformed)
            } else {
                Ok(None)
            };
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = self.headers;
        Ok(Some(ConnectResponse::from_http(&response)))
    }
}

fn padded(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    blank(value.first()) || blank(value.last())
}

/// The block of a request.
pub(super) fn encode_request(request: &ConnectRequest) -> Result<Vec<u8>, http::Error> {
    let http = request.to_http()?;
    let mut encoder = Encoder::new();
    encoder.header(":method", b"CONNECT");
    encoder.header(
        ":authority",
        http.uri().authority().map_or("", Authority::as_str).as_bytes(),
    );
    encode_headers(&mut encoder, http.headers());
    Ok(encoder.finish())
}

/// The block of a 200.
pub(super) fn encode_response(response: &ConnectResponse) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.ok();
    encode_headers(&mut encoder, response.to_http().headers());
    encoder.finish()
}

/// The block of another status.
pub(super) fn encode_refusal(refusal: &Refusal) -> Vec<u8> {
    let http = refusal.to_http();
    let mut encoder = Encoder::new();
    encoder.header(":status", http.status().as_str().as_bytes());
    encode_headers(&mut encoder, http.headers());
    encoder.finish()
}

fn encode_headers(encoder: &mut Encoder, headers: &HeaderMap) {
    for (name, value) in headers {
        encoder.header(name.as_str(), value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::hpack::Decoder;
    use super::*;
    use crate::{Baggage, ReasonHeader, TraceParent};
    use tulle_model::{Identity, Reason};

    fn read(block: &[u8]) -> Head {
        let mut head = Head::default();
        let decoded = Decoder::default().decode(block, 16_384, |name, value| head.put(name, value));
        assert_eq!(decoded, Ok(true));
        head
    }

    fn head(headers: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        headers
            .iter()
            .for_each(|(name, value)| head.put(name.as_bytes(), value.as_bytes()));
        head
    }

    #[test]
    fn a_request_survives_the_wire() {
        let given = ConnectRequest {
            authority: "[::1]:8080".to_owned(),
            baggage: Baggage::parse("k8s.namespace.name=shop,k8s.pod.name=web-1"),
            forwarded: Some("for=\"10.0.0.1:4000\";host=reviews.shop".parse().unwrap()),
            traceparent: Some(TraceParent::random()),
            forwarded_network: Some("east".to_owned()),
            original_source: Some(Identity::new("td", "ns", "sa")),
            hops: 1,
        };
        assert_eq!(read(&encode_request(&given).unwrap()).request(), Ok(Ok(given)));
    }

    #[test]
    fn answers_survive_the_wire() {
        let yes = ConnectResponse {
            baggage: Baggage::parse("service.name=reviews"),
        };
        assert_eq!(read(&encode_response(&yes)).response(), Ok(Some(Ok(yes))));
        let no = Refusal {
            status: 401,
            header: Some(ReasonHeader::new(Reason::PolicyDenied).policy("shop/deny")),
        };
        assert_eq!(read(&encode_refusal(&no)).response(), Ok(Some(Err(no))));
    }

    const CONNECT: (&str, &str) = (":method", "CONNECT");
    const AUTHORITY: (&str, &str) = (":authority", "10.0.0.1:80");

    #[test]
    fn heads_against_the_rules_are_malformed() {
        let wrong: [&[(&str, &str)]; 14] = [
            &[],
            &[AUTHORITY],
            &[CONNECT, CONNECT, AUTHORITY],
            &[CONNECT, AUTHORITY, AUTHORITY],
            &[CONNECT, AUTHORITY, (":scheme", "http")],
            &[CONNECT, AUTHORITY, (":path", "/")],
            &[CONNECT, AUTHORITY, (":status", "200")],
            &[CONNECT, AUTHORITY, (":new", "")],
            &[CONNECT, ("via", "x"), AUTHORITY],
            &[CONNECT, AUTHORITY, ("Via", "x")],
            &[CONNECT, AUTHORITY, ("connection", "close")],
            &[CONNECT, AUTHORITY, ("te", "gzip")],
            &[CONNECT, AUTHORITY, ("via", " x")],
            &[CONNECT, AUTHORITY, ("via", "a\nb")],
        ];
        for headers in wrong {
            assert_eq!(head(headers).request(), Err(Malformed), "{headers:?}");
        }
        assert!(
            head(&[CONNECT, AUTHORITY, ("te", "trailers"), ("x", "")])
                .request()
                .is_ok()
        );
    }

    #[test]
    fn what_is_no_tunnel_is_told_so() {
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), AUTHORITY];
        assert_eq!(head(&get).request(), Ok(Err(MalformedConnect::NotConnect)));
        let websocket = [
            CONNECT,
            AUTHORITY,
            (":scheme", "http"),
            (":path", "/"),
            (":protocol", "websocket"),
        ];
        assert_eq!(head(&websocket).request(), Ok(Err(MalformedConnect::NotConnect)));
        assert_eq!(head(&[CONNECT]).request(), Ok(Err(MalformedConnect::Authority)));
        let odd = [CONNECT, (":authority", "10.0.0.1:80/x")];
        assert_eq!(head(&odd).request(), Ok(Err(MalformedConnect::Authority)));
    }

    #[test]
    fn responses_have_a_status_and_nothing_of_requests() {
        assert_eq!(head(&[(":status", "100")]).response(), Ok(None));
        for wrong in [
            &[(":status", "101")][..],
            &[],
            &[(":status", "20")],
            &[(":status", "200"), CONNECT],
        ] {
            assert_eq!(head(wrong).response(), Err(Malformed), "{wrong:?}");
        }
    }
}
