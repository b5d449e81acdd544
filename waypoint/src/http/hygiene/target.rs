//! Where a request goes: one authority and one path, whatever forms they came in.

use http::Method;
use http::header::HOST;
use http::request::Parts;
use tulle_model::Str;
use tulle_model::reason::Reason;
use tulle_model::request::path::normalize;
use tulle_model::request::{Protocol, host};
use tulle_model::waypoint::PathNormalization;

/// The authority: that of the target, or of `:authority`, else the `host` field. `default` stands in for HTTP/1.0.
pub(super) fn authority(parts: &Parts, protocol: Protocol, default: &str) -> Result<Str, Reason> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Reason::BadHost);
    }
    // RFC 9112, 3.2: a request of HTTP/1.1 without a host is answered with 400, whatever form its target has.
    if host.is_none() && protocol == Protocol::Http11 {
        return Err(Reason::BadHost);
    }
    let parse = |text: &[u8]| host::parse(text).map_err(|_| Reason::BadHost);
    // A wrong host is refused even where the target wins, so that nobody behind us is tempted by it.
    let host = host.map(|value| parse(value.as_bytes())).transpose()?;
    match parts.uri.authority() {
        Some(authority) => parse(authority.as_str().as_bytes()),
        None => host.map_or_else(|| parse(default.as_bytes()), Ok),
    }
}

/// The canonical path, and the query as it came.
pub(super) fn path(parts: &Parts, how: PathNormalization) -> Result<(Str, Option<Str>), Reason> {
    let uri = &parts.uri;
    // The form of CONNECT, which is not carried: `GET a` names a host, not a path.
    if uri.authority().is_some() && uri.scheme().is_none() {
        return Err(Reason::BadPath);
    }
    if let Some(scheme) = uri.scheme_str()
        && !matches!(scheme, "http" | "https")
    {
        return Err(Reason::BadPath);
    }
    let query = uri.query().map(Str::from);
    let path = match uri.path() {
        "*" if parts.method == Method::OPTIONS && query.is_none() => return Ok(("*".into(), None)),
        // An absolute target may leave its path out.
        "" if uri.authority().is_some() => "/",
        path => path,
    };
    let path = normalize(path, how).map_err(|_| Reason::BadPath)?;
    Ok((path.into(), query))
}
