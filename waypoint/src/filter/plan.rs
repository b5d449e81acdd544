//! The filters of a rule or backend in the one order in which they act, whatever order they are written in.

use tulle_model::Str;
use tulle_model::filter::{ExtAuthz, Filter};
use tulle_model::route::Backend;

use super::cors::{Cors, CorsError};
use super::headers::{Headers, HeadersError};
use super::mirror::Share;
use super::redirect::{Redirect, RedirectError};
use super::rewrite::{Rewrite, RewriteError};

/// Filters, ready to act.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    /// Stage 5: who may ask from a page of another origin.
    pub cors: Option<Cors>,
    /// Stage 8: who else decides.
    pub ext_authz: Option<Box<ExtAuthz>>,
    /// Stage 12: what changes in the request …
    pub request_headers: Vec<Headers>,
    /// … then where it goes …
    pub rewrite: Option<Rewrite>,
    /// … or that it goes nowhere.
    pub redirect: Option<Redirect>,
    /// Stage 14: who else gets it.
    pub mirrors: Vec<Mirror>,
    /// Stage 16: what changes in the answer.
    pub response_headers: Vec<Headers>,
}

/// Who else gets a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub backend: Backend,
    /// How often.
    pub share: Share,
}

/// Why filters cannot act: the rule answers with 500.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A change of headers.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// A rewrite.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// A redirect.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// CORS.
    #[error(transparent)]
    Cors(#[from] CorsError),
    /// A filter that is not supported.
    #[error("{0}")]
    Unsupported(Str),
    /// Both would say where the request goes.
    #[error("a rule has both a rewrite and a redirect")]
    RewriteAndRedirect,
}

impl Filters {
    /// Reads filters.
    ///
    /// # Errors
    /// If one of them cannot act.
    pub fn compile(of: &[Filter]) -> Result<Self, FilterError> {
        let mut filters = Self::default();
        for filter in of {
            match filter {
                Filter::RequestHeaders(of) => filters.request_headers.push(Headers::compile(of)?),
                Filter::ResponseHeaders(of) => filters.response_headers.push(Headers::compile(of)?),
                Filter::Rewrite(of) => filters.rewrite = Some(Rewrite::compile(of)?),
                Filter::Redirect(of) => filters.redirect = Some(Redirect::compile(of)?),
                Filter::Cors(of) => filters.cors = Some(Cors::compile(of)?),
                Filter::ExtAuthz(of) => filters.ext_authz = Some(Box::new(of.clone())),
                Filter::Mirror(of) => filters.mirrors.push(Mirror {
                    backend: of.backend.clone(),
                    share: Share::of(of),
                }),
                Filter::Unsupported(cause) => return Err(FilterError::Unsupported(cause.clone())),
            }
        }
        if filters.rewrite.is_some() && filters.redirect.is_some() {
            return Err(FilterError::RewriteAndRedirect);
        }
        Ok(filters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::filter::{Redirect as WantedRedirect, Rewrite as WantedRewrite};

    #[test]
    fn a_filter_that_cannot_act_fails_the_rule() {
        let unsupported = Filter::Unsupported("no such filter".into());
        assert_eq!(
            Filters::compile(&[unsupported]),
            Err(FilterError::Unsupported("no such filter".into()))
        );
        let both = [
            Filter::Rewrite(WantedRewrite::default()),
            Filter::Redirect(WantedRedirect::default()),
        ];
        assert_eq!(Filters::compile(&both), Err(FilterError::RewriteAndRedirect));
    }
}
