//! The same pages on the TLS port, for callers whose identity is listed: to them all of it, to others nothing (decision
//! 0021). Loopback gets no exception.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tonic::metadata::MetadataMap;
use tulle_identity::PeerInfo;
use tulle_model::Identity;

use crate::serve::authenticate::{Authenticator, Principal};

/// Who may look.
#[derive(Debug, Clone)]
pub struct Readers {
    /// Checks credentials.
    pub authenticator: Authenticator,
    /// Identities of workloads that may read every page; empty means nobody.
    pub identities: Arc<BTreeSet<Identity>>,
}

/// Pages for nobody but the readers.
pub fn guarded(pages: Router, readers: Readers) -> Router {
    pages.layer(from_fn_with_state(readers, check))
}

async fn check(State(readers): State<Readers>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let headers = MetadataMap::from_headers(parts.headers.clone());
    let peer = parts.extensions.get::<PeerInfo>();
    let caller = readers.authenticator.authenticate(peer, &headers).await;
    let refused = match caller.map(|caller| caller.principal) {
        Ok(Principal::Workload(identity)) if readers.identities.contains(&identity) => None,
        Ok(_) => Some(StatusCode::FORBIDDEN),
        Err(error) => {
            tracing::debug!(%error, "unauthenticated reader of debug pages");
            Some(StatusCode::UNAUTHORIZED)
        }
    };
    match refused {
        Some(code) => code.into_response(),
        None => next.run(Request::from_parts(parts, body)).await,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;
    use tulle_identity::acceptor::PeerCertificate;

    use super::*;
    use crate::token::TokenStore;

    const OPERATOR: &str = "spiffe://cluster.local/ns/ops/sa/debug";

    async fn answer(uri: Option<&str>, token: Option<String>, tokens: TokenStore) -> StatusCode {
        let readers = Readers {
            authenticator: Authenticator::new(tokens),
            identities: Arc::new([OPERATOR.parse().unwrap()].into()),
        };
        let pages = guarded(
            Router::new().route("/debug/mesh", get(async || "secret")),
            readers,
        );
        let mut request = Request::builder().uri("/debug/mesh");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let certificate = uri.map(|uri| PeerCertificate {
            uri: uri.into(),
            identity: uri.parse().ok(),
            serial: "0a".into(),
            not_after: std::time::SystemTime::now() + std::time::Duration::from_secs(60),
        });
        let peer = PeerInfo {
            remote: Some(([127, 0, 0, 1], 1).into()),
            local: None,
            certificate,
        };
        let request = request.extension(peer).body(Body::empty()).unwrap();
        pages.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn only_listed_identities_read_and_loopback_is_nobody() {
        let tokens = TokenStore::memory();
        let node = tokens.create("n1").unwrap();
        assert_eq!(answer(Some(OPERATOR), None, tokens.clone()).await, StatusCode::OK);
        let other = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(
            answer(Some(other), None, tokens.clone()).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(
            answer(None, Some(node.to_string()), tokens.clone()).await,
            StatusCode::FORBIDDEN
        );
        assert_eq!(answer(None, None, tokens).await, StatusCode::UNAUTHORIZED);
    }
}
