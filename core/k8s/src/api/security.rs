//! Kinds of `security.istio.io`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tulle_model::Str;

use super::meta::{Labels, Meta};

/// Who may talk to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct AuthorizationPolicy {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state; apart, so that it does not make objects of every other kind as large as it is.
    pub spec: Box<AuthorizationPolicySpec>,
    /// Why the spec cannot be read, if so. What it selects, as far as that could be read, still stands.
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

/// A security object of which at most the reach could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong with it.
    pub cause: String,
    /// It has a selector, and that cannot be read.
    pub selector: bool,
}

/// Rules of an [`AuthorizationPolicy`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// The workloads it applies to; absent or empty is all.
    pub selector: Option<LabelSelector>,
    /// The objects it applies to, enforced by their waypoints.
    pub target_refs: Vec<PolicyTargetRef>,
    /// The same, older form.
    pub target_ref: Option<PolicyTargetRef>,
    /// What it does; empty is `ALLOW`.
    pub action: Str,
    /// The rules.
    pub rules: Vec<AuthorizationRule>,
    /// Who decides for `CUSTOM`.
    pub provider: Option<Provider>,
}

/// A provider by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Provider {
    /// The name.
    pub name: Str,
}

/// Workloads by label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// The labels.
    pub match_labels: Labels,
}

/// An object a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PolicyTargetRef {
    /// Group.
    pub group: Str,
    /// Kind.
    pub kind: Str,
    /// Name.
    pub name: Str,
    /// Namespace; only the policy's own.
    pub namespace: Str,
}

/// One rule: all that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct AuthorizationRule {
    /// Sources, any of them.
    pub from: Vec<From>,
    /// Operations, any of them.
    pub to: Vec<To>,
    /// Further conditions, all of them.
    pub when: Vec<When>,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct From {
    /// The source; absent is any.
    pub source: Option<Source>,
}

/// What is asked of a source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Identities without `spiffe://`.
    pub principals: Vec<Str>,
    /// None of these.
    pub not_principals: Vec<Str>,
    /// Identities of a request's token.
    pub request_principals: Vec<Str>,
    /// None of these.
    pub not_request_principals: Vec<Str>,
    /// Namespaces.
    pub namespaces: Vec<Str>,
    /// None of these.
    pub not_namespaces: Vec<Str>,
    /// Service accounts, `namespace/name` or `name`.
    pub service_accounts: Vec<Str>,
    /// None of these.
    pub not_service_accounts: Vec<Str>,
    /// Addresses or ranges of the peer.
    pub ip_blocks: Vec<Str>,
    /// None of these.
    pub not_ip_blocks: Vec<Str>,
    /// Addresses or ranges of the original client.
    pub remote_ip_blocks: Vec<Str>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<Str>,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct To {
    /// The operation; absent is any.
    pub operation: Option<Operation>,
}

/// What is asked of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Host names.
    pub hosts: Vec<Str>,
    /// None of these.
    pub not_hosts: Vec<Str>,
    /// Ports.
    pub ports: Vec<Str>,
    /// None of these.
    pub not_ports: Vec<Str>,
    /// Methods.
    pub methods: Vec<Str>,
    /// None of these.
    pub not_methods: Vec<Str>,
    /// Paths.
    pub paths: Vec<Str>,
    /// None of these.
    pub not_paths: Vec<Str>,
}

/// A further condition.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct When {
    /// Attribute.
    pub key: Str,
    /// Values, any of them.
    pub values: Vec<Str>,
    /// None of these.
    pub not_values: Vec<Str>,
}

/// Whether callers must use mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PeerAuthentication {
    /// Metadata.
    pub metadata: Meta,
    /// The modes.
    pub spec: PeerAuthenticationSpec,
    /// Why the spec cannot be read, if so.
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

/// Modes of a [`PeerAuthentication`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// The workloads it applies to; absent or empty is the namespace.
    pub selector: Option<LabelSelector>,
    /// For ports without a mode of their own.
    pub mtls: Mtls,
    /// By port of the workload.
    #[serde(deserialize_with = "ports")]
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

/// Field names are text; ports are numbers.
fn ports<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u16, Mtls>, D::Error> {
    let by_name = BTreeMap::<String, Mtls>::deserialize(deserializer)?;
    by_name
        .into_iter()
        .map(|(name, mtls)| match name.parse() {
            Ok(0) | Err(_) => Err(serde::de::Error::custom(format!("`{name}` is no port"))),
            Ok(port) => Ok((port, mtls)),
        })
        .collect()
}

/// A mode in its wrapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Mtls {
    /// The mode.
    pub mode: MtlsMode,
}

/// Whether callers must use mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// As the next wider policy says.
    #[default]
    Unset,
    /// Counts as permissive.
    Disable,
    /// Both are accepted.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// What tokens a request must carry. Enforced by waypoints only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RequestAuthentication {
    /// Metadata.
    pub metadata: Meta,
    /// Wanted state; apart, so that it does not make objects of every other kind as large as it is.
    pub spec: Box<RequestAuthenticationSpec>,
    /// Why the spec cannot be read, if so.
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

/// Attachment and tokens of a [`RequestAuthentication`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthenticationSpec {
    /// The workloads it applies to.
    pub selector: Option<LabelSelector>,
    /// The objects it applies to.
    pub target_refs: Vec<PolicyTargetRef>,
    /// The same, older form.
    pub target_ref: Option<PolicyTargetRef>,
    /// The issuers.
    pub jwt_rules: Vec<JwtRule>,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// Its name.
    pub issuer: Str,
    /// Audiences, any of them.
    pub audiences: Vec<Str>,
    /// Where its keys are.
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: Str,
    /// Its keys.
    pub jwks: Str,
    /// Headers that a token may stand in.
    pub from_headers: Vec<JwtHeader>,
    /// Parameters that a token may stand in.
    pub from_params: Vec<Str>,
    /// Cookies that a token may stand in.
    pub from_cookies: Vec<Str>,
    /// The application gets the token, too.
    pub forward_original_token: bool,
    /// Header that gets the payload.
    pub output_payload_to_header: Str,
    /// Headers that get claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// How long fetching keys may take.
    pub timeout: Option<super::duration::Span>,
}

/// A header with a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct JwtHeader {
    /// Name.
    pub name: Str,
    /// What stands before the token.
    pub prefix: Str,
}

/// A header that gets a claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ClaimToHeader {
    /// Name.
    pub header: Str,
    /// The claim.
    pub claim: Str,
}

impl LabelSelector {
    /// The labels of a selector that says anything: an empty one counts as none.
    #[must_use]
    pub fn labels(selector: Option<&Self>) -> Option<&Labels> {
        selector
            .map(|selector| &selector.match_labels)
            .filter(|labels| !labels.is_empty())
    }
}
