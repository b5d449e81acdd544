//! What a request asks for, as lines show it: without the tokens that stand in it.

use std::borrow::Cow;
use std::sync::Arc;

use tulle_model::Str;
use tulle_model::route::query;

/// Where tokens stand although no policy says so (RFC 6750, section 2.3).
const USUAL: &str = "access_token";
/// What stands in the place of a value.
const BLANK: &str = "redacted";

/// The parameters that policies read tokens from.
pub type Params = Arc<[Str]>;

/// Parameters whose values are shown to nobody.
#[derive(Debug, Default)]
pub enum Secrets {
    /// Every one: it is not known what policies read.
    #[default]
    All,
    /// The usual one, and these.
    Of(Vec<Params>),
}

impl Secrets {
    /// Those of one place more.
    pub fn add(&mut self, params: &Params) {
        if let Self::Of(known) = self
            && !params.is_empty()
        {
            known.push(Arc::clone(params));
        }
    }

    /// A target without the values of these parameters, whichever way their names are written.
    #[must_use]
    pub fn blank<'t>(&self, target: &'t str) -> Cow<'t, str> {
        let Some((path, parameters)) = target.split_once('?') else {
            return Cow::Borrowed(target);
        };
        // Nobody here takes `;` for a separator, but an application may.
        let parts = || parameters.split_inclusive(['&', ';']);
        if !parts().any(|part| self.is_among(part)) {
            return Cow::Borrowed(target);
        }
        let mut shown = String::with_capacity(target.len());
        shown.push_str(path);
        shown.push('?');
        for part in parts() {
            let bare = part.trim_end_matches(['&', ';']);
            match bare.split_once('=').filter(|_| self.is_among(part)) {
                Some((name, _)) => {
                    shown.extend([name, "=", BLANK, &part[bare.len()..]]);
                }
                None => shown.push_str(part),
            }
        }
        Cow::Owned(shown)
    }

    fn is_among(&self, part: &str) -> bool {
        let name = part.split_once('=').map(|(name, _)| name);
        match self {
            Self::All => name.is_some(),
            Self::Of(known) => {
                let is = |one: &str| query::first(name, one).is_some();
                name.is_some() && (is(USUAL) || known.iter().flat_map(|params| &**params).any(|one| is(one)))
            }
        }
    }
}

/// An authority without who its asker says to be.
#[must_use]
pub fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_tokens_are_blanked_and_nothing_else_is_changed() {
        let known = Secrets::Of(vec![["key".into(), "t p".into()].into(), ["b".into()].into()]);
        let usual = Secrets::Of(vec![]);
        for (secrets, target, shown) in [
            (&usual, "/a", "/a"),
            (&usual, "/a?", "/a?"),
            (&usual, "/a?key=S&&x", "/a?key=S&&x"),
            (&usual, "/a?access_token=S", "/a?access_token=redacted"),
            (
                &usual,
                "/a?x=1&access_token=S&y=%41",
                "/a?x=1&access_token=redacted&y=%41",
            ),
            (
                &usual,
                "/a?access_token=S&access_token=T",
                "/a?access_token=redacted&access_token=redacted",
            ),
            (&usual, "/a?%61ccess%5Ftoken=S", "/a?%61ccess%5Ftoken=redacted"),
            (&usual, "/a?access_token=S=T", "/a?access_token=redacted"),
            (
                &usual,
                "/a?x=1;access_token=S;y=2",
                "/a?x=1;access_token=redacted;y=2",
            ),
            (&usual, "/a?access_token=", "/a?access_token=redacted"),
            (&usual, "/a?access_token&x", "/a?access_token&x"),
            (&usual, "/a?my_access_token=x", "/a?my_access_token=x"),
            (&usual, "/a?q=?access_token=x", "/a?q=?access_token=x"),
            (
                &known,
                "/a?key=S&access_token=T&b=U&c=V",
                "/a?key=redacted&access_token=redacted&b=redacted&c=V",
            ),
            (&known, "/a?t%20p=S", "/a?t%20p=redacted"),
            (&Secrets::All, "/a?x=1&y&z=2", "/a?x=redacted&y&z=redacted"),
        ] {
            assert_eq!(secrets.blank(target), shown, "{target}");
        }
    }

    #[test]
    fn an_authority_names_no_user() {
        for (authority, shown) in [
            ("web.shop:80", "web.shop:80"),
            ("user:secret@web.shop", "web.shop"),
            ("a@b@web.shop", "web.shop"),
        ] {
            assert_eq!(without_user(authority), shown);
        }
    }
}
