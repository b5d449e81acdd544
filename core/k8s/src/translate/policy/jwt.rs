//! `RequestAuthentication` with targets: which tokens are valid.

use tulle_model::Str;
use tulle_model::policy::Concern;
use tulle_model::policy::jwt::{ClaimToHeader, FromHeader, Jwt, JwtRule, Keys};

use super::super::route::is_reserved;
use super::{Said, unreadable};
use crate::api::RequestAuthentication;
use crate::api::security::JwtRule as Spec;

/// What a policy says. A rule that cannot be used makes the whole of it one that denies: without the rule, tokens
/// of its issuer would be refused or, worse, not be asked for.
pub(super) fn said(policy: &RequestAuthentication) -> Said {
    if let Some(of) = &policy.unreadable {
        return unreadable(&of.cause);
    }
    let rules: Result<Vec<JwtRule>, String> = policy.spec.jwt_rules.iter().map(rule).collect();
    match rules {
        Ok(rules) => Said {
            concerns: vec![Concern::Jwt(Jwt { rules })],
            flaw: None,
        },
        Err(cause) => unreadable(&cause),
    }
}

fn rule(of: &Spec) -> Result<JwtRule, String> {
    let optional = |text: &Str| (!text.is_empty()).then(|| text.clone());
    let payload_to_header = optional(&of.output_payload_to_header);
    let claims: Vec<ClaimToHeader> = of
        .output_claim_to_headers
        .iter()
        .map(|claim| ClaimToHeader {
            header: claim.header.clone(),
            claim: claim.claim.clone(),
        })
        .collect();
    let written = claims.iter().map(|claim| &claim.header).chain(&payload_to_header);
    if let Some(header) = written.into_iter().find(|header| is_reserved(header)) {
        let shown: String = header.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(format!("the header {shown} may not be written"));
    }
    let keys = match (of.jwks.is_empty(), of.jwks_uri.is_empty()) {
        (false, _) => Keys::Inline(of.jwks.clone()),
        (true, false) => Keys::Uri(of.jwks_uri.clone()),
        (true, true) => Keys::Discover,
    };
    let header = |header: &crate::api::security::JwtHeader| FromHeader {
        name: header.name.clone(),
        prefix: header.prefix.clone(),
    };
    Ok(JwtRule {
        issuer: of.issuer.clone(),
        audiences: of.audiences.clone(),
        keys,
        from_headers: of.from_headers.iter().map(header).collect(),
        from_params: of.from_params.clone(),
        from_cookies: of.from_cookies.clone(),
        forward_token: of.forward_original_token,
        payload_to_header,
        claims_to_headers: claims,
        timeout: of.timeout.map(|span| span.0),
    })
}
