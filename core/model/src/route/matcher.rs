//! The conditions of one match, compiled: everything but its path.

use std::sync::Arc;

use ahash::AHashMap;
use http::header::{HeaderName, SET_COOKIE};
use http::{HeaderMap, Method};
use smallvec::SmallVec;

use super::pattern::{Pattern, PatternError};
use super::query::{Interest, Parameters};
use super::{KeyMatch, Match, ValueMatch};
use crate::name::Str;

/// What a header or parameter must be.
#[derive(Debug, Clone)]
enum Want {
    Exact(Str),
    Pattern(Pattern),
}

impl Want {
    fn admits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(want) => want.as_bytes() == value,
            Self::Pattern(pattern) => pattern.matches_bytes(value),
        }
    }
}

/// Why a match cannot be used, so that it never matches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    /// A pattern cannot be used.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// No header has this name.
    #[error("`{0}` is no name of a header")]
    HeaderName(Str),
    /// A path begins with `/`.
    #[error("the path `{0}` does not begin with `/`")]
    Path(Str),
    /// The control plane could not read it.
    #[error("{0}")]
    Unreadable(Str),
}

/// The conditions of one match; all must hold.
#[derive(Debug)]
pub(super) struct Conditions {
    method: Option<Str>,
    headers: Vec<(HeaderName, Want)>,
    query: Vec<(usize, Str, Want)>,
}

/// The first condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// Another path.
    Path,
    /// Another method.
    Method,
    /// This header is missing or has another value.
    Header(Str),
    /// This parameter is missing or has another value.
    Query(Str),
}

/// What is shared while one router is compiled: equal patterns, and the slots of the query.
#[derive(Debug, Default)]
pub(super) struct Compiler {
    patterns: AHashMap<Arc<str>, Pattern>,
    pub(super) interest: Interest,
}

impl Compiler {
    /// A pattern, compiled once however often it stands in the rules.
    pub(super) fn pattern(&mut self, text: &str) -> Result<Pattern, PatternError> {
        if let Some(known) = self.patterns.get(text) {
            return Ok(known.clone());
        }
        let pattern = Pattern::new(text)?;
        self.patterns.insert(text.into(), pattern.clone());
        Ok(pattern)
    }

    fn want(&mut self, of: &ValueMatch) -> Result<Want, PatternError> {
        Ok(match of {
            ValueMatch::Exact(value) => Want::Exact(value.clone()),
            ValueMatch::Regex(pattern) => Want::Pattern(self.pattern(pattern)?),
        })
    }
}

impl Conditions {
    pub(super) fn compile(of: &Match, compiler: &mut Compiler) -> Result<Self, MatchError> {
        if let Some(cause) = &of.unreadable {
            return Err(MatchError::Unreadable(cause.clone()));
        }
        let mut headers: Vec<(HeaderName, Want)> = Vec::with_capacity(of.headers.len());
        for KeyMatch { name, value } in &of.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes());
            let parsed = parsed.map_err(|_| MatchError::HeaderName(name.clone()))?;
            // "If multiple entries specify equivalent header names, only the first entry … MUST be considered."
            if headers.iter().all(|(known, _)| *known != parsed) {
                headers.push((parsed, compiler.want(value)?));
            }
        }
        let mut query: Vec<(usize, Str, Want)> = Vec::with_capacity(of.query.len());
        for KeyMatch { name, value } in &of.query {
            let slot = compiler.interest.slot(name);
            if query.iter().all(|(known, ..)| *known != slot) {
                query.push((slot, name.clone(), compiler.want(value)?));
            }
        }
        Ok(Self {
            method: of.method.clone(),
            headers,
            query,
        })
    }

    pub(super) fn header_count(&self) -> usize {
        self.headers.len()
    }

    pub(super) fn query_count(&self) -> usize {
        self.query.len()
    }

    /// The first condition that does not hold. `parameters` is asked for only if there is one on the query.
    pub(super) fn unmet<'p, 'q: 'p>(
        &self,
        method: &Method,
        headers: &HeaderMap,
        parameters: impl FnOnce() -> &'p Parameters<'q>,
    ) -> Option<Miss<'_>> {
        if self.method.as_deref().is_some_and(|want| want != method.as_str()) {
            return Some(Miss::Method);
        }
        let missed = |(name, want): &&(HeaderName, Want)| !header_admits(headers, name, want);
        if let Some((name, _)) = self.headers.iter().find(missed) {
            return Some(Miss::Header(name));
        }
        if self.query.is_empty() {
            return None;
        }
        let parameters = parameters();
        let missed = |(slot, _, want): &&(usize, Str, Want)| {
            !parameters.get(*slot).is_some_and(|value| want.admits(&value))
        };
        self.query
            .iter()
            .find(missed)
            .map(|(_, name, _)| Miss::Query(name))
    }
}

/// The first condition that does not hold, borrowed: making one costs nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Miss<'a> {
    Method,
    Header(&'a HeaderName),
    Query(&'a Str),
}

impl From<Miss<'_>> for Unmet {
    fn from(miss: Miss<'_>) -> Self {
        match miss {
            Miss::Method => Self::Method,
            Miss::Header(name) => Self::Header(name.as_str().into()),
            Miss::Query(name) => Self::Query(name.clone()),
        }
    }
}

/// Whether the value of a header, all its fields joined with `, `, is what is wanted.
fn header_admits(headers: &HeaderMap, name: &HeaderName, want: &Want) -> bool {
    let mut fields = headers.get_all(name).iter();
    let Some(first) = fields.next() else {
        return false;
    };
    let Some(second) = fields.next() else {
        return want.admits(first.as_bytes());
    };
    if *name == SET_COOKIE {
        // It is the one field that cannot be joined: each value stands for itself.
        return headers
            .get_all(name)
            .iter()
            .any(|value| want.admits(value.as_bytes()));
    }
    // Repeated fields are rare; up to 256 bytes of them are joined without an allocation.
    let mut joined: SmallVec<[u8; 256]> = SmallVec::from_slice(first.as_bytes());
    for field in std::iter::once(second).chain(fields) {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(field.as_bytes());
    }
    want.admits(&joined)
}
