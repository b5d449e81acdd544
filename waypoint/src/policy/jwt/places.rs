//! Where tokens stand in a request, and how they are taken out of it.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use tulle_model::Str;
use tulle_model::policy::jwt::JwtRule;
use tulle_model::request::{RequestHead, Text};
use tulle_model::route::query;

use super::super::limit::key::cookie;

/// Most tokens of one request. A client that sends more is refused.
pub const TOKENS_MAX: usize = 16;

/// A place that a token may stand in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A header, behind a prefix.
    Header(HeaderName, Str),
    /// A parameter of the query.
    Param(Str),
    /// A cookie.
    Cookie(Str),
}

impl Place {
    /// The places of a rule. Without any: `Authorization: Bearer`, and the parameter `access_token`.
    #[must_use]
    pub fn of(rule: &JwtRule) -> Vec<Self> {
        let headers = rule.from_headers.iter().filter_map(|header| {
            let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
            Some(Self::Header(name, header.prefix.clone()))
        });
        let params = rule.from_params.iter().cloned().map(Self::Param);
        let cookies = rule.from_cookies.iter().cloned().map(Self::Cookie);
        let places: Vec<_> = headers.chain(params).chain(cookies).collect();
        let is_usual =
            rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
        if is_usual {
            let bearer = Self::Header(AUTHORIZATION, "Bearer ".into());
            return vec![bearer, Self::Param("access_token".into())];
        }
        places
    }

    /// The tokens that stand here. What is no text is given as an empty one, which no token is.
    #[must_use]
    pub fn tokens(&self, head: &RequestHead) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap_or_default();
        match self {
            Self::Header(name, prefix) => {
                let values = head.headers.get_all(name).iter();
                values
                    .filter_map(|value| stripped(value, prefix))
                    .map(|token| text(token.trim_ascii()))
                    .collect()
            }
            Self::Param(name) => query::first(head.query.as_deref(), name)
                .map(|value| text(&value))
                .into_iter()
                .collect(),
            Self::Cookie(name) => cookie(&head.headers, name)
                .map(|value| text(&value))
                .into_iter()
                .collect(),
        }
    }

    /// Takes the tokens out of what goes upstream. Everything else stays as it is.
    pub fn remove(&self, headers: &mut HeaderMap, query: &mut Option<Text>) {
        match self {
            Self::Header(name, prefix) => {
                let kept: Vec<HeaderValue> = headers
                    .get_all(name)
                    .iter()
                    .filter(|value| stripped(value, prefix).is_none())
                    .cloned()
                    .collect();
                headers.remove(name);
                for value in kept {
                    headers.append(name, value);
                }
            }
            Self::Param(name) => {
                if let Some(text) = query.take() {
                    *query = without_param(&text, name);
                }
            }
            Self::Cookie(name) => remove_cookie(headers, name),
        }
    }
}

/// What stands behind the prefix. The names of schemes have no case (RFC 9110, section 11.1).
fn stripped<'v>(value: &'v HeaderValue, prefix: &str) -> Option<&'v [u8]> {
    let (start, rest) = value.as_bytes().split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix.as_bytes()).then_some(rest)
}

/// The query without a parameter; `None` if nothing is left.
fn without_param(text: &str, name: &str) -> Option<Text> {
    let kept: Vec<&str> = text
        .split('&')
        .filter(|part| query::first(Some(part), name).is_none())
        .collect();
    (!kept.is_empty()).then(|| kept.join("&").into())
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    let is_other = |pair: &&[u8]| {
        let known = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        known.trim_ascii() != name.as_bytes()
    };
    let fields: Vec<Vec<u8>> = headers
        .get_all(COOKIE)
        .iter()
        .map(|field| {
            let pairs = field
                .as_bytes()
                .split(|byte| *byte == b';')
                .map(<[u8]>::trim_ascii);
            pairs.filter(is_other).collect::<Vec<_>>().join(&b"; "[..])
        })
        .filter(|field| !field.is_empty())
        .collect();
    headers.remove(COOKIE);
    for field in fields {
        if let Ok(value) = HeaderValue::from_bytes(&field) {
            headers.append(COOKIE, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::policy::jwt::FromHeader;
    use tulle_model::testing::get;

    fn found(rule: &JwtRule, head: &RequestHead) -> Vec<String> {
        Place::of(rule)
            .iter()
            .flat_map(|place| place.tokens(head))
            .collect()
    }

    #[test]
    fn without_places_the_usual_ones_are_read() {
        let head = get("/?access_token=b&x=1").header("authorization", "bearer a");
        assert_eq!(found(&JwtRule::default(), &head), ["a", "b"]);
        let basic = get("/").header("authorization", "Basic YTpi");
        assert!(found(&JwtRule::default(), &basic).is_empty());
    }

    #[test]
    fn with_places_only_those_are_read() {
        let rule = JwtRule {
            from_headers: vec![FromHeader {
                name: "X-Token".into(),
                prefix: "jwt:".into(),
            }],
            from_params: vec!["t".into()],
            from_cookies: vec!["session".into()],
            ..JwtRule::default()
        };
        let head = get("/?t=p")
            .header("authorization", "Bearer no")
            .header("x-token", "jwt:a")
            .header("x-token", "other")
            .header("cookie", "a=b; session=c");
        assert_eq!(found(&rule, &head), ["a", "p", "c"]);
    }

    #[test]
    fn a_token_is_taken_out_and_nothing_else() {
        let mut head = get("/?t=p&x=1&t=q")
            .header("authorization", "Bearer a")
            .header("authorization", "Basic b")
            .header("cookie", "a=1; session=c; b=2");
        for place in [
            Place::Header(AUTHORIZATION, "Bearer ".into()),
            Place::Param("t".into()),
            Place::Cookie("session".into()),
        ] {
            place.remove(&mut head.headers, &mut head.query);
        }
        let left: Vec<_> = head.headers.get_all(AUTHORIZATION).iter().collect();
        assert_eq!(left, ["Basic b"]);
        assert_eq!(head.headers[COOKIE], "a=1; b=2");
        assert_eq!(head.query.as_deref(), Some("x=1"));
        Place::Param("x".into()).remove(&mut head.headers, &mut head.query);
        assert_eq!(head.query, None);
    }
}
