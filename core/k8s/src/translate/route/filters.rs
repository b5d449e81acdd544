//! What is done to requests on their way.

use std::time::Duration;

use tulle_model::Str;
use tulle_model::filter::{
    ASKED_BODY_BYTES_MAX, Ask, Cors, ExtAuthz, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect,
    Rewrite,
};
use tulle_model::request::reserved::is_untouchable;

use super::super::lookup::Lookup;
use super::backends::{Invalid, Referred, resolve};
use crate::api::route::{
    ExternalAuth, HeaderModifier, HeaderValue, PathModifier, RequestMirror, RouteFilter,
};

/// Reads filters; what cannot be carried out is named.
pub(super) fn filters(
    of: &[RouteFilter],
    by: Referred<'_>,
    around: &impl Lookup,
    unresolved: &mut Vec<Invalid>,
) -> (Vec<Filter>, Option<String>) {
    let mut error = None;
    let mut read = Vec::new();
    for filter in of {
        match one(filter, by, around, unresolved) {
            Ok(filter) => read.push(filter),
            Err(cause) => {
                read.push(Filter::Unsupported(cause.as_str().into()));
                error.get_or_insert(cause);
            }
        }
    }
    (read, error)
}

fn one(
    filter: &RouteFilter,
    by: Referred<'_>,
    around: &impl Lookup,
    unresolved: &mut Vec<Invalid>,
) -> Result<Filter, String> {
    let kind: String = filter.kind.chars().filter(|c| !c.is_control()).take(64).collect();
    let nothing = || format!("the filter {kind} is not supported");
    Ok(match &*filter.kind {
        "RequestHeaderModifier" => Filter::RequestHeaders(headers(
            filter.request_header_modifier.as_ref().ok_or_else(nothing)?,
        )?),
        "ResponseHeaderModifier" => Filter::ResponseHeaders(headers(
            filter.response_header_modifier.as_ref().ok_or_else(nothing)?,
        )?),
        "RequestMirror" => Filter::Mirror(mirror(
            filter.request_mirror.as_ref().ok_or_else(nothing)?,
            by,
            around,
            unresolved,
        )),
        "RequestRedirect" => {
            let redirect = filter.request_redirect.as_ref().ok_or_else(nothing)?;
            Filter::Redirect(Redirect {
                scheme: redirect.scheme.clone(),
                host: redirect.hostname.clone(),
                port: redirect.port,
                path: redirect.path.as_ref().map(path).transpose()?,
                status: redirect.status_code,
            })
        }
        "URLRewrite" => {
            let rewrite = filter.url_rewrite.as_ref().ok_or_else(nothing)?;
            Filter::Rewrite(Rewrite {
                host: rewrite.hostname.clone(),
                path: rewrite.path.as_ref().map(path).transpose()?,
            })
        }
        "CORS" => {
            let cors = filter.cors.as_ref().ok_or_else(nothing)?;
            Filter::Cors(Cors {
                origins: cors.allow_origins.clone(),
                methods: cors.allow_methods.clone(),
                headers: cors.allow_headers.clone(),
                expose: cors.expose_headers.clone(),
                credentials: cors.allow_credentials,
                max_age: cors.max_age.map(|seconds| Duration::from_secs(seconds.into())),
            })
        }
        "ExternalAuth" => {
            let auth = filter.external_auth.as_ref().ok_or_else(nothing)?;
            Filter::ExtAuthz(external_auth(auth, by, around, unresolved)?)
        }
        _ => return Err(nothing()),
    })
}

/// Whether no rule may touch a header. Waypoints say the same.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    is_untouchable(&name.to_ascii_lowercase())
}

fn headers(of: &HeaderModifier) -> Result<HeaderMod, String> {
    let names = of
        .set
        .iter()
        .chain(&of.add)
        .map(|header| &header.name)
        .chain(&of.remove);
    for name in names {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
        if is_reserved(name) {
            return Err(format!("the header {shown} may not be changed"));
        }
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("`{shown}` is no name of a header"));
        }
    }
    let values = of.set.iter().chain(&of.add);
    if values
        .clone()
        .any(|header| header.value.chars().any(char::is_control))
    {
        return Err("the value of a header has a control character".to_owned());
    }
    let header = |header: &HeaderValue| Header {
        name: header.name.to_ascii_lowercase().into(),
        value: header.value.clone(),
    };
    Ok(HeaderMod {
        set: of.set.iter().map(header).collect(),
        add: of.add.iter().map(header).collect(),
        remove: of
            .remove
            .iter()
            .map(|name| name.to_ascii_lowercase().into())
            .collect(),
    })
}

fn path(of: &PathModifier) -> Result<PathRewrite, String> {
    match (&*of.kind, &of.replace_full_path, &of.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), _) => Ok(PathRewrite::Full(path.clone())),
        ("ReplacePrefixMatch", _, Some(prefix)) => Ok(PathRewrite::Prefix(prefix.clone())),
        _ => Err("a new path is of type ReplaceFullPath or ReplacePrefixMatch, with its value".to_owned()),
    }
}

fn mirror(
    of: &RequestMirror,
    by: Referred<'_>,
    around: &impl Lookup,
    unresolved: &mut Vec<Invalid>,
) -> Mirror {
    let (backend, invalid) = resolve(&of.backend_ref, by, around);
    unresolved.extend(invalid);
    let (numerator, denominator) = match (&of.fraction, of.percent) {
        (Some(share), _) => (share.numerator, share.denominator.unwrap_or(100).max(1)),
        (None, percent) => (percent.unwrap_or(100), 100),
    };
    Mirror {
        backend,
        numerator,
        denominator,
    }
}

/// An `ExternalAuth` filter. Who is not there, or may not be referred to, cannot be asked: then nobody passes.
fn external_auth(
    of: &ExternalAuth,
    by: Referred<'_>,
    around: &impl Lookup,
    unresolved: &mut Vec<Invalid>,
) -> Result<ExtAuthz, String> {
    let by = Referred {
        needs_grant: true,
        ..by
    };
    let body_bytes_max = of.forward_body.as_ref().map_or(0, |body| body.max_size);
    if body_bytes_max > ASKED_BODY_BYTES_MAX {
        return Err(format!(
            "externalAuth.forwardBody.maxSize is {body_bytes_max}, and at most {ASKED_BODY_BYTES_MAX} bytes of a body are \
             sent along"
        ));
    }
    let (backend, invalid) = resolve(&of.backend_ref, by, around);
    unresolved.extend(invalid);
    let (ask, headers, response_headers): (Ask, Vec<Str>, Vec<Str>) = match &*of.protocol {
        "GRPC" => (Ask::Grpc(backend), of.grpc.allowed_headers.clone(), Vec::new()),
        "HTTP" => {
            let path = of.http.path.clone();
            (
                Ask::Http { backend, path },
                of.http.allowed_headers.clone(),
                of.http.allowed_response_headers.clone(),
            )
        }
        _ => return Err("the protocol of externalAuth is GRPC or HTTP".to_owned()),
    };
    Ok(ExtAuthz {
        ask,
        headers,
        response_headers,
        body_bytes_max,
        allow_partial: false,
        timeout: None,
        fail_open: false,
        status_on_error: None,
    })
}
