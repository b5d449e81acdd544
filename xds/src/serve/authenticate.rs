//! Who a caller is, from its request headers alone; and whether the node it names in its first message is its own.

use tonic::metadata::MetadataMap;
use tulle_model::Str;

use crate::token::{Token, TokenStore};

/// A caller whose credential was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The node that the credential is for.
    pub node: Str,
}

/// The caller showed no credential that is known. Which of the reasons it was stays here, in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// No `authorization` header, or several.
    #[error("the request carries no bearer token")]
    NoToken,
    /// Not of the form of a node token.
    #[error("the bearer token is no node token")]
    NotANodeToken,
    /// Not a valid token of the node it names.
    #[error("the node token is not valid")]
    Unknown,
}

/// Checks credentials against the node tokens.
#[derive(Debug, Clone)]
pub struct Authenticator {
    tokens: TokenStore,
}

impl Authenticator {
    /// An authenticator that knows these tokens.
    #[must_use]
    pub fn new(tokens: TokenStore) -> Self {
        Self { tokens }
    }

    /// Who sent a request with these headers.
    ///
    /// # Errors
    /// The credential is missing or not known.
    pub async fn authenticate(&self, headers: &MetadataMap) -> Result<Caller, Unauthenticated> {
        let token = bearer(headers).ok_or(Unauthenticated::NoToken)?;
        let token = Token::parse(token).ok_or(Unauthenticated::NotANodeToken)?;
        let (tokens, node) = (self.tokens.clone(), token.node().clone());
        let valid = tokio::task::spawn_blocking(move || tokens.check(&token)).await;
        match valid {
            Ok(true) => Ok(Caller { node }),
            _ => Err(Unauthenticated::Unknown),
        }
    }
}

fn bearer(headers: &MetadataMap) -> Option<&str> {
    let mut values = headers.get_all("authorization").iter();
    let value = values.next()?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let single = values.next().is_none();
    (single && scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim())
}

/// What kind of client a stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A node proxy.
    Ztunnel,
    /// A node agent.
    Agent,
}

/// Why the node of a stream's first message does not fit its credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The node's name is missing.
    #[error("the first request must carry a node with metadata NODE_NAME")]
    NoNodeName,
    /// The node's name contradicts the credential.
    #[error("the credential is for node {credential}, the request for node {claimed}")]
    OtherNode {
        /// Node of the credential.
        credential: Str,
        /// Node of the request, cut.
        claimed: String,
    },
    /// Node tokens are for node proxies and agents.
    #[error("a node token serves clients of type ztunnel and agent, not `{0}`")]
    OtherKind(String),
}

/// The kind of a client, given its node id (`<type>~…`) and the node it names.
///
/// # Errors
/// They do not fit the credential.
pub fn admit(caller: &Caller, node_id: &str, node_name: Option<&str>) -> Result<Kind, NotAdmitted> {
    let claimed = node_name.ok_or(NotAdmitted::NoNodeName)?;
    if *claimed != *caller.node {
        return Err(NotAdmitted::OtherNode {
            credential: caller.node.clone(),
            claimed: cut(claimed),
        });
    }
    match node_id.split('~').next().unwrap_or_default() {
        "ztunnel" => Ok(Kind::Ztunnel),
        "agent" => Ok(Kind::Agent),
        other => Err(NotAdmitted::OtherKind(cut(other))),
    }
}

/// Foreign text for a message: short and printable.
fn cut(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> MetadataMap {
        let mut headers = MetadataMap::new();
        for value in values {
            headers.append("authorization", value.parse().unwrap());
        }
        headers
    }

    #[tokio::test]
    async fn a_valid_token_names_its_node() {
        let tokens = TokenStore::memory();
        let token = tokens.create("n1").unwrap();
        let authenticator = Authenticator::new(tokens);
        let caller = authenticator
            .authenticate(&headers(&[&format!("Bearer {token}")]))
            .await;
        assert_eq!(caller, Ok(Caller { node: "n1".into() }));
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let tokens = TokenStore::memory();
        let token = tokens.create("n1").unwrap();
        let authenticator = Authenticator::new(tokens);
        let bearer = format!("Bearer {token}");
        let forged = format!("Bearer tulle1.n1.{}", "0".repeat(64));
        for (values, expected) in [
            (&[][..], Unauthenticated::NoToken),
            (&["Basic abc"][..], Unauthenticated::NoToken),
            (&[&*bearer, &*bearer][..], Unauthenticated::NoToken),
            (&["Bearer eyJhbGciOi.J9.x"][..], Unauthenticated::NotANodeToken),
            (&[&*forged][..], Unauthenticated::Unknown),
        ] {
            let refused = authenticator.authenticate(&headers(values)).await;
            assert_eq!(refused, Err(expected), "{values:?}");
        }
    }

    #[test]
    fn the_named_node_must_be_that_of_the_credential() {
        let caller = Caller { node: "n1".into() };
        assert_eq!(
            admit(&caller, "ztunnel~1.1.1.1~a.b~b.svc.cluster.local", Some("n1")),
            Ok(Kind::Ztunnel)
        );
        assert_eq!(
            admit(&caller, "agent~1.1.1.1~a.b~b.svc.cluster.local", Some("n1")),
            Ok(Kind::Agent)
        );
        assert_eq!(admit(&caller, "ztunnel~x", None), Err(NotAdmitted::NoNodeName));
        assert!(matches!(
            admit(&caller, "ztunnel~x", Some("n2")),
            Err(NotAdmitted::OtherNode { .. })
        ));
        assert!(matches!(
            admit(&caller, "sidecar~x", Some("n1")),
            Err(NotAdmitted::OtherKind(_))
        ));
    }
}
