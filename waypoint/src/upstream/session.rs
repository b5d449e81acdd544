//! Whether a client stays with its endpoint, and by what it is known again.
//!
//! A session is a fingerprint of backend and endpoint with two times. No address can be told from it, every replica can
//! read it, and there is no secret to share: who forges one can choose an endpoint of the service, which anyone may
//! reach anyway.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, SET_COOKIE};
use tulle_model::Str;
use tulle_model::route::{Session, SessionBy};

pub mod cookie;

/// The cookie where a route names none.
pub const COOKIE_NAME: &str = "tulle-session";
/// Bytes of a session before they are written as text.
const BYTES: usize = 24;

/// What is known of a client's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Backend and endpoint.
    pub fingerprint: u128,
    /// When it began, in seconds since 1970.
    pub issued: u32,
    /// When it was last used, in seconds since 1970.
    pub used: u32,
}

impl Token {
    /// Reads a token; `None` if the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (print, times) = bytes.split_first_chunk::<16>()?;
        let (issued, used) = times.split_first_chunk::<4>()?;
        (length == BYTES).then_some(Self {
            fingerprint: u128::from_be_bytes(*print),
            issued: u32::from_be_bytes(*issued),
            used: u32::from_be_bytes(used.try_into().ok()?),
        })
    }

    /// Whether it holds at `now`, in seconds since 1970.
    #[must_use]
    pub fn holds(&self, policy: &SessionPolicy, now: u32) -> bool {
        let within = |since: u32, limit: Option<Duration>| {
            limit.is_none_or(|limit| u64::from(now.saturating_sub(since)) < limit.as_secs().max(1))
        };
        within(self.issued, policy.absolute) && within(self.used, policy.idle)
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.fingerprint.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.issued.to_be_bytes());
        bytes[20..].copy_from_slice(&self.used.to_be_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// How sessions of a rule are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPolicy {
    by: By,
    absolute: Option<Duration>,
    idle: Option<Duration>,
    permanent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Cookie { name: Str, path: Str },
    Header(HeaderName),
}

impl SessionPolicy {
    /// The policy that a route or a user's policy asks for; `None` if its header or cookie cannot be one.
    #[must_use]
    pub fn new(session: &Session) -> Option<Self> {
        let or = |text: &Str, default: &str| {
            if text.is_empty() {
                default.into()
            } else {
                text.clone()
            }
        };
        let by = match &session.by {
            SessionBy::Cookie { name, path } => {
                let (name, path) = (or(name, COOKIE_NAME), or(path, "/"));
                (cookie::is_name(&name) && cookie::is_path(&path)).then_some(By::Cookie { name, path })?
            }
            SessionBy::Header(name) => By::Header(HeaderName::try_from(&**name).ok()?),
        };
        Some(Self {
            by,
            absolute: session.absolute,
            idle: session.idle,
            permanent: session.permanent,
        })
    }

    /// The session that a request carries, if it still holds.
    #[must_use]
    pub fn read(&self, headers: &HeaderMap, now: u32) -> Option<Token> {
        let token = match &self.by {
            By::Cookie { name, .. } => cookie::find(headers, name).and_then(Token::parse),
            By::Header(name) => Token::parse(headers.get(name)?.to_str().ok()?),
        };
        token.filter(|token| token.holds(self, now))
    }

    /// The header that an answer needs, if any: for a client without session or whose endpoint is another now, or so
    /// that an idle time begins anew.
    #[must_use]
    pub fn write(
        &self,
        before: Option<Token>,
        fingerprint: u128,
        now: u32,
        secure: bool,
    ) -> Option<(HeaderName, HeaderValue)> {
        let kept = before.filter(|token| token.fingerprint == fingerprint);
        if kept.is_some() && self.idle.is_none() {
            return None;
        }
        let token = Token {
            fingerprint,
            issued: kept.map_or(now, |token| token.issued),
            used: now,
        };
        let (name, text) = match &self.by {
            By::Header(name) => (name.clone(), token.to_string()),
            By::Cookie { name, path } => (SET_COOKIE, self.cookie(name, path, &token, now, secure)),
        };
        let value = HeaderValue::try_from(text).expect("a checked name and path, and letters");
        Some((name, value))
    }

    fn cookie(&self, name: &str, path: &str, token: &Token, now: u32, secure: bool) -> String {
        let mut text = format!("{name}={token}; Path={path}; HttpOnly");
        if secure {
            text.push_str("; Secure");
        }
        let left = |limit: Duration| {
            limit
                .as_secs()
                .saturating_sub(u64::from(now.saturating_sub(token.issued)))
        };
        if let Some(limit) = self.absolute.filter(|_| self.permanent) {
            text.push_str(&format!("; Max-Age={}", left(limit)));
        }
        text
    }
}

#[cfg(test)]
mod tests;
