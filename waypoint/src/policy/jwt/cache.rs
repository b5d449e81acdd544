//! Tokens whose signature was verified: the last thousand, by the SHA-256 of their text.

use std::sync::Arc;

use ahash::AHashMap;
use aws_lc_rs::digest;
use parking_lot::Mutex;

use super::token::Claims;

/// Tokens that are remembered.
pub const TOKENS_MAX: usize = 1_000;

/// Remembers which set of keys verified a token. Times and audiences are judged again at every use.
#[derive(Debug, Default)]
pub struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tokens: AHashMap<Digest, Known>,
    uses: u64,
}

#[derive(Debug)]
struct Known {
    keys: u64,
    claims: Arc<Claims>,
    used: u64,
}

/// What a token is known by; nobody can make two that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a token's text.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        Self(bytes)
    }
}

impl Cache {
    /// What a token says, if this set of keys verified it.
    #[must_use]
    pub fn get(&self, token: &Digest, keys: u64) -> Option<Arc<Claims>> {
        let mut inner = self.inner.lock();
        inner.uses += 1;
        let uses = inner.uses;
        let known = inner.tokens.get_mut(token).filter(|known| known.keys == keys)?;
        known.used = uses;
        Some(known.claims.clone())
    }

    /// Remembers a token; the one that was not used for longest is forgotten for it.
    pub fn put(&self, token: Digest, keys: u64, claims: Arc<Claims>) {
        let mut inner = self.inner.lock();
        if inner.tokens.len() >= TOKENS_MAX && !inner.tokens.contains_key(&token) {
            // Only a token that was just verified gets here, which costs far more than this search.
            let oldest = inner.tokens.iter().min_by_key(|(_, known)| known.used);
            if let Some(oldest) = oldest.map(|(token, _)| *token) {
                inner.tokens.remove(&oldest);
            }
        }
        inner.uses += 1;
        let used = inner.uses;
        inner.tokens.insert(token, Known { keys, claims, used });
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().tokens.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::policy::authz::Token;

    fn claims() -> Arc<Claims> {
        Arc::new(Claims {
            issuer: "i".into(),
            expires: None,
            not_before: None,
            token: Token::default(),
            payload: "".into(),
        })
    }

    #[test]
    fn a_token_is_known_under_the_keys_that_verified_it() {
        let cache = Cache::default();
        cache.put(Digest::of("a"), 1, claims());
        assert!(cache.get(&Digest::of("a"), 1).is_some());
        assert!(cache.get(&Digest::of("a"), 2).is_none(), "the keys changed");
        assert!(cache.get(&Digest::of("b"), 1).is_none());
    }

    #[test]
    fn the_one_not_used_for_longest_is_forgotten_first() {
        let cache = Cache::default();
        for n in 0..TOKENS_MAX {
            cache.put(Digest::of(&n.to_string()), 1, claims());
        }
        assert!(cache.get(&Digest::of("0"), 1).is_some());
        cache.put(Digest::of("new"), 1, claims());
        assert_eq!(cache.len(), TOKENS_MAX);
        assert!(cache.get(&Digest::of("0"), 1).is_some());
        assert!(cache.get(&Digest::of("1"), 1).is_none());
    }
}
