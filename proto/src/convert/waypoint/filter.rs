//! What is done to requests on their way.

use tulle_model::filter::{
    Ask, Cors, ExtAuthz, Filter, Header, HeaderMod, Mirror, PathRewrite, Redirect, Rewrite,
};

use super::super::{Flaw, each, required};
use super::{any_port, duration, names, route, status, texts, to_duration, unset};
use crate::waypoint as wire;
use crate::waypoint::{ext_authz, filter, redirect, rewrite};

pub(super) fn parse(message: wire::Filter) -> Result<Filter, Flaw> {
    Ok(match message.kind.ok_or_else(|| unset("kind"))? {
        filter::Kind::RequestHeaders(message) => Filter::RequestHeaders(headers("request_headers", message)?),
        filter::Kind::ResponseHeaders(message) => {
            Filter::ResponseHeaders(headers("response_headers", message)?)
        }
        filter::Kind::Rewrite(message) => Filter::Rewrite(Rewrite {
            host: message.host.map(Into::into),
            path: message.path.map(|path| match path {
                rewrite::Path::Full(text) => PathRewrite::Full(text.into()),
                rewrite::Path::Prefix(text) => PathRewrite::Prefix(text.into()),
            }),
        }),
        filter::Kind::Redirect(message) => Filter::Redirect(Redirect {
            scheme: message.scheme.map(Into::into),
            host: message.host.map(Into::into),
            port: any_port("redirect.port", message.port)?,
            path: message.path.map(|path| match path {
                redirect::Path::Full(text) => PathRewrite::Full(text.into()),
                redirect::Path::Prefix(text) => PathRewrite::Prefix(text.into()),
            }),
            status: status("redirect.status", message.status)?,
        }),
        filter::Kind::Mirror(message) => {
            Filter::Mirror(mirror(message).map_err(|flaw| flaw.within("mirror"))?)
        }
        filter::Kind::Cors(message) => Filter::Cors(Cors {
            origins: names(message.origins),
            methods: names(message.methods),
            headers: names(message.headers),
            expose: names(message.expose),
            credentials: message.credentials,
            max_age: duration("cors.max_age", message.max_age)?,
        }),
        filter::Kind::ExtAuthz(message) => {
            Filter::ExtAuthz(ext_authz(message).map_err(|flaw| flaw.within("ext_authz"))?)
        }
        filter::Kind::Unsupported(what) => Filter::Unsupported(what.into()),
    })
}

fn headers(field: &str, message: wire::HeaderMod) -> Result<HeaderMod, Flaw> {
    let header = |header: wire::Header| {
        Ok(Header {
            name: required("name", header.name)?,
            value: header.value.into(),
        })
    };
    let parsed = || {
        Ok(HeaderMod {
            set: each("set", message.set, header)?,
            add: each("add", message.add, header)?,
            remove: names(message.remove),
        })
    };
    parsed().map_err(|flaw: Flaw| flaw.within(field))
}

fn mirror(message: wire::Mirror) -> Result<Mirror, Flaw> {
    let backend = message.backend.ok_or_else(|| unset("backend"))?;
    if message.denominator == 0 {
        return Err(unset("denominator"));
    }
    Ok(Mirror {
        backend: route::backend(backend).map_err(|flaw| flaw.within("backend"))?,
        numerator: message.numerator,
        denominator: message.denominator,
    })
}

pub(super) fn ext_authz(message: wire::ExtAuthz) -> Result<ExtAuthz, Flaw> {
    let ask = match message.ask.ok_or_else(|| unset("ask"))? {
        ext_authz::Ask::Provider(name) => Ask::Provider(required("provider", name)?),
        ext_authz::Ask::Grpc(backend) => {
            Ask::Grpc(route::backend(backend).map_err(|flaw| flaw.within("grpc"))?)
        }
        ext_authz::Ask::Http(http) => Ask::Http {
            backend: route::backend(http.backend.ok_or_else(|| unset("http.backend"))?)
                .map_err(|flaw| flaw.within("http.backend"))?,
            path: http.path.into(),
        },
    };
    Ok(ExtAuthz {
        ask,
        headers: names(message.headers),
        response_headers: names(message.response_headers),
        body_bytes_max: message.body_bytes_max,
        allow_partial: message.allow_partial,
        timeout: duration("timeout", message.timeout)?,
        fail_open: message.fail_open,
        status_on_error: status("status_on_error", message.status_on_error)?,
    })
}

impl From<&Filter> for wire::Filter {
    fn from(filter: &Filter) -> Self {
        let kind = match filter {
            Filter::RequestHeaders(headers) => filter::Kind::RequestHeaders(headers.into()),
            Filter::ResponseHeaders(headers) => filter::Kind::ResponseHeaders(headers.into()),
            Filter::Rewrite(rewrite) => filter::Kind::Rewrite(rewrite.into()),
            Filter::Redirect(redirect) => filter::Kind::Redirect(redirect.into()),
            Filter::Mirror(mirror) => filter::Kind::Mirror(wire::Mirror {
                backend: Some((&mirror.backend).into()),
                numerator: mirror.numerator,
                denominator: mirror.denominator,
            }),
            Filter::Cors(cors) => filter::Kind::Cors(wire::Cors {
                origins: texts(&cors.origins),
                methods: texts(&cors.methods),
                headers: texts(&cors.headers),
                expose: texts(&cors.expose),
                credentials: cors.credentials,
                max_age: cors.max_age.map(to_duration),
            }),
            Filter::ExtAuthz(ask) => filter::Kind::ExtAuthz(ask.into()),
            Filter::Unsupported(what) => filter::Kind::Unsupported(what.as_ref().into()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<&HeaderMod> for wire::HeaderMod {
    fn from(headers: &HeaderMod) -> Self {
        let header = |header: &Header| wire::Header {
            name: header.name.as_ref().into(),
            value: header.value.as_ref().into(),
        };
        Self {
            set: headers.set.iter().map(header).collect(),
            add: headers.add.iter().map(header).collect(),
            remove: texts(&headers.remove),
        }
    }
}

impl From<&Rewrite> for wire::Rewrite {
    fn from(rewrite: &Rewrite) -> Self {
        Self {
            host: rewrite.host.as_deref().map(Into::into),
            path: rewrite.path.as_ref().map(|path| match path {
                PathRewrite::Full(text) => rewrite::Path::Full(text.as_ref().into()),
                PathRewrite::Prefix(text) => rewrite::Path::Prefix(text.as_ref().into()),
            }),
        }
    }
}

impl From<&Redirect> for wire::Redirect {
    fn from(redirect: &Redirect) -> Self {
        Self {
            scheme: redirect.scheme.as_deref().map(Into::into),
            host: redirect.host.as_deref().map(Into::into),
            port: redirect.port.unwrap_or_default().into(),
            path: redirect.path.as_ref().map(|path| match path {
                PathRewrite::Full(text) => redirect::Path::Full(text.as_ref().into()),
                PathRewrite::Prefix(text) => redirect::Path::Prefix(text.as_ref().into()),
            }),
            status: redirect.status.unwrap_or_default().into(),
        }
    }
}

impl From<&ExtAuthz> for wire::ExtAuthz {
    fn from(of: &ExtAuthz) -> Self {
        let ask = match &of.ask {
            Ask::Provider(name) => ext_authz::Ask::Provider(name.as_ref().into()),
            Ask::Grpc(backend) => ext_authz::Ask::Grpc(backend.into()),
            Ask::Http { backend, path } => ext_authz::Ask::Http(wire::HttpAsk {
                backend: Some(backend.into()),
                path: path.as_ref().into(),
            }),
        };
        Self {
            ask: Some(ask),
            headers: texts(&of.headers),
            response_headers: texts(&of.response_headers),
            body_bytes_max: of.body_bytes_max,
            allow_partial: of.allow_partial,
            timeout: of.timeout.map(to_duration),
            fail_open: of.fail_open,
            status_on_error: of.status_on_error.unwrap_or_default().into(),
        }
    }
}
