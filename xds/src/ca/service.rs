//! `IstioCertificateService`: authenticates, authorises, waits a moment for a late placement, signs off the async
//! threads, and answers with the leaf and the roots.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prost::Message;
use prost_types::value::Kind;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};
use tulle_model::Identity;
use tulle_model::trust::Subject;
use tulle_proto::ca::istio_certificate_service_server::IstioCertificateService;
use tulle_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

use tulle_identity::PeerInfo;

use crate::ca::authorize::{Decision, Grant, Proof, Refusal, authorize};
use crate::ca::issue::{CSR_BYTES_MAX, InvalidCsr};
use crate::ca::issued::{Entry, Issued};
use crate::ca::limit::{Holds, RateLimit};
use crate::ca::{Authority, Signed, order};
use crate::metrics::{Metrics, ReasonLabel};
use crate::serve::authenticate::{Authenticator, Caller, Principal, Unauthenticated};
use crate::snapshot::Snapshot;

/// Largest message taken: the longest CSR and some metadata.
pub const REQUEST_BYTES_MAX: usize = 4 * CSR_BYTES_MAX;
/// How long a request waits for the placement of its workload.
pub const HOLD_MAX_DEFAULT: Duration = Duration::from_secs(5);
/// What a node proxy is told whose token contradicts what is known of its pod.
const OTHER_NODE: &str = "the token of the node proxy names another node than its pod is on";
/// Domain of the reasons in refusals.
const ERROR_DOMAIN: &str = "ca.tulle.dev";

/// The service. Clones share everything.
#[derive(Debug, Clone)]
pub struct CaService {
    shared: Arc<Shared>,
    /// Another process signs.
    is_replica: bool,
}

/// What a replica says to whoever wants a certificate.
pub(super) const ON_REPLICA: &str =
    "this control plane is a read-only replica; certificates come from the one that owns the state folder";

#[derive(Debug)]
struct Shared {
    authority: Arc<Authority>,
    authenticator: Authenticator,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    rate: RateLimit,
    holds: Holds,
    hold_max: Duration,
    metrics: Metrics,
    issued: Arc<Issued>,
}

impl CaService {
    /// A service that signs for what the snapshots place on the callers' nodes, and waits up to `hold_max` for a
    /// placement that is late.
    #[must_use]
    pub fn new(
        authority: Arc<Authority>,
        authenticator: Authenticator,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: Metrics,
        hold_max: Duration,
        issued: Arc<Issued>,
        holds: Holds,
    ) -> Self {
        let shared = Shared {
            authority,
            authenticator,
            snapshots,
            rate: RateLimit::default(),
            holds,
            hold_max,
            issued,
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
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.caller(&request).await?;
        let answer = self.answer(&caller, request.into_inner()).await;
        answer.map(Response::new).map_err(|refusal| status(&refusal))
    }
}

impl CaService {
    /// Who asks.
    pub(super) async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        let caller = self
            .shared
            .authenticator
            .authenticate(peer, request.metadata())
            .await;
        let caller = caller.map_err(|error| self.shared.unauthenticated(&error))?;
        if self.is_replica {
            return Err(Status::unavailable(ON_REPLICA));
        }
        Ok(caller)
    }

    /// The answer to one request of a known caller.
    pub(super) async fn answer(
        &self,
        caller: &Caller,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let answer = self.answer_all(caller, vec![request]).await.pop();
        answer.unwrap_or(Err(Refusal::SigningFailed))
    }

    /// The answers to several requests of a known caller, in their order: each is judged by itself, what is to be signed is
    /// signed and written down together.
    pub(super) async fn answer_all(
        &self,
        caller: &Caller,
        requests: Vec<IstioCertificateRequest>,
    ) -> Vec<Result<IstioCertificateResponse, Refusal>> {
        let count = i64::try_from(requests.len()).unwrap_or(i64::MAX);
        self.shared.metrics.csr_count.inc_by(count);
        let answers = self.shared.issue(caller, requests).await.into_iter();
        let answers = answers.map(|issued| match issued {
            Ok(signed) => Ok(IstioCertificateResponse {
                cert_chain: signed.chain(),
            }),
            Err(refusal) => {
                self.shared.count(&refusal);
                let (node, reason) = (caller.name(), refusal.token());
                tracing::warn!(%node, reason, %refusal, "certificate refused");
                Err(refusal)
            }
        });
        answers.collect()
    }
}

/// A request that is to be signed.
struct Wanted {
    grant: Grant,
    csr: String,
    seconds: i64,
    /// The caller has a living certificate of the same identity.
    is_renewal: bool,
}

/// What is to be signed, and what became of it.
type Answered = (Result<Wanted, Refusal>, Result<Signed, Refusal>);

impl Shared {
    async fn issue(
        &self,
        caller: &Caller,
        requests: Vec<IstioCertificateRequest>,
    ) -> Vec<Result<Signed, Refusal>> {
        let now = self.authority.now().unix_timestamp();
        let allowed = requests
            .into_iter()
            .map(|request| self.allowed(caller, request, now));
        let allowed = join_all(allowed).await;
        let begin = Instant::now();
        let signed = self.signed(&allowed).await;
        let took = begin.elapsed().as_secs_f64();
        let signed: Vec<Answered> = allowed.into_iter().zip(signed).collect();
        let written = self.note(&signed, now).await;
        let told = signed.into_iter().map(|(wanted, signed)| {
            let (wanted, signed) = (wanted?, signed?);
            written.clone()?;
            self.metrics.issuance.observe(took);
            self.tell(&signed, &wanted.grant);
            Ok(signed)
        });
        told.collect()
    }

    /// Whether a request is to be signed.
    async fn allowed(
        &self,
        caller: &Caller,
        request: IstioCertificateRequest,
        now: i64,
    ) -> Result<Wanted, Refusal> {
        let rate = self.rate.take(&caller.name(), Instant::now());
        rate.map_err(|retry_after| Refusal::RateLimited { retry_after })?;
        if request.csr.len() > CSR_BYTES_MAX {
            return Err(InvalidCsr::TooLong(request.csr.len()).into());
        }
        let impersonated = impersonated(&request);
        let grant = self.authorized(caller, impersonated.as_deref(), now).await?;
        self.refuse_denied(&grant.identity, now)?;
        Ok(Wanted {
            is_renewal: self.issued.holds(&grant.place, &grant.identity, now),
            grant,
            csr: request.csr,
            seconds: request.validity_duration,
        })
    }

    /// Signs what is to be signed; the answers stand in the order of the requests, refused ones keep their place.
    async fn signed(&self, allowed: &[Result<Wanted, Refusal>]) -> Vec<Result<Signed, Refusal>> {
        let orders = |is_renewal: bool| {
            let wanted = allowed.iter().flatten();
            let wanted = wanted.filter(move |wanted| wanted.is_renewal == is_renewal);
            wanted
                .map(|wanted| order(wanted.csr.clone(), wanted.grant.identity.clone(), wanted.seconds))
                .collect()
        };
        let (first, renewals) = tokio::join!(
            self.authority.sign_all(orders(false), false),
            self.authority.sign_all(orders(true), true)
        );
        let (mut first, mut renewals) = (first.into_iter(), renewals.into_iter());
        let in_order = allowed.iter().map(|wanted| {
            let next = match wanted.as_ref().map_err(Clone::clone)?.is_renewal {
                true => renewals.next(),
                false => first.next(),
            };
            next.unwrap_or(Err(Refusal::SigningFailed))
        });
        in_order.collect()
    }

    fn tell(&self, issued: &Signed, Grant { identity, place }: &Grant) {
        if !issued.claimed.is_empty() {
            let name = identity.to_string();
            if issued.claimed.iter().any(|claimed| *claimed != name) {
                self.metrics.san_mismatches.inc();
            }
        }
        self.metrics.issued.inc();
        let (serial, not_after) = (&issued.leaf.serial, issued.leaf.not_after.unix_timestamp());
        tracing::info!(node = %place, %identity, %serial, not_after, "certificate issued");
    }

    /// What follows from placements says nothing here: the workload is placed.
    fn refuse_denied(&self, identity: &Identity, now: i64) -> Result<(), Refusal> {
        let now = u64::try_from(now).unwrap_or_default();
        let subject = Subject::Identity(identity.clone());
        let listed = self.authenticator.deny_list().listed();
        match listed
            .iter()
            .any(|entry| entry.subject == subject && entry.counts(now))
        {
            true => Err(Refusal::IdentityDenied("the identity is on the deny-list")),
            false => Ok(()),
        }
    }

    /// Writes down what is handed out: what is not in the log could never be denied later.
    async fn note(&self, signed: &[Answered], now: i64) -> Result<(), Refusal> {
        let entries = signed.iter().filter_map(|(wanted, signed)| {
            let (wanted, signed) = (wanted.as_ref().ok()?, signed.as_ref().ok()?);
            Some(Entry {
                serial: signed.leaf.serial.to_string(),
                identity: wanted.grant.identity.clone(),
                node: wanted.grant.place.clone(),
                not_after: signed.leaf.not_after.unix_timestamp(),
            })
        });
        let entries: Vec<Entry> = entries.collect();
        if entries.is_empty() {
            return Ok(());
        }
        self.issued.commit(entries, now).await.map_err(|error| {
            tracing::error!(%error, "issued.log cannot be written; no certificate is handed out");
            Refusal::SigningFailed
        })
    }

    /// What may be signed for; waits a moment if the workload is not known on the node yet.
    async fn authorized(
        &self,
        caller: &Caller,
        impersonated: Option<&str>,
        now: i64,
    ) -> Result<Grant, Refusal> {
        let mut snapshots = self.snapshots.clone();
        let proven = (&caller.principal, &self.proof(caller, now));
        let mut refusal = match self.decide(proven, impersonated, &mut snapshots) {
            Decision::Issue(grant) => return Ok(grant),
            Decision::Refuse(refusal) => return Err(refusal),
            Decision::Wait(refusal) => refusal,
        };
        let Some(_held) = self.holds.enter(&caller.name()) else {
            return Err(refusal);
        };
        self.metrics.held.inc();
        let waiting = async {
            loop {
                if snapshots.changed().await.is_err() {
                    return None;
                }
                match self.decide(proven, impersonated, &mut snapshots) {
                    Decision::Issue(grant) => return Some(grant),
                    Decision::Refuse(newer) | Decision::Wait(newer) => refusal = newer,
                }
            }
        };
        let placed = timeout(self.hold_max, waiting).await;
        self.metrics.held.dec();
        placed.ok().flatten().ok_or(refusal)
    }

    /// With what the caller proves who it is, and to which node that was issued.
    fn proof(&self, caller: &Caller, now: i64) -> Proof {
        match (&caller.principal, &caller.serial) {
            (Principal::Workload(identity), Some(serial)) => {
                Proof::Certificate(self.issued.node_of(identity, serial, now))
            }
            // A node's own certificate is of no workload.
            (Principal::Node(_), Some(_)) | (_, None) => Proof::Token(caller.pod_node.clone()),
        }
    }

    fn decide(
        &self,
        proven: (&Principal, &Proof),
        impersonated: Option<&str>,
        snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> Decision {
        let snapshot = snapshots.borrow_and_update();
        let trust_domain = self.authority.trust_domain();
        authorize(
            proven,
            impersonated,
            trust_domain,
            snapshot.placement(),
            snapshot.synced(),
        )
    }

    /// Only who has proven something is told why nothing is signed.
    fn unauthenticated(&self, error: &Unauthenticated) -> Status {
        tracing::debug!(%error, "unauthenticated certificate request");
        let refusal = match error {
            Unauthenticated::NoSuchPod(_) => Refusal::NoSuchPod(error.to_string().into()),
            Unauthenticated::NotSynced => Refusal::IndexNotSynced,
            Unauthenticated::OtherNode { .. } => Refusal::NodeNotTrusted(OTHER_NODE),
            _ => Refusal::Unauthenticated,
        };
        self.metrics.csr_count.inc();
        self.count(&refusal);
        match refusal {
            // Without detail: this caller is nobody we know.
            Refusal::Unauthenticated => Status::unauthenticated("credentials are missing or not known"),
            known => status(&known),
        }
    }

    fn count(&self, refusal: &Refusal) {
        let reason = ReasonLabel {
            reason: refusal.token(),
        };
        self.metrics.csr_refused.get_or_create(&reason).inc();
        match refusal {
            Refusal::Unauthenticated => self.metrics.csr_unauthenticated.inc(),
            Refusal::CsrInvalid(_) => self.metrics.csr_unparsable.inc(),
            Refusal::NoIdentity(_) => self.metrics.csr_without_identity.inc(),
            Refusal::IssuerExpired | Refusal::SigningFailed => self.metrics.csr_sign_errors.inc(),
            _ => 0,
        };
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    match request
        .metadata
        .as_ref()?
        .fields
        .get("ImpersonatedIdentity")?
        .kind
        .as_ref()?
    {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// The reason of a refusal, as a client can read it without parsing text.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

/// When to try again.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

pub(super) fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Unauthenticated => Code::Unauthenticated,
        Refusal::NotOnNode { .. }
        | Refusal::NoSuchPod(_)
        | Refusal::TrustDomain { .. }
        | Refusal::NodeNotTrusted(_)
        | Refusal::IdentityDenied(_)
        | Refusal::NoIdentity(_) => Code::PermissionDenied,
        Refusal::CsrInvalid(_) => Code::InvalidArgument,
        Refusal::RateLimited { .. } => Code::ResourceExhausted,
        Refusal::IssuerExpired => Code::FailedPrecondition,
        Refusal::IndexNotSynced => Code::Unavailable,
        Refusal::SigningFailed => Code::Internal,
    };
    let message = format!("{}: {refusal}", refusal.token());
    let mut details = vec![any(
        "google.rpc.ErrorInfo",
        &ErrorInfo {
            reason: refusal.token().to_owned(),
            domain: ERROR_DOMAIN.to_owned(),
        },
    )];
    if let Refusal::RateLimited { retry_after } = refusal {
        let retry_delay = prost_types::Duration::try_from(*retry_after).ok();
        details.push(any("google.rpc.RetryInfo", &RetryInfo { retry_delay }));
    }
    let details = tulle_proto::rpc_status::Status {
        code: i32::from(code),
        message: message.clone(),
        details,
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}
