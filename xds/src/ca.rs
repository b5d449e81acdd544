//! The certificate authority: who may have which identity, and the certificate that says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tulle_identity::Clock;
use tulle_model::{Identity, Str};

use crate::ca::authorize::Refusal;
use crate::ca::issue::{Csr, IssueError, Leaf, ServerCertificate, TTL_DEFAULT};
use crate::ca::issuer::Issuing;
use crate::ca::root::Root;

pub mod admin;
pub mod authorize;
pub mod batch;
pub mod crl;
pub mod deny;
pub mod issue;
pub mod issued;
pub mod issuer;
pub mod join;
pub mod keeper;
pub mod limit;
pub mod outside;
pub mod renew;
pub mod root;
pub mod roots;
pub mod rotation;
pub mod service;

/// Longest validity of a workload certificate, unless configured otherwise.
pub const TTL_MAX_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Requests that may wait for a signature.
pub const WAITING_MAX: usize = 10_000;
/// Requests signed in one go.
pub const WORK_ITEM_MAX: usize = 64;
/// When a request that found no place to wait may come again.
const WAITING_RETRY: Duration = Duration::from_secs(1);

/// The issuer with its bounds.
#[derive(Debug)]
pub struct Authority {
    trust_domain: Str,
    ttl_max: Duration,
    clock: Clock,
    issuing: ArcSwap<Issuing>,
    moved: watch::Sender<u64>,
    /// One signature per core at a time.
    signers: Semaphore,
    /// One renewal at a time stands in the queue for a signer, so that workloads that wait pass the others.
    renewals: Semaphore,
    waiting: AtomicUsize,
    /// Longest validity issued, in seconds.
    longest_ttl: AtomicU64,
}

/// What is to be signed: whom for was authorised before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// PEM of the PKCS#10 request.
    pub csr: String,
    /// Whom the certificate names.
    pub subject: issue::Name,
    /// Wished validity in seconds; zero or less is the default.
    pub ttl_seconds: i64,
}

/// A signed certificate, and the names its request had claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The certificate.
    pub leaf: Leaf,
    /// Certificates between it and the roots, PEM each.
    pub intermediates: Vec<Str>,
    /// PEM of what is believed.
    pub bundle: Str,
    /// What the request asked to be called.
    pub claimed: Vec<String>,
}

impl Signed {
    /// PEM of the leaf, of each intermediate, and of the roots together.
    #[must_use]
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.leaf.pem.clone()];
        chain.extend(self.intermediates.iter().map(ToString::to_string));
        chain.push(self.bundle.to_string());
        chain
    }
}

impl Authority {
    /// An authority for one trust domain with a root of its own.
    #[must_use]
    pub fn new(root: Root, trust_domain: Str, ttl_max: Duration) -> Self {
        Self::with(Issuing::of_root(root), trust_domain, ttl_max, Clock::system())
    }

    /// An authority that signs with `issuing`, by `clock`.
    #[must_use]
    pub fn with(issuing: Issuing, trust_domain: Str, ttl_max: Duration, clock: Clock) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            trust_domain,
            ttl_max,
            clock,
            moved: watch::Sender::new(issuing.generation),
            issuing: ArcSwap::from_pointee(issuing),
            signers: Semaphore::new(cores),
            renewals: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            longest_ttl: AtomicU64::new(0),
        }
    }

    /// What signs and what is believed now.
    #[must_use]
    pub fn issuing(&self) -> Arc<Issuing> {
        self.issuing.load_full()
    }

    /// The certificate that signs now.
    #[must_use]
    pub fn root(&self) -> Arc<Root> {
        self.issuing.load().signer.clone()
    }

    /// Signs with this from now on.
    pub fn set_issuing(&self, issuing: Issuing) {
        self.issuing.store(Arc::new(issuing));
        self.moved.send_modify(|moved| *moved += 1);
    }

    /// Sees a new value whenever the issuer changed.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// The trust domain it issues for.
    #[must_use]
    pub fn trust_domain(&self) -> &Str {
        &self.trust_domain
    }

    /// Longest validity of a workload certificate.
    #[must_use]
    pub fn ttl_max(&self) -> Duration {
        self.ttl_max
    }

    /// Longest validity issued by this process, in seconds.
    #[must_use]
    pub fn longest_ttl(&self) -> u64 {
        self.longest_ttl.load(Ordering::Relaxed)
    }

    /// What time it is by the authority's clock.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now().into()
    }

    /// Signs for an identity that was authorised, away from the threads that serve connections.
    ///
    /// # Errors
    /// The request is bad, or the issuer cannot sign.
    pub async fn sign(self: &Arc<Self>, order: Order, renewal: bool) -> Result<Signed, Refusal> {
        let mut signed = self.sign_all(vec![order], renewal).await;
        signed.pop().unwrap_or(Err(Refusal::SigningFailed))
    }

    /// Signs several requests in order, up to [`WORK_ITEM_MAX`] at a time.
    pub async fn sign_all(
        self: &Arc<Self>,
        orders: Vec<Order>,
        renewal: bool,
    ) -> Vec<Result<Signed, Refusal>> {
        let count = orders.len();
        let Some(_place) = self.wait_in_line(count) else {
            let refusal = Refusal::RateLimited {
                retry_after: WAITING_RETRY,
            };
            return vec![Err(refusal); count];
        };
        let mut items = Vec::new();
        let mut orders = orders.into_iter().peekable();
        while orders.peek().is_some() {
            let item: Vec<Order> = orders.by_ref().take(WORK_ITEM_MAX).collect();
            items.push(async move {
                let length = item.len();
                let signed = self.sign_item(item, renewal).await;
                signed.unwrap_or_else(|| vec![Err(Refusal::SigningFailed); length])
            });
        }
        join_all(items).await.into_iter().flatten().collect()
    }

    async fn sign_item(
        self: &Arc<Self>,
        item: Vec<Order>,
        renewal: bool,
    ) -> Option<Vec<Result<Signed, Refusal>>> {
        let turn = async {
            let _renewal = match renewal {
                true => Some(self.renewals.acquire().await.ok()?),
                false => None,
            };
            self.signers.acquire().await.ok()
        };
        let _turn = turn.await?;
        let authority = self.clone();
        let work = move || {
            let now = authority.now();
            item.iter().map(|order| authority.sign_now(order, now)).collect()
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    fn wait_in_line(&self, count: usize) -> Option<InLine<'_>> {
        let before = self.waiting.fetch_add(count, Ordering::Relaxed);
        let place = InLine {
            waiting: &self.waiting,
            count,
        };
        (before + count <= WAITING_MAX).then_some(place)
    }

    fn sign_now(&self, order: &Order, now: OffsetDateTime) -> Result<Signed, Refusal> {
        let csr = Csr::parse(&order.csr)?;
        let ttl = issue::clamp_ttl(order.ttl_seconds, self.ttl_max);
        let issuing = self.issuing.load();
        let leaf = issue::named(&issuing.signer, &csr, &order.subject, ttl, now).map_err(refusal)?;
        self.longest_ttl.fetch_max(ttl.as_secs(), Ordering::Relaxed);
        Ok(Signed {
            leaf,
            intermediates: issuing.intermediates.clone(),
            bundle: issuing.bundle.clone(),
            claimed: csr.claimed,
        })
    }

    /// A server certificate with a fresh key, for 24 hours.
    ///
    /// # Errors
    /// A name cannot be used, or the issuer cannot sign.
    pub fn server_certificate(&self, names: &[Str]) -> Result<ServerCertificate, IssueError> {
        issue::server(&self.issuing.load().signer, names, TTL_DEFAULT, self.now())
    }
}

/// Places in the line of those who wait for a signature.
struct InLine<'a> {
    waiting: &'a AtomicUsize,
    count: usize,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.count, Ordering::Relaxed);
    }
}

fn refusal(error: IssueError) -> Refusal {
    match error {
        IssueError::IssuerNotValid => Refusal::IssuerExpired,
        IssueError::Name(_) => Refusal::IdentityDenied("the identity cannot stand in a certificate"),
        IssueError::Signing(_) => Refusal::SigningFailed,
    }
}

/// An order for a workload.
#[must_use]
pub fn order(csr: String, identity: Identity, ttl_seconds: i64) -> Order {
    Order {
        csr,
        subject: issue::Name::Workload(identity),
        ttl_seconds,
    }
}

#[cfg(test)]
mod tests;
