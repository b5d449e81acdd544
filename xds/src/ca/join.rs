//! `NodeJoin`: a node comes with a join token and leaves with a certificate of its own, which it renews with itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Request, Response, Status};
use tulle_identity::PeerInfo;
use tulle_model::Str;
use tulle_proto::node_ca::node_join_server::NodeJoin;
use tulle_proto::node_ca::{JoinRequest, NodeCertificate, RenewRequest};

use crate::ca::authorize::Refusal;
use crate::ca::issue::{Csr, Name};
use crate::ca::limit::RateLimit;
use crate::ca::service::{ON_REPLICA, status};
use crate::ca::{Authority, Order};
use crate::metrics::{Metrics, ReasonLabel};
use crate::serve::authenticate::{Authenticator, Principal};
use crate::token::join::{JoinRefused, JoinTokens};

/// Validity of a node's certificate.
pub const NODE_TTL: Duration = Duration::from_secs(24 * 3600);

/// The service. Clones share everything.
#[derive(Debug, Clone)]
pub struct JoinService {
    shared: Arc<Shared>,
    /// Another process signs.
    is_replica: bool,
}

#[derive(Debug)]
struct Shared {
    authority: Arc<Authority>,
    authenticator: Authenticator,
    tokens: Arc<JoinTokens>,
    rate: RateLimit,
    metrics: Metrics,
}

impl JoinService {
    /// A service that takes these tokens.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        authenticator: Authenticator,
        tokens: Arc<JoinTokens>,
        metrics: Metrics,
    ) -> Self {
        let shared = Shared {
            authority,
            authenticator,
            tokens,
            rate: RateLimit::default(),
            metrics,
        };
        Self {
            shared: Arc::new(shared),
            is_replica: false,
        }
    }

    /// Sends everybody to the process that owns the state folder, if this one does not.
    #[must_use]
    pub fn on_replica(self, is_replica: bool) -> Self {
        Self { is_replica, ..self }
    }

    fn here(&self) -> Result<&Arc<Shared>, Status> {
        match self.is_replica {
            true => Err(Status::unavailable(ON_REPLICA)),
            false => Ok(&self.shared),
        }
    }
}

#[tonic::async_trait]
impl NodeJoin for JoinService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<NodeCertificate>, Status> {
        let from = remote(&request);
        let certificate = self.here()?.join(&from, request.into_inner()).await?;
        Ok(Response::new(certificate))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<NodeCertificate>, Status> {
        let shared = self.here()?;
        let peer = request.extensions().get::<PeerInfo>();
        // A node's token or account is not enough: only a certificate is followed by another one.
        let shown = peer.is_some_and(|peer| peer.certificate.is_some());
        let caller = shared.authenticator.authenticate(peer, request.metadata()).await;
        let node = match caller.map(|caller| caller.principal) {
            Ok(Principal::Node(node)) if shown => node,
            Ok(_) | Err(_) => return Err(shared.unauthenticated("only a node's own certificate is renewed")),
        };
        let certificate = shared.certificate(&node, request.into_inner().csr).await?;
        tracing::info!(%node, "node certificate renewed");
        Ok(Response::new(certificate))
    }
}

fn remote<T>(request: &Request<T>) -> Str {
    let peer = request.extensions().get::<PeerInfo>();
    let address = peer
        .and_then(|peer| peer.remote)
        .map(|remote| remote.ip().to_string());
    address.unwrap_or_default().into()
}

impl Shared {
    async fn join(self: &Arc<Self>, from: &Str, request: JoinRequest) -> Result<NodeCertificate, Status> {
        let rate = self.rate.take(from, Instant::now());
        rate.map_err(|retry_after| status(&Refusal::RateLimited { retry_after }))?;
        let csr = Csr::parse(&request.csr).map_err(|error| status(&error.into()))?;
        let (shared, now) = (self.clone(), self.authority.now().unix_timestamp());
        let token = request.token;
        let taken = tokio::task::spawn_blocking(move || shared.tokens.take(&token, csr.key_sha256(), now));
        let taken = taken
            .await
            .map_err(|_| Status::internal("the token cannot be judged"))?;
        let taken = taken.map_err(|refused| self.refused(from, &refused))?;
        let denied = crate::serve::authenticate::Caller::of_node(taken.node.clone());
        if self.authenticator.denial(&denied).is_some() {
            return Err(self.unauthenticated("the node is on the deny-list"));
        }
        if let Some(cert_chain) = taken.answer {
            return Ok(NodeCertificate {
                cert_chain,
                node: taken.node.to_string(),
            });
        }
        let certificate = self.certificate(&taken.node, request.csr).await?;
        let (shared, chain) = (self.clone(), certificate.cert_chain.clone());
        let noted = tokio::task::spawn_blocking(move || shared.tokens.answered(&taken.id, &chain));
        // Without the note, a repeat is signed anew for the same key.
        let _ = noted.await;
        tracing::warn!(node = %taken.node, %from, "a node has joined");
        Ok(certificate)
    }

    async fn certificate(&self, node: &Str, csr: String) -> Result<NodeCertificate, Status> {
        let order = Order {
            csr,
            subject: Name::Node {
                trust_domain: self.authority.trust_domain().clone(),
                node: node.clone(),
            },
            ttl_seconds: i64::try_from(NODE_TTL.as_secs()).unwrap_or(i64::MAX),
        };
        let signed = self
            .authority
            .sign(order, false)
            .await
            .map_err(|refusal| status(&refusal))?;
        Ok(NodeCertificate {
            cert_chain: signed.chain(),
            node: node.to_string(),
        })
    }

    fn refused(&self, from: &Str, refused: &JoinRefused) -> Status {
        let reason = match refused {
            JoinRefused::Unknown => "join_token_unknown",
            JoinRefused::Expired => "join_token_expired",
            JoinRefused::Reused { .. } => "join_token_reused",
            JoinRefused::Store => "join_token_store",
        };
        self.metrics
            .csr_refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
        if let JoinRefused::Reused { node } = refused {
            tracing::error!(%node, %from, "a join token came a second time: somebody else may have it");
        } else {
            tracing::warn!(%from, %refused, "a node did not join");
        }
        Status::unauthenticated(refused.to_string())
    }

    fn unauthenticated(&self, text: &'static str) -> Status {
        let reason = Refusal::Unauthenticated.token();
        self.metrics
            .csr_refused
            .get_or_create(&ReasonLabel { reason })
            .inc();
        Status::unauthenticated(text)
    }
}
