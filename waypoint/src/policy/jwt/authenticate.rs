//! Who the tokens of a request speak for, and what of them goes upstream.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_model::Str;
use tulle_model::policy::jwt::{JwtRule, Keys};
use tulle_model::policy::{Concern, Policy};
use tulle_model::reason::Reason;
use tulle_model::request::reserved::is_untouchable;
use tulle_model::request::{RequestHead, Text};

use super::cache::{Cache, Digest};
use super::jwks::{From, Jwks, NoKeys};
use super::keys::KeySet;
use super::places::{Place, TOKENS_MAX};
use super::token::{Claims, Invalid, Unverified};

#[cfg(test)]
mod tests;

/// The header of every refusal (RFC 6750, section 3).
pub const CHALLENGE: &str = r#"Bearer error="invalid_token""#;

/// The rules of one place, the oldest policy's first.
#[derive(Debug, Default)]
pub struct Authentication {
    rules: Vec<Rule>,
    places: Vec<Place>,
    outputs: Vec<HeaderName>,
}

#[derive(Debug)]
struct Rule {
    issuer: Str,
    audiences: Vec<Str>,
    places: Vec<Place>,
    keys: KeysOf,
    timeout: Option<Duration>,
    forward: bool,
    payload_to: Option<HeaderName>,
    claims_to: Vec<(HeaderName, Str)>,
}

#[derive(Debug)]
enum KeysOf {
    /// `None` if they could not be read: no token is valid.
    Inline(Option<Arc<KeySet>>),
    Fetched(From),
}

/// A request whose tokens are all valid.
#[derive(Debug, Default)]
pub struct Authenticated {
    /// What the token says that counts: that of the oldest policy.
    pub claims: Option<Arc<Claims>>,
    /// What happens to the request on its way upstream.
    pub effects: Effects,
}

/// Changes of what goes upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    remove: Vec<Place>,
    set: Vec<(HeaderName, HeaderValue)>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token of the request is not valid: {0}")]
pub struct Failure(pub Invalid);

impl Failure {
    /// The stable reason. All but a loop are answered with 401 and [`CHALLENGE`].
    #[must_use]
    pub fn reason(self) -> Reason {
        match self.0 {
            Invalid::NoKeys => Reason::JwksUnavailable,
            Invalid::Loop => Reason::LoopDetected,
            _ => Reason::JwtInvalid,
        }
    }
}

impl Effects {
    /// Applies them to what goes upstream.
    pub fn apply(&self, headers: &mut HeaderMap, query: &mut Option<Text>) {
        for place in &self.remove {
            place.remove(headers, query);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

impl Authentication {
    /// Where keys come from that are fetched, and how long that may take.
    pub fn fetched(&self) -> impl Iterator<Item = (&From, Option<Duration>)> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            KeysOf::Fetched(from) => Some((from, rule.timeout)),
            KeysOf::Inline(_) => None,
        })
    }

    /// Compiles the rules of the policies of a place, which are given oldest first. Policies of other concerns, and
    /// those that are only tried, are left out.
    #[must_use]
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>) -> Self {
        let mut all = Self::default();
        for policy in policies {
            if let (Concern::Jwt(jwt), false) = (&policy.concern, policy.dry_run) {
                all.rules.extend(jwt.rules.iter().map(Rule::new));
            }
        }
        for rule in &all.rules {
            for place in &rule.places {
                if !all.places.contains(place) {
                    all.places.push(place.clone());
                }
            }
            let outputs = rule
                .payload_to
                .iter()
                .chain(rule.claims_to.iter().map(|(name, _)| name));
            all.outputs.extend(outputs.cloned());
        }
        all
    }

    /// Whether no token is looked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Where keys are fetched from.
    pub fn sources(&self) -> impl Iterator<Item = (&From, Option<Duration>)> {
        self.rules.iter().filter_map(|rule| match &rule.keys {
            KeysOf::Fetched(from) => Some((from, rule.timeout)),
            KeysOf::Inline(_) => None,
        })
    }

    /// Removes what a client put where only verified claims may stand. To be done before any policy reads the request.
    pub fn strip(&self, headers: &mut HeaderMap) {
        for name in &self.outputs {
            headers.remove(name);
        }
    }

    /// Verifies every token of a request that has passed so many waypoints, at `now`, in seconds since 1970.
    pub async fn authenticate(
        &self,
        head: &RequestHead,
        jwks: &Arc<Jwks>,
        cache: &Cache,
        now: i64,
        hops: u8,
    ) -> Result<Authenticated, Failure> {
        let mut oldest: Option<(usize, Arc<Claims>)> = None;
        let mut effects = Effects::default();
        let mut tokens = 0;
        for place in &self.places {
            for token in place.tokens(head) {
                tokens += 1;
                if tokens > TOKENS_MAX {
                    return Err(Failure(Invalid::TooLarge));
                }
                let (index, claims) = self
                    .verified(place, &token, (jwks, cache), now, hops)
                    .await
                    .map_err(Failure)?;
                self.rules[index].outputs(&claims, place, &mut effects);
                if oldest.as_ref().is_none_or(|(known, _)| index < *known) {
                    oldest = Some((index, claims));
                }
            }
        }
        Ok(Authenticated {
            claims: oldest.map(|(_, claims)| claims),
            effects,
        })
    }

    /// The first rule that the token is valid for, and what it says.
    async fn verified(
        &self,
        place: &Place,
        token: &str,
        (jwks, cache): (&Arc<Jwks>, &Cache),
        now: i64,
        hops: u8,
    ) -> Result<(usize, Arc<Claims>), Invalid> {
        let unverified = Unverified::parse(token)?;
        let digest = Digest::of(token);
        let mut failed = Invalid::Issuer;
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.issuer != unverified.claims.issuer || !rule.places.contains(place) {
                continue;
            }
            // The cheap conditions come first; keys are not fetched for what is over anyway.
            if let Err(invalid) = unverified.claims.judge(&rule.audiences, now) {
                failed = invalid;
                continue;
            }
            let keys = match &rule.keys {
                KeysOf::Inline(keys) => keys.clone().ok_or(NoKeys::Unavailable),
                KeysOf::Fetched(from) => {
                    let key_id = unverified.key_id.as_deref();
                    jwks.keys(from, rule.timeout, key_id, hops).await
                }
            };
            let keys = match keys {
                Ok(keys) => keys,
                Err(NoKeys::Unavailable) => {
                    failed = Invalid::NoKeys;
                    continue;
                }
                Err(NoKeys::Loop) => {
                    failed = Invalid::Loop;
                    continue;
                }
            };
            if let Some(claims) = cache.get(&digest, keys.number()) {
                return Ok((index, claims));
            }
            if keys.verifies(
                unverified.key_id.as_deref(),
                unverified.algorithm,
                unverified.message,
                unverified.signature,
            ) {
                cache.put(digest, keys.number(), unverified.claims.clone());
                return Ok((index, unverified.claims));
            }
            failed = Invalid::Signature;
        }
        Err(failed)
    }
}

impl Rule {
    fn new(of: &JwtRule) -> Self {
        let keys = match &of.keys {
            Keys::Inline(text) => match KeySet::parse(text.as_bytes()) {
                Ok(keys) => KeysOf::Inline(Some(Arc::new(keys))),
                Err(error) => {
                    tracing::warn!(issuer = %of.issuer, %error, "keys cannot be read, so no token of the issuer is valid");
                    KeysOf::Inline(None)
                }
            },
            Keys::Uri(uri) => KeysOf::Fetched(From::Uri(uri.clone())),
            Keys::Discover => KeysOf::Fetched(From::Issuer(of.issuer.clone())),
        };
        Self {
            issuer: of.issuer.clone(),
            audiences: of.audiences.clone(),
            places: Place::of(of),
            keys,
            timeout: of.timeout,
            forward: of.forward_token,
            payload_to: of.payload_to_header.as_deref().and_then(output),
            claims_to: of
                .claims_to_headers
                .iter()
                .filter_map(|to| Some((output(&to.header)?, to.claim.clone())))
                .collect(),
        }
    }

    fn outputs(&self, claims: &Claims, place: &Place, effects: &mut Effects) {
        if !self.forward {
            effects.remove.push(place.clone());
        }
        let mut set = |name: &HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                effects.set.push((name.clone(), value));
            }
        };
        if let Some(name) = &self.payload_to {
            set(name, &claims.payload);
        }
        for (name, claim) in &self.claims_to {
            if let Some(text) = claims.text(claim) {
                set(name, text);
            }
        }
    }
}

/// A header that claims may be written to: no one that the mesh needs.
fn output(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!is_untouchable(name.as_str())).then_some(name)
}
