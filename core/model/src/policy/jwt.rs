//! Which tokens are valid, and where they stand in a request.

use std::time::Duration;

use crate::name::Str;

/// The issuers of one `RequestAuthentication`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Jwt {
    /// One rule per issuer.
    pub rules: Vec<JwtRule>,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Its name, the `iss` of its tokens.
    pub issuer: Str,
    /// Audiences, any of them; empty is any.
    pub audiences: Vec<Str>,
    /// Where its keys are.
    pub keys: Keys,
    /// Headers that a token may stand in. Without any place, the usual ones.
    pub from_headers: Vec<FromHeader>,
    /// Parameters of the query that a token may stand in.
    pub from_params: Vec<Str>,
    /// Cookies that a token may stand in.
    pub from_cookies: Vec<Str>,
    /// The application gets the token, too.
    pub forward_token: bool,
    /// Header that gets the payload.
    pub payload_to_header: Option<Str>,
    /// Headers that get claims.
    pub claims_to_headers: Vec<ClaimToHeader>,
    /// How long fetching keys may take; `None` is the default.
    pub timeout: Option<Duration>,
}

/// Where keys are. A waypoint fetches them, never the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Keys {
    /// Written out.
    Inline(Str),
    /// At an address.
    Uri(Str),
    /// At the address that the issuer's metadata names.
    #[default]
    Discover,
}

/// A header with a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FromHeader {
    /// Name.
    pub name: Str,
    /// What stands before the token.
    pub prefix: Str,
}

/// A header that gets a claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimToHeader {
    /// Name.
    pub header: Str,
    /// The claim; dots lead into nested ones.
    pub claim: Str,
}
