//! Changes host and path of what goes upstream.

use tulle_model::Str;
use tulle_model::filter::{PathRewrite, Rewrite as Wanted};
use tulle_model::request::path::{PathError, normalize};
use tulle_model::request::{RequestHead, host};
use tulle_model::waypoint::PathNormalization;

/// Why a rewrite cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The new host is none.
    #[error("`{0}` is no host")]
    Host(Str),
    /// The new path is none.
    #[error("`{path}` is no path: {error}")]
    Path {
        /// The path.
        path: Str,
        /// Why.
        error: PathError,
    },
}

/// A new host or path, ready to be put in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    host: Option<Str>,
    path: Option<NewPath>,
}

/// A new path: canonical, and without a `/` at the end of what replaces a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewPath {
    /// The whole path.
    Full(Str),
    /// In the place of the prefix that matched.
    Prefix(Str),
}

impl NewPath {
    /// Reads a new path.
    ///
    /// # Errors
    /// If it is none.
    pub fn compile(of: &PathRewrite) -> Result<Self, RewriteError> {
        let canonical = |path: &Str| {
            // An empty path is the root.
            let text = if path.is_empty() { "/" } else { path };
            normalize(text, PathNormalization::Base)
                .map(Str::from)
                .map_err(|error| RewriteError::Path {
                    path: path.clone(),
                    error,
                })
        };
        Ok(match of {
            PathRewrite::Full(path) => Self::Full(canonical(path)?),
            PathRewrite::Prefix(path) => Self::Prefix(canonical(path)?.trim_end_matches('/').into()),
        })
    }

    /// The path after it. `prefix` is the length of the prefix that matched; the rule of a new prefix always has one.
    #[must_use]
    pub fn of(&self, path: &str, prefix: Option<usize>) -> Str {
        match self {
            Self::Full(full) => full.clone(),
            Self::Prefix(new) => {
                // What is left begins with `/`, or is nothing: prefixes end with their segment.
                let rest = prefix.and_then(|length| path.get(length..)).unwrap_or(path);
                if new.is_empty() {
                    format!("/{}", rest.trim_start_matches('/')).into()
                } else {
                    format!("{new}{rest}").into()
                }
            }
        }
    }
}

impl Rewrite {
    /// Reads a rewrite.
    ///
    /// # Errors
    /// If host or path is none.
    pub fn compile(of: &Wanted) -> Result<Self, RewriteError> {
        let host = |host: &Str| host::parse(host.as_bytes()).map_err(|_| RewriteError::Host(host.clone()));
        Ok(Self {
            host: of.host.as_ref().map(host).transpose()?,
            path: of.path.as_ref().map(NewPath::compile).transpose()?,
        })
    }

    /// Puts host and path in. The query stays.
    pub fn apply(&self, head: &mut RequestHead, prefix: Option<usize>) {
        if let Some(host) = &self.host {
            head.authority = host.clone().into();
        }
        if let Some(path) = &self.path {
            head.path = path.of(&head.path, prefix).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tulle_model::testing::get;

    fn prefix(path: &str, matched: &str, new: &str) -> String {
        let new = NewPath::compile(&PathRewrite::Prefix(new.into())).unwrap();
        let length = matched.trim_end_matches('/').len();
        new.of(path, Some(length)).to_string()
    }

    #[test]
    fn prefixes_are_replaced_by_segments() {
        for (path, matched, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
            ("/", "/", "/xyz", "/xyz/"),
        ] {
            assert_eq!(prefix(path, matched, new), expected, "{path} {matched} {new}");
        }
    }

    #[test]
    fn host_and_full_path_are_replaced_and_the_query_stays() {
        let rewrite = Rewrite::compile(&Wanted {
            host: Some("Other.shop".into()),
            path: Some(PathRewrite::Full("/one".into())),
        })
        .unwrap();
        let mut head = get("/a/b?c=d");
        rewrite.apply(&mut head, None);
        assert_eq!(
            (&*head.authority, &*head.path, head.query.as_deref()),
            ("other.shop", "/one", Some("c=d"))
        );
    }

    #[test]
    fn what_would_make_another_request_is_refused() {
        for path in ["/a?b", "/a b", "a", "/../a", "/a\r\nx: y"] {
            assert!(
                NewPath::compile(&PathRewrite::Full(path.into())).is_err(),
                "{path}"
            );
        }
        let host = Wanted {
            host: Some("a/b".into()),
            ..Wanted::default()
        };
        assert_eq!(Rewrite::compile(&host), Err(RewriteError::Host("a/b".into())));
    }

    proptest! {
        #[test]
        fn a_new_path_is_never_empty_and_never_gains_slashes(rest in "(/[ab]{1,2}){0,3}/?", new in "(/[xy]{0,2}){0,3}") {
            let path = format!("/foo{rest}");
            let Ok(compiled) = NewPath::compile(&PathRewrite::Prefix(new.as_str().into())) else { return Ok(()) };
            let made = compiled.of(&path, Some(4));
            prop_assert!(made.starts_with('/'));
            prop_assert!(!made.contains("//") || new.trim_end_matches('/').contains("//"), "{} {} {}", path, new, made);
        }
    }
}
