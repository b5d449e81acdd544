//! Where a request goes: one authority and one path, whatever forms they came in.

use std::borrow::Cow;

use http::Method;
use http::header::HOST;
use http::request::Parts;
use tulle_model::reason::Reason;
use tulle_model::request::path::normalize;
use tulle_model::request::{Protocol, Text, host};
use tulle_model::waypoint::PathNormalization;

/// The authority: that of the target, or of `:authority`, else the `host` field. `default` stands in for HTTP/1.0.
pub(super) fn authority(parts: &Parts, protocol: Protocol, default: &str) -> Result<Text, Reason> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Reason::BadHost);
    }
    // RFC 9112, 3.2: a request of HTTP/1.1 without a host is answered with 400, whatever form its target has.
    if host.is_none() && protocol == Protocol::Http11 {
        return Err(Reason::BadHost);
    }
    // A wrong host is refused even where the target wins, so that nobody behind us is tempted by it.
    let host = host
        .map(|value| canonical(value.as_bytes(), || Text::field(value)))
        .transpose()?;
    match parts.uri.authority() {
        Some(authority) => canonical(authority.as_str().as_bytes(), || Some(Text::authority(authority))),
        None => host.map_or_else(|| canonical(default.as_bytes(), || None), Ok),
    }
}

/// The canonical form of an authority; `same` is what it came in, which is kept where nothing changes.
fn canonical(text: &[u8], same: impl FnOnce() -> Option<Text>) -> Result<Text, Reason> {
    let text = host::canonical(text).map_err(|_| Reason::BadHost)?;
    let kept = matches!(text, Cow::Borrowed(_)).then(same).flatten();
    Ok(kept.unwrap_or_else(|| text.into()))
}

/// The canonical path, and the query as it came.
pub(super) fn path(parts: &Parts, how: PathNormalization) -> Result<(Text, Option<Text>), Reason> {
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
    let target = uri.path_and_query();
    let query = target.and_then(Text::query_of);
    let path = match uri.path() {
        "*" if parts.method == Method::OPTIONS && query.is_none() => return Ok(("*".into(), None)),
        // An absolute target may leave its path out.
        "" if uri.authority().is_some() => "/",
        path => path,
    };
    let path = normalize(path, how).map_err(|_| Reason::BadPath)?;
    let as_it_came = target.filter(|target| target.path() == path).map(Text::path_of);
    Ok((as_it_came.unwrap_or_else(|| path.into()), query))
}
