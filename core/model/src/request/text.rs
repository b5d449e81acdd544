//! A part of where a request goes, shared with what the client sent where nothing of it was changed, else a text of our
//! own. To keep one, or to send it on as it came, costs no allocation.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};

use crate::name::Str;

/// An authority, a path or a query. Clones share it.
#[derive(Clone)]
pub struct Text(Kept);

#[derive(Clone)]
enum Kept {
    Own(Str),
    /// The path of a target.
    Path(PathAndQuery),
    /// The query of a target that has one.
    Query(PathAndQuery),
    Authority(Authority),
    /// A field that is visible ASCII.
    Field(HeaderValue),
}

impl Text {
    /// The path of a target, as it came.
    #[must_use]
    pub fn path_of(target: &PathAndQuery) -> Self {
        Self(Kept::Path(target.clone()))
    }

    /// The query of a target, as it came; `None` without one.
    #[must_use]
    pub fn query_of(target: &PathAndQuery) -> Option<Self> {
        target.query().map(|_| Self(Kept::Query(target.clone())))
    }

    /// An authority, as it came.
    #[must_use]
    pub fn authority(of: &Authority) -> Self {
        Self(Kept::Authority(of.clone()))
    }

    /// The value of a field, as it came; `None` if it is no text.
    #[must_use]
    pub fn field(of: &HeaderValue) -> Option<Self> {
        of.to_str().is_ok().then(|| Self(Kept::Field(of.clone())))
    }

    /// The target that a path and a query came in, if it says just these.
    #[must_use]
    pub fn target<'a>(path: &'a Self, query: Option<&Self>) -> Option<&'a PathAndQuery> {
        let Kept::Path(target) = &path.0 else { return None };
        // An absolute target may leave its path out, which says `/` and is not written so.
        let is_written = target.as_str().starts_with(target.path());
        (is_written && target.query() == query.map(|query| &**query)).then_some(target)
    }

    /// The authority it came in, if it did.
    #[must_use]
    pub fn as_authority(&self) -> Option<&Authority> {
        match &self.0 {
            Kept::Authority(authority) => Some(authority),
            _ => None,
        }
    }

    /// The field it came in, if it did.
    #[must_use]
    pub fn as_field(&self) -> Option<&HeaderValue> {
        match &self.0 {
            Kept::Field(value) => Some(value),
            _ => None,
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Kept::Own(text) => text,
            Kept::Path(target) => target.path(),
            Kept::Query(target) => target.query().unwrap_or_default(),
            Kept::Authority(authority) => authority.as_str(),
            Kept::Field(value) => value.to_str().expect("it was text when it was made"),
        }
    }
}

impl From<Str> for Text {
    fn from(text: Str) -> Self {
        Self(Kept::Own(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Kept::Own(text.into()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Kept::Own(text.into()))
    }
}

impl From<Cow<'_, str>> for Text {
    fn from(text: Cow<'_, str>) -> Self {
        Self(Kept::Own(text.into()))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(target: &str) -> (PathAndQuery, Text, Option<Text>) {
        let target: PathAndQuery = target.parse().unwrap();
        let (path, query) = (Text::path_of(&target), Text::query_of(&target));
        (target, path, query)
    }

    #[test]
    fn what_came_in_one_target_goes_on_in_it() {
        for text in ["/a/b?c=d", "/a", "/?", "*"] {
            let (target, path, query) = came(text);
            assert_eq!(&*path, target.path());
            assert_eq!(query.as_deref(), target.query());
            assert_eq!(Text::target(&path, query.as_ref()), Some(&target));
        }
    }

    #[test]
    fn a_target_is_not_taken_for_another_that_shares_a_part() {
        let (_, path, query) = came("/a?b");
        assert_eq!(Text::target(&path, None), None);
        assert_eq!(Text::target(&path, Some(&"c".into())), None);
        assert_eq!(Text::target(&"/a".into(), query.as_ref()), None);
        assert_eq!(Text::query_of(&"/a".parse().unwrap()), None);
        let bare: http::Uri = "http://web.shop?b".parse().unwrap();
        let bare = bare.path_and_query().unwrap();
        assert_eq!(&*Text::path_of(bare), "/");
        assert_eq!(
            Text::target(&Text::path_of(bare), Text::query_of(bare).as_ref()),
            None
        );
    }

    #[test]
    fn texts_are_told_apart_by_what_they_say() {
        let authority: Authority = "web.shop:80".parse().unwrap();
        let field = Text::field(&HeaderValue::from_static("web.shop:80")).unwrap();
        assert_eq!(Text::authority(&authority), field);
        assert_eq!(field, Text::from("web.shop:80"));
        assert_ne!(field, Text::from("web.shop"));
        assert_eq!(format!("{field} {field:?}"), "web.shop:80 \"web.shop:80\"");
        assert_eq!(Text::field(&HeaderValue::from_bytes(b"\xff").unwrap()), None);
    }
}
