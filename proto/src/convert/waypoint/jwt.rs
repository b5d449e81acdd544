//! Which tokens are valid.

use tulle_model::policy::Jwt;
use tulle_model::policy::jwt::{ClaimToHeader, FromHeader, JwtRule, Keys};

use super::super::{Flaw, each, required};
use super::{duration, names, optional, text, texts, to_duration, unset};
use crate::waypoint as wire;
use crate::waypoint::jwt_rule;

pub(super) fn parse(message: wire::Jwt) -> Result<Jwt, Flaw> {
    Ok(Jwt {
        rules: each("rules", message.rules, rule)?,
    })
}

fn rule(message: wire::JwtRule) -> Result<JwtRule, Flaw> {
    let header = |header: wire::FromHeader| {
        Ok(FromHeader {
            name: required("name", header.name)?,
            prefix: header.prefix.into(),
        })
    };
    let claim = |claim: wire::ClaimToHeader| {
        Ok(ClaimToHeader {
            header: required("header", claim.header)?,
            claim: required("claim", claim.claim)?,
        })
    };
    Ok(JwtRule {
        issuer: required("issuer", message.issuer)?,
        audiences: names(message.audiences),
        keys: match message.keys.ok_or_else(|| unset("keys"))? {
            jwt_rule::Keys::Inline(text) => Keys::Inline(text.into()),
            jwt_rule::Keys::Uri(text) => Keys::Uri(text.into()),
            jwt_rule::Keys::Discover(()) => Keys::Discover,
        },
        from_headers: each("from_headers", message.from_headers, header)?,
        from_params: names(message.from_params),
        from_cookies: names(message.from_cookies),
        forward_token: message.forward_token,
        payload_to_header: optional(message.payload_to_header),
        claims_to_headers: each("claims_to_headers", message.claims_to_headers, claim)?,
        timeout: duration("timeout", message.timeout)?,
    })
}

impl From<&Jwt> for wire::Jwt {
    fn from(jwt: &Jwt) -> Self {
        Self {
            rules: jwt.rules.iter().map(Into::into).collect(),
        }
    }
}

impl From<&JwtRule> for wire::JwtRule {
    fn from(rule: &JwtRule) -> Self {
        let keys = match &rule.keys {
            Keys::Inline(text) => jwt_rule::Keys::Inline(text.as_ref().into()),
            Keys::Uri(text) => jwt_rule::Keys::Uri(text.as_ref().into()),
            Keys::Discover => jwt_rule::Keys::Discover(()),
        };
        let header = |header: &FromHeader| wire::FromHeader {
            name: header.name.as_ref().into(),
            prefix: header.prefix.as_ref().into(),
        };
        let claim = |claim: &ClaimToHeader| wire::ClaimToHeader {
            header: claim.header.as_ref().into(),
            claim: claim.claim.as_ref().into(),
        };
        Self {
            issuer: rule.issuer.as_ref().into(),
            audiences: texts(&rule.audiences),
            keys: Some(keys),
            from_headers: rule.from_headers.iter().map(header).collect(),
            from_params: texts(&rule.from_params),
            from_cookies: texts(&rule.from_cookies),
            forward_token: rule.forward_token,
            payload_to_header: text(&rule.payload_to_header),
            claims_to_headers: rule.claims_to_headers.iter().map(claim).collect(),
            timeout: rule.timeout.map(to_duration),
        }
    }
}
