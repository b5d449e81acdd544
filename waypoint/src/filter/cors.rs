//! Says which pages of other origins may ask: answers preflights, and marks answers.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tulle_model::Str;
use tulle_model::filter::Cors as Wanted;
use tulle_model::request::RequestHead;

/// Fields of an answer that only this filter writes where it applies.
const OWN: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// Which pages may ask, ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<OriginMatch>,
    methods: Names,
    headers: Names,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum OriginMatch {
    Any,
    Exact(Str),
    /// `<scheme>://` and `.<suffix>`, with one or more labels between.
    Under {
        start: Str,
        end: Str,
    },
}

/// A list that a preflight is told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    None,
    All,
    These(HeaderValue),
}

/// A list holds a character that no header field has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no value of a CORS header")]
pub struct CorsError(pub Str);

impl Cors {
    /// Reads a filter.
    ///
    /// # Errors
    /// If a value of it cannot stand in a header.
    pub fn compile(of: &Wanted) -> Result<Self, CorsError> {
        let max_age = of.max_age.map(|age| HeaderValue::from(age.as_secs()));
        Ok(Self {
            origins: of.origins.iter().map(OriginMatch::new).collect(),
            methods: Names::new(&of.methods)?,
            headers: Names::new(&of.headers)?,
            expose: list(&of.expose)?,
            credentials: of.credentials,
            max_age,
        })
    }

    /// The fields of the answer to a preflight, which has status 204. None for an origin that may not ask.
    #[must_use]
    pub fn preflight(&self, head: &RequestHead) -> HeaderMap {
        let mut fields = HeaderMap::new();
        if !self.allow(head.headers.get(ORIGIN), &mut fields) {
            return fields;
        }
        let echo = |names: &Names, asked: HeaderName| match names {
            Names::None => None,
            Names::These(names) => Some(names.clone()),
            // With credentials a browser takes `*` for a name.
            Names::All if self.credentials => head.headers.get(asked).cloned(),
            Names::All => Some(HeaderValue::from_static("*")),
        };
        let methods = echo(&self.methods, ACCESS_CONTROL_REQUEST_METHOD);
        let headers = echo(&self.headers, ACCESS_CONTROL_REQUEST_HEADERS);
        let told = [
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, headers),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
        ];
        for (name, value) in told {
            if let Some(value) = value {
                fields.insert(name, value);
            }
        }
        fields
    }

    /// Marks an answer. What the application said of CORS itself is replaced.
    pub fn mark(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        for name in OWN {
            answer.remove(name);
        }
        if self.allow(origin, answer)
            && let Some(expose) = &self.expose
        {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allow(&self, origin: Option<&HeaderValue>, fields: &mut HeaderMap) -> bool {
        let Some((origin, matched)) = origin.and_then(|origin| Some((origin, self.matched(origin)?))) else {
            return false;
        };
        if self.credentials || *matched != OriginMatch::Any {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            fields.append(VARY, HeaderValue::from_static("origin"));
        } else {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
        if self.credentials {
            fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }

    fn matched(&self, origin: &HeaderValue) -> Option<&OriginMatch> {
        let origin = origin.to_str().ok()?;
        self.origins.iter().find(|of| of.admits(origin))
    }
}

/// The method that a preflight asks for; `None` if the request is no preflight.
#[must_use]
pub fn preflight_method(head: &RequestHead) -> Option<Method> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(ORIGIN) {
        return None;
    }
    let asked = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(asked.as_bytes()).ok()
}

impl OriginMatch {
    fn new(of: &Str) -> Self {
        if **of == *"*" {
            return Self::Any;
        }
        match of.split_once("://*.") {
            Some((scheme, suffix)) => Self::Under {
                start: format!("{}://", scheme.to_ascii_lowercase()).into(),
                end: format!(".{}", suffix.to_ascii_lowercase()).into(),
            },
            None => Self::Exact(of.to_ascii_lowercase().into()),
        }
    }

    /// Browsers send origins in lower case; what else asks may not.
    fn admits(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact.eq_ignore_ascii_case(origin),
            Self::Under { start, end } => {
                let origin = origin.to_ascii_lowercase();
                let labels = origin
                    .strip_prefix(&**start)
                    .and_then(|rest| rest.strip_suffix(&**end));
                let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                labels.is_some_and(|labels| !labels.is_empty() && labels.bytes().all(label))
            }
        }
    }
}

impl Names {
    fn new(of: &[Str]) -> Result<Self, CorsError> {
        if of.iter().any(|name| **name == *"*") {
            return Ok(Self::All);
        }
        Ok(list(of)?.map_or(Self::None, Self::These))
    }
}

fn list(of: &[Str]) -> Result<Option<HeaderValue>, CorsError> {
    if of.is_empty() {
        return Ok(None);
    }
    let text = of.join(", ");
    let value = HeaderValue::from_str(&text).map_err(|_| CorsError(text.into()))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tulle_model::testing::{get, request};

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        Cors::compile(&Wanted {
            origins: origins.iter().map(|&origin| origin.into()).collect(),
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["*".into()],
            expose: vec!["x-page".into()],
            credentials,
            max_age: Some(Duration::from_secs(60)),
        })
        .unwrap()
    }

    fn preflight(origin: &str) -> RequestHead {
        request(Method::OPTIONS, "/")
            .header("origin", origin)
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "x-a, x-b")
    }

    fn text(fields: &HeaderMap) -> Vec<String> {
        let field =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut fields: Vec<_> = fields.iter().map(field).collect();
        fields.sort();
        fields
    }

    #[test]
    fn origins_are_exact_or_under_a_suffix_or_any() {
        let admitted = |of: &str, origin: &str| !cors(&[of], false).preflight(&preflight(origin)).is_empty();
        assert!(admitted("https://a.example", "https://a.example"));
        assert!(admitted("https://a.example", "https://A.example"));
        assert!(!admitted("https://a.example", "http://a.example"));
        assert!(!admitted("https://a.example", "https://a.example:8443"));
        assert!(admitted("https://*.example", "https://a.b.example"));
        assert!(!admitted("https://*.example", "https://example"));
        assert!(!admitted("https://*.example", "https://.example"));
        assert!(!admitted("https://*.example", "https://evil/.example"));
        assert!(!admitted("https://*.example", "https://a.example.evil"));
        assert!(admitted("*", "null"));
        assert!(admitted("https://*.example:8443", "https://a.example:8443"));
    }

    #[test]
    fn a_preflight_is_told_what_is_allowed() {
        let fields = cors(&["https://a.example"], false).preflight(&preflight("https://a.example"));
        assert_eq!(
            text(&fields),
            [
                "access-control-allow-headers: *",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://a.example",
                "access-control-max-age: 60",
                "vary: origin",
            ]
        );
    }

    #[test]
    fn with_credentials_nothing_is_a_star() {
        let fields = cors(&["*"], true).preflight(&preflight("https://a.example"));
        assert_eq!(
            text(&fields),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-a, x-b",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://a.example",
                "access-control-max-age: 60",
                "vary: origin",
            ]
        );
    }

    #[test]
    fn another_origin_is_told_nothing() {
        assert!(
            cors(&["https://a.example"], true)
                .preflight(&preflight("https://b.example"))
                .is_empty()
        );
    }

    #[test]
    fn what_the_application_says_of_cors_is_replaced() {
        let mut answer = HeaderMap::new();
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        answer.insert(VARY, HeaderValue::from_static("accept"));
        let allowed = HeaderValue::from_static("https://a.example");
        let mut other = answer.clone();
        let cors = cors(&["https://a.example"], false);
        cors.mark(Some(&allowed), &mut answer);
        assert_eq!(
            text(&answer),
            [
                "access-control-allow-origin: https://a.example",
                "access-control-expose-headers: x-page",
                "vary: accept",
                "vary: origin",
            ]
        );
        cors.mark(None, &mut other);
        assert_eq!(text(&other), ["vary: accept"]);
    }

    #[test]
    fn a_preflight_is_options_with_origin_and_method() {
        assert_eq!(preflight_method(&preflight("https://a")), Some(Method::PUT));
        assert_eq!(
            preflight_method(&request(Method::OPTIONS, "/").header("origin", "https://a")),
            None
        );
        assert_eq!(preflight_method(&get("/").header("origin", "https://a")), None);
    }
}
