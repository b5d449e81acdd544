//! What requests are told apart by.

use std::borrow::Cow;
use std::fmt::Write;

use http::HeaderMap;
use http::header::COOKIE;
use smallvec::SmallVec;
use tulle_model::policy::traffic::Key;
use tulle_model::request::{RequestHead, Source};
use tulle_model::route::query;

/// What keys are read from.
#[derive(Debug, Clone, Copy)]
pub struct Keyed<'a> {
    /// Who asks.
    pub source: &'a Source,
    /// The request.
    pub head: &'a RequestHead,
    /// Name of the route that was chosen.
    pub route: Option<&'a str>,
}

impl<'a> Keyed<'a> {
    /// The value of a key; `None` if the request has none.
    #[must_use]
    pub fn value(&self, key: &'a Key) -> Option<Cow<'a, [u8]>> {
        let identity = self.source.identity.as_ref();
        let text = |text: &'a str| Cow::Borrowed(text.as_bytes());
        match key {
            Key::SourceIdentity => identity.map(|id| Cow::Owned(id.to_string().into_bytes())),
            Key::SourceNamespace => identity.map(|id| text(&id.namespace)),
            Key::SourceIp => Some(Cow::Owned(self.source.ip.to_string().into_bytes())),
            Key::Header(name) => joined(&self.head.headers, name),
            Key::Route => self.route.map(text),
            Key::Query(name) => query::first(self.head.query.as_deref(), name),
            Key::Cookie(key) => cookie(&self.head.headers, &key.name),
            Key::Method => Some(text(self.head.method.as_str())),
            Key::Constant(value) => Some(text(value)),
        }
    }

    /// Gives the value of a key to `take` piece by piece, so that nothing is allocated for the usual ones. Says
    /// whether there is one.
    pub fn feed(&self, key: &Key, take: &mut impl FnMut(&[u8])) -> bool {
        match (key, &self.source.identity) {
            (Key::SourceIdentity, Some(id)) => {
                for part in [&id.trust_domain, &id.namespace, &id.service_account] {
                    take(part.as_bytes());
                    take(b"/");
                }
                true
            }
            (Key::SourceIp, _) => {
                let mut text = Text::default();
                // Writing into a buffer of our own cannot fail.
                let _ = write!(text, "{}", self.source.ip);
                take(&text.0);
                true
            }
            _ => match self.value(key) {
                Some(value) => {
                    take(&value);
                    true
                }
                None => false,
            },
        }
    }
}

/// An address as text, without an allocation.
#[derive(Default)]
struct Text(SmallVec<[u8; 48]>);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// All values of a header; only several need an allocation.
fn joined<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
    let first = values.next()?;
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let joined = joined.to_mut();
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(value);
    }
    Some(joined)
}

/// The first cookie of this name.
#[must_use]
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    let fields = headers.get_all(COOKIE).iter().map(http::HeaderValue::as_bytes);
    let pairs = fields.flat_map(|field| field.split(|byte| *byte == b';'));
    pairs
        .filter_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
        })
        .find(|(known, _)| *known == name.as_bytes())
        .map(|(_, value)| Cow::Borrowed(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::Identity;
    use tulle_model::policy::traffic::CookieKey;
    use tulle_model::testing::get;

    fn source() -> Source {
        Source {
            identity: Some(Identity::new("td", "shop", "web")),
            ip: "10.0.0.7".parse().unwrap(),
            remote_ip: "10.0.0.7".parse().unwrap(),
        }
    }

    #[track_caller]
    fn check(head: &RequestHead, key: &Key, expect: Option<&str>) {
        let source = source();
        let keyed = Keyed {
            source: &source,
            head,
            route: Some("HTTPRoute/shop/cart/0"),
        };
        let value = keyed.value(key);
        assert_eq!(value.as_deref(), expect.map(str::as_bytes), "{key:?}");
    }

    #[test]
    fn every_key_reads_its_part_of_a_request() {
        let head = get("/a?x=1&y=a%20b&x=2")
            .header("x-team", "blue")
            .header("x-team", "red")
            .header("cookie", "a=1; user=u%7; user=v");
        let cookie = |name: &str| {
            Key::Cookie(CookieKey {
                name: name.into(),
                ..CookieKey::default()
            })
        };
        check(&head, &Key::SourceIdentity, Some("spiffe://td/ns/shop/sa/web"));
        check(&head, &Key::SourceNamespace, Some("shop"));
        check(&head, &Key::SourceIp, Some("10.0.0.7"));
        check(&head, &Key::Header("X-Team".into()), Some("blue, red"));
        check(&head, &Key::Header("x-none".into()), None);
        check(&head, &Key::Route, Some("HTTPRoute/shop/cart/0"));
        check(&head, &Key::Query("x".into()), Some("1"));
        check(&head, &Key::Query("y".into()), Some("a b"));
        check(&head, &Key::Query("z".into()), None);
        check(&head, &cookie("user"), Some("u%7"));
        check(&head, &cookie("use"), None);
        check(&head, &Key::Method, Some("GET"));
        check(&head, &Key::Constant("all".into()), Some("all"));
    }
}
