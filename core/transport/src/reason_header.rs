//! The `x-tulle-reason` response header: the stable code of a refusal, and what decided it.

use std::fmt;
use std::str::FromStr;

use tulle_model::Reason;

/// Name of the header.
pub const NAME: &str = "x-tulle-reason";

/// Longest header that is read. What is written is never longer than the sum of its parts' bounds, which is less.
const LENGTH_MAX: usize = 512;

/// Longest token.
const TOKEN_LENGTH_MAX: usize = 64;

/// Longest `policy`; a Kubernetes `namespace/name` has at most 63 + 1 + 253 characters.
const POLICY_LENGTH_MAX: usize = 320;

/// Longest `id`.
const ID_LENGTH_MAX: usize = 64;

/// Why the other proxy refused, in its words: `T0412; policy_denied; policy=<ns>/<name>; id=<event id>`.
///
/// A newer peer may use codes we do not know; they are kept as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasonHeader {
    code: String,
    token: String,
    /// The policy that decided, told only within one trust domain.
    pub policy: Option<String>,
    /// Id of the refusal in the other proxy's log.
    pub id: Option<String>,
}

/// The header does not start with a code and a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{NAME} is not of the form <code>; <token>; key=value")]
pub struct InvalidReason;

impl ReasonHeader {
    /// A header that names only the reason.
    #[must_use]
    pub fn new(reason: Reason) -> Self {
        Self {
            code: reason.code().to_owned(),
            token: reason.token().to_owned(),
            policy: None,
            id: None,
        }
    }

    /// Adds the policy that decided.
    #[must_use]
    pub fn policy(mut self, policy: impl fmt::Display) -> Self {
        self.policy = Some(policy.to_string()).filter(|value| is_value(value, POLICY_LENGTH_MAX));
        self
    }

    /// Adds the id of the refusal in our log.
    #[must_use]
    pub fn id(mut self, id: impl fmt::Display) -> Self {
        self.id = Some(id.to_string()).filter(|value| is_value(value, ID_LENGTH_MAX));
        self
    }

    /// The stable code, such as `T0412`.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The stable token, such as `policy_denied`.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The reason, if this version knows it.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_code(&self.code)
    }
}

impl From<Reason> for ReasonHeader {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

impl fmt::Display for ReasonHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.code, self.token)?;
        for (key, value) in [("policy", &self.policy), ("id", &self.id)] {
            if let Some(value) = value {
                write!(f, "; {key}={value}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for ReasonHeader {
    type Err = InvalidReason;

    fn from_str(header: &str) -> Result<Self, Self::Err> {
        if header.len() > LENGTH_MAX {
            return Err(InvalidReason);
        }
        let mut parts = header.split(';').map(str::trim);
        let code = parts.next().filter(|code| is_code(code)).ok_or(InvalidReason)?;
        let token = parts
            .next()
            .filter(|token| is_token(token))
            .ok_or(InvalidReason)?;
        let mut parsed = Self {
            code: code.to_owned(),
            token: token.to_owned(),
            policy: None,
            id: None,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("policy", value)) if is_value(value, POLICY_LENGTH_MAX) => {
                    parsed.policy = Some(value.to_owned());
                }
                Some(("id", value)) if is_value(value, ID_LENGTH_MAX) => parsed.id = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn is_code(text: &str) -> bool {
    text.len() == 5 && text.starts_with('T') && text[1..].bytes().all(|b| b.is_ascii_digit())
}

fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=TOKEN_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_value(text: &str, length_max: usize) -> bool {
    (1..=length_max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b';')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wire_form_is_code_token_and_parts() {
        let header = ReasonHeader::new(Reason::PolicyDenied)
            .policy("shop/deny-dev")
            .id("7");
        assert_eq!(
            header.to_string(),
            "T0412; policy_denied; policy=shop/deny-dev; id=7"
        );
    }

    #[test]
    fn unknown_codes_are_kept_and_unknown_parts_skipped() {
        let header: ReasonHeader = "T9999;brand_new;colour=red;id=5".parse().unwrap();
        assert_eq!(
            (header.code(), header.token(), header.reason()),
            ("T9999", "brand_new", None)
        );
        assert_eq!(header.id.as_deref(), Some("5"));
    }

    #[test]
    fn what_is_no_code_and_token_is_refused() {
        for text in [
            "",
            "T0412",
            "0412; a",
            "T0412; ",
            "T0412; Policy Denied",
            "T041é; a",
            &"x".repeat(600),
        ] {
            assert_eq!(text.parse::<ReasonHeader>(), Err(InvalidReason), "{text}");
        }
    }

    #[test]
    fn values_cannot_add_header_lines_or_parts() {
        let header = ReasonHeader::new(Reason::PolicyDenied)
            .policy("a\r\nb: c")
            .id("1; policy=x");
        assert_eq!(header.to_string(), "T0412; policy_denied");
    }

    proptest! {
        #[test]
        fn text_form_round_trips(index in 0..Reason::ALL.len(), policy in "[a-z0-9/-]{1,300}", id in "[0-9a-f]{1,16}") {
            let given = ReasonHeader::new(Reason::ALL[index]).policy(policy).id(id);
            prop_assert_eq!(given.to_string().parse(), Ok(given));
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = text.parse::<ReasonHeader>();
        }
    }
}
