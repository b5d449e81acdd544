//! One token in its parts (RFC 7519, compact form), and what it must say to be valid.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use tulle_model::Str;
use tulle_model::policy::authz::{Claim, Token};

use super::keys::Algorithm;

/// Longest token.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How far clocks may differ, in seconds.
pub const SKEW: i64 = 60;
/// How deep claims may be nested.
const DEPTH_MAX: usize = 16;

/// Why a token is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Invalid {
    /// It is longer than a token may be.
    #[error("too_large")]
    TooLarge,
    /// It is no token.
    #[error("malformed")]
    Malformed,
    /// Its algorithm is not accepted.
    #[error("algorithm")]
    Algorithm,
    /// No rule that reads this place names its issuer.
    #[error("unknown_issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("audience")]
    Audience,
    /// It is over.
    #[error("expired")]
    Expired,
    /// Its time has not come.
    #[error("not_yet")]
    NotYet,
    /// No key of its issuer made its signature.
    #[error("signature")]
    Signature,
    /// The keys of its issuer cannot be had.
    #[error("no_keys")]
    NoKeys,
    /// The request has passed too many waypoints for its keys to be fetched.
    #[error("loop")]
    Loop,
}

impl Invalid {
    /// The label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "unknown_issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Signature => "signature",
            Self::NoKeys => "no_keys",
            Self::Loop => "loop",
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// A token that was read, and of which nothing is believed yet.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// What is signed.
    pub message: &'a str,
    /// The signature, encoded.
    pub signature: &'a str,
    /// The payload, encoded.
    pub payload: &'a str,
    /// The algorithm it names.
    pub algorithm: Algorithm,
    /// The key it names.
    pub key_id: Option<String>,
    /// What it says.
    pub claims: Arc<Claims>,
}

/// What a token says, of which the times and the audience are judged at every use.
#[derive(Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss`.
    pub issuer: Str,
    /// `exp`.
    pub expires: Option<i64>,
    /// `nbf`.
    pub not_before: Option<i64>,
    /// The rest, as policies see it.
    pub token: Token,
    /// The payload, encoded, as it came.
    pub payload: Str,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart.
    pub fn parse(text: &'a str) -> Result<Self, Invalid> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Invalid::TooLarge);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Invalid::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Invalid::Malformed)?;
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Invalid::Malformed);
        let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| Invalid::Malformed)?;
        // RFC 7515, section 4.1.11: what is critical and not understood makes the token invalid.
        if header.crit.is_some() {
            return Err(Invalid::Malformed);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(Invalid::Algorithm)?;
        let said: serde_json::Map<String, Value> =
            serde_json::from_slice(&decoded(payload)?).map_err(|_| Invalid::Malformed)?;
        Ok(Self {
            message,
            signature,
            payload,
            algorithm,
            key_id: header.kid,
            claims: Arc::new(Claims::new(said, payload)?),
        })
    }
}

impl Claims {
    fn new(said: serde_json::Map<String, Value>, payload: &str) -> Result<Self, Invalid> {
        let text = |name: &str| match said.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(Str::from(text.as_str()))),
            Some(_) => Err(Invalid::Malformed),
        };
        let time = |name: &str| match said.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => seconds(value).map(Some).ok_or(Invalid::Malformed),
        };
        let issuer = text("iss")?.ok_or(Invalid::Issuer)?;
        let subject = text("sub")?.unwrap_or_default();
        let audiences = match said.get("aud") {
            None => Vec::new(),
            Some(value) => match claim(value, 0) {
                Claim::Texts(texts) => texts,
                _ => return Err(Invalid::Malformed),
            },
        };
        Ok(Self {
            expires: time("exp")?,
            not_before: time("nbf")?,
            token: Token {
                principal: format!("{issuer}/{subject}").into(),
                audiences,
                presenter: text("azp")?,
                claims: claims(&said, 0),
            },
            issuer,
            payload: payload.into(),
        })
    }

    /// Judges times and audience at `now`, in seconds since 1970.
    pub fn judge(&self, audiences: &[Str], now: i64) -> Result<(), Invalid> {
        if self.expires.is_some_and(|at| now >= at.saturating_add(SKEW)) {
            return Err(Invalid::Expired);
        }
        if self.not_before.is_some_and(|at| now < at.saturating_sub(SKEW)) {
            return Err(Invalid::NotYet);
        }
        let own = &self.token.audiences;
        if !audiences.is_empty() && !own.iter().any(|audience| audiences.contains(audience)) {
            return Err(Invalid::Audience);
        }
        Ok(())
    }

    /// The text of a claim, of which dots lead into nested ones; `None` for what is no single text, number or truth.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&Str> {
        let whole = [Str::from(path)];
        let parts: Vec<Str> = path.split('.').map(Into::into).collect();
        let found = self.token.claim(&whole).or_else(|| self.token.claim(&parts))?;
        match found {
            Claim::Texts(texts) => match &**texts {
                [one] => Some(one),
                _ => None,
            },
            _ => None,
        }
    }
}

/// NumericDate may have a fraction (RFC 7519, section 2); whole seconds are as good.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the range was checked; the fraction is meant to go"
)]
fn seconds(value: &Value) -> Option<i64> {
    let float = || {
        value
            .as_f64()
            .filter(|time| time.abs() < 1e15)
            .map(|time| time as i64)
    };
    value.as_i64().or_else(float)
}

fn claims(said: &serde_json::Map<String, Value>, depth: usize) -> BTreeMap<Str, Claim> {
    let pairs = said.iter().filter(|(_, value)| !value.is_null());
    pairs
        .map(|(name, value)| (name.as_str().into(), claim(value, depth)))
        .collect()
}

fn claim(value: &Value, depth: usize) -> Claim {
    let scalar = |value: &Value| -> Option<Str> {
        match value {
            Value::String(text) => Some(text.as_str().into()),
            Value::Number(number) => Some(number.to_string().into()),
            Value::Bool(truth) => Some(truth.to_string().into()),
            _ => None,
        }
    };
    match value {
        Value::Object(_) if depth >= DEPTH_MAX => Claim::Odd,
        Value::Object(inner) => Claim::Nested(claims(inner, depth + 1)),
        Value::Array(values) => {
            let texts: Option<Vec<_>> = values.iter().map(scalar).collect();
            texts.map_or(Claim::Odd, Claim::Texts)
        }
        other => scalar(other).map_or(Claim::Odd, |text| Claim::Texts(vec![text])),
    }
}

/// What was taken apart is bounded, and its parts are those of the text. For the fuzzer.
///
/// # Panics
/// If that does not hold.
#[cfg(any(test, feature = "testing"))]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = Unverified::parse(&text) {
        assert!(text.len() <= TOKEN_BYTES_MAX);
        assert_eq!(format!("{}.{}", token.message, token.signature), text);
        assert!(token.message.ends_with(token.payload));
        let issuer = format!("{}/", token.claims.issuer);
        assert!(token.claims.token.principal.starts_with(&issuer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(header: &str, payload: &str) -> String {
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.c2ln", encoded(header), encoded(payload))
    }

    fn read(payload: &str) -> Result<Arc<Claims>, Invalid> {
        let text = text(r#"{"alg":"RS256"}"#, payload);
        Unverified::parse(&text).map(|token| token.claims)
    }

    #[test]
    fn what_is_no_token_is_told() {
        let payload = r#"{"iss":"i"}"#;
        for (text, expect) in [
            (String::new(), Invalid::Malformed),
            ("a.b".into(), Invalid::Malformed),
            ("a.b.c".into(), Invalid::Malformed),
            (text(r#"{"alg":"none"}"#, payload), Invalid::Algorithm),
            (text(r#"{"alg":"HS256"}"#, payload), Invalid::Algorithm),
            (
                text(r#"{"alg":"RS256","crit":["b64"]}"#, payload),
                Invalid::Malformed,
            ),
            (text(r#"{"alg":"RS256"}"#, "{}"), Invalid::Issuer),
            (text(r#"{"alg":"RS256"}"#, r#"{"iss":7}"#), Invalid::Malformed),
            (
                text(r#"{"alg":"RS256"}"#, r#"{"iss":"i","exp":"soon"}"#),
                Invalid::Malformed,
            ),
            ("x".repeat(TOKEN_BYTES_MAX + 1), Invalid::TooLarge),
        ] {
            assert_eq!(Unverified::parse(&text).unwrap_err(), expect, "{text:.80}");
        }
    }

    #[test]
    fn times_hold_within_a_minute() {
        let claims = read(r#"{"iss":"i","exp":1000,"nbf":500}"#).unwrap();
        for (now, expect) in [
            (440, Ok(())),
            (439, Err(Invalid::NotYet)),
            (1059, Ok(())),
            (1060, Err(Invalid::Expired)),
        ] {
            assert_eq!(claims.judge(&[], now), expect, "{now}");
        }
    }

    #[test]
    fn one_audience_in_common_is_enough_and_none_is_not() {
        let claims = read(r#"{"iss":"i","aud":["a","b"]}"#).unwrap();
        assert_eq!(claims.judge(&["b".into(), "c".into()], 0), Ok(()));
        assert_eq!(claims.judge(&["c".into()], 0), Err(Invalid::Audience));
        assert_eq!(
            read(r#"{"iss":"i"}"#).unwrap().judge(&["a".into()], 0),
            Err(Invalid::Audience)
        );
    }

    #[test]
    fn claims_are_texts_lists_and_nested() {
        let claims = read(
            r#"{"iss":"i","sub":"s","azp":"app","n":7,"t":true,"l":["a",1],"o":{"p":"q"},"a.b":"dotted","x":[{}]}"#,
        )
        .unwrap();
        assert_eq!(&*claims.token.principal, "i/s");
        assert_eq!(claims.token.presenter.as_deref(), Some("app"));
        let one = |name: &str| claims.text(name).map(ToString::to_string);
        assert_eq!(one("n").as_deref(), Some("7"));
        assert_eq!(one("t").as_deref(), Some("true"));
        assert_eq!(one("o.p").as_deref(), Some("q"));
        assert_eq!(one("a.b").as_deref(), Some("dotted"));
        assert_eq!(one("l"), None);
        assert_eq!(
            claims.token.claim(&["l".into()]),
            Some(&Claim::Texts(vec!["a".into(), "1".into()]))
        );
        assert_eq!(claims.token.claim(&["x".into()]), Some(&Claim::Odd));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-zA-Z0-9._-]{0,64}", payload in "\\PC{0,64}") {
            fuzz(text.as_bytes());
            let encoded = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":{payload:?}}}"#));
            fuzz(format!("eyJhbGciOiJSUzI1NiJ9.{encoded}.c2ln").as_bytes());
        }
    }
}
