//! What a waypoint does to requests on their way, and with whose consent.

use std::time::Duration;

use crate::name::Str;
use crate::route::Backend;

/// One thing done to a request or its response.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Filter {
    /// Changes headers of the request.
    RequestHeaders(HeaderMod),
    /// Changes headers of the response.
    ResponseHeaders(HeaderMod),
    /// Changes host and path.
    Rewrite(Rewrite),
    /// Answers with another place.
    Redirect(Redirect),
    /// Sends a copy elsewhere.
    Mirror(Mirror),
    /// Says which pages of other origins may ask.
    Cors(Cors),
    /// Asks somebody else.
    ExtAuthz(ExtAuthz),
    /// Something the waypoint cannot do: the request is answered with 500.
    Unsupported(Str),
}

/// Changes of headers: first set, then add, then remove.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderMod {
    /// Replaced.
    pub set: Vec<Header>,
    /// Added to what there is.
    pub add: Vec<Header>,
    /// Removed.
    pub remove: Vec<Str>,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Header {
    /// Name.
    pub name: Str,
    /// Value.
    pub value: Str,
}

/// A new host or path.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// The new host.
    pub host: Option<Str>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// A new path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// The whole path.
    Full(Str),
    /// In the place of the prefix that matched.
    Prefix(Str),
}

/// Another place. What is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// Scheme.
    pub scheme: Option<Str>,
    /// Host.
    pub host: Option<Str>,
    /// Port.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// Status; `None` is 302.
    pub status: Option<u16>,
}

/// A copy of requests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where to; its weight and filters mean nothing.
    pub backend: Backend,
    /// The share: this many …
    pub numerator: u32,
    /// … of this many; never zero.
    pub denominator: u32,
}

/// Which pages of other origins may ask.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// Origins; `*` is every one.
    pub origins: Vec<Str>,
    /// Methods.
    pub methods: Vec<Str>,
    /// Headers of requests.
    pub headers: Vec<Str>,
    /// Headers of responses that pages may read.
    pub expose: Vec<Str>,
    /// Whether cookies and the like may be sent along.
    pub credentials: bool,
    /// How long an answer may be remembered.
    pub max_age: Option<Duration>,
}

/// Bytes of a request's body that can be sent along to somebody who decides: a waypoint holds them until the answer.
pub const ASKED_BODY_BYTES_MAX: u32 = 8 * 1024;

/// Somebody else who decides.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtAuthz {
    /// Who.
    pub ask: Ask,
    /// Headers of the request that are sent along, beside the ones that always are.
    pub headers: Vec<Str>,
    /// Headers of an HTTP answer that go on to the application.
    pub response_headers: Vec<Str>,
    /// Bytes of the body that are sent along; zero is none.
    pub body_bytes_max: u32,
    /// A longer body is cut instead of refused.
    pub allow_partial: bool,
    /// How long an answer may take; `None` is the default.
    pub timeout: Option<Duration>,
    /// Without an answer the request passes.
    pub fail_open: bool,
    /// Status without an answer; `None` is 403.
    pub status_on_error: Option<u16>,
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// One of the waypoint's providers, by name.
    Provider(Str),
    /// A service that speaks `envoy.service.auth.v3`.
    Grpc(Backend),
    /// A service that speaks HTTP, at this path.
    Http {
        /// The service.
        backend: Backend,
        /// What the request's path is appended to.
        path: Str,
    },
}
