//! What is known of a request or a stream when it is judged.

use std::collections::BTreeMap;

use super::path::decoded;
use crate::name::Str;
use crate::request::{Destination, RequestHead, Source};

/// What is known of a request, or of a stream that no request was read of. Nothing else is ever judged.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    /// Who asks.
    pub source: &'a Source,
    /// What is asked for.
    pub destination: Destination,
    /// The request; `None` for a stream of TCP or TLS, whose requests are not read.
    pub request: Option<&'a RequestHead>,
    /// The verified token of the request.
    pub token: Option<&'a Token>,
    /// The server name that the client of a stream of TLS asked for.
    pub sni: Option<&'a str>,
    /// Whether its tokens are still being verified, so that nobody knows what they will say.
    pub(super) is_token_pending: bool,
    /// The path without any escape, where that differs from the canonical one.
    pub(super) decoded: Option<Box<str>>,
}

impl<'a> Attributes<'a> {
    /// Those of a request. It allocates only where the path has escapes or doubled slashes, once per request.
    #[must_use]
    pub fn of_request(
        source: &'a Source,
        destination: Destination,
        request: &'a RequestHead,
        token: Option<&'a Token>,
    ) -> Self {
        Self {
            source,
            destination,
            request: Some(request),
            token,
            sni: None,
            is_token_pending: false,
            decoded: decoded(&request.path),
        }
    }

    /// Those of a request whose tokens are still being verified. Only what is denied whatever they will say is denied.
    #[must_use]
    pub fn before_tokens(source: &'a Source, destination: Destination, request: &'a RequestHead) -> Self {
        Self {
            is_token_pending: true,
            ..Self::of_request(source, destination, request, None)
        }
    }

    /// Those of a stream.
    #[must_use]
    pub fn of_stream(source: &'a Source, destination: Destination, sni: Option<&'a str>) -> Self {
        Self {
            source,
            destination,
            request: None,
            token: None,
            sni,
            is_token_pending: false,
            decoded: None,
        }
    }
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    /// `<iss>/<sub>`.
    pub principal: Str,
    /// `aud`.
    pub audiences: Vec<Str>,
    /// `azp`.
    pub presenter: Option<Str>,
    /// Everything it says.
    pub claims: BTreeMap<Str, Claim>,
}

/// One thing that a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// A text, number or truth, or a list of them; each as text.
    Texts(Vec<Str>),
    /// Further claims.
    Nested(BTreeMap<Str, Self>),
    /// Something that no text can be compared with.
    Odd,
}

impl Token {
    /// The claim at a path of names.
    #[must_use]
    pub fn claim(&self, path: &[Str]) -> Option<&Claim> {
        let (last, outer) = path.split_last()?;
        let mut claims = &self.claims;
        for name in outer {
            let Claim::Nested(inner) = claims.get(name)? else {
                return None;
            };
            claims = inner;
        }
        claims.get(last)
    }
}
