//! A request in its one canonical form: what routing, policy, logs and the upstream see, and nothing else.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method};

use crate::identity::Identity;
pub mod host;
pub mod path;
pub mod reserved;
mod text;

pub use text::Text;

/// The head of a request after it was cleaned and normalised. No decision reads anything that came from the client
/// besides this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Method, case-sensitive.
    pub method: Method,
    /// Scheme of the connection, never what the client says.
    pub scheme: Scheme,
    /// Host, in lower case, with its port if the client named one.
    pub authority: Text,
    /// Normalised path. It begins with `/` (or is `*` for OPTIONS) and holds no query.
    pub path: Text,
    /// Query as it came, without its `?`; `None` without one.
    pub query: Option<Text>,
    /// Header fields, without those of the hop and without those that only the mesh may set.
    pub headers: HeaderMap,
    /// What the client speaks.
    pub protocol: Protocol,
}

/// Scheme of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheme {
    /// `http`: inside of the tunnel.
    #[default]
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl RequestHead {
    /// Whether this is a call of gRPC: `POST` with a content type of `application/grpc…`.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        let content_type = self.headers.get(http::header::CONTENT_TYPE);
        let is_grpc = |value: &http::HeaderValue| {
            let value = value.as_bytes();
            let known = b"application/grpc";
            value
                .get(..known.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(known))
                && matches!(value.get(known.len()), None | Some(b'+' | b';' | b' ' | b'-'))
        };
        self.method == Method::POST && content_type.is_some_and(is_grpc)
    }

    /// The host without its port.
    #[must_use]
    pub fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        }
    }
}

/// Who asks. Fixed when the tunnel's stream is opened, except for what a gateway says of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Identity of the tunnel's peer, or the original source a trusted waypoint names; `None` outside of the mesh.
    pub identity: Option<Identity>,
    /// Address of the caller.
    pub ip: IpAddr,
    /// Address of the client outside of the mesh, if a trusted gateway names one; else that of the caller.
    pub remote_ip: IpAddr,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Address and port that the caller addressed: the service's, or the pod's.
    pub address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn head(content_type: &'static str) -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        RequestHead {
            method: Method::POST,
            scheme: Scheme::Http,
            authority: "web.shop:8080".into(),
            path: "/a.B/C".into(),
            query: None,
            headers,
            protocol: Protocol::Http2,
        }
    }

    #[test]
    fn calls_of_grpc_are_told_by_their_content_type() {
        assert!(head("application/grpc").is_grpc());
        assert!(head("Application/grpc+proto").is_grpc());
        assert!(!head("application/grpcx").is_grpc());
        assert!(!head("text/plain").is_grpc());
        let get = RequestHead {
            method: Method::GET,
            ..head("application/grpc")
        };
        assert!(!get.is_grpc());
    }

    #[test]
    fn a_host_has_no_port() {
        assert_eq!(head("").host(), "web.shop");
        let bare = RequestHead {
            authority: "[fd00::1]".into(),
            ..head("")
        };
        assert_eq!(bare.host(), "[fd00::1]");
    }
}
