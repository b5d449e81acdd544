//! Routes of the Gateway API.

use serde::Deserialize;
use tulle_model::Str;

use super::duration::Span;
use super::meta::Meta;

/// A route. The four kinds differ in what their rules may say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteObject<R: Default> {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state.
    #[serde(bound(deserialize = "R: Deserialize<'de>"))]
    pub spec: RouteSpec<R>,
}

/// Wanted state of a route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec<R: Default> {
    /// What it is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// Host names it is for.
    pub hostnames: Vec<Str>,
    /// Its rules.
    #[serde(bound(deserialize = "R: Deserialize<'de>"))]
    pub rules: Vec<R>,
}

/// A route of HTTP.
pub type HttpRoute = RouteObject<HttpRule>;
/// A route of gRPC.
pub type GrpcRoute = RouteObject<GrpcRule>;
/// A route of TLS, by server name.
pub type TlsRoute = RouteObject<StreamRule>;
/// A route of TCP.
pub type TcpRoute = RouteObject<StreamRule>;

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// Group; absent is that of gateways.
    pub group: Option<Str>,
    /// Kind; empty is `Gateway`.
    pub kind: Str,
    /// Namespace; empty is the route's.
    pub namespace: Str,
    /// Name.
    pub name: Str,
    /// Listener of the gateway.
    pub section_name: Str,
    /// One port of it.
    pub port: Option<u16>,
}

/// A rule of an HTTPRoute.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// Name.
    pub name: Str,
    /// Alternatives.
    pub matches: Vec<HttpMatch>,
    /// What is done.
    pub filters: Vec<RouteFilter>,
    /// Where requests go.
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    pub timeouts: Option<RouteTimeouts>,
    /// When they are tried again.
    pub retry: Option<RouteRetry>,
    /// Whether clients stay with an endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// A rule of a GRPCRoute.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// Name.
    pub name: Str,
    /// Alternatives.
    pub matches: Vec<GrpcMatch>,
    /// What is done.
    pub filters: Vec<RouteFilter>,
    /// Where calls go.
    pub backend_refs: Vec<BackendRef>,
    /// Whether clients stay with an endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// A rule of a TLSRoute or TCPRoute.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRule {
    /// Name.
    pub name: Str,
    /// Where connections go.
    pub backend_refs: Vec<BackendRef>,
}

/// Conditions on a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// On the path.
    pub path: Option<PathMatch>,
    /// On headers.
    pub headers: Vec<KeyMatch>,
    /// On parameters of the query.
    pub query_params: Vec<KeyMatch>,
    /// On the method.
    pub method: Str,
}

/// A condition on the path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathMatch {
    /// `PathPrefix` if empty, `Exact`, `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// The path; absent is `/`.
    pub value: Option<Str>,
}

/// A condition on a header or parameter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyMatch {
    /// `Exact` if empty, `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Name.
    pub name: Str,
    /// Value.
    pub value: Str,
}

/// Conditions on a call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    /// On service and method.
    pub method: Option<GrpcMethod>,
    /// On headers.
    pub headers: Vec<KeyMatch>,
}

/// A condition on service and method.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMethod {
    /// `Exact` if empty, `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Service.
    pub service: Str,
    /// Method.
    pub method: Str,
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    /// Group; that of Kubernetes itself if empty.
    pub group: Str,
    /// `Service` if empty.
    pub kind: Str,
    /// Namespace; empty is the route's.
    pub namespace: Str,
    /// Name.
    pub name: Str,
    /// Port.
    pub port: Option<u16>,
    /// Share; absent is 1.
    pub weight: Option<u32>,
    /// What is done to requests that go there.
    pub filters: Vec<RouteFilter>,
}

/// Something done to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteFilter {
    /// Which of the others is set.
    #[serde(rename = "type")]
    pub kind: Str,
    /// Changes of headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes of headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy.
    pub request_mirror: Option<RequestMirror>,
    /// Another place.
    pub request_redirect: Option<RequestRedirect>,
    /// A new host or path.
    pub url_rewrite: Option<UrlRewrite>,
    /// Which pages of other origins may ask.
    pub cors: Option<CorsFilter>,
    /// Somebody else who decides.
    pub external_auth: Option<ExternalAuth>,
}

/// Changes of headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Replaced.
    pub set: Vec<HeaderValue>,
    /// Added.
    pub add: Vec<HeaderValue>,
    /// Removed.
    pub remove: Vec<Str>,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderValue {
    /// Name.
    pub name: Str,
    /// Value.
    pub value: Str,
}

/// A copy of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Where to.
    pub backend_ref: BackendRef,
    /// Share, in percent.
    pub percent: Option<u32>,
    /// Share, as a fraction.
    pub fraction: Option<Fraction>,
}

/// A fraction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fraction {
    /// This many …
    pub numerator: u32,
    /// … of this many; absent is a hundred.
    pub denominator: Option<u32>,
}

/// Another place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// Scheme.
    pub scheme: Option<Str>,
    /// Host.
    pub hostname: Option<Str>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<u16>,
    /// Status.
    pub status_code: Option<u16>,
}

/// A new host or path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// Host.
    pub hostname: Option<Str>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A new path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// The whole path.
    pub replace_full_path: Option<Str>,
    /// In the place of the prefix.
    pub replace_prefix_match: Option<Str>,
}

/// Which pages of other origins may ask.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsFilter {
    /// Origins.
    pub allow_origins: Vec<Str>,
    /// Whether cookies may be sent along.
    pub allow_credentials: bool,
    /// Methods.
    pub allow_methods: Vec<Str>,
    /// Headers of requests.
    pub allow_headers: Vec<Str>,
    /// Headers of responses.
    pub expose_headers: Vec<Str>,
    /// How many seconds an answer may be remembered.
    pub max_age: Option<u32>,
}

/// Somebody else who decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAuth {
    /// `HTTP` or `GRPC`.
    pub protocol: Str,
    /// Who.
    pub backend_ref: BackendRef,
    /// For gRPC.
    pub grpc: GrpcAuth,
    /// For HTTP.
    pub http: HttpAuth,
    /// What of the body is sent along.
    pub forward_body: Option<ForwardBody>,
}

/// How somebody is asked over gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcAuth {
    /// Headers that are sent along.
    pub allowed_headers: Vec<Str>,
}

/// How somebody is asked over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpAuth {
    /// What the path is appended to.
    pub path: Str,
    /// Headers that are sent along.
    pub allowed_headers: Vec<Str>,
    /// Headers of the answer that go on.
    pub allowed_response_headers: Vec<Str>,
}

/// What of the body is sent along.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardBody {
    /// Bytes.
    pub max_size: u32,
}

/// How long a request may take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteTimeouts {
    /// As a whole.
    pub request: Option<Span>,
    /// Each try.
    pub backend_request: Option<Span>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRetry {
    /// Statuses.
    pub codes: Vec<u16>,
    /// Tries after the first.
    pub attempts: Option<u32>,
    /// The least wait.
    pub backoff: Option<Span>,
}

/// Whether clients stay with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    /// Name of the cookie or header.
    pub session_name: Str,
    /// Longest life.
    pub absolute_timeout: Option<Span>,
    /// Longest pause.
    pub idle_timeout: Option<Span>,
    /// `Cookie` if empty, or `Header`.
    #[serde(rename = "type")]
    pub kind: Str,
    /// About the cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// About a cookie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// `Session` if empty, or `Permanent`.
    pub lifetime_type: Str,
}
