//! Answers with another place.

use http::{HeaderValue, StatusCode};
use tulle_model::Str;
use tulle_model::filter::Redirect as Wanted;
use tulle_model::request::{RequestHead, host};

use super::rewrite::{NewPath, RewriteError};

/// Why a redirect cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// Host or path is none.
    #[error(transparent)]
    Target(#[from] RewriteError),
    /// The scheme is neither `http` nor `https`.
    #[error("`{0}` is no scheme of a redirect; `http` and `https` are")]
    Scheme(Str),
    /// The status is no redirect.
    #[error("{0} is no status of a redirect; 301, 302, 303, 307 and 308 are")]
    Status(u16),
}

/// Another place, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<&'static str>,
    host: Option<Str>,
    port: Option<u16>,
    path: Option<NewPath>,
    status: StatusCode,
}

impl Redirect {
    /// Reads a redirect.
    ///
    /// # Errors
    /// If a part of it is none.
    pub fn compile(of: &Wanted) -> Result<Self, RedirectError> {
        let scheme = |scheme: &Str| match &*scheme.to_ascii_lowercase() {
            "http" => Ok("http"),
            "https" => Ok("https"),
            _ => Err(RedirectError::Scheme(scheme.clone())),
        };
        let host = |host: &Str| host::parse(host.as_bytes()).map_err(|_| RewriteError::Host(host.clone()));
        let status = of.status.unwrap_or(302);
        Ok(Self {
            scheme: of.scheme.as_ref().map(scheme).transpose()?,
            host: of.host.as_ref().map(host).transpose()?,
            port: of.port,
            path: of.path.as_ref().map(NewPath::compile).transpose()?,
            status: StatusCode::from_u16(status)
                .ok()
                .filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308))
                .ok_or(RedirectError::Status(status))?,
        })
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The `location` of the answer. `port` is that of the service that was asked. `None` if the query has a byte that
    /// no header field has.
    #[must_use]
    pub fn location(&self, head: &RequestHead, prefix: Option<usize>, port: u16) -> Option<HeaderValue> {
        let scheme = self.scheme.unwrap_or_else(|| head.scheme.as_str());
        let known = if scheme == "https" { 443 } else { 80 };
        // Without a port of its own: the one that a given scheme stands for, else the one the request came to.
        let port = self
            .port
            .unwrap_or_else(|| if self.scheme.is_some() { known } else { port });
        let host = self.host.as_deref().unwrap_or_else(|| head.host());
        let path = match &self.path {
            Some(path) => path.of(&head.path, prefix).into(),
            None => head.path.clone(),
        };
        let mut location = format!("{scheme}://{host}");
        if port != known {
            location.push_str(&format!(":{port}"));
        }
        location.push_str(&path);
        if let Some(query) = &head.query {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::from_str(&location).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::filter::PathRewrite;
    use tulle_model::testing::get;

    /// Where a `GET` of `web.default.svc.cluster.local`, port 8080, with the prefix `/a` is sent.
    fn location(of: Wanted) -> String {
        let redirect = Redirect::compile(&of).unwrap();
        let location = redirect.location(&get("/a/b?c=d"), Some(2), 8080).unwrap();
        location.to_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_not_given_stays() {
        assert_eq!(
            location(Wanted::default()),
            "http://web.default.svc.cluster.local:8080/a/b?c=d"
        );
        let host = Wanted {
            host: Some("example.org".into()),
            ..Wanted::default()
        };
        assert_eq!(location(host), "http://example.org:8080/a/b?c=d");
    }

    #[test]
    fn a_given_scheme_brings_its_port_and_known_ports_are_left_out() {
        let of = |scheme: Option<&str>, port| Wanted {
            scheme: scheme.map(Into::into),
            host: Some("h".into()),
            port,
            ..Wanted::default()
        };
        assert_eq!(location(of(Some("https"), None)), "https://h/a/b?c=d");
        assert_eq!(location(of(Some("http"), None)), "http://h/a/b?c=d");
        assert_eq!(location(of(Some("https"), Some(443))), "https://h/a/b?c=d");
        assert_eq!(location(of(Some("https"), Some(80))), "https://h:80/a/b?c=d");
        assert_eq!(location(of(None, Some(80))), "http://h/a/b?c=d");
        assert_eq!(location(of(None, Some(8083))), "http://h:8083/a/b?c=d");
    }

    #[test]
    fn paths_are_replaced_whole_or_by_prefix() {
        let of = |path| Wanted {
            host: Some("h".into()),
            port: Some(80),
            path: Some(path),
            ..Wanted::default()
        };
        assert_eq!(location(of(PathRewrite::Full("/x".into()))), "http://h/x?c=d");
        assert_eq!(location(of(PathRewrite::Prefix("/x".into()))), "http://h/x/b?c=d");
        assert_eq!(location(of(PathRewrite::Prefix("/".into()))), "http://h/b?c=d");
    }

    #[test]
    fn the_status_is_302_unless_given() {
        assert_eq!(Redirect::compile(&Wanted::default()).unwrap().status(), 302);
        for status in [301, 302, 303, 307, 308] {
            let of = Wanted {
                status: Some(status),
                ..Wanted::default()
            };
            assert_eq!(Redirect::compile(&of).unwrap().status(), status);
        }
        let of = Wanted {
            status: Some(200),
            ..Wanted::default()
        };
        assert_eq!(Redirect::compile(&of), Err(RedirectError::Status(200)));
    }

    #[test]
    fn schemes_that_run_scripts_are_refused() {
        let of = Wanted {
            scheme: Some("javascript".into()),
            ..Wanted::default()
        };
        assert_eq!(
            Redirect::compile(&of),
            Err(RedirectError::Scheme("javascript".into()))
        );
    }
}
